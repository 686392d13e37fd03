"""What the benches share: CPU time of one thread, peers taking turns; processes; the recorded figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent.parent / "record"
#: A sample lasts at least this long; shorter calls are repeated within it.
SAMPLE_NS = 100_000
LEAST_SAMPLES = 5


@dataclass(frozen=True)
class Time:
    """Nanoseconds of one call."""

    best: float
    median: float

    def minus(self, other: Time) -> Time:
        """Without what another call takes."""
        return Time(self.best - other.best, self.median - other.median)

    def rates(self, weights: int) -> dict[str, float]:
        """Millions of weights per second."""
        return {"best": round(weights / self.best * 1e3, 2), "median": round(weights / self.median * 1e3, 2)}


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Time]:
    """Times every call in turn (A B A B …) for about ``seconds`` each, by the CPU time of this thread.

    CPU time leaves out preemption; taking turns gives every call its share of whatever else disturbs the machine.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    while waiting := [n for n in calls if spent[n] < seconds * 1e9 or len(samples[n]) < LEAST_SAMPLES]:
        for name in waiting:
            taken = _sample(calls[name], repeats[name])
            spent[name] += taken
            samples[name].append(taken / repeats[name])
    return {name: Time(min(s), statistics.median(s)) for name, s in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    call()  # warm-up: tables, page faults
    n = 1
    while (taken := _sample(call, n)) < SAMPLE_NS:
        n = max(2 * n, int(n * SAMPLE_NS / max(taken, 1)))
    return n


def _sample(call: Callable[[], object], n: int) -> int:
    start = time.thread_time_ns()
    for _ in range(n):
        call()
    return time.thread_time_ns() - start


def measured(command: list[str], threads: int) -> dict[str, float]:
    """Runs a command in a process of its own."""
    sys.stdout.flush()
    environment = os.environ | {"SUBBYTE_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, environment)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return {
        "wall_s": round(time.perf_counter() - start, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_mb": round(usage.ru_maxrss / 1000, 1),
    }


def processor() -> str:
    """The processor's name with family and model (clouds give several processors one name)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fact = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        return f"{fact['model name']} (family {fact['cpu family']}, model {fact['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def today() -> str:
    """The date of a record."""
    return datetime.date.today().isoformat()


def record(bench: str, key: str, update: Mapping[str, Any]) -> Path:
    """Updates the figures of ``bench`` and ``key`` in the record of this processor; returns the file.

    Mappings are updated entry by entry, so that a run of some types leaves the others alone.
    """
    slug = "-".join("".join(c if c.isalnum() else " " for c in processor().lower()).split())
    path = RECORD / f"{slug}.json"
    whole = json.loads(path.read_text()) if path.exists() else {"processor": processor()}
    figures = whole.setdefault(bench, {}).setdefault(key, {})
    for name, value in update.items():
        if isinstance(value, Mapping):
            figures.setdefault(name, {}).update(value)
        else:
            figures[name] = value
    path.parent.mkdir(exist_ok=True)
    path.write_text(_lines(whole) + "\n")
    return path


def _lines(value: Any, depth: int = 0) -> str:
    """JSON with one line for each row, at most five levels deep."""
    if not isinstance(value, dict) or depth == 5 or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, ensure_ascii=False)
    pad = " " * (depth + 1)
    inner = ",\n".join(f"{pad}{json.dumps(key)}: {_lines(v, depth + 1)}" for key, v in value.items())
    return f"{{\n{inner}\n{' ' * depth}}}"
