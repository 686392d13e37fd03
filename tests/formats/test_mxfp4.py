"""MXFP4 as gpt-oss stores it."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.float.mxfp4 import Mxfp4
from subbyte.forms.scaled import element_values
from subbyte.planes import float8_values

SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
NAME = "model.layers.0.mlp.experts.down_proj"


def layer(rng, shape):
    """Random planes and their values."""
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    scales = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32)).astype(np.uint8)
    blocks = (codes[..., ::2] | codes[..., 1::2] << 4).reshape(*scales.shape, 16)
    with np.errstate(over="ignore"):
        values = element_values("E2M1")[codes] * np.repeat(float8_values("F8_E8M0")[scales], 32, axis=-1)
    return {"blocks": blocks, "scales": scales}, values


@pytest.mark.parametrize("shape", [(2, 6, 96), (3, 1, 32), (5, 64), (2, 2, 3, 32)])
def test_random_layers(shape):
    planes, values = layer(np.random.default_rng(shape), shape)
    form = check_round_trip("mxfp4", planes, {})
    assert np.array_equal(form.decode().view(np.uint32) & 0x7FFFFFFF, values.view(np.uint32) & 0x7FFFFFFF)
    check_damage("mxfp4", planes, {})


@pytest.mark.parametrize("shape", [(2, 6, 96), (5, 64)])
def test_open(tmp_path, shape):
    planes, values = layer(np.random.default_rng(1), shape)
    tensors = {f"{NAME}_{plane}": data for plane, data in planes.items()} | {f"{NAME}_bias": np.ones(3, np.float32)}
    for settings in (SETTINGS, None):
        found = subbyte.open(checkpoint(tmp_path / str(settings is None), tensors, quantization_config=settings))
        assert sorted(found) == [NAME, f"{NAME}_bias"]
        want = np.swapaxes(values, -1, -2) if len(shape) == 3 else values
        assert np.array_equal(found[NAME].decode(), want, equal_nan=True)


@pytest.mark.parametrize("missing", ["blocks", "scales"])
def test_half_a_module(tmp_path, missing):
    planes, _ = layer(np.random.default_rng(2), (2, 6, 32))
    tensors = {f"{NAME}_{plane}": data for plane, data in planes.items() if plane != missing}
    with pytest.raises(FormatError, match=f"{NAME}_{missing}"):
        subbyte.open(checkpoint(tmp_path / "model", tensors, quantization_config=SETTINGS))


def test_encode():
    source = np.random.default_rng(3).standard_normal((2, 6, 96)).astype(np.float32)
    source[0, 0] = 0
    planes = dict(subbyte.encode("mxfp4", source))
    found = check_round_trip("mxfp4", planes, {}).decode()
    assert np.all(np.abs(found - source) <= np.abs(source).max(axis=-1, keepdims=True) / 3)
    assert np.array_equal(subbyte.decode("mxfp4", subbyte.encode("mxfp4", found)), found)
    with pytest.raises(UnsupportedError, match="whole blocks of 32"):
        subbyte.encode("mxfp4", source[..., :40])


def test_write_refuses_other_blocks():
    form = subbyte.formats.checkpoint_format("mlx").read(
        {"weight": np.zeros((4, 4), np.uint32), "scales": np.zeros((4, 2), np.uint8)},
        {"quantization": {"mode": "nvfp4"}},
    )
    with pytest.raises(UnsupportedError, match="no MXFP4"):
        Mxfp4().write(form, {})
