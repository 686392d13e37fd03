"""MLX: every mode and width, settings by module, and the ``metal`` method."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.integer.mlx import BITS, GROUPS, MODES, Mlx
from subbyte.forms import Affine, ByteCodes
from subbyte.forms.codes import pack
from subbyte.forms.scaled import element_values
from subbyte.planes import Plane, float8_values, float_plane, rounded

NAME = "model.layers.0.mlp.down_proj"


def affine(rng, bits, group, shape, kind="F16", bias="biases"):
    """Random planes and the codes in them."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (*shape[:-1], columns // group)
    parameters = [float_plane(rng.normal(0, 0.1, groups).astype(np.float32), kind) for _ in range(2)]
    words = Plane(pack("stream", bits, codes).reshape(*shape[:-1], -1), "U32")
    return {"weight": words, "scales": parameters[0], bias: parameters[1]}, codes.reshape(shape)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("shape", [(6, 256), (2, 3, 128)])
def test_affine(bits, group, kind, shape):
    planes, codes = affine(np.random.default_rng([bits, group]), bits, group, shape, kind)
    params = {"quantization": {"bits": bits, "group_size": group}}
    form = check_round_trip("mlx", planes, params)
    scale, bias = (np.repeat(planes[name].float32(), group, axis=-1) for name in ("scales", "biases"))
    assert np.array_equal(form.decode(), codes * scale + bias)
    if kind != "F32":
        twice = rounded(rounded(codes * scale, kind) + bias, kind)
        assert np.array_equal(form.decode({"F16": "float16", "BF16": "bfloat16"}[kind]).astype(np.float32), twice)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(6, 96), (2, 3, 64)])
@pytest.mark.parametrize("maximum", [None, 0.37])
def test_small_floats(mode, shape, maximum):
    rng = np.random.default_rng(len(shape))
    element, scale_kind, bits, block = MODES[mode]
    codes = rng.integers(0, 127 if bits == 8 else 16, shape).astype(np.uint8)
    words = pack("stream", bits, codes.reshape(-1, shape[-1])).reshape(*shape[:-1], -1)
    scales = rng.integers(0, 127, (*shape[:-1], shape[-1] // block)).astype(np.uint8)
    planes = {"weight": words, "scales": scales}
    if maximum is not None:
        planes["global_scale"] = np.array([maximum], np.float32)
    params = {"quantization": {"mode": mode, "bits": bits, "group_size": block}}
    if maximum is not None and mode != "nvfp4":
        with pytest.raises(FormatError, match="global_scale"):
            subbyte.decode("mlx", planes, params=params)
        return
    form = check_round_trip("mlx", planes, params)
    step = float8_values(scale_kind)[scales] * (1 if maximum is None else np.float32(maximum) / np.float32(2688))
    assert np.array_equal(form.decode(), element_values(element)[codes] * np.repeat(step, block, axis=-1))
    check_damage("mlx", planes, params, harmless=("global_scale missing", "global_scale axis", "global_scale cut"))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_metal(bits):
    config = {"quant_method": "metal", "bits": bits, "group_size": 32}
    planes, codes = affine(np.random.default_rng(bits), bits, 32, (4, 64), bias="qbiases")
    params = {"quantization_config": config}
    form = check_round_trip("mlx", planes, params)
    scale, bias = (np.repeat(planes[name].float32(), 32, axis=-1) for name in ("scales", "qbiases"))
    assert np.array_equal(form.decode("float16"), (codes * scale + bias).astype(np.float16))
    source = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float16)
    encoded = dict(subbyte.encode("mlx", source, params=params))
    assert sorted(encoded) == ["qbiases", "scales", "weight"]
    check_round_trip("mlx", encoded, params)


def test_damage():
    planes, _ = affine(np.random.default_rng(2), 4, 64, (6, 128))
    config = {"bits": 4, "group_size": 64, "mode": "affine"}
    check_damage("mlx", planes, {"quantization": config})
    check_hostile_settings("mlx", planes, config, key="quantization")
    with pytest.raises(FormatError, match="'qbiases' are both"):
        subbyte.decode("mlx", planes | {"qbiases": planes["biases"]}, params={"quantization": config})
    with pytest.raises(subbyte.ArgumentError, match="quantization"):
        subbyte.decode("mlx", planes)


@pytest.mark.parametrize("bits", BITS)
def test_encode(bits):
    source = np.random.default_rng(bits).standard_normal((2, 6, 128)).astype(np.float32)
    source[0, :2] = 0
    source[1, 0] = 0.25
    params = {"quantization": {"bits": bits, "group_size": 64}}
    found = check_round_trip("mlx", dict(subbyte.encode("mlx", source, params=params)), params).decode()
    grouped = source.reshape(2, 6, 2, 64)
    step = (grouped.max(-1) - grouped.min(-1)) / ((1 << bits) - 1)
    assert np.all(np.abs(found - source) <= np.repeat(step, 64, axis=-1) * 1.5 + 1e-6)


def test_write_integers_with_zeros():
    rng = np.random.default_rng(3)
    codes, zeros = rng.integers(0, 16, (4, 128)).astype(np.uint8), rng.integers(0, 16, (4, 1)).astype(np.int16)
    scales = Plane(rng.uniform(0.01, 0.1, (4, 1)).astype(np.float16), "F16")
    form = Affine((4, 128), ByteCodes(codes, 4), scales, zeros, 128)
    with pytest.raises(UnsupportedError, match="without rounding"):
        Mlx().write(form, {"quantization": {"bits": 4, "group_size": 64}})
    middle = Affine((4, 128), ByteCodes(codes, 4), scales, 8, 128)
    for bits in (4, 5):
        params = {"quantization": {"bits": bits, "group_size": 64}}
        planes = Mlx().write(middle, params)
        assert np.array_equal(Mlx().read(planes, params).decode(), middle.decode())
    wide = form.biased("F32")
    assert np.array_equal(wide.decode(), form.decode())
    with pytest.raises(UnsupportedError, match="4 bits cannot be stored as 3"):
        Mlx().write(middle, {"quantization": {"bits": 3, "group_size": 64}})


def open_folder(path, planes, settings, dense=()):
    tensors = {f"{NAME}.{plane}": plane_data.array() for plane, plane_data in planes.items()}
    tensors |= {f"{name}.weight": np.zeros((4, 64), np.float32) for name in dense}
    return subbyte.open(checkpoint(path / "model", tensors, quantization=settings))


def test_settings_by_module(tmp_path):
    planes, _ = affine(np.random.default_rng(4), 8, 32, (6, 128))
    settings = {"bits": 4, "group_size": 64, NAME: {"bits": 8, "group_size": 32}, "embed": False, "head": {"bits": 8}}
    found = open_folder(tmp_path, planes, settings, dense=("embed", "head"))
    want = subbyte.decode("mlx", planes, params={"quantization": settings[NAME]})
    assert np.array_equal(found[f"{NAME}.weight"].decode(), want)
    assert [note.split(":")[0] for note in found.notes] == ["head"]
    for own, match in ((False, "not quantized"), ({"bits": 3}, "do not fit"), (3, "JSON object")):
        with pytest.raises(FormatError, match=match) as caught:
            open_folder(tmp_path / str(match), planes, settings | {NAME: own})
        assert NAME in str(caught.value)


@pytest.mark.parametrize(("bits", "group", "clear"), [(3, 32, True), (5, 128, True), (4, 64, False)])
def test_without_settings(tmp_path, bits, group, clear):
    planes, _ = affine(np.random.default_rng(5), bits, group, (6, 128))
    if not clear:
        with pytest.raises(FormatError, match="no settings"):
            open_folder(tmp_path, planes, None)
        return
    want = subbyte.decode("mlx", planes, params={"quantization": {"bits": bits, "group_size": group}})
    assert np.array_equal(open_folder(tmp_path, planes, None)[f"{NAME}.weight"].decode(), want)


@pytest.mark.parametrize("missing", ["scales", "biases", "weight"])
def test_half_a_module(tmp_path, missing):
    planes, _ = affine(np.random.default_rng(6), 4, 64, (6, 128))
    del planes[missing]
    with pytest.raises(FormatError, match=f"{NAME}.{missing}"):
        open_folder(tmp_path, planes, {"bits": 4, "group_size": 64})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("maximum", [None, 4.0])
def test_encode_small_floats(mode, maximum):
    if maximum is not None and mode != "nvfp4":
        pytest.skip("the scale of the tensor belongs to nvfp4")
    _, _, bits, block = MODES[mode]
    source = np.clip(np.random.default_rng(7).standard_normal((2, 6, 128)), -4, 4).astype(np.float16)
    source[0, :2] = 0
    params = {"quantization": {"mode": mode}} | ({} if maximum is None else {"global_scale": maximum})
    found = check_round_trip("mlx", dict(subbyte.encode("mlx", source, params=params)), params).decode()
    maxima = np.repeat(np.abs(source.astype(np.float32)).reshape(2, 6, -1, block).max(-1), block, axis=-1)
    assert np.all(np.abs(found - source.astype(np.float32)) <= maxima * (0.07 if bits == 8 else 0.34))
    assert not np.any(found[0, :2])


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 1e300, 10**400, True, "x", [1.0], {}])
def test_hostile_scale_of_the_tensor(value):
    source = np.ones((2, 32), np.float32)
    with pytest.raises(subbyte.ArgumentError, match="global_scale"):
        subbyte.encode("mlx", source, params={"quantization": {"mode": "nvfp4"}, "global_scale": value})
