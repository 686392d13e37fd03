"""BitNet's five layouts of ternary weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip, same_planes
from subbyte.formats import checkpoint_format
from subbyte.forms import Ternary
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import Plane, float_plane

RNG = np.random.default_rng(13)
TL1 = [(64, 128, 32, 64, 32), (128, 256, 64, 128, 64), (96, 32, 96, 32, 32)]
TL2 = [(64, 576, 64, 96, 32), (64, 608, 32, 96, 32), (32, 768, 32, 192, 32), (96, 448, 32, 192, 32)]


def trits(rows, columns):
    return RNG.integers(-1, 2, (rows, columns), dtype=np.int8)


def check(id, planes, params, optional=()):
    check_round_trip(id, planes, params)
    check_damage(id, planes, params, [f"{name} missing" for name in optional])


def one(value, kind="F32"):
    return float_plane(np.array([value], np.float32), kind)


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (12, 40), (64, 96), (15, 7), (1, 3)])
@pytest.mark.parametrize("linear", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("kind", ["BF16", "F32", "F16"])
def test_transformers(rows, columns, linear, kind):
    codes = np.zeros((-(-rows // 4) * 4, columns), np.uint8)
    codes[:rows] = RNG.integers(0, 3, (rows, columns))
    slabs = codes.reshape(4, -1, columns)
    packed = slabs[0] | slabs[1] << 2 | slabs[2] << 4 | slabs[3] << 6
    params = {"quantization_config": {"quant_method": "bitnet", "linear_class": linear}, "shape": [rows, columns]}
    planes = {"weight": packed, "weight_scale": one(37.4, kind)}
    check("bitnet", planes, params)
    scale = planes["weight_scale"].float32()[0]
    want = codes[:rows].astype(np.float32) - np.float32(1)
    want = want / scale if linear == "bitlinear" else want * scale
    np.testing.assert_array_equal(subbyte.decode("bitnet", planes, params=params), want)


def test_invalid_trits_are_refused():
    planes = {"weight": np.array([[0xC0]], np.uint8), "weight_scale": one(2)}
    with pytest.raises(subbyte.FormatError, match="three of a ternary"):
        subbyte.decode("bitnet", planes)
    # The missing rows of a short slab may hold anything.
    assert subbyte.decode("bitnet", planes, params={"shape": [3, 1]}).shape == (3, 1)


@pytest.mark.parametrize(
    "config",
    [7, {"linear_class": "x"}, {"linear_class": 3}, {"quantization_mode": "online"}],
)
def test_contradictory_settings_are_refused(config):
    planes = {"weight": np.zeros((2, 2), np.float32), "weight_scale": one(2)}
    with pytest.raises(subbyte.Error):
        subbyte.decode("bitnet", planes, params={"quantization_config": config})


def test_online_weights_are_rounded_as_the_model_does():
    weight = np.array([[0.1, -0.1, 0.01], [0, 0.3, -0.02]], np.float32)
    params = {"quantization_config": {"quantization_mode": "online", "linear_class": "autobitlinear"}}
    found = subbyte.decode("bitnet", {"weight": weight}, params=params)
    scale = np.abs(weight).mean()
    np.testing.assert_allclose(found, np.array([[1, -1, 0], [0, 1, 0]], np.float32) * scale, rtol=1e-6)
    with pytest.raises(subbyte.FormatError, match="offline"):
        subbyte.decode("bitnet", {"weight": weight})


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("x86_block128", (8, 640)), ("x86_block128", (3, 256)), ("x86_block128", (4, 96)), ("arm_block64", (8, 192)),
     ("arm_block64", (2, 32)), ("x86_1x4", (16, 96)), ("x86_1x4", (4, 5)), ("x86_1x4", (8, 1))],
)  # fmt: skip
def test_i2_s(layout, shape):
    packed = np.zeros(shape[0] * shape[1] // 4 + 32, np.uint8)
    for at in range(4):
        packed[:-32] |= RNG.integers(0, 3, packed.size - 32, dtype=np.uint8) << (2 * at)
    packed[-32:-28] = np.array([0.0123], "<f4").view(np.uint8)
    check("bitnet.i2_s", {"packed": packed}, {"layout": layout, "shape": list(shape)})


@pytest.mark.parametrize(
    "params",
    [{}, {"shape": [4]}, {"shape": [4, 10**30]}, {"shape": "4"}, {"shape": [4, True]}, {"shape": [1, 64]},
     {"shape": [4, 32], "layout": "arm"}, {"shape": [4, 32], "layout": 1}],
)  # fmt: skip
def test_i2_s_refuses_parameters(params):
    with pytest.raises(subbyte.Error):
        subbyte.decode("bitnet.i2_s", {"packed": np.zeros(64, np.uint8)}, params=params)


@pytest.mark.parametrize("shape", [(16, 32), (48, 96), (32, 64)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_gpu(shape, scale):
    packed = np.zeros((shape[0], shape[1] // 4), np.uint8)
    for at in range(4):
        packed |= RNG.integers(1, 4, packed.shape, dtype=np.uint8) << (2 * at)
    planes = {"packed": packed.view(np.int8)}
    if scale is not None:
        planes["weight_scale"] = float_plane(np.array([scale, 0, 0, 0], np.float32), "BF16")
    check("bitnet.gpu_int2", planes, {"shape": list(shape)}, ("weight_scale",))


def test_gpu_refuses_several_scales():
    planes = {"packed": np.full((16, 8), 0x55, np.int8), "weight_scale": np.array([1, 2, 0, 0], np.float32)}
    with pytest.raises(subbyte.UnsupportedError, match="fused"):
        subbyte.decode("bitnet.gpu_int2", planes)


@pytest.mark.parametrize(
    ("id", "sizes"), [("bitnet.tl1", sizes) for sizes in TL1] + [("bitnet.tl2", sizes) for sizes in TL2]
)
@pytest.mark.parametrize("scale", [1, 0.021])
def test_tl(id, sizes, scale):
    rows, columns, tile_rows, tile_columns, strip = sizes
    params = {"shape": [rows, columns], "BM": tile_rows, "BK": tile_columns, "bm": strip}
    weight = trits(rows, columns).astype(np.float32) * np.float32(scale)
    planes = dict(subbyte.encode(id, weight, params=params))
    np.testing.assert_array_equal(subbyte.decode(id, planes, params=params), weight)
    check(id, planes, params, ("scale",))
    for key in ("BM", "BK", "bm"):
        for bad in (0, -32, 48.0, None, 10**30, 7):
            with pytest.raises(subbyte.Error):
                subbyte.decode(id, planes, params={**params, key: bad})


@pytest.mark.parametrize(("id", "byte"), [("bitnet.tl1", 0x90), ("bitnet.tl2", 0x0E)])
def test_tl_refuses_codes_out_of_range(id, byte):
    rows, columns, tile_rows, tile_columns, strip = (TL1 if id == "bitnet.tl1" else TL2)[0]
    params = {"shape": [rows, columns], "BM": tile_rows, "BK": tile_columns, "bm": strip}
    packed = subbyte.encode(id, trits(rows, columns), params=params)["packed"].copy()
    packed.reshape(-1)[5] = byte
    with pytest.raises(subbyte.FormatError, match="out of the range"):
        subbyte.decode(id, {"packed": packed}, params=params)


def test_trits_move_between_the_formats_without_rounding():
    shape = (64, 768)
    weight = trits(*shape).astype(np.float32)
    config = {"quantization_config": {"linear_class": "bitlinear"}, "shape": list(shape)}
    planes = {"weight": subbyte.encode("bitnet", weight)["weight"], "weight_scale": one(3.7, "BF16")}
    form = checkpoint_format("bitnet").read(planes, config)
    tiles = {"BM": 32, "BK": 96, "bm": 32}
    for id, params in (("bitnet.i2_s", {}), ("bitnet.tl1", tiles), ("bitnet.tl2", tiles), ("bitnet.gpu_int2", {})):
        moved = checkpoint_format(id).write(form, {**params, "shape": list(shape)})
        back = checkpoint_format(id).read(moved, {**params, "shape": list(shape)})
        np.testing.assert_array_equal(back.decode(), form.decode())
        assert isinstance(back, Ternary)
    same_planes(checkpoint_format("bitnet").write(form, config), planes)


def test_several_scales_fit_no_bitnet_format():
    codes = checkpoint_format("bitnet").read({"weight": np.zeros((1, 4), np.uint8), "weight_scale": one(1)}, {}).codes
    form = Ternary((4, 4), codes, Plane(np.ones((4, 1), np.float32), "F32"), 4)
    for id in ("bitnet", "bitnet.i2_s", "bitnet.tl1", "bitnet.tl2", "bitnet.gpu_int2"):
        with pytest.raises(subbyte.UnsupportedError, match="one scale"):
            checkpoint_format(id).write(form, {"shape": [4, 4]})


def folder(tmp_path, settings, tensors):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitnet", **settings}}))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path


def test_checkpoint(tmp_path):
    packed = np.full((2, 3), 0b01100001, np.uint8)
    tensors = {
        "a.weight": packed, "a.weight_scale": np.ones(1, np.float32), "norm.weight": np.ones(4, np.float32)
    }  # fmt: skip
    with subbyte.open(
        folder(tmp_path, {"quantization_mode": "online", "modules_to_not_convert": ["a", "b"]}, tensors)
    ) as found:
        assert found["a.weight"].shape == (8, 3)
        np.testing.assert_array_equal(found["a.weight"].decode()[:, 0], [0, 0, -1, -1, 1, 1, 0, 0])
        assert found["norm.weight"].layer is None
        assert "online" in found.notes[0]
        assert found.notes[1:] == ["'a' is listed as not converted, but a.weight is quantized"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": np.zeros((2, 3), np.uint8)}, "no weight_scale"),
        ({"a.weight": np.zeros(3, np.uint8), "a.weight_scale": np.ones(1, np.float32)}, "matrix"),
        ({"a.weight": np.zeros((2, 3), np.int8), "a.weight_scale": np.ones(1, np.float32)}, "'bitnet'"),
    ],
)
def test_contradictory_checkpoints_are_refused(tmp_path, tensors, message):
    with pytest.raises(subbyte.FormatError, match=message):
        subbyte.open(folder(tmp_path, {}, tensors))
