"""MLX, transformers and ModelOpt make the same bytes of random weights, and read the same values in ours."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import subbyte
from subbyte.formats.integer.mlx import BITS, GROUPS, MODES

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def sources(rows=16, columns=256, rounds=12):
    """Random weights of every float type and of sizes from 1e-3 to 10, zeros, constants and ties among them."""
    rng = np.random.default_rng(1)
    for turn in range(rounds):
        weight = (rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-3, 1)).astype(np.float32)
        if turn % 2:
            weight[:4, :128], weight[5], weight[6] = 0, np.abs(weight[5]), -np.abs(weight[6])
            weight[7], weight[8, :3] = weight[7, 0], -0.0
        if turn % 3 == 0:
            weight = np.round(weight * 8) / 8
        for name, dtype in KINDS.items():
            yield name, weight.astype(dtype)


def same(found, expected):
    assert np.asarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize(
    "settings",
    [{"bits": bits, "group_size": group} for bits in BITS for group in GROUPS]
    + [{"mode": mode, "bits": bits, "group_size": group} for mode, (_, _, bits, group) in MODES.items()],
    ids=str,
)
def test_mlx(settings):
    mx = pytest.importorskip("mlx.core")

    def array(data):
        if data.dtype != ml_dtypes.bfloat16:
            return mx.array(data)
        return mx.array(data.astype(np.float32)).astype(mx.bfloat16)

    def back(data):
        if data.dtype != mx.bfloat16:
            return np.array(data)
        return np.array(data.astype(mx.float32)).astype(ml_dtypes.bfloat16)

    params = {"quantization": settings}
    for name, source in sources():
        planes = subbyte.encode("mlx", source, params=params)
        theirs = mx.quantize(array(source), **settings)
        for plane, data in zip(("weight", "scales", "biases"), theirs, strict=False):
            same(planes[plane], back(data))
        read = mx.dequantize(*(array(data) for data in planes.values()), **settings, dtype=getattr(mx, name))
        assert np.array_equal(subbyte.decode("mlx", planes, params=params, dtype=name), back(read))


@pytest.mark.parametrize("block", [(16, 16), (16, 64), None])
@pytest.mark.parametrize("scale", ["float", "ue8m0"])
def test_fp8_of_transformers(block, scale):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    config = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": scale, "weight_block_size": block and list(block)}
    holder = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=block, scale_fmt=scale))
    for name, source in sources():
        planes = subbyte.encode("fp8", source, params={"quantization_config": config})
        tensor = torch.tensor(source.astype(np.float32)).to(getattr(torch, name))
        theirs = module.Fp8Quantize(holder)._quantize_one("weight", tensor)
        for plane, data in theirs.items():
            same(planes[plane], data.view(torch.uint8).numpy())
        read = module.Fp8Dequantize(holder)._dequantize_one(*theirs.values(), output_dtype=tensor.dtype)
        ours = subbyte.decode("fp8", planes, params={"quantization_config": config}, dtype=name)
        assert np.array_equal(ours.astype(np.float32), read.float().numpy())


@pytest.mark.parametrize(("algo", "block"), [("NVFP4", 16), ("MXFP4", 32), ("MXFP8", None)])
def test_modelopt(algo, block):
    torch = pytest.importorskip("torch")
    tensors = pytest.importorskip("modelopt.torch.quantization.qtensor")
    for name, source in sources():
        planes = subbyte.encode("modelopt", source, params={"quant_algo": algo})
        tensor = torch.tensor(source.astype(np.float32)).to(getattr(torch, name))
        theirs, *scales = getattr(tensors, f"{algo}QTensor").quantize(tensor, *filter(None, [block]))
        data = (theirs._quantized_data, *scales)
        for plane, values in zip(("weight", "weight_scale", "weight_scale_2"), data, strict=False):
            same(planes[plane], values.contiguous().reshape(-1).view(torch.uint8).numpy())
        keys = dict(zip(("scale", "double_scale"), scales, strict=False))
        read = theirs.dequantize(dtype=tensor.dtype, block_sizes={-1: block}, **keys)
        ours = subbyte.decode("modelopt", planes, params={"quant_algo": algo}, dtype=name)
        assert np.array_equal(ours.astype(np.float32), read.float().numpy())


@pytest.mark.parametrize("group", [32, 64, 128])
def test_integers_of_modelopt(group):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("modelopt.torch.export.quant_utils")
    params = {"quant_algo": "W4A16_AWQ", "group_size": group}
    for name, source in sources():
        planes = subbyte.encode("modelopt", source, params=params)
        tensor = torch.tensor(source.astype(np.float32)).to(getattr(torch, name))
        scale = torch.tensor(planes["weight_scale"])
        if (scale > 0).all():
            same(planes["weight"], module.to_quantized_weight(tensor, scale, "int4_awq", None, group).numpy())
