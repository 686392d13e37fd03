"""torchao: random layers of every tensor type, headers, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from formats.common import HOSTILE, check_damage, check_round_trip
from subbyte.io.safetensors import write_safetensors

NAME = "model.q_proj.weight"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
FLOAT8 = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}


def torch_type(name):
    return {"_type": "torch.dtype", "_data": name}


def entry(kind, planes, **data):
    names = [name.removeprefix("_weight_") for name in planes]
    return {NAME: {"_type": kind, "_data": data, "_tensor_data_names": names}}


def integers(rng, bits, shape, block, dtype="bfloat16", kind="IntxUnpackedToInt8Tensor"):
    grid = tuple(size // step for size, step in zip(shape, block, strict=True))
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    planes = {
        "_weight_qdata": rng.integers(low, high, shape).astype(np.int8),
        "_weight_scale": rng.random(grid, dtype=np.float32).astype(DTYPES[dtype]),
        "_weight_zero_point": rng.integers(low, high, grid).astype(np.int8),
    }
    return planes, entry(kind, planes, block_size=list(block), target_dtype=torch_type(f"int{bits}"), activation=None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    ("shape", "block"),
    [((6, 20), (1, 5)), ((6, 20), (1, 20)), ((6, 20), (6, 20)), ((6, 20), (2, 4)), ((2, 3, 8), (1, 1, 4))],
)
def test_integers_come_back(bits, dtype, shape, block):
    planes, params = integers(np.random.default_rng(bits), bits, shape, block, dtype)
    check_round_trip("torchao", planes, params)
    wide = [
        np.kron(planes[f"_weight_{name}"].astype(np.float32), np.ones(block, np.float32))
        for name in ("scale", "zero_point")
    ]
    expected = (planes["_weight_qdata"].astype(np.float32) - wide[1]) * wide[0]
    np.testing.assert_array_equal(subbyte.decode("torchao", planes, params=params), expected)
    planes["_weight_zero_point"][:] = 0
    check_round_trip("torchao", planes, params)


def test_int8_comes_back_without_zero_points():
    planes, _ = integers(np.random.default_rng(0), 8, (6, 20), (1, 5), "float32")
    del planes["_weight_zero_point"]
    check_round_trip("torchao", planes, entry("Int8Tensor", planes, block_size=[1, 5]))


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize(("shape", "block"), [((8, 12), (1, 12)), ((8, 12), (4, 3)), ((2, 8, 4), (1, 8, 4))])
def test_float8_comes_back(name, shape, block):
    rng = np.random.default_rng(3)
    grid = tuple(size // step for size, step in zip(shape, block, strict=True))
    planes = {
        "_weight_qdata": rng.integers(0, 256, shape, dtype=np.uint8).view(FLOAT8[name]),
        "_weight_scale": rng.random(grid, dtype=np.float32),
    }
    check_round_trip("torchao", planes, entry("Float8Tensor", planes, block_size=list(block)))


@pytest.mark.parametrize("element", ["float4_e2m1fn_x2", *FLOAT8])
@pytest.mark.parametrize(("shape", "block"), [((5, 64), 32), ((2, 3, 32), 16)])
def test_microscaled_weights_come_back(element, shape, block):
    rng = np.random.default_rng(4)
    width = shape[-1] // 2 if element == "float4_e2m1fn_x2" else shape[-1]
    qdata = rng.integers(0, 256, (*shape[:-1], width), dtype=np.uint8)
    scale = rng.integers(100, 150, (*shape[:-1], shape[-1] // block), dtype=np.uint8)
    planes = {
        "_weight_qdata": qdata.view(FLOAT8.get(element, np.uint8)),
        "_weight_scale": scale.view(ml_dtypes.float8_e8m0fnu),
    }
    data = {"elem_dtype": torch_type(element), "block_size": block, "is_swizzled_scales": False}
    check_round_trip("torchao", planes, entry("MXTensor", planes, **data))
    swizzled = entry("MXTensor", planes, **{**data, "is_swizzled_scales": True})
    with pytest.raises(subbyte.UnsupportedError, match="swizzled"):
        subbyte.decode("torchao", planes, params=swizzled)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_nvfp4_comes_back(per_tensor):
    rng = np.random.default_rng(5)
    planes = {
        "_weight_qdata": rng.integers(0, 256, (5, 24), dtype=np.uint8),
        "_weight_scale": rng.integers(0, 127, (5, 3), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    }
    if per_tensor:
        planes["_weight_per_tensor_scale"] = np.array(0.37, np.float32)
    check_round_trip("torchao", planes, entry("NVFP4Tensor", planes, block_size=16, is_swizzled_scales=False))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int4_comes_back(dtype, symmetric):
    rng = np.random.default_rng(6)
    planes = {
        "_weight_qdata": rng.integers(0, 256, (6, 32), dtype=np.uint8),
        "_weight_scale": rng.random((4, 6), dtype=np.float32).astype(DTYPES[dtype]),
        "_weight_zero_point": (rng.random((4, 6), dtype=np.float32) * (not symmetric)).astype(DTYPES[dtype]),
    }
    params = entry("Int4Tensor", planes, block_size=[1, 16])
    form = check_round_trip("torchao", planes, params)
    assert type(form).__name__ == ("Affine" if symmetric else "Biased")
    low = planes["_weight_qdata"] & 15
    codes = np.stack([low, planes["_weight_qdata"] >> 4], axis=2).reshape(6, 64).astype(np.int32)
    signed = np.where(codes > 7, codes - 16, codes).astype(np.float32)
    scale, zero = (
        np.repeat(planes[f"_weight_{name}"].astype(np.float32).T, 16, axis=1) for name in ("scale", "zero_point")
    )
    np.testing.assert_array_equal(subbyte.decode("torchao", planes, params=params), signed * scale + zero)


def test_malformed():
    planes, params = integers(np.random.default_rng(0), 4, (6, 20), (1, 5))
    check_damage("torchao", planes, params)
    for path in (
        [NAME],
        [NAME, "_type"],
        [NAME, "_data"],
        [NAME, "_data", "block_size"],
        [NAME, "_data", "target_dtype"],
    ):
        for value in HOSTILE:
            changed = json.loads(json.dumps(params))
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = value
            with pytest.raises(subbyte.Error):
                subbyte.decode("torchao", planes, params=changed)
    planes["_weight_qdata"][0, 0] = 8
    with pytest.raises(subbyte.FormatError, match="range of 4 bits"):
        subbyte.decode("torchao", planes, params=params)
    with pytest.raises(subbyte.UnsupportedError, match="layout of a device"):
        subbyte.decode("torchao", planes, params=entry("Int4TilePackedTo4dTensor", planes))


def folder(path, tensors, metadata):
    (path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    write_safetensors(path / "model.safetensors", tensors, metadata)
    return path


def test_headers(tmp_path):
    planes, params = integers(np.random.default_rng(0), 4, (6, 20), (1, 5))
    tensors = {f"model.q_proj.{name}": value for name, value in planes.items()} | {"norm": np.ones(3, np.float32)}
    names = {"tensor_names": json.dumps([NAME, "norm"]), "norm": json.dumps({"_type": "Tensor"})}
    metadata = {**names, NAME: json.dumps(params[NAME])}
    with subbyte.open(folder(tmp_path, tensors, metadata)) as checkpoint:
        expected = subbyte.decode("torchao", planes, params=params)
        np.testing.assert_array_equal(checkpoint[NAME].decode(), expected)
        assert sorted(checkpoint) == [NAME, "norm"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "does not say"), ({"tensor_names": "{"}, "no JSON"),
        ({"tensor_names": json.dumps([NAME])}, "not describe"),
        ({"tensor_names": json.dumps([NAME]), NAME: "[]"}, "no JSON dict"),
        ({"tensor_names": json.dumps([NAME]), NAME: '{"_type": "os.system"}'}, "os.system"),
        ({"tensor_names": "[[1]]"}, "not describe"),
        ({"tensor_names": '["a.weight"]', "a.weight": '{"_type": "Int8Tensor"}'}, "qdata' is missing"),
    ],
)  # fmt: skip
def test_headers_that_are_refused(tmp_path, metadata, words):
    planes, _ = integers(np.random.default_rng(0), 4, (6, 20), (1, 5))
    tensors = {f"model.q_proj.{name}": value for name, value in planes.items()}
    with pytest.raises(subbyte.FormatError, match=words):
        subbyte.open(folder(tmp_path, tensors, metadata))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "data", "bound"),
    [
        ("Int8Tensor", {"block_size": [1, 16]}, 0.01), ("Int8Tensor", {"block_size": [4, 32]}, 0.02),
        ("IntxUnpackedToInt8Tensor", {"block_size": [1, 16], "target_dtype": torch_type("int4")}, 0.13),
        ("Int4Tensor", {"block_size": [1, 16]}, 0.12), ("Float8Tensor", {"block_size": [1, 32]}, 0.04),
        ("MXTensor", {"block_size": 16, "elem_dtype": torch_type("float8_e5m2")}, 0.08),
        ("NVFP4Tensor", {"block_size": 16}, 0.13),
    ],
)  # fmt: skip
def test_encoding(kind, data, bound, dtype):
    source = np.random.default_rng(8).standard_normal((8, 32)).astype(DTYPES[dtype])
    source[0] = 0
    params = {"w": {"_type": kind, "_data": data}}
    planes = subbyte.encode("torchao", source, params=params)
    decoded = subbyte.decode("torchao", planes, params=params)
    values = source.astype(np.float32)
    assert np.linalg.norm(decoded - values) <= bound * np.linalg.norm(values)
    check_round_trip("torchao", planes, params)
