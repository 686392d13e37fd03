"""EXL3: weights rotated in blocks of 128, in a trellis."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats.trellis import codes
from subbyte.forms.hadamard import rotate
from subbyte.planes import float_plane

RNG = np.random.default_rng(62)
CODES = {"3inst": codes.three_inst, "mcg": codes.mcg, "mul1": codes.mul1}


def half(*shape):
    return float_plane(RNG.normal(0, 1, shape).astype(np.float32), "F16")


def trellis(width, rows=128, columns=256):
    return RNG.integers(-1 << 15, 1 << 15, (columns // 16, rows // 16, 16 * width)).astype(np.int16)


def marker(name):
    return {name: np.array({"mcg": codes.MCG, "mul1": codes.MUL1}[name], np.uint32).view(np.int32)}


def layer(width, name, rows=128, columns=256):
    planes = {"trellis": trellis(width, rows, columns), "suh": half(columns), "svh": half(rows)}
    return planes if name == "3inst" else planes | marker(name)


def inner_value(tile, width, values, r, c):
    """The value of input r and output c of a tile, bit by bit."""
    words = tile.view(np.uint16).reshape(-1, 2)
    string = "".join(f"{int(high) << 16 | int(low):032b}" for low, high in words)
    for t in range(256):
        lane, j = t >> 3, t & 7
        if (r, c) == (2 * (lane & 3) + (j & 1) + 8 * (j >> 1 & 1), (lane >> 2) + 8 * (j >> 2)):
            first = t * width + width - 16
            return values[int("".join(string[(first + at) % len(string)] for at in range(16)), 2)]
    raise AssertionError


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("width", range(1, 9))
def test_inner(width, name):
    params = {"codebook": name, "part": "inner"}
    planes = {"trellis": trellis(width, 48, 32)}
    check_round_trip("exl3", planes, params)
    found = subbyte.decode("exl3", planes, params=params)
    assert found.shape == (48, 32)
    for row, column in RNG.integers(0, (48, 32), (12, 2)):
        tile = planes["trellis"][column // 16, row // 16]
        assert found[row, column] == inner_value(tile, width, CODES[name](16), column % 16, row % 16)


@pytest.mark.parametrize(("width", "name"), [(1, "3inst"), (3, "mcg"), (8, "mul1")])
def test_layers(width, name):
    planes = layer(width, name)
    check_round_trip("exl3", planes, {})
    other = ("mcg missing", "mul1 missing", "mcg axis", "mul1 axis", "mcg cut", "mul1 cut", "trellis cut")
    check_damage("exl3", planes, {}, harmless=other)
    inner = subbyte.decode("exl3", {"trellis": planes["trellis"]}, params={"codebook": name, "part": "inner"})
    block = rotate(np.eye(128), 128)
    down, across = np.kron(np.eye(1), block), np.kron(np.eye(2), block)
    want = planes["svh"].float32()[:, None] * (down @ inner @ across) * planes["suh"].float32()
    found = subbyte.decode("exl3", planes, params={})
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    stepwise = subbyte.decode("exl3", planes, params={}, dtype="float16").astype(np.float32)
    assert 0 < np.linalg.norm(stepwise - found) < 2e-3 * np.linalg.norm(found)
    cut = subbyte.decode("exl3", planes, params={"out_features": 100, "in_features": 250})
    np.testing.assert_array_equal(cut, found[:100, :250])


def test_signs_of_old_files():
    signs = {"su": RNG.integers(-1 << 15, 1 << 15, 16).astype(np.int16), "sv": np.array([-2] + 7 * [0], np.int16)}
    planes = {"trellis": trellis(2)} | signs
    found = subbyte.decode("exl3", planes, params={})
    negative = [signs["su"][at // 16] >> (at % 16) & 1 for at in range(256)]
    factors = {
        "suh": (1 - 2 * np.array(negative)).astype(np.float16),
        "svh": np.array([1] + 15 * [-1] + 112 * [1], np.float16),
    }
    np.testing.assert_array_equal(found, subbyte.decode("exl3", {"trellis": planes["trellis"]} | factors, params={}))
    check_damage("exl3", planes, {}, harmless=("trellis cut",))


def test_tiles():
    """The search ends where it starts, and its errors are those of the trellis."""
    tiles = RNG.normal(0, 1, (4, 256)).astype(np.float32)
    for name, scale in (("3inst", 1.24), ("mul1", 1.0)):
        params = {"part": "tile", "codebook": name, "K": 2, "input_scale": scale}
        states = subbyte.encode("exl3", tiles, params=params)["states"].view(np.uint16)
        error = CODES[name](16)[states] / scale - tiles
        assert 0.05 < np.mean(error * error) < 0.09
        subbyte.encode("exl3", states.reshape(2, 2, 256), params={"part": "states", "K": 2})
        with pytest.raises(subbyte.FormatError, match="follow"):
            subbyte.encode("exl3", (states ^ 1).reshape(2, 2, 256), params={"part": "states", "K": 2})


def test_what_is_refused():
    planes = layer(2, "mcg")
    hostile = (None, -1, 0, 3, 10**30, 1.5, "x", [], {}, True, float("nan"))
    for key in ("part", "K", "codebook", "in_features", "out_features"):
        for value in hostile:
            try:
                assert subbyte.decode("exl3", planes, params={key: value}).ndim == 2
            except subbyte.Error:
                continue
    nan = planes["svh"].data.copy()
    nan[5] = np.inf
    for broken in (
        planes | {"svh": nan},
        planes | {"trellis": trellis(2, 64)} | {"svh": half(64)},
        planes | {"trellis": np.zeros((16, 8, 16 * 9), np.int16)},
        planes | {"trellis": planes["trellis"].view(np.uint16)},
    ):
        with pytest.raises(subbyte.FormatError):
            subbyte.decode("exl3", broken, params={})
    for params in (
        {"part": "tile", "codebook": "mul1", "K": 9},
        {"part": "states", "K": 2},
        {"part": "tile", "K": 2},
        {},
    ):
        with pytest.raises(subbyte.Error):
            subbyte.encode("exl3", np.ones((2, 200), np.float32), params=params)
