"""Slices of 8-bit parents."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.planes import float_plane

RNG = np.random.default_rng(19)


def layer(rows, columns, groups, kind="F16", bits=8):
    codes = RNG.integers(0, 1 << bits, (rows, columns)).astype(np.uint8) << np.uint8(8 - bits)
    scales = float_plane(RNG.uniform(1e-3, 1e-1, (rows, groups)).astype(np.float32), kind)
    return {"qweight": codes, "scales": scales}


@pytest.mark.parametrize(("columns", "size"), [(128, 64), (96, 96), (70, 32), (5, 1)])
@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width(columns, size, kind, bits):
    planes = layer(7, columns, -(-columns // size), kind, bits)
    params = {"bits": bits, "quantization_config": {"group_size": size}}
    form = check_round_trip("matquant", planes, params)
    assert form.symmetric
    check_damage("matquant", planes, params, {"qweight cut"})  # a shorter last group


@pytest.mark.parametrize("bits", range(1, 9))
def test_slices_round_halves_up_and_stay_in_range(bits):
    parent = np.arange(256, dtype=np.uint8)
    for extra in (False, True):
        found = subbyte.decode("matquant.codes", {"qweight": parent}, params={"bits": bits, "extra_precision": extra})
        exact = np.floor(parent / 2 ** (8 - bits) + (0.5 if bits < 8 else 0))
        np.testing.assert_array_equal(found, exact if extra else np.minimum(exact, 2**bits - 1))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("extra", [False, True])
def test_weights_are_the_slices_scaled(bits, extra):
    planes = layer(4, 32, 2)
    params = {"bits": bits, "extra_precision": extra}
    codes = subbyte.decode("matquant.codes", planes, params=params).astype(np.float32)
    scales = np.repeat(planes["scales"].float32(), 16, axis=1)
    want = scales * (codes * np.float32(2 ** (8 - bits)) - np.float32(128))
    np.testing.assert_array_equal(subbyte.decode("matquant", planes, params=params), want)


def test_settings():
    planes = layer(4, 32, 2)
    config = {"group_size": 16, "master_bitwidth": 8, "inference_bitwidth": 4, "quant_dtype": "float16"}
    check_hostile_settings("matquant", planes, config)
    for bits in (0, 9, -1, None, "4", 10**30):
        with pytest.raises(subbyte.Error, match="bits"):
            subbyte.decode("matquant", planes, params={"bits": bits})


def test_what_cannot_be_written():
    format = checkpoint_format("matquant")
    extra = format.read(layer(4, 32, 2), {"bits": 4, "extra_precision": True})
    with pytest.raises(subbyte.UnsupportedError, match="zero points"):
        format.write(extra, {})


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_encoding_is_near(kind):
    weight = RNG.normal(0, 0.02, (8, 100)).astype(np.float32)
    params = {"quantization_config": {"group_size": 32, "quant_dtype": kind}}
    found = subbyte.decode("matquant", subbyte.encode("matquant", weight, params=params), params=params)
    assert np.linalg.norm(found - weight) < 0.01 * np.linalg.norm(weight)
