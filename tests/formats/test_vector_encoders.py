"""Encoders of the formats with codebooks: errors near those of the code, the same again, importance counts."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_round_trip

RNG = np.random.default_rng(30)
VPTQ = {
    "group_num": 1, "group_size": 128, "outlier_size": 0, "vector_lens": [-1, 4], "num_centroids": [-1, 256],
    "num_res_centroids": [-1, 16], "is_indice_packed": True, "enable_norm": True, "enable_perm": True,
}  # fmt: skip
TILES = {"vq_dim": 2, "bits_per_weight": 2, "columns_per_group": 64, "group_size": 2048, "scaling_blocksize": -1}

#: Format, parameters, and the largest relative square error for Gaussian weights.
CASES = {
    "aqlm 1x8": ("aqlm", {"num_codebooks": 1, "nbits_per_codebook": 8, "in_group_size": 4}, 0.13),
    "aqlm 2x6": ("aqlm", {"num_codebooks": 2, "nbits_per_codebook": 6, "in_group_size": 4}, 0.06),
    "aqlm 2x4 of two rows": (
        "aqlm", {"num_codebooks": 2, "nbits_per_codebook": 4, "in_group_size": 2, "out_group_size": 2}, 0.13,
    ),
    "vptq": ("vptq", VPTQ, 0.04),
    "vptq with outliers": (
        "vptq",
        VPTQ
        | {"group_size": 60, "group_num": 2, "outlier_size": 8, "vector_lens": [3, 4], "num_centroids": [256, 256]},
        0.04,
    ),
    "vptq not packed": ("vptq", VPTQ | {"is_indice_packed": False, "num_res_centroids": [-1, -1]}, 0.12),
    "gptvq": ("gptvq", TILES, 0.11),
    "gptvq scaled": ("gptvq", TILES | {"vq_dim": 1, "bits_per_weight": 3, "scaling_blocksize": 16}, 0.045),
    "squeezellm": ("squeezellm", {"bits": 4}, 0.011),
    "squeezellm sparse": ("squeezellm", {"bits": 3, "sparse": True}, 0.035),
}  # fmt: skip


def relative(found, weight):
    return ((found.astype(np.float64) - weight) ** 2).sum() / (weight.astype(np.float64) ** 2).sum()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_errors(name, dtype):
    id, params, largest = CASES[name]
    weight = RNG.normal(0, 0.02, (96, 128)).astype(dtype)
    found = subbyte.encode(id, weight, params=params)
    whole = {"in_features": 128, "out_features": 96} | params if id == "vptq" else params
    check_round_trip(id, dict(found), whole)
    assert relative(subbyte.decode(id, found, params=whole), weight) < largest
    again = subbyte.encode(id, weight, params=params)
    assert all(np.array_equal(found[plane], again[plane]) for plane in found)


@pytest.mark.parametrize("name", CASES)
def test_important_columns_are_nearer(name):
    id, params, _ = CASES[name]
    weight = RNG.normal(0, 0.02, (96, 128)).astype(np.float32)
    importance = np.where(np.arange(128) % 4 == 0, 50, 0.01).astype(np.float32)
    whole = {"in_features": 128, "out_features": 96} | params if id == "vptq" else params
    errors = []
    for weights in (None, importance):
        found = subbyte.decode(id, subbyte.encode(id, weight, params=params, importance=weights), params=whole)
        errors.append(relative(found[:, ::4], weight[:, ::4]))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", CASES)
def test_unusual_weights(name):
    id, params, _ = CASES[name]
    whole = {"in_features": 128, "out_features": 96} | params if id == "vptq" else params
    zeros = np.zeros((96, 128), np.float32)
    assert np.abs(subbyte.decode(id, subbyte.encode(id, zeros, params=params), params=whole)).max() < 1e-6
    odd = zeros.copy()
    odd[:, 3], odd[5] = 1e-4, 1e3
    found = subbyte.decode(id, subbyte.encode(id, odd, params=params), params=whole)
    assert relative(found, odd) < 0.2
    for wrong in (np.full((96, 128), np.nan, np.float32), np.float32(1) + zeros[0], np.zeros((0, 128), np.float32)):
        with pytest.raises(subbyte.Error):
            subbyte.encode(id, wrong, params=params)
    with pytest.raises(subbyte.Error):
        subbyte.encode(id, zeros, params=params, importance=np.full(128, -1, np.float32))


def test_more_padding_rows():
    params = VPTQ | {"vector_lens": [-1, 7]}
    weight = RNG.normal(0, 0.02, (30, 128)).astype(np.float32)
    found = subbyte.encode("vptq", weight, params=params)
    whole = params | {"in_features": 128, "out_features": 30}
    assert relative(subbyte.decode("vptq", found, params=whole), weight) < 0.2


def test_sizes_that_do_not_fit():
    weight = RNG.normal(0, 0.02, (30, 100)).astype(np.float32)
    for id, params in (
        ("aqlm", {"num_codebooks": 1, "nbits_per_codebook": 8, "in_group_size": 8}),
        ("aqlm", {"num_codebooks": 0, "nbits_per_codebook": 8, "in_group_size": 4}),
        ("aqlm", {"num_codebooks": 1, "nbits_per_codebook": 40, "in_group_size": 4}),
        ("vptq", VPTQ), ("vptq", VPTQ | {"group_size": 100, "num_centroids": [-1, 0]}),
        ("gptvq", TILES), ("gptvq", TILES | {"columns_per_group": 0}), ("squeezellm", {"bits": 4}),
        ("squeezellm", {"bits": 5}),
    ):  # fmt: skip
        with pytest.raises(subbyte.Error):
            subbyte.encode(id, weight, params=params)
