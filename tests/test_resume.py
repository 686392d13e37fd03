"""Runs that stop and go on: the same bytes, nothing lost, no two at once, and clear words about all of it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte import _native
from subbyte.convert.journal import Journal, journal_path, partial_path
from subbyte.convert.manifest import manifest_path, read_manifest
from subbyte.convert.source import open_source

UNITS = sys.modules["subbyte.convert.units"]
TINY = GOLDEN / "convert" / "tiny-llama"
TO = "gguf.q4_k_m"


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units, so that there is something to go on from."""
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 16)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    dst = tmp_path_factory.mktemp("good") / "out.gguf"
    subbyte.convert(SMALL_LLAMA, dst, to=TO)
    return dst.read_bytes()


class Stop:
    """A progress that raises after some units."""

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.left, self.error = after, error

    def __call__(self, done: int, total: int, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def stop(dst: Path, after: int = 20, src: Path = SMALL_LLAMA, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        subbyte.convert(src, dst, **{"to": TO, "progress": Stop(after), **options})


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def complete(dst: Path) -> list[str]:
    return sorted([dst.name, manifest_path(dst).name])


def test_the_same_command_goes_on(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    stop(dst)
    assert names(tmp_path) == sorted([journal_path(dst).name, partial_path(dst).name])
    stop(dst, after=60)
    seen: list[int] = []
    report = subbyte.convert(SMALL_LLAMA, dst, to=TO, progress=lambda done, total, name: seen.append(done))
    assert dst.read_bytes() == good
    assert seen == sorted(seen)
    assert seen[-1] == sum(row.nbytes for row in report.tensors)
    assert report.resumed == seen[59]  # 20 units, then 40 more
    assert "from an earlier run" in report.summary()
    assert names(tmp_path) == complete(dst)


def test_the_same_command_after_success_does_nothing(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    first = subbyte.convert(SMALL_LLAMA, dst, to=TO)

    def files() -> dict[str, tuple[int, int, int]]:
        stats = {entry.name: entry.stat() for entry in tmp_path.iterdir()}
        return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in stats.items()}

    before = files()
    for options in ({}, {"overwrite": True}):
        again = subbyte.convert(SMALL_LLAMA, dst, to=TO, **options)
        assert again.unchanged
        assert "nothing to do" in again.summary()
        assert again.tensors == first.tensors
        assert files() == before
    assert not subbyte.convert(SMALL_LLAMA, dst, to=TO, fresh=True).unchanged
    assert dst.read_bytes() == good
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(SMALL_LLAMA, dst, to="gguf.q8_0")
    os.utime(dst, ns=(1, 1))  # touched since: the hashes tell
    assert subbyte.convert(SMALL_LLAMA, dst, to=TO).unchanged
    assert names(tmp_path) == complete(dst)
    dst.write_bytes(dst.read_bytes() + b"\0")
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(SMALL_LLAMA, dst, to=TO)


def test_fresh_starts_over(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    stop(dst)
    assert subbyte.convert(SMALL_LLAMA, dst, to=TO, fresh=True).resumed == 0
    assert dst.read_bytes() == good


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pure": True}, r"option pure False \(now True\)"),
        ({"to": "gguf.q5_k_m"}, r"option to gguf.q4_k_m \(now gguf.q5_k_m\)"),
        ({"tensor_type": ["attn_q=q8_0"]}, "option tensor_type"),
    ],
)
def test_other_options_do_not_go_on(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    dst = tmp_path / "out.gguf"
    stop(dst)
    left = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    with pytest.raises(subbyte.ArgumentError, match=says):
        subbyte.convert(SMALL_LLAMA, dst, **{"to": TO, **change})
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == left
    subbyte.convert(SMALL_LLAMA, dst, **{"to": TO, **change}, fresh=True)
    assert names(tmp_path) == complete(dst)


def test_another_source_or_version_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 10)
    source, dst = checkpoint(tmp_path / "model"), tmp_path / "out.gguf"
    stop(dst, src=source, to="gguf.q8_0")
    weights = source / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    with pytest.raises(subbyte.ArgumentError, match=r"source file model\.safetensors"):
        subbyte.convert(source, dst, to="gguf.q8_0")
    text = journal_path(dst).read_text().replace(f'"subbyte":"{subbyte.__version__}"', '"subbyte":"0.0.1"')
    journal_path(dst).write_text(text)
    with pytest.raises(subbyte.ArgumentError, match=rf"subbyte 0.0.1 \(now {subbyte.__version__}\)"):
        subbyte.convert(source, dst, to="gguf.q8_0")


def _torn_line(dst: Path) -> None:
    text = journal_path(dst).read_bytes()
    journal_path(dst).write_bytes(text[:-7])


def _garbage(dst: Path) -> None:
    with journal_path(dst).open("ab") as file:
        file.write(bytes(4096))


def _unknown_unit(dst: Path) -> None:
    with journal_path(dst).open("a") as file:
        file.write('{"unit":100000,"sha256":"00"}\n')


def _no_header(dst: Path) -> None:
    journal_path(dst).write_bytes(b"\n" + journal_path(dst).read_bytes())


def _no_partial(dst: Path) -> None:
    partial_path(dst).unlink()


def _short_partial(dst: Path) -> None:
    os.truncate(partial_path(dst), 1000)


def _lost_pages(dst: Path) -> None:
    data = bytearray(partial_path(dst).read_bytes())
    data[len(data) // 8 : len(data) // 4] = bytes(len(data) // 4 - len(data) // 8)
    partial_path(dst).write_bytes(data)


@pytest.mark.parametrize(
    "damage", [_torn_line, _garbage, _unknown_unit, _no_header, _no_partial, _short_partial, _lost_pages]
)
def test_a_damaged_journal_or_file_costs_work_but_no_bytes(
    tmp_path: Path, good: bytes, damage: Callable[[Path], None]
) -> None:
    dst = tmp_path / "out.gguf"
    stop(dst, after=60)
    damage(dst)
    subbyte.convert(SMALL_LLAMA, dst, to=TO)
    assert dst.read_bytes() == good
    assert names(tmp_path) == complete(dst)


def test_the_partial_file_is_not_followed_through_a_link(tmp_path: Path, good: bytes) -> None:
    precious = tmp_path / "precious"
    dst = tmp_path / "out" / "out.gguf"
    stop(dst)
    precious.write_bytes(partial_path(dst).read_bytes())
    before = precious.read_bytes()
    partial_path(dst).unlink()
    partial_path(dst).symlink_to(precious)
    with pytest.raises(subbyte.IoError):
        subbyte.convert(SMALL_LLAMA, dst, to=TO)
    subbyte.convert(SMALL_LLAMA, dst, to=TO, fresh=True)
    assert dst.read_bytes() == good
    assert precious.read_bytes() == before


def test_a_second_run_is_refused_and_can_wait(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    with Journal.open(dst):
        with pytest.raises(subbyte.BusyError, match="another conversion to this target is running"):
            subbyte.convert(SMALL_LLAMA, dst, to=TO)
        assert names(tmp_path) == [journal_path(dst).name]
    assert names(tmp_path) == []
    script = f"""
import subbyte, sys, time
def progress(*_):
    print("started", flush=True)
    time.sleep(0.02)
subbyte.convert({str(SMALL_LLAMA)!r}, {str(dst)!r}, to={TO!r}, progress=progress)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(subbyte.BusyError):
            subbyte.convert(SMALL_LLAMA, dst, to=TO)
        report = subbyte.convert(SMALL_LLAMA, dst, to=TO, wait=True)
        other.stdout.read()
    assert other.returncode == 0
    assert report.unchanged or report.resumed == 0
    assert dst.read_bytes() == good
    assert names(tmp_path) == complete(dst)


def test_cancel(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    asked = iter([False] * 10 + [True])
    with pytest.raises(subbyte.CancelledError, match="goes on from there"):
        subbyte.convert(SMALL_LLAMA, dst, to=TO, cancel=lambda: next(asked))
    assert len(journal_path(dst).read_text().splitlines()) == 12
    subbyte.convert(SMALL_LLAMA, dst, to=TO)
    assert dst.read_bytes() == good


def test_a_source_that_cannot_be_converted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 10)
    tensors = llama_tensors()
    tensors["lm_head.weight"][30, 5] = np.nan
    source, out = checkpoint(tmp_path / "model", tensors), tmp_path / "out"
    for target in ("gguf.q8_0", "gguf.f32", "gguf.bf16"):
        with pytest.raises(subbyte.NonFiniteError, match=r"'lm_head\.weight': row 30, column 5"):
            subbyte.convert(source, out / "out.gguf", to=target)
        assert not out.exists()


def test_an_error_in_the_callback_is_passed_on(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    with pytest.raises(ZeroDivisionError):
        subbyte.convert(SMALL_LLAMA, dst, to=TO, progress=Stop(5, ZeroDivisionError))
    assert subbyte.convert(SMALL_LLAMA, dst, to=TO).resumed
    assert dst.read_bytes() == good


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("target", ["gguf.q8_0", "gguf.iq3_s"])
def test_ctrl_c_ends_within_a_second_and_says_how_to_go_on(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "out.gguf"
    script = """
import sys, subbyte.cli
run = sys.modules.setdefault("subbyte.convert.run", __import__("importlib").import_module("subbyte.convert.run"))
advance = run._Job._advance
def slowly(job, unit):
    advance(job, unit)
    if unit.number == 2:
        print("started", flush=True)
    run.time.sleep(0.05)
sys.modules["subbyte.convert.units"].CHUNK = 1 << 18
run._Job._advance = slowly
sys.exit(subbyte.cli.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, "convert", str(SMALL_LLAMA), str(dst), "--to", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "started\n"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=20)
        took = time.monotonic() - begin
        words = process.stderr.read()
    assert code == 130
    assert took < 2, f"{took:.2f} s"  # one second, and as much for a busy machine
    assert "% is done; the same command goes on from there" in words
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 18)
    assert subbyte.convert(SMALL_LLAMA, dst, to=target).resumed


def test_every_failing_call_can_be_gone_on_from(tmp_path: Path) -> None:
    """Each call to the system fails once in each way; the next run completes what the failed one left."""
    good = tmp_path / "good" / "out.gguf"
    subbyte.convert(TINY, good, to="gguf.q8_0")
    out = tmp_path / "work" / "out.gguf"
    out.parent.mkdir()
    for error, fails in ((errno.EIO, True), (errno.ENOSPC, True), (errno.EINTR, False), (0, False)):
        failures = []
        for nth in range(1, 400):
            _native.fault_arm(nth, error)
            try:
                subbyte.convert(TINY, out, to="gguf.q8_0")
            except subbyte.Error as found:
                failures.append(str(found))
            finally:
                calls = _native.fault_disarm()
            assert not out.exists() or out.read_bytes() == good.read_bytes()
            subbyte.convert(TINY, out, to="gguf.q8_0")
            assert out.read_bytes() == good.read_bytes()
            assert names(out.parent) == complete(out)
            out.unlink()
            manifest_path(out).unlink()
            if calls < nth:
                break
        else:
            pytest.fail("the conversion made more than 400 calls")
        assert (len(failures) > 80) == fails, failures
        assert all(str(tmp_path) in failure or str(TINY) in failure for failure in failures)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_disk_that_fills_up(tmp_path: Path, good: bytes, share: float) -> None:
    """Where space cannot be reserved the disk may fill later: a clean stop, and the next run goes on."""
    dst = tmp_path / "out.gguf"
    _native.fault_arm(1 << 40, 0)
    subbyte.convert(SMALL_LLAMA, tmp_path / "count.gguf", to=TO)
    calls = _native.fault_disarm()
    _native.fault_arm(int(calls * share), errno.ENOSPC)
    try:
        with pytest.raises(subbyte.Error, match="space"):
            subbyte.convert(SMALL_LLAMA, dst, to=TO)
    finally:
        _native.fault_disarm()
    assert not dst.exists()
    subbyte.convert(SMALL_LLAMA, dst, to=TO)
    assert dst.read_bytes() == good


def test_the_source_is_never_written(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model")
    before = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in source.iterdir()}
    inside = source / "out.gguf"
    subbyte.convert(source, inside, to="gguf.q8_0")
    assert subbyte.convert(source, inside, to="gguf.q8_0").unchanged  # the new files are no part of the source
    for name, (data, modified) in before.items():
        assert ((source / name).read_bytes(), (source / name).stat().st_mtime_ns) == (data, modified)


def test_the_manifest_holds_hashes_that_anyone_can_compute(tmp_path: Path) -> None:
    import hashlib

    dst = tmp_path / "out.gguf"
    report = subbyte.convert(SMALL_LLAMA, dst, to=TO)
    manifest = read_manifest(dst)
    assert manifest is not None
    assert manifest.describes(dst)
    data = json.loads(manifest_path(dst).read_text())
    assert data["report"]["tensors"] == json.loads(json.dumps(report.to_json()))["tensors"]
    (facts,) = manifest.files.values()
    header = dst.read_bytes()[: facts.header_nbytes]
    assert hashlib.sha256(header).hexdigest() == facts.header_sha256
    recipes = {recipe.name: recipe for recipe in open_source(dst).recipes}
    for row in report.tensors:
        recipe = recipes[row.name]
        units = [
            hashlib.sha256(recipe.read(first, min(first + row.unit_rows, recipe.rows)).tobytes()).digest()
            for first in range(0, recipe.rows, row.unit_rows)
        ]
        assert hashlib.sha256(b"".join(units)).hexdigest() == row.sha256


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"subbyte_manifest": 1}', '{"subbyte_manifest": 2}'])
def test_a_broken_manifest_proves_nothing(tmp_path: Path, text: str) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    manifest_path(dst).write_text(text)
    with pytest.raises(subbyte.Error):
        read_manifest(dst)
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(TINY, dst, to="gguf.q8_0")
    assert not subbyte.convert(TINY, dst, to="gguf.q8_0", overwrite=True).unchanged


def test_an_unfinished_file_goes_when_the_complete_one_is_kept(tmp_path: Path, good: bytes) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(SMALL_LLAMA, dst, to=TO)
    stop(dst, to="gguf.q8_0", overwrite=True)
    assert partial_path(dst).exists()
    assert subbyte.convert(SMALL_LLAMA, dst, to=TO).unchanged
    assert dst.read_bytes() == good
    assert names(tmp_path) == complete(dst)
