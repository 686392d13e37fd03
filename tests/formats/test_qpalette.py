"""Q-Palette: rotated weights in tables of scalars or vectors, or in trellises."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.forms.hadamard import matrix, rotate
from subbyte.planes import float_plane

RNG = np.random.default_rng(28)


def half(*shape):
    return float_plane(RNG.normal(0, 1, shape).astype(np.float32), "F16")


def ring_states(rows, columns, width):
    """States of random rings: (tiles, 128)."""
    bits = RNG.integers(0, 2, (rows * columns // 256, 128 * width))
    ring = np.concatenate([bits, bits[:, :16]], axis=1)
    weights = 1 << np.arange(15, -1, -1)
    return np.stack([ring[:, at * width : at * width + 16] @ weights for at in range(128)], axis=1).astype(np.int32)


def pair_place(q):
    lane, j = divmod(q, 4)
    return 8 * (j & 1) + (lane >> 2), 8 * (j >> 1) + 2 * (lane & 3)


def trellis_values(states, tlut, rows, columns):
    bits = len(tlut).bit_length() - 1
    out = np.empty((rows, columns), np.float32)
    for tile, ring in enumerate(states):
        down, across = divmod(tile, columns // 16)
        for q, state in enumerate(ring):
            h = int(state) * (int(state) + 1)
            first, second = tlut[h >> (15 - bits) & ((1 << bits) - 1)]
            row, column = pair_place(q)
            row, column = 16 * down + row, 16 * across + column
            out[row, column], out[row, column + 1] = -first if h >> 15 & 1 else first, second
    return out


def trellis(rows, columns, width, bits=9):
    states = ring_states(rows, columns, width)
    params = {"m": rows, "n": columns, "KV": width, "tlut_bits": bits}
    packed = subbyte.encode("qpalette", states, params=params | {"part": "states"})["trellis"]
    return states, {"trellis": packed, "tlut": half(1 << bits, 2)}, params | {"part": "inner"}


@pytest.mark.parametrize("width", range(2, 11))
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 96)])
def test_trellis(width, rows, columns):
    states, planes, params = trellis(rows, columns, width, max(9, width + 1))
    check_round_trip("qpalette", planes, params)
    want = trellis_values(states, planes["tlut"].float32(), rows, columns)
    np.testing.assert_array_equal(subbyte.decode("qpalette", planes, params=params), want)


@pytest.mark.parametrize("key", ["in_part", "out_part"])
def test_two_trellises(key):
    sizes, widths = (32, 96), (5, 6)
    shapes = [(64, size) if key == "in_part" else (size, 64) for size in sizes]
    made = [trellis(*shape, width) for shape, width in zip(shapes, widths, strict=True)]
    tlut = made[0][1]["tlut"]
    planes = {"trellis1": made[0][1]["trellis"], "trellis2": made[1][1]["trellis"], "tlut": tlut}
    shape = (64, 128) if key == "in_part" else (128, 64)
    params = {"m": shape[0], "n": shape[1], "KV": list(widths), key: list(sizes), "part": "inner"}
    check_round_trip("qpalette", planes, params)
    parts = [trellis_values(one[0], tlut.float32(), *of) for one, of in zip(made, shapes, strict=True)]
    want = np.concatenate(parts, axis=1 if key == "in_part" else 0)
    np.testing.assert_array_equal(subbyte.decode("qpalette", planes, params=params), want)
    check_damage("qpalette", planes, params)
    for changed in ({"KV": [6, 5]}, {"KV": 5}, {key: [64, 64]}, {key: [96]}, {key: [128, 0]}, {key: None}, {"m": 96}):
        with pytest.raises(subbyte.Error):
            subbyte.decode("qpalette", planes, params=params | changed)
    whole = planes | {"SU": half(shape[1]), "SV": half(shape[0]), "Wscale": half(shape[0])}
    check_round_trip("qpalette", whole, params | {"part": "weight", "rot_info": "all"})


def table(rows, columns, bits, length, layout):
    codes = RNG.integers(0, 1 << bits, (rows, columns // length)).astype(np.int32)
    params = {"m": rows, "n": columns, "lut_bits": bits, "vec_sz": length, "layout": layout}
    packed = subbyte.encode("qpalette", codes, params=params | {"part": "codes"})["qweight"]
    return codes, {"qweight": packed, "lut": half(1 << bits, length)}, params | {"part": "inner"}


def tensor_core_words(codes, bits, length, rows, columns):
    """``qweight`` as its order is described, unit by unit."""
    units, unit_bits = bits, 8 if length == 1 else 4
    out = np.zeros((rows // 32, columns // 32, 32, 2, 2, units), np.uint8)
    for tile_row in range(rows // 16):
        for tile_column in range(columns // 16):
            string = []
            for q in range(128):
                row, column = pair_place(q)
                row, column = 16 * tile_row + row, 16 * tile_column + column
                some = codes[row, column : column + 2] if length == 1 else codes[row, column // 2 : column // 2 + 1]
                string += [int(code) >> at & 1 for code in some for at in range(bits)]
            for unit in range(32 * units):
                lane, at = divmod(unit, units)
                value = sum(bit << place for place, bit in enumerate(string[unit * unit_bits : (unit + 1) * unit_bits]))
                out[tile_row // 2, tile_column // 2, lane, tile_column % 2, tile_row % 2, at] = value
    flat = out.reshape(-1)
    raw = flat if length == 1 else flat[::2] | flat[1::2] << 4
    return raw.view(np.int32).reshape(rows, -1)


def simt_words(codes, bits, length, rows, columns):
    out = np.zeros((rows, bits * columns // (32 * length)), np.uint32)
    chunk = 32 * length
    for row in range(rows):
        for begin in range(0, columns, 32 * chunk):
            g = min(32, (columns - begin) // chunk)
            for lane in range(g):
                stream = 0
                for vector in range(32):
                    e = vector * length
                    column = begin + e // 8 * 8 * g + 8 * lane + e % 8
                    stream |= int(codes[row, column // length]) << (vector * bits)
                for word in range(bits):
                    out[row, begin // chunk * bits + word * g + lane] = stream >> (32 * word) & 0xFFFFFFFF
    return out.view(np.int32)


TABLES = [(1, 1), (3, 1), (8, 1), (2, 2), (7, 2), (12, 2)]


@pytest.mark.parametrize(
    ("bits", "length", "layout"),
    [(*one, layout) for one in TABLES for layout in ("tensorcore", "simt")] + [(8, 4, "simt"), (3, 4, "simt")],
)
def test_tables(bits, length, layout):
    rows, columns = (32, 64 * length) if layout == "tensorcore" else (3, 32 * length * 35)
    codes, planes, params = table(rows, columns, bits, length, layout)
    check_round_trip("qpalette", planes, params)
    words = (tensor_core_words if layout == "tensorcore" else simt_words)(codes, bits, length, rows, columns)
    np.testing.assert_array_equal(planes["qweight"], words)
    want = planes["lut"].float32()[codes].reshape(rows, columns)
    np.testing.assert_array_equal(subbyte.decode("qpalette", planes, params=params), want)
    np.testing.assert_array_equal(subbyte.decode("qpalette", planes, params=params, dtype="float16"), want)


@pytest.mark.parametrize("rot_info", ["all", "skip_l", "skip_r", "skip_lr"])
@pytest.mark.parametrize("sizes", [(None, None), (32, 12)])
def test_rotated_layers(rot_info, sizes):
    rows, columns = 64, 96
    _, planes, params = trellis(rows, columns, 4)
    inner = subbyte.decode("qpalette", planes, params=params).astype(np.float64)
    planes |= {"SU": half(columns), "SV": half(rows), "Wscale": half(rows)}
    params = {"KV": 4, "rot_info": rot_info} | {
        key: size for key, size in zip(("hadV", "hadU"), sizes, strict=True) if size is not None
    }
    check_round_trip("qpalette", planes, params)
    check_damage("qpalette", planes, params)

    def block(size, of):
        return np.kron(np.eye(of // size), rotate(np.eye(size), size).T)

    want = planes["Wscale"].float32().astype(np.float64)[:, None] * inner
    if rot_info in ("all", "skip_l"):
        want = block(sizes[0] or rows, rows) @ want
    if rot_info in ("all", "skip_r"):
        want = want @ block(sizes[1] or columns, columns).T
    want = planes["SV"].float32().astype(np.float64)[:, None] * want * planes["SU"].float32()
    np.testing.assert_allclose(subbyte.decode("qpalette", planes, params=params), want, rtol=1e-6, atol=1e-6)
    assert np.array_equal(rotate(np.eye(12), 12).T * np.sqrt(12) > 0, matrix(12) > 0)


def test_contradictions_are_refused():
    _, planes, params = table(32, 64, 4, 1, "tensorcore")
    check_damage("qpalette", planes, params)
    values = (None, -1, 0, 3, 5, 10**30, 1.5, "x", [], True)
    for key in ("m", "n", "lut_bits", "vec_sz", "layout", "part", "tlut_bits", "KV"):
        for value in values:
            try:
                subbyte.decode("qpalette", planes, params=params | {key: value})
            except subbyte.Error:
                continue
    _, planes, params = trellis(32, 32, 4)
    for changed in (
        {"KV": 5},
        {"tlut_bits": 10},
        {"n": 64},
        {"m": 48, "n": 16},
        {"n": None},
        {"rot_info": "x", "part": "weight"},
    ):
        with pytest.raises(subbyte.Error):
            subbyte.decode("qpalette", planes, params=params | changed)
    nan = planes["tlut"].data.copy()
    nan[3, 1] = np.nan
    with pytest.raises(subbyte.FormatError, match="tlut"):
        subbyte.decode("qpalette", planes | {"tlut": nan}, params=params)
    factors = {"SU": half(32), "SV": half(32), "Wscale": half(32)}
    for size in ({"hadU": 24}, {"hadU": 64}, {"hadV": 0}, {"hadV": 10**30}):
        with pytest.raises(subbyte.Error):
            subbyte.decode("qpalette", planes | factors, params=params | {"part": "weight", "rot_info": "all"} | size)


def test_what_cannot_be_encoded():
    states = ring_states(32, 32, 4)
    params = {"m": 32, "n": 32, "KV": 4, "part": "states"}
    states[1, 5] ^= 1 << 13
    with pytest.raises(subbyte.FormatError, match="follow"):
        subbyte.encode("qpalette", states, params=params)
    with pytest.raises(subbyte.ArgumentError, match="out of the range"):
        subbyte.encode("qpalette", states + (1 << 16), params=params)
    with pytest.raises(subbyte.ArgumentError, match="integers"):
        subbyte.encode("qpalette", states.astype(np.float32), params=params)
    with pytest.raises(subbyte.UnsupportedError):
        subbyte.encode("qpalette", np.ones((32, 32), np.float32))
    codes = {"m": 33, "n": 32, "lut_bits": 2, "part": "codes"}
    with pytest.raises(subbyte.FormatError):
        subbyte.encode("qpalette", np.zeros((33, 32), np.int32), params=codes)
    form = checkpoint_format("qpalette").read({**trellis(32, 32, 4)[1]}, trellis(32, 32, 4)[2])
    with pytest.raises(subbyte.UnsupportedError):
        checkpoint_format("aqlm").write(form, {})
