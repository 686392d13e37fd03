"""HIGGS in FLUTE's packing: rotated blocks, a scale a group, a grid of pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.data import tables
from subbyte.formats import checkpoint_format
from subbyte.formats.vector.flute import FluteIndices, group_rows, pack
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import float_plane, plane

RNG = np.random.default_rng(27)
TEMPLATES = {(2, 32): 4, (2, 64): 0, (3, 32): 4, (4, 32): 16, (4, 64): 0}
LAYOUTS = list(TEMPLATES)
ORDER = (0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15)


def place(codes, bits, tile):
    """The words, number by number as FLUTE's order is described: codes [N, K]."""
    outputs, inputs = codes.shape
    words = np.zeros((bits * outputs // 16, inputs), np.uint16)
    for g in range(outputs // group_rows(bits, tile)):
        for t in range(tile):
            for i in range(inputs // 2):
                if bits == 3:
                    string = 0
                    for at, s in enumerate(ORDER):
                        n = 512 * g + 32 * s + t
                        string |= int(codes[n, 2 * i + 1]) << (6 * at) | int(codes[n, 2 * i]) << (6 * at + 3)
                    for f in range(3):
                        row = 32 * g + t if f == 0 else outputs // 16 + 64 * g + 32 * (f - 1) + t
                        words[row, 2 * i] = string >> (30 * f) & 0xFFFF
                        words[row, 2 * i + 1] = (string >> (30 * f + 16) & 0x3FFF) | (string >> (90 + 2 * f) & 3) << 14
                    continue
                fields = 8 // bits
                for r in range(2):
                    for u in range(fields):
                        n = g * 2 * fields * tile + (r * fields + u) * tile + t
                        field = int(codes[n, 2 * i + 1]) | int(codes[n, 2 * i]) << bits
                        words[g * tile + t, 2 * i + r] |= field << (2 * bits * u)
    return words.view(np.int16)


@pytest.mark.parametrize(("bits", "tile"), LAYOUTS)
def test_order(bits, tile):
    outputs = 2 * group_rows(bits, tile)
    codes = RNG.integers(0, 1 << bits, (outputs, 6))
    fields = (codes[:, ::2] << bits | codes[:, 1::2]).astype(np.uint32)
    words = place(codes, bits, tile)
    np.testing.assert_array_equal(pack(fields, 2 * bits, tile), words)
    indices = FluteIndices(words, 2 * bits, tile)
    np.testing.assert_array_equal(indices.unpack(), fields)
    np.testing.assert_array_equal(indices.unpack(slice(5, outputs - 3)), fields[5:-3])
    planes = {"weight": words}
    params = {"bits": bits, "template_id": TEMPLATES[bits, tile], "part": "codes"}
    np.testing.assert_array_equal(subbyte.decode("higgs", planes, params=params), codes)


def layer(bits, tile, columns, size, group_size, length, kind):
    rows = group_rows(bits, tile)
    weight = float_plane(RNG.normal(0, 0.05, (rows, columns)).astype(np.float32), kind)
    params = {
        "bits": bits, "p": length, "group_size": group_size, "hadamard_size": size,
        "tune_metadata": {"num_bits": bits, "group_size": group_size, "template_id": TEMPLATES[bits, tile]},
    }  # fmt: skip
    return weight, dict(subbyte.encode("higgs", weight.array(), params=params)), params


@pytest.mark.parametrize(("bits", "tile"), LAYOUTS)
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_round_trip(bits, tile, length, kind):
    weight, planes, params = layer(bits, tile, 100, 64, 32, length, kind)
    params["in_features"] = 100
    check_round_trip("higgs", planes, params)
    found = subbyte.decode("higgs", planes, params=params)
    error = np.linalg.norm(found - weight.float32()) ** 2 / np.linalg.norm(weight.float32()) ** 2
    assert (
        error < {(2, 1): 0.135, (2, 2): 0.12, (3, 1): 0.045, (3, 2): 0.04, (4, 1): 0.015, (4, 2): 0.013}[bits, length]
    )
    tables2 = plane(planes["tables2"])
    assert tables2.kind == "F16"
    wide = planes | {"tables2": tables2.data.view(np.float32)}
    np.testing.assert_array_equal(subbyte.decode("higgs", wide, params=params), found)


def test_decode_against_the_matrix():
    _, planes, params = layer(4, 32, 128, 64, 64, 2, "F16")
    codes = subbyte.decode("higgs", planes, params=params | {"part": "codes"}).astype(int)
    pairs = np.asarray(planes["tables2"], np.float64)[codes[:, ::2], codes[:, 1::2]].reshape(len(codes), -1)
    scaled = pairs * np.repeat(np.asarray(planes["scales"], np.float64), 64, axis=1)
    matrix = np.array([[(-1.0) ** (i & j).bit_count() for j in range(64)] for i in range(64)]) / 8
    want = (scaled.reshape(-1, 64) @ matrix).reshape(len(codes), -1)
    np.testing.assert_allclose(subbyte.decode("higgs", planes, params=params), want, rtol=0, atol=1e-7)


def test_grids_are_distinct():
    grids = tables("higgs_grids")
    assert sorted(grids) == ["p1_n16", "p1_n4", "p1_n8", "p2_n16", "p2_n256", "p2_n64"]
    for name, grid in grids.items():
        assert f"p{grid.shape[1]}_n{grid.shape[0]}" == name
        assert len(np.unique(grid, axis=0)) == len(grid)


def test_damage():
    weight, planes, params = layer(4, 32, 128, 64, 64, 2, "F16")
    check_damage("higgs", planes, params)
    check_damage("higgs", layer(2, 64, 128, 128, 64, 1, "BF16")[1], layer(2, 64, 128, 128, 64, 1, "BF16")[2])
    for key, values in (
        ("bits", (None, 2, 5, 10**30, "4", True)), ("p", (0, 3, None)), ("group_size", (128, 0, -1, 10**30, None)),
        ("hadamard_size", (96, 0, -64, 10**30, 256, None)), ("template_id", (0, -1, None, "x")),
        ("tileP", (64, 48, 10**30)), ("part", ("x", 3)), ("in_features", (64, 129, 10**30)), ("out_features", (1,)),
        ("tune_metadata", ("x", [], {"num_bits": 2}, {"group_size": 32}, {"template_id": 0, "tileP": 1},
                           {"dtype": "torch.bfloat16"})),
    ):  # fmt: skip
        for value in values:
            if key == "template_id" and value is None:
                continue
            with pytest.raises(subbyte.Error):
                subbyte.decode("higgs", planes, params=params | {"tileP": 32} | {key: value})
    for name in ("scales", "tables", "tables2"):
        bad = np.array(planes[name])
        bad.flat[1] = np.nan
        with pytest.raises(subbyte.FormatError, match=name):
            subbyte.decode("higgs", planes | {name: bad}, params=params)
    with pytest.raises(subbyte.FormatError, match="tables2"):
        subbyte.decode("higgs", planes, params=params | {"p": 1})
    with pytest.raises(subbyte.UnsupportedError, match="multiple"):
        subbyte.encode("higgs", weight.array()[:100], params=params)
    zero = subbyte.encode("higgs", np.zeros((128, 64), np.float32), params=params)
    assert not subbyte.decode("higgs", zero, params=params).any()


def test_checkpoint(tmp_path):
    _, planes, params = layer(4, 32, 128, 64, 64, 2, "BF16")
    tensors = {f"a.{name}": np.asarray(one) for name, one in planes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    settings = {key: value for key, value in params.items() if key != "tune_metadata"}
    settings |= {"quant_method": "higgs", "tune_metadata": {"a": params["tune_metadata"]}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    with subbyte.open(tmp_path) as found:
        np.testing.assert_array_equal(found["a.weight"].decode(), subbyte.decode("higgs", planes, params=params))
        form = found["a.weight"].form()
    with pytest.raises(subbyte.UnsupportedError):
        checkpoint_format("qpalette").write(form, {})
