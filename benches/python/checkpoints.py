"""Decoding layers of quantized checkpoints beside each library's own code for it: ``checkpoints.py --record``.

One thread, CPU time, ours and the peer taking turns in the same run; both write to memory that exists already or is
warm. A layer of 4096 x 4096 codes of 4 bits goes to f32 and bf16. The results are compared bit for bit before anything
is timed. Peers, all on torch: ``compressed-tensors`` (its `unpack_from_int32` and `dequantize`), ``autoawq``
(`dequantize_gemm`), ``bitsandbytes`` (`dequantize_4bit` on the CPU). GPTQ's libraries need a GPU for theirs: the
published formula in torch stands for them. Their results are [in, out] where the format is; nobody pays for turning
them. The write limit is what streaming stores alone reach over the same memory.
"""

from __future__ import annotations

import os

os.environ["SUBBYTE_NUM_THREADS"] = "1"  # before the library starts its threads

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
from common import interleaved, record, today

from subbyte import _native, planes
from subbyte.arrays import empty, result_dtype
from subbyte.formats import checkpoint_format

ROWS = COLUMNS = 4096
GROUP = 128
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
Planes = dict[str, Any]
Call = Callable[[], Any]

#: Our rate over the peer's, and over the write limit (None: not asked for).
MUST = {"gptq": (10.0, 0.6), "awq": (10.0, 0.6), "compressed-tensors": (10.0, 0.6), "bitsandbytes nf4": (1.5, None)}


def _words(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(-(2**31), 2**31, shape, np.int32)


def _scales(random: np.random.Generator, *shape: int) -> np.ndarray:
    return (random.random(shape) * 0.01 + 0.001).astype(np.float16)


def gptq(random: np.random.Generator, dtype: str) -> tuple[str, Planes, Planes, Call, str]:
    """A layer of GPTQ, and the formula of its libraries in torch."""
    import torch

    groups = COLUMNS // GROUP
    layer = {
        "qweight": _words(random, COLUMNS // 8, ROWS), "qzeros": _words(random, groups, ROWS // 8),
        "scales": _scales(random, groups, ROWS), "g_idx": (np.arange(COLUMNS) // GROUP).astype(np.int32),
    }  # fmt: skip
    qweight, qzeros, scales = (torch.from_numpy(layer[name]) for name in ("qweight", "qzeros", "scales"))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)

    def call() -> Any:
        zeros = torch.bitwise_and(torch.bitwise_right_shift(qzeros.unsqueeze(2), shifts), 15).reshape(groups, 1, ROWS)
        codes = torch.bitwise_and(torch.bitwise_right_shift(qweight.unsqueeze(1), shifts[:, None]), 15)
        found = (codes.reshape(groups, GROUP, ROWS) - zeros) * scales.float().unsqueeze(1)
        return found.reshape(COLUMNS, ROWS).to(getattr(torch, dtype)).T

    config = {"bits": 4, "group_size": GROUP, "sym": False, "desc_act": False, "checkpoint_format": "gptq_v2"}
    return "gptq", layer, {"quantization_config": config}, call, f"formula in torch {torch.__version__}"


def awq(random: np.random.Generator, dtype: str) -> tuple[str, Planes, Planes, Call, str]:
    """A layer of AWQ ``gemm``, and AutoAWQ's function."""
    import torch

    # The package itself wants what it takes to quantize models; this file of it only wants torch.
    path = distribution("autoawq").locate_file("awq/utils/packing_utils.py")
    spec = spec_from_file_location("packing_utils", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    packing_utils = module_from_spec(spec)
    spec.loader.exec_module(packing_utils)

    layer = {
        "qweight": _words(random, COLUMNS, ROWS // 8), "qzeros": _words(random, COLUMNS // GROUP, ROWS // 8),
        "scales": _scales(random, COLUMNS // GROUP, ROWS),
    }  # fmt: skip
    qweight, qzeros, scales = (torch.from_numpy(layer[name]) for name in ("qweight", "qzeros", "scales"))

    def call() -> Any:
        return packing_utils.dequantize_gemm(qweight, qzeros, scales.float(), 4, GROUP).to(getattr(torch, dtype)).T

    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return "awq", layer, {"quantization_config": config}, call, f"autoawq {version('autoawq')}"


def compressed_tensors(random: np.random.Generator, dtype: str) -> tuple[str, Planes, Planes, Call, str]:
    """A layer of compressed-tensors' ``pack-quantized``, and its library."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    layer = {
        "weight_packed": _words(random, ROWS, COLUMNS // 8), "weight_scale": _scales(random, ROWS, COLUMNS // GROUP),
        "weight_shape": np.array([ROWS, COLUMNS], np.int64),
    }  # fmt: skip
    packed, scales = torch.from_numpy(layer["weight_packed"]), torch.from_numpy(layer["weight_scale"])
    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP, symmetric=True)

    def call() -> Any:
        codes = unpack_from_int32(packed, 4, torch.Size([ROWS, COLUMNS]))
        return dequantize(codes, scales.float(), None, arguments).to(getattr(torch, dtype))

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    name = f"compressed-tensors {version('compressed-tensors')}"
    return "compressed-tensors", layer, {"quantization_config": config}, call, name


def nf4(random: np.random.Generator, dtype: str) -> tuple[str, Planes, Planes, Call, str]:
    """A layer of bitsandbytes' NF4, and its library."""
    import bitsandbytes.functional as functional
    import torch

    values = torch.from_numpy(random.standard_normal((ROWS, COLUMNS), np.float32) * np.float32(0.02))
    packed, state = functional.quantize_4bit(values.to(getattr(torch, dtype)), blocksize=64, quant_type="nf4")
    raw = {"weight": packed, **{f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}
    layer = {name: tensor.numpy() for name, tensor in raw.items()}

    def call() -> Any:
        return functional.dequantize_4bit(packed, state)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return "bitsandbytes", layer, {"quantization_config": config}, call, f"bitsandbytes {version('bitsandbytes')}"


LAYERS = {"gptq": gptq, "awq": awq, "compressed-tensors": compressed_tensors, "bitsandbytes nf4": nf4}


def bench(name: str, dtype: str, seconds: float) -> dict[str, Any]:
    """The row of a format and a type."""
    import torch

    torch.set_num_threads(1)
    id, layer, params, peer, peer_version = LAYERS[name](np.random.default_rng(0), DTYPES[dtype])
    form = checkpoint_format(id).read({plane: planes.plane(data) for plane, data in layer.items()}, params)
    out = empty((ROWS, COLUMNS), result_dtype(DTYPES[dtype]))
    out.view(np.uint8).fill(0)
    rows = slice(0, ROWS)
    calls = {
        "subbyte": lambda: form.decode_rows(rows, DTYPES[dtype], out),
        "peer": peer,
        "write limit": lambda: _native.stream_fill(out.reshape(-1).view(np.uint8), 1.0),
    }
    calls["subbyte"]()
    want = peer().contiguous().view(torch.uint8).numpy()
    if not np.array_equal(want.reshape(-1), out.reshape(-1).view(np.uint8)):
        sys.exit(f"{name} to {dtype}: {peer_version} gives other bytes than subbyte")
    times = interleaved(calls, seconds)
    rates = {who: time.rates(ROWS * COLUMNS) for who, time in times.items()}
    best = {who: rate["best"] for who, rate in rates.items()}
    ratio, share = round(best["subbyte"] / best["peer"], 2), round(best["subbyte"] / best["write limit"], 3)
    times_must, share_must = MUST[name]
    good = ratio >= times_must and (share_must is None or share >= share_must)
    print(f"{name:20}{dtype:6}{best['subbyte']:8.0f} Mw/s  {ratio:6.1f} × {peer_version}  {share:.0%} of the limit")
    return {
        "date": today(), "peer": peer_version, "mw_s": rates, "ratio": ratio, "limit_share": share,
        "verdict": "must" if good else "below",
    }  # fmt: skip


def main() -> None:
    """Measures the chosen formats; prints and records them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(LAYERS), help="formats, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time for each call of a row")
    parser.add_argument("--record", action="store_true", help="update the rows of this processor in benches/record")
    options = parser.parse_args()
    for name in options.formats.split(","):
        try:
            rows = {f"{name} → {dtype}": bench(name, dtype, options.seconds) for dtype in DTYPES}
        except (ImportError, PackageNotFoundError) as error:
            print(f"{name}: left out, {error}")
            continue
        if options.record:
            record("checkpoints", _native.level(), rows)


if __name__ == "__main__":
    main()
