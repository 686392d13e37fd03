"""QuIP#: rotated weights in lattice codebooks."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats.vector import e8
from subbyte.forms.hadamard import rotate
from subbyte.planes import float_plane

RNG = np.random.default_rng(61)
STORED = {
    "E8P12": (np.int64, 1, 32),
    "E8P12RVQ3B": (np.int64, 3, 64),
    "E8P12RVQ4B": (np.int64, 1, 16),
    "D4": (np.uint8, 1, 4),
    "HI4B1C": (np.int32, 1, 8),
}


def half(*shape):
    return float_plane(RNG.normal(0, 1, shape).astype(np.float32), "F16")


def layer(codebook, rows=32, columns=192):
    kind, per, of = STORED[codebook]
    width = columns * per // of * np.dtype(kind).itemsize
    stored = RNG.integers(0, 256, (rows, width)).astype(np.uint8).view(kind)
    return {"Qidxs": stored, "SU": half(columns), "SV": half(rows)}


@pytest.mark.parametrize("codebook", STORED)
def test_layers(codebook):
    planes = layer(codebook)
    check_round_trip("quip", {"Qidxs": planes["Qidxs"]}, {"codebook": codebook, "part": "inner"})
    params = {"codebook": codebook, "m": 32, "n": 192}
    check_round_trip("quip", planes, params)
    check_damage("quip", planes, params)
    inner = subbyte.decode("quip", {"Qidxs": planes["Qidxs"]}, params=params | {"part": "inner"}).astype(np.float64)
    down, across = rotate(np.eye(32), 32).T, rotate(np.eye(192), 192).T
    want = planes["SV"].float32()[:, None] * (down @ inner @ across.T) * planes["SU"].float32()
    np.testing.assert_allclose(subbyte.decode("quip", planes, params=params), want, rtol=1e-5, atol=1e-5)


def test_scales_and_low_rank():
    planes, params = layer("E8P12"), {"codebook": "E8P12"}
    want = subbyte.decode("quip", planes, params=params)
    scaled = planes | {"Wscale": np.float32(2), "codebook_id": np.int64(7), "scaleWH": np.full(192, 4, np.float32)}
    found = subbyte.decode("quip", scaled, params=params | {"rescale_WH": True})
    np.testing.assert_allclose(found, want / 2, rtol=1e-6)
    with pytest.raises(subbyte.FormatError, match="codebook_id"):
        subbyte.decode("quip", planes | {"codebook_id": np.int64(17)}, params=params)
    low = {"A": half(32, 3), "B": half(3, 192)}
    extra = subbyte.decode("quip", planes | low, params=params | {"lora_rank": 3}) - want
    down, across = rotate(np.eye(32), 32).T, rotate(np.eye(192), 192).T
    product = low["A"].float32().astype(np.float64) @ low["B"].float32()
    expected = planes["SV"].float32()[:, None] * (down @ product @ across.T) * planes["SU"].float32()
    np.testing.assert_allclose(extra, expected, rtol=1e-4, atol=1e-4)


def test_fused_projections():
    """Rows of a part are those of the whole, times its own scale."""
    planes = layer("E8P12", rows=64) | {"fuse_scales": np.array([2, 0.5, 1], np.float32)}
    whole = subbyte.decode(
        "quip", {k: v for k, v in planes.items() if k != "fuse_scales"}, params={"codebook": "E8P12"}
    )
    params = {"codebook": "E8P12", "rows": [32, 16, 16]}
    for index, (rows, scale) in enumerate(((slice(0, 32), 2), (slice(32, 48), 0.5), (slice(48, 64), 1))):
        found = subbyte.decode("quip", planes, params=params | {"index": index})
        np.testing.assert_allclose(found, whole[rows] * scale, rtol=1e-6)
    for wrong in ({"rows": [32, 32]}, {"rows": [32, 16, 15]}, {"rows": 64}, {"index": 3}):
        with pytest.raises(subbyte.Error):
            subbyte.decode("quip", planes, params=params | {"index": 0} | wrong)


def test_nearest_entries():
    book = e8.e8p().astype(np.float64)
    assert len(np.unique(book, axis=0)) == 65536
    vectors = RNG.normal(0, 1.2, (200, 8))
    codes = e8.nearest_e8p(vectors)
    nearest = np.array([((book - vector) ** 2).sum(axis=1).min() for vector in vectors])
    np.testing.assert_allclose(((book[codes] - vectors) ** 2).sum(axis=1), nearest, rtol=1e-12)


@pytest.mark.parametrize(("codebook", "limit"), [("E8P12", 0.095), ("E8P12RVQ3B", 0.031), ("E8P12RVQ4B", 0.0101)])
def test_distortion(codebook, limit):
    """Errors on normal weights at the scale that the original sets (table of the original's defaults)."""
    scale = {"E8P12RVQ3B": 0.98}.get(codebook, 1.03)
    weights = RNG.normal(0, 1, (64, 512)).astype(np.float32)
    params = {"codebook": codebook, "part": "inner"}
    planes = subbyte.encode("quip", weights * np.float32(scale), params=params)
    error = subbyte.decode("quip", planes, params=params) / np.float32(scale) - weights
    assert np.mean(error * error) < limit


def test_what_is_refused():
    planes, params = layer("E8P12"), {"codebook": "E8P12"}
    hostile = (None, -1, 0, 3, 10**30, 1.5, "x", [], {}, True, float("nan"))
    for key in ("codebook", "codebook_version", "codesz", "pack_out", "lora_rank", "rescale_WH", "part", "rows", "m"):
        for value in hostile:
            try:
                found = subbyte.decode("quip", planes, params=params | {key: value})
                assert found.shape in ((32, 192), (32, 24))
            except subbyte.Error:
                continue
    for value in (float("nan"), "2", None, 10**400, 1e-40):
        with pytest.raises(subbyte.FormatError, match="resid_scale_override"):
            subbyte.decode(
                "quip", layer("E8P12RVQ3B"), params={"codebook": "E8P12RVQ3B", "resid_scale_override": value}
            )
    nan = planes["SU"].data.copy()
    nan[5] = np.nan
    with pytest.raises(subbyte.FormatError, match="SU"):
        subbyte.decode("quip", planes | {"SU": nan}, params=params)
    with pytest.raises(subbyte.FormatError, match="blocks of 16 rows"):
        subbyte.decode("quip", layer("E8P12", rows=24), params=params)
    with pytest.raises(subbyte.ArgumentError, match="out of the range"):
        subbyte.encode("quip", np.full((32, 8), 65536), params=params | {"part": "codes"})
