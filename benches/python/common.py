"""Timing and records shared by the benches."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent.parent / "record"


def interleaved(calls: dict[str, Callable[[], object]], seconds: float, repeat: int = 1) -> dict[str, float]:
    """Best process time (all threads) of each call, the calls taking turns for about ``seconds`` each.

    ``repeat`` calls are timed as one where a single call is too short for the clock.
    """
    best = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    rounds = 0
    while rounds < 2 or (min(spent.values()) < seconds and rounds < 10_000):
        for name, call in calls.items():
            if rounds >= 2 and spent[name] >= seconds:
                continue
            start = time.process_time()
            for _ in range(repeat):
                call()
            took = time.process_time() - start
            best[name] = min(best[name], took / repeat)
            spent[name] += took
        rounds += 1
    return best


def processor() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        facts = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        fact = {key.strip(): value.strip() for key, value in facts}
        return f"{fact['model name']} (family {fact['cpu family']}, model {fact['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def record(bench: str, key: str, data: Any) -> Path:
    """Stores ``data`` under ``bench`` and ``key`` in the record of this processor; returns the file."""
    slug = "".join(c if c.isalnum() else "-" for c in processor().lower()).strip("-")
    while "--" in slug:
        slug = slug.replace("--", "-")
    path = RECORD / f"{slug}.json"
    whole = json.loads(path.read_text()) if path.exists() else {"processor": processor()}
    whole.setdefault(bench, {})[key] = data
    path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    return path
