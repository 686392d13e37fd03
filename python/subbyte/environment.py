"""The environment variables ``SUBBYTE_SIMD`` and ``SUBBYTE_NUM_THREADS``: warnings for values without effect."""

from __future__ import annotations

import os
import platform
from functools import cache

from subbyte import _native
from subbyte.errors import warn


@cache
def check() -> None:
    """Warns, on its first call only, about a variable whose value cannot be followed."""
    simd = os.environ.get("SUBBYTE_SIMD", "").strip().lower()
    available = [name for name, runs in _native.levels() if runs]
    if simd and simd not in available:
        known = simd in dict(_native.levels())
        problem = "this processor cannot run it" if known else "there is no such level"
        message = f"SUBBYTE_SIMD={simd}: {problem}; using {_native.level()}. Available: {', '.join(available)}"
        warn([message], stacklevel=5)
    threads = os.environ.get("SUBBYTE_NUM_THREADS", "").strip()
    if threads and not (threads.isascii() and threads.isdigit() and int(threads) == _native.num_threads()):
        used = _native.num_threads()
        message = f"SUBBYTE_NUM_THREADS={threads}: expected a number from 1 to 1024; using {used} threads"
        warn([message], stacklevel=5)


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
        "gpu": _gpu(),
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


def _gpu() -> str:
    """NVIDIA's devices and driver as its own tool names them: no library of a device is loaded for it."""
    import shutil
    import subprocess

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found"
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi fails"
    return "; ".join(line.strip() for line in found.splitlines()) or "none found"
