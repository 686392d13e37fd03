"""QTIP: rotated weights in a bitshift trellis."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats.trellis import codes
from subbyte.forms.hadamard import rotate
from subbyte.planes import float_plane

RNG = np.random.default_rng(63)
COMPUTED = {"1mad": codes.one_mad, "2mad": codes.two_mad, "3inst": codes.three_inst}

SETTINGS = [
    {"decode_mode": "1mad", "L": 16, "K": 2, "V": 1},
    {"decode_mode": "2mad", "L": 14, "K": 3, "V": 1},
    {"decode_mode": "3inst", "L": 16, "K": 1, "V": 1, "td_x": 4, "td_y": 32},
    {"decode_mode": "3inst", "L": 12, "K": 7, "V": 1, "td_x": 8, "td_y": 3},
    {"decode_mode": "lut", "L": 10, "K": 2, "V": 1, "tlut_bits": 10},
    {"decode_mode": "lut", "L": 12, "K": 3, "V": 4, "tlut_bits": 12},
    {"decode_mode": "quantlut", "L": 16, "K": 3, "V": 1, "tlut_bits": 8},
    {"decode_mode": "quantlut_sym", "L": 16, "K": 5, "V": 2, "tlut_bits": 9},
    {"decode_mode": "quantlut_sym", "L": 16, "K": 2, "V": 2, "tlut_bits": 10},
    {"decode_mode": "quantlut_sym", "L": 16, "K": 2, "V": 2, "tlut_bits": 9},
    {"decode_mode": "quantlut_sym", "L": 16, "K": 3, "V": 2, "tlut_bits": 9},
    {"decode_mode": "quantlut_sym", "L": 16, "K": 4, "V": 2, "tlut_bits": 9},
]


def half(*shape):
    return float_plane(RNG.normal(0, 1, shape).astype(np.float32), "F16")


def for_lanes(params):
    kernel = {"decode_mode": "quantlut_sym", "L": 16, "V": 2, "tlut_bits": 9}
    return all(params[key] == value for key, value in kernel.items()) and params["K"] in (2, 3, 4)


def ring(params, count):
    """Random strings of tiles, and their states."""
    step = params["K"] * params["V"]
    weights = params.get("td_x", 16) * params.get("td_y", 16)
    strings = RNG.integers(0, 2, (count, weights * params["K"]))
    at = np.arange(weights // params["V"])[:, None] * step + np.arange(params["L"])
    return strings[:, at % strings.shape[1]] @ (1 << np.arange(params["L"] - 1, -1, -1))


def layer(params, rows=None, columns=None):
    """States by tile, planes and parameters of the inner weight."""
    sides = (32, 32) if for_lanes(params) else (params.get("td_x", 16), params.get("td_y", 16))
    rows, columns = rows or 2 * sides[0], columns or 3 * sides[1]
    params = params | {"m": rows, "n": columns}
    states = ring(params, rows * columns // (params.get("td_x", 16) * params.get("td_y", 16)))
    planes = {"trellis": subbyte.encode("qtip", states, params=params | {"part": "states"})["trellis"]}
    if params["decode_mode"] not in COMPUTED:
        planes["tlut"] = half(1 << params["tlut_bits"], params["V"])
    return states, planes, params | {"part": "inner"}


def state_values(params, planes, state):
    mode, h = params["decode_mode"], int(state) * (int(state) + 1)
    if mode in COMPUTED:
        return [COMPUTED[mode](params["L"])[state]]
    tlut, bits = planes["tlut"].float32(), params["tlut_bits"]
    if mode == "lut":
        return list(tlut[state])
    symmetric = mode == "quantlut_sym"
    row = list(tlut[(h >> ((15 if symmetric else 16) - bits)) % (1 << bits)])
    return [-row[0], *row[1:]] if symmetric and h >> 15 & 1 else row


def place(params, index):
    """Row and column of the first weight of a state of a tile."""
    if for_lanes(params):
        lane, j = divmod(index, 4)
        return 8 * (j & 1) + (lane >> 2), 8 * (j >> 1) + 2 * (lane & 3)
    return divmod(index * params["V"], params.get("td_y", 16))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s['decode_mode']}-L{s['L']}K{s['K']}V{s['V']}")
def test_inner(settings):
    states, planes, params = layer(settings)
    check_round_trip("qtip", planes, params)
    check_damage("qtip", planes, params)
    found = subbyte.decode("qtip", planes, params=params)
    height, width = params.get("td_x", 16), params.get("td_y", 16)
    for _ in range(20):
        tile, index = RNG.integers(0, len(states)), int(RNG.integers(0, states.shape[1]))
        down, across = divmod(int(tile), params["n"] // width)
        row, column = place(params, index)
        row, column = row + down * height, column + across * width
        want = state_values(params, planes, states[tile, index])
        np.testing.assert_array_equal(found[row, column : column + params["V"]], np.array(want, np.float32))


@pytest.mark.parametrize("cut", [0, 1, 2])
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=lambda s: s["decode_mode"])
def test_layers(settings, cut):
    rows, columns = 64, 96
    _, planes, params = layer(settings, rows, columns)
    inner = subbyte.decode("qtip", planes, params=params).astype(np.float64)
    params = {key: value for key, value in params.items() if key not in ("part", "m", "n")}
    ranks = 8
    planes |= {"SU": half(columns), "SV": float_plane(RNG.normal(0, 1, rows).astype(np.float32), "F32")}
    planes |= {"rcp": np.int64(cut), "tp_rank": np.int64(ranks)}
    check_round_trip("qtip", planes, params)
    harmless = ("rcp missing", "tp_rank missing", "rcp cut", "tp_rank cut", "rcp axis", "tp_rank axis")
    check_damage("qtip", planes, params, harmless=harmless)
    sizes = [rows // ranks if cut == 2 else rows, columns // ranks if cut == 1 else columns]
    down, across = (
        np.kron(np.eye(of // size), rotate(np.eye(size), size).T)
        for of, size in zip((rows, columns), sizes, strict=True)
    )
    want = planes["SV"].float32()[:, None] * (down @ inner @ across.T) * planes["SU"].float32()
    np.testing.assert_allclose(subbyte.decode("qtip", planes, params=params), want, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    _, planes, params = layer(SETTINGS[-1])
    hostile = (None, -1, 0, 3, 5, 33, 10**30, 1.5, "x", "lut", [], {}, True, float("nan"))
    for key in ("L", "K", "V", "tlut_bits", "decode_mode", "td_x", "td_y", "m", "n", "part", "codebook"):
        for value in hostile:
            try:
                assert subbyte.decode("qtip", planes, params=params | {key: value}).ndim == 2
            except subbyte.Error:
                continue
    for changed in ({"K": 3}, {"tlut_bits": 10}, {"decode_mode": "4inst"}, {"td_x": 32}, {"codebook_version": 1}):
        with pytest.raises(subbyte.Error):
            subbyte.decode("qtip", planes, params=params | changed)
    whole = planes | {"SU": half(96), "SV": half(64)}
    for cut, ranks in ((3, 8), (1, 0), (1, 7), (2, -8)):
        with pytest.raises(subbyte.FormatError, match="rcp"):
            subbyte.decode(
                "qtip", whole | {"rcp": np.int64(cut), "tp_rank": np.int64(ranks)}, params=params | {"part": "weight"}
            )
    nan = planes["tlut"].data.copy()
    nan[3, 1] = np.nan
    with pytest.raises(subbyte.FormatError, match="tlut"):
        subbyte.decode("qtip", planes | {"tlut": nan}, params=params)
    states, _, params = layer(SETTINGS[0])
    for wrong in (states ^ 1, states + (1 << 16), states[:1], states.astype(np.float32)):
        with pytest.raises(subbyte.Error):
            subbyte.encode("qtip", wrong, params=params | {"part": "states"})
