"""QMoE: ternary rows in words of a dictionary."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats.vector.qmoe import ENTRIES, LONGEST, dictionary
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planes import Plane, float_plane

RNG = np.random.default_rng(24)
SAMPLES = Path(__file__).parent.parent / "golden" / "qmoe" / "dictionary_samples.safetensors"


def weight(rows, columns, zero):
    trits = RNG.choice(3, (rows, columns), p=[zero, (1 - zero) / 2, (1 - zero) / 2])
    bounds = float_plane(RNG.uniform(0.01, 1, (rows, 2)).astype(np.float32) * [-1, 1], "BF16").float32()
    return np.take_along_axis(np.concatenate([np.zeros((rows, 1), np.float32), bounds], axis=1), trits, axis=1)


@pytest.mark.parametrize("columns", [1, 2, 3, 28, 29, 257, 1024])
@pytest.mark.parametrize("zero", [0.0, 0.5, 0.9, 1.0])
def test_round_trip(columns, zero):
    values = weight(9, columns, zero)
    found = subbyte.encode("qmoe", values)
    params = {"shape": [9, columns]}
    np.testing.assert_array_equal(subbyte.decode("qmoe", found, params=params), values)
    check_round_trip("qmoe", dict(found), params)


def test_dictionary_is_that_of_the_original():
    with SafetensorsFile(SAMPLES) as file:
        said = file.metadata
        entry, words = (np.array(file.array(name)) for name in ("entry", "words"))
        rows, root = (np.array(file.array(name)) for name in ("trie_rows", "trie_root"))
    known = dictionary()
    shifts = np.arange(LONGEST) * 2 + 4
    halves = known.trits.reshape(ENTRIES, 2, LONGEST).astype(np.int64)
    built = (halves << shifts).sum(axis=2) | known.pairs[:, None] * [1, 1]
    stored = built.astype("<i4")
    np.testing.assert_array_equal(stored[entry], words)
    assert hashlib.sha256(stored.tobytes()).hexdigest() == said["sha256_full_table_le_int32"]
    np.testing.assert_array_equal(known.children[entry], rows)
    np.testing.assert_array_equal(known.children[ENTRIES:], root)
    assert np.bincount(known.pairs).tolist() == json.loads(said["length_histogram"])


def test_damage():
    planes = dict(subbyte.encode("qmoe", weight(9, 129, 0.9)))
    params = {"shape": [9, 129]}
    check_damage("qmoe", planes, params)
    for shape in (None, [9], [9, 128], [9, 131], [8, 129], [10**30, 129], [9, 10**12], ["9", 129], [0, 0]):
        with pytest.raises(subbyte.Error):
            subbyte.decode("qmoe", planes, params={"shape": shape})
    for at, value in ((0, 1), (3, 0), (4, 10**6), (9, -1), (5, -7)):
        bad = planes["row_off"].copy()
        bad[at] = value
        with pytest.raises(subbyte.FormatError, match="row_off"):
            subbyte.decode("qmoe", planes | {"row_off": bad}, params=params)
    refused = 0
    for _ in range(50):
        bad = planes["w_comp"].copy()
        bad[RNG.integers(len(bad))] = RNG.integers(-(1 << 15), 1 << 15)
        try:
            subbyte.decode("qmoe", planes | {"w_comp": bad}, params=params)
        except subbyte.FormatError:
            refused += 1
    assert refused > 25


def test_what_cannot_be_encoded():
    values = weight(4, 32, 0.5)
    for change in (values + np.float32(0.001), np.where(values > 0, np.float32(1 + 2**-20), values), values[None]):
        with pytest.raises(subbyte.UnsupportedError):
            subbyte.encode("qmoe", change)


def test_infinite_bounds_are_refused():
    planes = dict(subbyte.encode("qmoe", weight(4, 32, 0.5)))
    with pytest.raises(subbyte.FormatError, match="ter_minmax"):
        subbyte.decode(
            "qmoe", planes | {"ter_minmax": Plane(np.full(8, 0x7F80, np.uint16), "BF16")}, params={"shape": [4, 32]}
        )
