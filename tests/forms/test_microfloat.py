"""Small floats: against the types of ml_dtypes, at and around every value and half-way point."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from subbyte import UnsupportedError
from subbyte.forms import microfloat
from subbyte.forms.scaled import element_values

PEERS = {
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def probes(element):
    """Every finite value, every half-way point, their neighbours, and random ones, all within the range."""
    values = element_values(element)
    values = values[np.isfinite(values)]
    ordered = np.unique(values)
    middles = (ordered[1:] + ordered[:-1]) / np.float32(2)
    points = np.concatenate([values, middles]).astype(np.float32)
    around = [np.nextafter(points, np.float32(side)) for side in (-np.inf, np.inf)]
    scale = microfloat.LARGEST[element]
    random = np.random.default_rng(3).uniform(-scale, scale, 4000).astype(np.float32)
    return np.clip(np.concatenate([points, *around, random, random * 2**-6]), -scale, scale).astype(np.float32)


@pytest.mark.parametrize("element", PEERS)
def test_nearest_even(element):
    x = probes(element)
    want = x.astype(PEERS[element]).view(np.uint8)
    assert np.array_equal(microfloat.encode_element(x, element), want)


@pytest.mark.parametrize("element", PEERS)
def test_every_code_comes_back(element):
    values = element_values(element)
    codes = np.flatnonzero(np.isfinite(values))
    assert np.array_equal(microfloat.encode_element(values[codes], element), codes)


@pytest.mark.parametrize("element", PEERS)
def test_beyond_the_range(element):
    top = np.float32(microfloat.LARGEST[element])
    x = np.array([top * 4, -top * 4, np.inf, -np.inf], np.float32)
    assert element_values(element)[microfloat.encode_element(x, element)].tolist() == [top, -top, top, -top]
    nan = element_values(element)[microfloat.encode_element(np.array([np.nan], np.float32), element)]
    assert np.isnan(nan[0]) == element.startswith("F8_")


def test_ties_and_negative_zero():
    x = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    assert microfloat.encode_e2m1(x).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert microfloat.encode_e2m1(x, "toward-zero").tolist() == [0, 1, 2, 3, 4, 5, 6]
    small = np.array([-0.0, -0.1, 0.0, -0.3], np.float32)
    assert microfloat.encode_e2m1(small).tolist() == [8, 8, 0, 9]
    assert microfloat.encode_e2m1(small, keep_negative_zero=False).tolist() == [0, 0, 0, 9]
    with pytest.raises(UnsupportedError, match="sideways"):
        microfloat.encode_e2m1(x, "sideways")


def test_scale_rules():
    maxima = np.array([0, 6, 6.1, 7, 7.5, 7.8, 8, 2**-127, 3e38], np.float32)
    floor = microfloat.e8m0_scales(maxima, "E2M1", "floor")
    assert floor.tolist() == [0, 127, 127, 127, 127, 127, 128, 0, 252]
    assert microfloat.e8m0_scales(maxima, "E2M1", "nearest").tolist() == [0, 127, 127, 128, 128, 128, 128, 0, 253]
    assert microfloat.e8m0_scales(maxima, "E2M3", "nearest").tolist() == [0, 127, 127, 127, 127, 128, 128, 0, 252]
    assert microfloat.e8m0_scales(maxima, "E2M1", "ceil").tolist() == [0, 127, 128, 128, 128, 128, 128, 0, 253]
    with pytest.raises(UnsupportedError, match="guess"):
        microfloat.e8m0_scales(maxima, "E2M1", "guess")


def test_blocks():
    x = np.array([[1, -3, 0, 0], [0.5, 0.25, -8, 8]], np.float32)
    maxima = microfloat.block_maxima(x, 2)
    assert maxima.tolist() == [[3, 0], [0.5, 8]]
    assert microfloat.divide_blocks(x, np.zeros((2, 1), np.float32)).tolist() == [[0] * 4] * 2
    assert microfloat.divide_blocks(x, maxima).tolist() == [[np.float32(1 / 3), -1, 0, 0], [1, 0.5, -1, 1]]
