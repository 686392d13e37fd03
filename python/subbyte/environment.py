"""The environment variables ``SUBBYTE_SIMD`` and ``SUBBYTE_NUM_THREADS``: warnings for values without effect."""

from __future__ import annotations

import os
import platform
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


def facts() -> dict[str, str]:
    """What a bug report needs: versions, processor, SIMD level, threads, settings, optional packages."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    found = {
        "subbyte": _native.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "processor": _processor(),
        "levels": ", ".join(
            f"{name} (used)" if name == _native.level() else name for name, runs in _native.levels() if runs
        ),
        "threads": str(_native.num_threads()),
        "settings": ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("SUBBYTE_")) or "none",
    }
    packages = ("numpy", "ml_dtypes", "rich", "torch", "cupy", "huggingface_hub", "ray", "safetensors", "gguf")
    return found | {package: installed(package) for package in packages}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
