"""Conversions onto file systems that are really full: mounted for the test, skipped where that is not permitted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from dying import UNITS, contents, convert

import subbyte
from checkpoints import SMALL_LLAMA
from subbyte.convert.journal import journal_path, partial_path
from subbyte.planning import folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts")

SIZE = 36 << 20
SHARES = [0.1, 0.5, 0.99]


def _mount(kind: str, place: Path) -> None:
    disk = place / "disk"
    disk.mkdir()
    if kind == "tmpfs":
        commands = [["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]]
    else:
        image = place / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        commands = [["mkfs." + kind, "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(disk)]]
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "ext4", "ext2"])  # the first two reserve space for a file, the last cannot
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    _mount(request.param, tmp_path)
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.fixture(scope="module", params=["out.gguf", "out"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What an uninterrupted run makes on a disk with space, in many small units: a file, and a folder."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(UNITS, "CHUNK", 1 << 14)
        patches.setattr(folder, "SHARD", 5_000_000)
        dst = tmp_path_factory.mktemp("good") / str(request.param)
        convert(dst)
        yield dst


def _nbytes(dst: Path) -> int:
    return sum(map(len, contents(dst).values()))


def _free(disk: Path) -> int:
    facts = os.statvfs(disk)
    return facts.f_bavail * facts.f_frsize


class Ballast:
    """Another file on the disk, and the sources: what a conversion has to leave as they are."""

    def __init__(self, disk: Path) -> None:
        self.path = disk / "ballast"
        self._before = self._sources()

    def grow(self, leave: int = 0) -> None:
        """Write until the disk has no more than ``leave`` bytes free."""
        with self.path.open("ab", buffering=0) as file, suppress(OSError):
            for step in (1 << 16, 1 << 9):
                while _free(self.path.parent) > leave + step:
                    file.write(b"\xa5" * step)
            while leave == 0:  # the file system may have more than it says
                file.write(b"\xa5")
        with self.path.open("rb") as file:  # until the file system has decided where it goes
            os.fsync(file.fileno())
        assert _free(self.path.parent) <= leave + (1 << 12)

    def check(self) -> None:
        """See that nothing happened to them."""
        data = self.path.read_bytes()
        assert data.count(0xA5) == len(data) > 0
        assert self._sources() == self._before

    @staticmethod
    def _sources() -> dict[str, tuple[bytes, int]]:
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in SMALL_LLAMA.iterdir()}


def _stopped(dst: Path, error: subbyte.Error, ballast: Ballast, *, before: bool = False) -> None:
    """One clear sentence, and nothing but what the next run goes on from: something if there was ``before``."""
    assert "No space left on device" in str(error) or "bytes are needed" in str(error), error
    assert str(dst.parent) in str(error)
    assert "\n" not in str(error)
    ballast.check()
    left = {file.name for file in dst.parent.iterdir() if file.name not in ("lost+found", ballast.path.name)}
    kept = before or "the same command goes on from there" in str(error)
    assert left == ({journal_path(dst).name, partial_path(dst).name} if kept else set())


def _goes_on(dst: Path, good: Path) -> subbyte.Report:
    report = convert(dst)
    assert contents(dst) == contents(good)
    assert {path.name for path in dst.parent.iterdir()} - {"lost+found"} == {p.name for p in good.parent.iterdir()}
    print(f"{100 * report.resumed // _nbytes(good)} % were there")
    return report


@pytest.mark.parametrize("share", SHARES)
def test_too_little_space(disk: Path, good: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the check of space saw more than there is."""
    dst, ballast = disk / good.name, Ballast(disk)
    ballast.grow(leave=int(_nbytes(good) * share))
    with monkeypatch.context() as patches:
        patches.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 60))
        with pytest.raises(subbyte.Error) as found:
            convert(dst)
    print(found.value)
    _stopped(dst, found.value, ballast)
    ballast.path.unlink()
    _goes_on(dst, good)


@pytest.mark.parametrize("share", SHARES)
def test_space_that_vanishes(disk: Path, good: Path, share: float) -> None:
    """Another program takes all that is left once a part is written: from there on the journal has no space either."""
    dst, ballast = disk / good.name, Ballast(disk)

    def progress(done: int, total: int, _: str) -> None:
        if done >= share * total and not ballast.path.exists():
            ballast.grow()

    with pytest.raises(subbyte.IoError) as found:
        convert(dst, progress=progress)
    print(found.value)
    _stopped(dst, found.value, ballast)
    with pytest.raises(subbyte.Error) as again:
        convert(dst)
    _stopped(dst, again.value, ballast, before=True)
    ballast.path.unlink()
    assert _goes_on(dst, good).resumed > 0.9 * share * _nbytes(good)


@pytest.mark.parametrize("disk", ["tmpfs"], indirect=True)
def test_the_command_says_so_in_one_line(disk: Path, good: Path) -> None:
    dst, ballast = disk / good.name, Ballast(disk)
    ballast.grow(leave=_nbytes(good) // 2)
    to = "gguf.q4_k_m" if good.suffix else "hf.f32"
    command = [sys.executable, "-m", "subbyte.cli", "convert", str(SMALL_LLAMA), str(dst), "--to", to]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"bytes are needed in {disk}" in done.stderr
    ballast.path.unlink()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert dst.exists()
