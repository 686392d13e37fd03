"""A conversion that is killed at any moment, and then started again, gives the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from shutil import rmtree

import pytest
from dying import UNITS, contents, convert, spawn, written_units

from subbyte import _native
from subbyte.convert.journal import journal_path
from subbyte.planning import folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

KILLS = int(os.environ.get("SUBBYTE_TEST_KILLS", "20"))
SEED = int(os.environ.get("SUBBYTE_TEST_SEED", "1"))


@pytest.fixture(params=["out.gguf", "out"])
def name(request: pytest.FixtureRequest) -> str:
    """A file and a folder as targets."""
    return str(request.param)


@pytest.fixture
def good(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The bytes of an uninterrupted run, in many small units."""
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 14)
    monkeypatch.setattr(folder, "SHARD", 5_000_000)
    dst = tmp_path / "good" / name
    convert(dst)
    return contents(dst)


def clean(dst: Path) -> None:
    """Forget a finished conversion."""
    manifest = [] if dst.is_dir() else [f"{dst.name}.subbyte.json"]
    assert sorted(p.name for p in dst.parent.glob(f"{dst.name}*")) == [dst.name, *manifest]
    if dst.is_dir():
        rmtree(dst)
    else:
        dst.unlink()


def noted(dst: Path) -> int:
    """Units that the journal of an unfinished conversion says are written."""
    journal = journal_path(dst)
    lines = journal.read_text().splitlines(keepends=True)[1:] if journal.exists() else []
    return len({json.loads(line)["unit"] for line in lines if line.endswith("\n")})


def test_killed_at_random_moments(tmp_path: Path, name: str, good: dict[str, bytes]) -> None:
    dst, log = tmp_path / name, tmp_path / "log"

    def job() -> None:
        written_units(log)()
        convert(dst)

    start = time.perf_counter()
    os.waitpid(spawn(job), 0)
    takes = time.perf_counter() - start
    units = log.stat().st_size
    assert units > 300
    assert contents(dst) == good
    clean(dst)
    log.unlink()
    moments, kills, runs, redone, lost, most = random.Random(SEED), 0, 0, 0, 0, 0
    while kills < KILLS:
        child = spawn(job)
        time.sleep(moments.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        before, written = lost, log.stat().st_size if log.exists() else 0
        lost = written - (units if dst.exists() else noted(dst))  # of this conversion, by all kills so far
        assert 0 <= lost - before <= 1, f"kill {kills} has {lost - before} units written again"
        most = max(most, lost - before)
        if dst.exists() or kills == KILLS:
            assert os.waitpid(spawn(job), 0)[1] == 0  # does nothing where the last run was complete
            assert contents(dst) == good
            assert log.stat().st_size == units + lost
            redone, lost = redone + lost, 0
            clean(dst)
            log.unlink()
            runs += 1
    print(
        f"{kills} kills over {runs} conversions of {units} units: {redone} units written again, at most {most} for "
        "one kill; 0 bytes differ"
    )


def test_killed_at_every_call_to_the_system(
    tmp_path: Path, name: str, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 20)
    dst = tmp_path / name
    deaths = 0
    for nth in range(1, 2000):

        def job(nth: int = nth) -> None:
            _native.fault_arm(nth, -1)
            convert(dst)

        _, status = os.waitpid(spawn(job), 0)
        if not os.WIFSIGNALED(status):
            break
        deaths += 1
        assert not dst.exists() or contents(dst) == good
        if nth % 8 == 0 or nth > 560:  # also let the unfinished files of several deaths pile up
            convert(dst)
            assert contents(dst) == good
            clean(dst)
    assert deaths > 50
    assert contents(dst) == good
