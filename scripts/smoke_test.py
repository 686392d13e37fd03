"""Tries an installed subbyte where NumPy alone is installed beside it, and weighs what it was installed from.

Run `python scripts/smoke_test.py dist/NAME.whl`, outside of a checkout's own environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import subbyte

LARGEST = 10_000_000


def main(archive: Path) -> None:
    assert archive.stat().st_size <= LARGEST, f"{archive} has {archive.stat().st_size} bytes, more than {LARGEST}"
    assert archive.name.split("-")[1].removesuffix(".tar.gz") == subbyte.__version__, archive.name

    # With a largest magnitude of 127 the scale is 1 and the codes are the values.
    values = np.linspace(-127, 127, 32).round().astype(np.float32)
    packed = subbyte.encode("gguf.q8_0", values)
    assert packed["blocks"].tobytes() == np.float16(1).tobytes() + values.astype(np.int8).tobytes()
    assert np.array_equal(subbyte.decode("gguf.q8_0", packed), values)

    weights = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
    back = subbyte.decode("gguf.q4_k", subbyte.encode("gguf.q4_k", weights))
    error = np.linalg.norm(back - weights) / np.linalg.norm(weights)
    assert 0.02 < error < 0.1, f"Q4_K has a relative error of {error:.3f}"

    (used,) = (level["level"] for level in subbyte.list_levels() if level["used"])
    print(f"subbyte {subbyte.__version__} on Python {sys.version.split()[0]}, {sys.platform}, level {used}: works")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
