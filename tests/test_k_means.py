"""k-means of vectors and additive codes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from subbyte.io.safetensors import SafetensorsFile
from subbyte.quantize.k_means import additive, beam_search, k_means, nearest

RNG = np.random.default_rng(29)
GOLDEN = Path(__file__).parent / "golden" / "aqlm"


@pytest.mark.parametrize("name", ["encode_beam_1x6_g8", "encode_beam_2x4_g4"])
def test_codes_of_the_original(name):
    """Its scale of a group and one pass over the codebooks, without a Hessian."""
    with SafetensorsFile(GOLDEN / f"{name}.safetensors") as file:
        held = {one: np.array(file.array(one)) for one in file}
        width = int(file.metadata["beam_size"])
    length = held["codebooks"].shape[3]
    points = (held["weight"] / held["scales"].reshape(-1, 1)).reshape(-1, length)
    tables = [table[:, 0] for table in held["codebooks"]]
    before = held["prev_codes"].reshape(len(points), -1).astype(np.int64)
    weights = np.ones((len(points), 1), np.float32)
    found = beam_search(points, weights, tables, before, width)
    np.testing.assert_array_equal(found, held["beam_l2_codes"].reshape(found.shape))


def test_wide_beams_find_the_best_combination():
    points = RNG.normal(0, 1, (50, 3)).astype(np.float32)
    weights = RNG.uniform(0.1, 2, points.shape).astype(np.float32)
    tables = [RNG.normal(0, 1, (5, 3)).astype(np.float32) for _ in range(2)]
    found = beam_search(points, weights, tables, np.zeros((50, 2), np.int64), 25)
    for point, heavy, code in zip(points, weights, found, strict=True):
        best = min(
            itertools.product(range(5), repeat=2),
            key=lambda pair: (heavy * (point - tables[0][pair[0]] - tables[1][pair[1]]) ** 2).sum(),
        )
        assert tuple(code) == best


@pytest.mark.parametrize("count", [1, 2, 16, 300])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_k_means(count, length):
    points = RNG.normal(0, 1, (200, length)).astype(np.float32)
    weights = RNG.uniform(0, 2, (200, 1)).astype(np.float32)
    table = k_means(points, weights, count)
    assert table.shape == (count, length)
    codes = nearest(points, weights, table)
    distances = ((points[:, None] - table) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances[np.arange(200), codes], distances.min(axis=1), rtol=1e-4, atol=1e-5)
    if count == 300:
        assert distances.min(axis=1).max() < 1e-6
    np.testing.assert_array_equal(k_means(points, weights, count), table)


def test_equal_points_and_zero_weights():
    points = np.ones((20, 4), np.float32)
    table = k_means(points, np.zeros((20, 1), np.float32), 4)
    np.testing.assert_array_equal(table, np.ones((4, 4)))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_more_tables_are_nearer(kind):
    points = RNG.normal(0, 1, (500, 4)).astype(np.float32)
    weights = np.ones((500, 1), np.float32)
    errors = []
    for counts in ([16], [16, 16], [16, 16, 16]):
        tables, codes = additive(points, weights, counts, kind)
        errors.append(((points - sum(table[codes[:, at]] for at, table in enumerate(tables))) ** 2).sum())
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
