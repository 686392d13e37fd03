"""AWQ: every layout, and what checkpoints say about themselves."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.integer.awq import Awq
from subbyte.forms import Affine, Biased, PackedCodes
from subbyte.forms.codes import pack
from subbyte.planes import Plane

NAME = "model.layers.0.mlp.down_proj"


def config(version="gemm", group_size=64, **more):
    marlin = version == "marlin"
    return {"bits": 4, "group_size": group_size, "zero_point": not marlin, "version": version} | more


def form(rng, shape, group_size, zeros=None):
    out, columns = shape
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    groups = columns // group_size
    scales = Plane(rng.uniform(0.001, 0.1, (out, groups)).astype(np.float16), "F16")
    chosen = rng.integers(0, 16, (out, groups)).astype(np.int16) if zeros is None else zeros
    return Affine(shape, PackedCodes(pack("stream", 4, codes), 4, shape), scales, chosen, group_size)


LAYOUTS = [
    ("gemm", (64, 128), 32), ("gemm", (72, 96), 96), ("gemv", (30, 320), 64), ("gemv", (16, 96), 32),
    ("gemv", (16, 2304), 128), ("gemv_fast", (32, 256), 128), ("gemv_fast", (12, 192), 64), ("gemv_fast", (8, 128), 32),
    ("marlin", (256, 256), 128), ("marlin", (256, 384), 384),
]  # fmt: skip


@pytest.mark.parametrize(("version", "shape", "group_size"), LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_random_layers(version, shape, group_size, seed):
    rng = np.random.default_rng([seed, *shape])
    source = form(rng, shape, group_size, 8 if version == "marlin" else None)
    params = {"quantization_config": config(version, group_size if group_size < shape[1] else -1)}
    planes = Awq().write(source, params)
    found = check_round_trip("awq", planes, params)
    assert isinstance(found, Affine)
    assert np.array_equal(found.codes.unpack(), source.codes.unpack())
    assert np.array_equal(found.codes.unpack(slice(5, 11)), source.codes.unpack(slice(5, 11)))
    assert np.array_equal(found.decode(), source.decode())
    half = subbyte.decode("awq", planes, params=params, dtype="float16")
    assert np.array_equal(half, source.decode().astype(np.float16))


def test_words_of_gemm():
    """The nibbles of a word are the outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    codes = np.arange(8, dtype=np.uint8)[:, None].repeat(8, 1)
    scales = Plane(np.ones((8, 1), np.float16), "F16")
    source = Affine((8, 8), PackedCodes(pack("stream", 4, codes), 4, (8, 8)), scales, 0, 8)
    planes = Awq().write(source, {"quantization_config": config(group_size=8)})
    assert (planes["qweight"].data.view(np.uint32) == 0x75316420).all()


@pytest.mark.parametrize("settings", [config("gemv_fast", 64), config("gemv_fast", 64, backend="llm-awq")])
def test_zeros_that_are_no_integers(settings):
    rng = np.random.default_rng(5)
    planes = Awq().write(form(rng, (8, 128), 64), {"quantization_config": settings})
    name = "scaled_zeros" if "backend" in settings else "qzeros"
    uneven = planes[name].data.copy()
    uneven[:2] = rng.uniform(-1, 1, (2, 8))
    found = check_round_trip("awq", planes | {name: Plane(uneven, "F16")}, {"quantization_config": settings})
    assert isinstance(found, Biased)


@pytest.mark.parametrize(("version", "shape", "group_size"), LAYOUTS[::3])
def test_damage(version, shape, group_size):
    rng = np.random.default_rng(1)
    params = {"quantization_config": config(version, group_size)}
    planes = Awq().write(form(rng, shape, group_size, 8 if version == "marlin" else None), params)
    check_damage("awq", planes, params)
    check_hostile_settings("awq", planes, params["quantization_config"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 8}, "'bits' is 8"),
        ({"group_size": 32}, "makes 4 groups of 128 columns; the scales have 2"),
        ({"q_group_size": 32}, "'group_size' and 'q_group_size' differ"),
        ({"version": "gemv"}, "shape"),
        ({"version": "other"}, "version 'other'"),
        ({"format": "gemv"}, "version is 'gemm', format is 'gemv'"),
        ({"zero_point": False}, "without zero points"),
        ({"version": "marlin"}, "qzeros"),
    ],
)
def test_contradictions(changes, message):
    planes = Awq().write(form(np.random.default_rng(2), (64, 128), 64), {"quantization_config": config()})
    with pytest.raises(subbyte.Error, match=message):
        subbyte.decode("awq", planes, params={"quantization_config": config() | changes})


@pytest.mark.parametrize(("shape", "zeros", "scales"), [((64, 96), 0, 1), ((60, 128), 0, 1), ((64, 128), 0, 1e9)])
def test_what_does_not_fit(shape, zeros, scales):
    source = form(np.random.default_rng(3), shape, 32, zeros)
    large = Plane(np.full(source.scales.shape, scales, np.float32), "F32")
    source = Affine(shape, source.codes, large, zeros, 32)
    with pytest.raises(UnsupportedError):
        Awq().write(source, {"quantization_config": config(group_size=64 if shape[1] == 96 else 32)})


def open_folder(path, planes, settings):
    tensors = {f"{NAME}.{plane}": found.data for plane, found in planes.items()}
    return subbyte.open(checkpoint(path / "model", tensors, quantization_config=settings))


@pytest.mark.parametrize(("version", "shape", "group_size"), LAYOUTS)
def test_checkpoints(tmp_path, version, shape, group_size):
    source = form(np.random.default_rng(4), shape, group_size, 8 if version == "marlin" else None)
    settings = config(version.upper(), group_size, quant_method="awq")
    planes = Awq().write(source, {"quantization_config": settings})
    found = open_folder(tmp_path, planes, settings)
    assert found[f"{NAME}.weight"].shape == shape
    assert np.array_equal(found[f"{NAME}.weight"].decode(), source.decode())


@pytest.mark.parametrize(("version", "shape", "group_size"), LAYOUTS)
def test_layout_by_shapes(tmp_path, version, shape, group_size):
    source = form(np.random.default_rng(4), shape, group_size, 8 if version == "marlin" else None)
    planes = Awq().write(source, {"quantization_config": config(version, group_size)})
    found = open_folder(tmp_path, planes, {"quant_method": "awq", "bits": 4, "group_size": group_size})
    assert np.array_equal(found[f"{NAME}.weight"].decode(), source.decode())


def test_stale_list_is_noted(tmp_path):
    source = form(np.random.default_rng(4), (64, 128), 64)
    settings = config(quant_method="awq", modules_to_not_convert=["down_proj", "lm_head"])
    found = open_folder(tmp_path, Awq().write(source, {"quantization_config": settings}), settings)
    assert len(found.notes) == 1
    assert "'down_proj'" in found.notes[0]


def test_half_a_module(tmp_path):
    planes = Awq().write(form(np.random.default_rng(4), (64, 128), 64), {"quantization_config": config()})
    del planes["scales"]
    with pytest.raises(FormatError, match=f"{NAME}.scales"):
        open_folder(tmp_path, planes, config(quant_method="awq"))
