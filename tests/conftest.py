"""Shared fixtures: SIMD levels in subprocesses, and the summary line that says which of them ran."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from subbyte import _native

ROOT = Path(__file__).resolve().parent.parent
LEVELS = dict(_native.levels())

_ran: set[str] = set()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def golden(root: Path) -> Path:
    """Files made by the original programs."""
    return root / "tests" / "golden" / "gguf"


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs code (or a script, given as a path) in a fresh interpreter and returns what it printed."""

    def run(code: str | Path, *args: str, timeout: float = 120, exits: tuple[int, ...] = (0,), **env: str) -> str:
        command = [sys.executable, *(["-c", code] if isinstance(code, str) else [str(code)]), *args]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SUBBYTE_")}
        done = subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode in exits, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    """Each SIMD level in turn; one that this processor lacks is skipped, and the summary says so."""
    name: str = request.param
    if not LEVELS[name]:
        pytest.skip(f"this processor cannot run {name}")
    _ran.add(name)
    return name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _ran:
        return
    skipped = [name for name, runs in LEVELS.items() if not runs]
    terminalreporter.write_line(
        f"SIMD levels: ran {', '.join(name for name in LEVELS if name in _ran)}; "
        f"not on this processor: {', '.join(skipped) or 'none'}; in use by default: {_native.level()}"
    )
