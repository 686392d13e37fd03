"""The environment variables ``SUBBYTE_SIMD`` and ``SUBBYTE_NUM_THREADS``: warnings for values without effect."""

from __future__ import annotations

import os
import warnings
from functools import cache

from subbyte import _native


@cache
def check() -> None:
    """Warns, on its first call only, about a variable whose value cannot be followed."""
    simd = os.environ.get("SUBBYTE_SIMD", "").strip().lower()
    available = [name for name, runs in _native.levels() if runs]
    if simd and simd not in available:
        known = simd in dict(_native.levels())
        problem = "this processor cannot run it" if known else "there is no such level"
        warnings.warn(
            f"SUBBYTE_SIMD={simd}: {problem}; using {_native.level()}. Available: {', '.join(available)}",
            RuntimeWarning,
            stacklevel=4,
        )
    threads = os.environ.get("SUBBYTE_NUM_THREADS", "").strip()
    if threads and not (threads.isascii() and threads.isdigit() and int(threads) == _native.num_threads()):
        warnings.warn(
            f"SUBBYTE_NUM_THREADS={threads}: expected a number from 1 to 1024; using {_native.num_threads()} threads",
            RuntimeWarning,
            stacklevel=4,
        )
