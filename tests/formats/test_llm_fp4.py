"""LLM-FP4: floats with a real exponent bias."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.forms.scaled import element_values

RNG = np.random.default_rng(18)
WIDTHS = [(1, 2), (2, 1), (3, 0), (1, 1), (4, 3), (5, 2), (2, 3), (3, 4)]


def settings(exponent, mantissa):
    fields = {"w_bit": 1 + exponent + mantissa, "w_exponent_bit": exponent, "w_mantissa_bit": mantissa}
    return {"config": fields}


@pytest.mark.parametrize(("exponent", "mantissa"), WIDTHS)
@pytest.mark.parametrize("biases", [1, 6])
def test_round_trip(exponent, mantissa, biases):
    codes = RNG.integers(0, 1 << (1 + exponent + mantissa), (6, 33)).astype(np.uint8)
    planes = {"codes": codes, "w_interval": RNG.uniform(-5, 20, (biases, 1)).astype(np.float32)}
    check_round_trip("llm-fp4", planes, settings(exponent, mantissa))
    check_damage("llm-fp4", planes, settings(exponent, mantissa), {"codes cut"})


def test_whole_biases_are_the_standard_elements():
    codes = np.arange(16, dtype=np.uint8).reshape(1, 16)
    planes = {"codes": codes, "w_interval": np.ones((1, 1), np.float32)}
    np.testing.assert_array_equal(subbyte.decode("llm-fp4", planes, params=settings(2, 1))[0], element_values("E2M1"))


@pytest.mark.parametrize(("exponent", "mantissa"), WIDTHS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_encoding_takes_the_nearest_value(exponent, mantissa, per_tensor):
    weight = RNG.normal(0, 0.02, (5, 64)).astype(np.float32)
    weight[3] = 0
    params = {**settings(exponent, mantissa), "per_tensor": per_tensor}
    planes = subbyte.encode("llm-fp4", weight, params=params)
    found = subbyte.decode("llm-fp4", planes, params=params)
    every = np.arange(1 << (1 + exponent + mantissa), dtype=np.uint8)
    for row in range(5):
        bias = planes["w_interval"][0 if per_tensor else row]
        grid = subbyte.decode("llm-fp4", {"codes": every[None], "w_interval": bias[None]}, params=params)[0]
        best = np.abs(weight[row][:, None].astype(np.float64) - grid).min(axis=1)
        np.testing.assert_allclose(np.abs(found[row].astype(np.float64) - weight[row]), best, rtol=1e-4, atol=1e-9)
    assert not planes["codes"][3].any()


def test_hostile_settings():
    planes = {"codes": np.zeros((2, 3), np.uint8), "w_interval": np.zeros((1, 1), np.float32)}
    check_hostile_settings("llm-fp4", planes, settings(2, 1)["config"], "config")
    with pytest.raises(subbyte.FormatError, match="'w_bit' is 4"):
        subbyte.decode("llm-fp4", planes, params={"config": {"w_bit": 4, "w_exponent_bit": 3, "w_mantissa_bit": 3}})
    with pytest.raises(subbyte.FormatError, match="out of the range"):
        subbyte.decode("llm-fp4", planes | {"codes": np.full((2, 3), 16, np.uint8)}, params=settings(2, 1))
