"""Weights encoded by ranges of rows have the bytes of those encoded whole."""

import numpy as np
import pytest

import subbyte
from formats.common import same_planes
from subbyte.formats import checkpoint_format, ranges
from subbyte.planes import plane


def config(**settings):
    return {"quantization_config": settings}


def compressed(format, **weights):
    return config(format=format, config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})


def torchao(kind, names=("qdata", "scale"), **data):
    return {"_type": kind, "_data": data, "_tensor_data_names": list(names)}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
CASES = {
    "gptq": config(bits=4, group_size=64, sym=True),
    "gptq 3": config(bits=3, group_size=-1, sym=False, checkpoint_format="gptq_v2", desc_act=False),
    "gptq mse": config(bits=4, group_size=128, sym=False, checkpoint_format="gptq_v2") | {"method": "mse"},
    "awq gemm": config(bits=4, group_size=64, version="gemm"),
    "awq gemv": config(bits=4, group_size=64, version="gemv"),
    "awq gemv_fast": config(bits=4, group_size=64, version="gemv_fast"),
    "compressed-tensors": compressed("pack-quantized", symmetric=False, **INT4),
    "compressed-tensors 3": compressed("pack-quantized", symmetric=True, **(INT4 | {"num_bits": 3})),
    "compressed-tensors int": compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
    "compressed-tensors fp8": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "compressed-tensors block": compressed(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[64, 64]
    ),
    "compressed-tensors mxfp4": compressed(
        "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"
    ),
    "mlx": {"quantization": {"bits": 4, "group_size": 64}},
    "mlx 3": {"quantization": {"bits": 3, "group_size": 32}},
    "mlx mxfp8": {"quantization": {"mode": "mxfp8"}},
    "mlx nvfp4": {"quantization": {"mode": "nvfp4"}, "global_scale": 5.0},
    "mxfp4": {},
    "mxfp4 mse": {"method": "mse"},
    "hqq": {"nbits": 4, "group_size": 64, "axis": 1},
    "hqq 3": {"nbits": 3, "group_size": 64, "axis": 1},
    "hqq ternary": {"nbits": 1.58, "group_size": 64, "axis": 1},
    "quanto": config(weights="int4") | {"shape": [320, 256]},
    "quanto int8": config(weights="int8"),
    "torchao int8": torchao("Int8Tensor", block_size=[1, 256]),
    "torchao intx": torchao(
        "IntxUnpackedToInt8Tensor", ("qdata", "scale", "zero_point"), block_size=[1, 64],
        target_dtype={"_type": "torch.dtype", "_data": "int5"},
    ),
    "torchao int4": torchao("Int4Tensor", ("qdata", "scale", "zero_point"), block_size=[1, 64]),
    "torchao float8": torchao("Float8Tensor", block_size=[1, 256]),
    "torchao mx": torchao(
        "MXTensor", block_size=32, elem_dtype={"_type": "torch.dtype", "_data": "float4_e2m1fn_x2"}
    ),
    "modelopt mxfp8": config(quant_method="modelopt", quant_algo="MXFP8", group_size=32),
    "modelopt int4": config(quant_method="modelopt", quant_algo="W4A16_AWQ", group_size=64),
    "compressed-tensors nvfp4": compressed(
        "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
    ),
    "compressed-tensors tensor": compressed("float-quantized", num_bits=8, type="float", strategy="tensor"),
    "modelopt nvfp4": config(quant_method="modelopt", quant_algo="NVFP4", group_size=16) | {"method": "mse"},
    "modelopt fp8": config(quant_method="modelopt", quant_algo="FP8"),
    "torchao nvfp4": torchao(
        "NVFP4Tensor", ("qdata", "scale", "per_tensor_scale"), block_size=16, is_swizzled_scales=False
    ),
    "fp8 tensor": config(quant_method="fp8"),
    "fp8 block": config(quant_method="fp8", weight_block_size=[64, 64]),
    "fp8 row": config(quant_method="fbgemm_fp8"),
    "bitsandbytes nf4": config(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes int8": config(load_in_8bit=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_ranges_give_the_bytes_of_the_whole(name, kind, monkeypatch):
    monkeypatch.setattr(ranges, "_ELEMENTS", 1 << 14)
    values = np.random.default_rng(5).standard_normal((320, 256), np.float32).astype(kind)
    values[32:64] = np.abs(values[32:64])  # rows of other ranges than the first
    values[70] = 0
    format, params, read = checkpoint_format(name.split()[0]), CASES[name], []

    def rows(start, stop):
        read.append((start, stop))
        return values[start:stop]

    found = ranges.encode_ranges(format, rows, values.shape, params)
    whole = subbyte.encode(name.split()[0], values, params=params)
    same_planes(found, {name: plane(whole[name]) for name in whole})
    step = format.separable(params, values.shape)
    assert step
    assert len(read) > 2 * (1 + format.shares_maximum(params, values.shape))
    assert read[-1][1] == 320
    assert all(start % step == 0 for start, _ in read)


@pytest.mark.parametrize(
    ("id", "params"),
    [
        ("hqq", {"nbits": 4, "group_size": 64, "axis": 0}),
        ("hqq", {"nbits": 4, "group_size": 96, "axis": 1}),
        ("bitsandbytes", config(load_in_4bit=True, bnb_4bit_use_double_quant=True)),
        ("compressed-tensors", compressed("int-quantized", num_bits=8, type="int", strategy="tensor", symmetric=True)),
    ],
)  # fmt: skip
def test_rows_that_share_something_are_encoded_whole(id, params, monkeypatch):
    monkeypatch.setattr(ranges, "_ELEMENTS", 1 << 12)
    values = np.random.default_rng(6).standard_normal((96, 256), np.float32)
    read = []

    def rows(start, stop):
        read.append((start, stop))
        return values[start:stop]

    found = ranges.encode_ranges(checkpoint_format(id), rows, values.shape, params)
    assert read == [(0, 96)]
    whole = subbyte.encode(id, values, params=params)
    same_planes(found, {name: plane(whole[name]) for name in whole})


def test_the_row_of_a_number_that_is_none_counts_all_rows(monkeypatch):
    monkeypatch.setattr(ranges, "_ELEMENTS", 1 << 12)
    values = np.ones((128, 256), np.float32)
    values[101, 7] = np.nan
    with pytest.raises(subbyte.NonFiniteError) as caught:
        ranges.encode_ranges(checkpoint_format("gptq"), lambda a, b: values[a:b], values.shape, CASES["gptq"])
    assert (caught.value.row, caught.value.column) == (101, 7)
