"""Conversions in child processes that die: made by fork, so that hundreds of deaths take seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import subbyte
from checkpoints import SMALL_LLAMA
from subbyte.convert import journal

UNITS = sys.modules["subbyte.convert.units"]


def convert(dst: Path, **options: Any) -> Any:
    """The job: 6.8 M parameters to Q4_K_M; to a folder of floats where the name has no suffix."""
    return subbyte.convert(SMALL_LLAMA, dst, to="gguf.q4_k_m" if dst.suffix else "hf.f32", **options)


def contents(dst: Path) -> dict[str, bytes]:
    """The bytes of what was written: of the file, or of each file of the folder."""
    paths = sorted(path for path in dst.rglob("*") if path.is_file()) if dst.is_dir() else [dst]
    return {path.name: path.read_bytes() for path in paths if not path.name.endswith(".subbyte.json")}


def spawn(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def written_units(log: Path) -> Callable[[], object]:
    """Patches the journal (of a child) so that ``log`` grows by a byte for each unit that was written."""

    def patch() -> None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        record = journal.Journal.record

        def noted(self: journal.Journal, unit: int, sha256: str) -> None:
            os.write(file, b".")
            record(self, unit, sha256)

        journal.Journal.record = noted  # type: ignore[method-assign]

    return patch
