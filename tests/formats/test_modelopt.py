"""ModelOpt: every kind of layer, and settings in two places."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.float.modelopt import KINDS, ModelOpt
from subbyte.forms import Affine, ByteCodes, ColumnScaled, Microscaled
from subbyte.forms.codes import packed_bytes
from subbyte.forms.scaled import element_values
from subbyte.planes import Plane, float8_values, rounded

NAME = "model.layers.0.mlp.down_proj"
ALGOS = ("NVFP4", "MXFP4", "MXFP8", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "W4A16_AWQ")


def layer(rng, algo, shape=(6, 128)):
    """Random planes and their values."""
    *leading, rows, columns = shape
    kind = KINDS[algo]
    if kind in ("NVFP4", "MXFP4"):
        block = 16 if kind == "NVFP4" else 32
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        scales = rng.integers(0, 127, (*leading, rows, columns // block)).astype(np.uint8)
        planes = {"weight": Plane(codes[..., ::2] | codes[..., 1::2] << 4, "U8")}
        values = element_values("E2M1")[codes]
        if kind == "MXFP4":
            planes["weight_scale"] = Plane(scales.reshape(-1, 1), "U8")
            return planes, values * np.repeat(float8_values("F8_E8M0")[scales], block, axis=-1)
        second = np.float32(0.0123)
        planes |= {"weight_scale": Plane(scales, "F8_E4M3"), "weight_scale_2": Plane(np.array(second), "F32")}
        return planes, values * np.repeat(float8_values("F8_E4M3")[scales] * second, block, axis=-1)
    if kind == "INT4":
        integers = rng.integers(-8, 8, shape)
        scale = rng.uniform(0.01, 0.1, (*leading, rows, columns // 64)).astype(np.float32)
        nibbles = (integers & 15).astype(np.uint8)
        weight = Plane(nibbles[..., ::2, :] | nibbles[..., 1::2, :] << 4, "U8")
        values = (integers * np.repeat(scale, 64, axis=-1).astype(np.float64)).astype(np.float32)
        return {"weight": weight, "weight_scale": Plane(scale, "F32")}, values
    weight = Plane(rng.integers(0, 127, shape).astype(np.uint8), "F8_E4M3")
    if kind == "MXFP8":
        scales = rng.integers(0, 200, (*leading, rows, columns // 32)).astype(np.uint8)
        wide = np.repeat(float8_values("F8_E8M0")[scales], 32, axis=-1)
        return {"weight": weight, "weight_scale": Plane(scales, "U8")}, weight.float32() * wide
    dims = {"FP8": (), "FP8_PB_WO": (-(-rows // 128), -(-columns // 128))}.get(algo, (rows,))
    scale = rng.uniform(1e-4, 1e-2, (*leading, *dims)).astype(np.float32)
    wide = scale[..., None, None] if not dims else scale[..., None] if len(dims) == 1 else scale
    if len(dims) == 2:
        wide = scale[..., np.arange(rows) // 128, :][..., np.arange(columns) // 128]
    return {"weight": weight, "weight_scale": Plane(scale, "F32")}, weight.float32() * wide


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("shape", [(6, 128), (130, 64), (2, 4, 192)])
def test_random_layers(algo, shape):
    planes, values = layer(np.random.default_rng(shape), algo, shape)
    form = check_round_trip("modelopt", planes, {"quant_algo": algo})
    assert np.array_equal(form.decode(), values)
    assert np.array_equal(subbyte.decode("modelopt", planes), values)
    if algo != "FP8":
        half = form.decode("float16")
        with np.errstate(over="ignore"):
            assert np.array_equal(half, values.astype(np.float16)) or KINDS[algo] == "FP8"


def test_fp8_rounds_the_scale():
    planes, _ = layer(np.random.default_rng(1), "FP8")
    found = subbyte.decode("modelopt", planes, dtype="bfloat16").astype(np.float32)
    product = planes["weight"].float32() * rounded(planes["weight_scale"].data, "BF16")
    assert np.array_equal(found, rounded(product, "BF16"))


def test_fp8_blocks_with_axes_of_one():
    planes, values = layer(np.random.default_rng(2), "FP8_PB_WO", (256, 384))
    down, across = planes["weight_scale"].shape
    planes["weight_scale"] = Plane(planes["weight_scale"].data.reshape(down, 1, across, 1), "F32")
    assert np.array_equal(subbyte.decode("modelopt", planes, params={"quant_algo": "FP8_PB_WO"}), values)


@pytest.mark.parametrize("algo", ["NVFP4", "W4A16_AWQ"])
def test_factors_of_columns(algo):
    rng = np.random.default_rng(3)
    planes, values = layer(rng, algo)
    planes["pre_quant_scale"] = Plane(rng.uniform(0.5, 2, 128).astype(np.float16), "F16")
    form = check_round_trip("modelopt", planes, {"quant_algo": algo})
    assert isinstance(form, ColumnScaled)
    assert np.array_equal(form.decode(), values * planes["pre_quant_scale"].float32())


@pytest.mark.parametrize("algo", ALGOS)
def test_damage(algo):
    planes, _ = layer(np.random.default_rng(4), algo, (130, 256))
    config = {"quant_algo": algo, "group_size": {"NVFP4": 16, "INT4": 64, "FP8": None}.get(KINDS[algo], 32)}
    # An axis more on one number is nothing; a second scale of 128 x 128 has one left where the rest is cut away.
    harmless = (
        {"weight_scale axis", "weight_scale cut", "weight cut", "weight empty"} if KINDS[algo] == "FP8" else set()
    )
    harmless |= {"weight_scale_2 axis", "weight_scale_2 cut"}
    if algo in ("MXFP4", "FP8"):
        harmless |= {"weight axis"}
    if algo == "FP8_PB_WO":
        harmless -= {"weight_scale axis", "weight_scale cut"}
    check_damage("modelopt", planes, {"quantization_config": config}, harmless=harmless)
    check_hostile_settings("modelopt", planes, config)


def test_nvfp4_needs_its_second_scale():
    planes, _ = layer(np.random.default_rng(5), "NVFP4")
    del planes["weight_scale_2"]
    with pytest.raises(subbyte.Error, match="weight_scale_2"):
        subbyte.decode("modelopt", planes)


@pytest.mark.parametrize("algo", [*ALGOS, "NVFP4_SVD", "W4A8_AWQ", "W3A5"])
def test_algorithm_and_planes_contradict_each_other(algo):
    for other in ALGOS:
        planes, _ = layer(np.random.default_rng(6), other)
        if KINDS.get(algo) != KINDS[other]:
            with pytest.raises((FormatError, UnsupportedError), match=algo):
                subbyte.decode("modelopt", planes, params={"quant_algo": algo})


@pytest.mark.parametrize("algo", ["NVFP4", "MXFP4", "MXFP8", "FP8", "W4A16_AWQ"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_encode(algo, dtype):
    source = (np.random.default_rng(7).standard_normal((2, 6, 128)) * 0.02).astype(dtype)
    source[0, :2] = 0
    params = {"quant_algo": algo, "quantization": {"group_size": 64} if algo == "W4A16_AWQ" else {}}
    planes = dict(subbyte.encode("modelopt", source, params=params))
    if algo == "FP8":
        assert planes["weight_scale"].shape == ()
        found = subbyte.decode("modelopt", planes, params=params)
    else:
        found = check_round_trip("modelopt", planes, params).decode()
    block = {"NVFP4": 16, "W4A16_AWQ": 64}.get(algo, 32)
    maxima = np.repeat(np.abs(source.astype(np.float32)).reshape(2, 6, -1, block).max(-1), block, axis=-1)
    assert np.all(
        np.abs(found - source.astype(np.float32))
        <= maxima / (16 if "8" in algo else 3 if algo == "MXFP4" else 5.5) + 1e-6
    )
    assert not np.any(found[0, :2])


def test_write_refuses_what_would_round():
    codes = packed_bytes(np.zeros((4, 32), np.uint8), 4)
    scales = Plane(np.full((4, 4), 56, np.uint8), "F8_E4M3")
    form = Microscaled((4, 64), codes, "E2M1", scales, "F8_E4M3", 16, divisor=np.float32(3))
    with pytest.raises(UnsupportedError, match="divides"):
        ModelOpt().write(form, {"quant_algo": "NVFP4"})
    odd = Affine((4, 64), ByteCodes(np.zeros((4, 64), np.uint8), 4), Plane(np.ones((4, 1), np.float32), "F32"), 7, 64)
    with pytest.raises(UnsupportedError, match="zero point of 8"):
        ModelOpt().write(odd, {"quant_algo": "W4A16_AWQ"})


def open_folder(path, planes, settings=None, beside=None, dense=()):
    tensors = {f"{NAME}.{name}": plane.array() for name, plane in planes.items()}
    tensors |= {f"{name}.weight": np.zeros((4, 64), np.float32) for name in dense}
    files = None if beside is None else {"hf_quant_config.json": {"quantization": beside}}
    config = None if settings is None else settings | {"quant_method": "modelopt"}
    return subbyte.open(checkpoint(path / "model", tensors, files, quantization_config=config))


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("where", ["config", "beside", "both", "mixed"])
def test_open(tmp_path, algo, where):
    planes, values = layer(np.random.default_rng(8), algo)
    settings = {"quant_algo": algo, "exclude_modules": ["lm_head"]}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {NAME: {"quant_algo": algo}}}
    found = open_folder(
        tmp_path,
        planes,
        {"config": settings, "beside": None, "both": settings, "mixed": mixed}[where],
        None if where in ("config", "mixed") else settings,
        dense=("lm_head",),
    )
    assert found.format == "modelopt"
    assert np.array_equal(found[f"{NAME}.weight"].decode(), values)
    assert found["lm_head.weight"].format == "f32"
    assert not found.notes


def test_open_refuses_contradictions(tmp_path):
    planes, _ = layer(np.random.default_rng(9), "NVFP4")
    with pytest.raises(FormatError, match=r"'NVFP4', hf_quant_config.json 'FP8'"):
        open_folder(tmp_path / "a", planes, {"quant_algo": "NVFP4"}, {"quant_algo": "FP8"})
    found = open_folder(tmp_path / "b", planes, {"quant_algo": "NVFP4", "ignore": ["model.*"]})
    assert any(NAME in note for note in found.notes)
    with pytest.raises(FormatError, match="'ignore' is 5"):
        open_folder(tmp_path / "c", planes, {"quant_algo": "NVFP4", "ignore": 5})
    wrong = open_folder(tmp_path / "d", planes, {"quant_algo": "FP8"})
    with pytest.raises(FormatError, match="quant_algo is FP8") as caught:
        wrong[f"{NAME}.weight"].decode()
    assert NAME in str(caught.value)


@pytest.mark.parametrize("missing", ["weight", "weight_scale"])
def test_half_a_module(tmp_path, missing):
    planes, _ = layer(np.random.default_rng(10), "NVFP4")
    del planes[missing]
    with pytest.raises(FormatError, match=f"{NAME}.{missing}"):
        open_folder(tmp_path, planes, {"quant_algo": "NVFP4"})
