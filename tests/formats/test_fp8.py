"""FP8: blocks, rows and tensors, both directions of scales, FP4 experts, and what checkpoints say about themselves."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.float.fp8 import ELEMENTS, Fp8
from subbyte.forms.scaled import element_values
from subbyte.planes import Plane, float8_values, rounded

NAME = "model.layers.0.mlp.down_proj.weight"
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 24]}


def elements(rng, shape, kind="F8_E4M3"):
    finite = np.flatnonzero(np.isfinite(float8_values(kind))).astype(np.uint8)
    return Plane(rng.choice(finite, shape), kind)


def scales(rng, shape, kind="F32"):
    if kind in ("F8_E8M0", "U8"):
        return Plane(rng.integers(0, 200, shape).astype(np.uint8), kind)
    return Plane(rng.uniform(1e-4, 1e-2, shape).astype(np.float32), kind)


@pytest.mark.parametrize("shape", [(48, 48), (33, 50), (1, 1), (3, 40, 50)])
@pytest.mark.parametrize("block", [(16, 24), (128, 128), (1, 32), (7, 1)])
@pytest.mark.parametrize("kind", ["F32", "F8_E8M0"])
def test_blocks(shape, block, kind):
    rng = np.random.default_rng([*shape, *block])
    *leading, rows, columns = shape
    weight = elements(rng, shape)
    scale = scales(rng, (*leading, -(-rows // block[0]), -(-columns // block[1])), kind)
    config = BLOCKS | {"weight_block_size": list(block)}
    form = check_round_trip("fp8", {"weight": weight, "weight_scale_inv": scale}, {"quantization_config": config})
    value = scale.float32()[..., np.arange(rows) // block[0], :][..., np.arange(columns) // block[1]]
    assert np.array_equal(form.decode(), weight.float32() * value)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("method", "plane", "dims"),
    [
        ({"quant_method": "fp8", "weight_block_size": None}, "weight_scale_inv", (1, 1)),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "weight_scale", ()),
        ({"quant_method": "fp8"}, "qscale_weight", ()),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale", (48, 1)),
        ({"quant_method": "fp8", "weight_scale_method": "row", "weight_scale_semantics": "inverse",
          "meta": {"quantizer": ["gptqmodel:7.3.4"]}}, "weight_scale_inv", (48,)),
    ],
)  # fmt: skip
def test_tensors_and_rows(element, method, plane, dims):
    rng = np.random.default_rng(len(dims))
    weight, scale = elements(rng, (48, 40), element), scales(rng, dims)
    inverse = "weight_scale_semantics" in method
    if inverse:
        scale = Plane(1 / scale.data, "F32")
    params = {"quantization_config": method, "scale_plane": plane}
    form = check_round_trip("fp8", {"weight": weight, plane: scale}, params)
    column = np.broadcast_to(scale.data.reshape(-1, 1), (48, 1))
    assert np.array_equal(form.decode(), weight.float32() / column if inverse else weight.float32() * column)


def test_fp4_experts():
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (2, 6, 64)).astype(np.uint8)
    weight = Plane((codes[..., ::2] | codes[..., 1::2] << 4).view(np.int8), "I8")
    scale = scales(rng, (2, 6, 2), "F8_E8M0")
    params = {"quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4", "scale_fmt": "ue8m0"}}
    form = check_round_trip("fp8", {"weight": weight, "scale": scale}, params)
    assert np.array_equal(form.decode(), element_values("E2M1")[codes] * np.repeat(scale.float32(), 32, axis=2))
    check_damage("fp8", {"weight": weight, "scale": scale}, params)
    with pytest.raises(FormatError, match="expert_dtype is fp8"):
        subbyte.decode("fp8", {"weight": weight, "scale": scale},
                       params={"quantization_config": {"expert_dtype": "fp8"}})  # fmt: skip


def test_scales_that_divide_without_a_mark():
    rng = np.random.default_rng(6)
    weight = elements(rng, (8, 16))
    scale = Plane(rng.uniform(1000, 5000, 8).astype(np.float32), "F32")
    found = subbyte.decode("fp8", {"weight": weight, "weight_scale_inv": scale})
    assert np.array_equal(found, weight.float32() / scale.data[:, None])
    small = Plane(1 / scale.data, "F32")
    marked = {"quantization_config": {"weight_scale_semantics": "inverse"}}
    with pytest.raises(FormatError, match=r"scales divide.*weight_scale_inv"):
        subbyte.decode("fp8", {"weight": weight, "weight_scale_inv": small}, params=marked)


def test_damage():
    rng = np.random.default_rng(7)
    planes = {"weight": elements(rng, (48, 25)), "weight_scale_inv": scales(rng, (3, 2))}
    check_damage("fp8", planes, {"quantization_config": BLOCKS})
    check_hostile_settings("fp8", planes, BLOCKS)
    with pytest.raises(FormatError, match="both scales"):
        subbyte.decode("fp8", planes | {"scale": planes["weight_scale_inv"]}, params={"quantization_config": BLOCKS})
    with pytest.raises(FormatError, match="'fmt' is 'e5m2'"):
        subbyte.decode("fp8", planes, params={"quantization_config": BLOCKS | {"fmt": "e5m2"}})


@pytest.mark.parametrize("shape", [(32, 48), (20, 30), (2, 20, 30)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"scale_fmt": "ue8m0"}, {"weight_block_size": None}, {"fmt": "e5m2"}, {"quant_method": "fbgemm_fp8"}],
)
def test_encode(shape, changes):
    rng = np.random.default_rng(8)
    source = rng.standard_normal(shape).astype(np.float32) * np.float32(0.02)
    source[..., :16, :24] = 0
    config = {key: value for key, value in (BLOCKS | changes).items() if value is not None}
    planes = subbyte.encode("fp8", source, params={"quantization_config": config})
    params = {"quantization_config": config, "scale_plane": next(name for name in planes if name != "weight")}
    found = check_round_trip("fp8", dict(planes), params).decode()
    step = 2**-2 if config["fmt"] == "e5m2" else 2**-3
    assert np.all(np.abs(found - source) <= np.maximum(np.abs(source) * step, np.abs(source).max() * 2**-8))
    assert not found[..., :16, :24].any()


def test_write_refuses_what_would_round():
    rng = np.random.default_rng(9)
    form = Fp8().read({"weight": elements(rng, (48, 48)), "weight_scale_inv": scales(rng, (3, 2))},
                      {"quantization_config": BLOCKS})  # fmt: skip
    halves = Fp8().write(form, {"quantization_config": BLOCKS | {"weight_block_size": [8, 12]}})
    again = Fp8().read(halves, {"quantization_config": BLOCKS | {"weight_block_size": [8, 12]}})
    assert np.array_equal(again.decode(), form.decode())
    for config, match in (
        (BLOCKS | {"weight_block_size": [32, 24]}, "without rounding"),
        (BLOCKS | {"weight_scale_semantics": "inverse"}, "without rounding"),
        ({"quant_method": "fp8"}, "need the setting weight_block_size"),
    ):
        with pytest.raises(UnsupportedError, match=match):
            Fp8().write(form, {"quantization_config": config})


def open_folder(path, tensors, config):
    return subbyte.open(checkpoint(path / "model", tensors, quantization_config=config))


@pytest.mark.parametrize("kind", [np.float32, "float8_e8m0fnu"])
def test_open(tmp_path, kind):
    import ml_dtypes

    rng = np.random.default_rng(10)
    dtype = getattr(ml_dtypes, kind) if isinstance(kind, str) else kind
    weight = elements(rng, (48, 48)).array()
    scale = np.exp2(rng.integers(-9, -4, (3, 2))).astype(np.float32).astype(dtype)
    stacked = np.stack([weight, weight])
    tensors = {
        NAME: weight,
        NAME + "_scale_inv": scale,
        "experts.up_proj": stacked,
        "experts.up_proj_scale_inv": np.stack([scale, scale]),
        "norm.weight": np.ones(4, np.float32),
    }
    found = open_folder(tmp_path, tensors, BLOCKS | {"modules_to_not_convert": [NAME.removesuffix(".weight")]})
    assert sorted(found) == [*sorted(["experts.up_proj", NAME]), "norm.weight"]
    assert np.array_equal(found["experts.up_proj"].decode()[1], found[NAME].decode())
    assert found["norm.weight"].format == "f32"
    assert any(NAME in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({NAME + "_scale_inv": None}, "without a scale"),
        ({NAME: None}, "weight that is missing"),
        ({NAME: np.ones((48, 48), np.float32)}, "which one counts"),
    ],
)
def test_half_a_module(tmp_path, changes, match):
    rng = np.random.default_rng(11)
    tensors = {NAME: elements(rng, (48, 48)).array(), NAME + "_scale_inv": scales(rng, (3, 2)).data} | changes
    with pytest.raises(FormatError, match=match) as caught:
        open_folder(tmp_path, {name: data for name, data in tensors.items() if data is not None}, BLOCKS)
    assert NAME in str(caught.value)


def test_modelopt_rounds_the_scale():
    rng = np.random.default_rng(12)
    weight, scale = elements(rng, (8, 16)), scales(rng, ())
    found = subbyte.decode("fp8", {"weight": weight, "weight_scale": scale}, dtype="float16",
                           params={"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}})  # fmt: skip
    assert np.array_equal(found, (weight.float32() * rounded(scale.data, "F16")).astype(np.float16))
