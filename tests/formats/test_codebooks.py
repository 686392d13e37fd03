"""GPTVQ, SqueezeLLM and Compact3D: tables for tiles, for rows, and for everything."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.forms.codes import pack
from subbyte.forms.vector.indices import pack_bits
from subbyte.planes import FLOATS, Plane, float_plane

RNG = np.random.default_rng(23)


def gptvq(down, across, height, vectors, bits, length, kind="F32", scaled=False):
    shape = (down * height, across * vectors * length)
    stored = RNG.integers(0, 1 << bits, (across, vectors, down, height))
    planes = {
        "centroids": float_plane(RNG.normal(0, 1, (across, down, 1 << bits, length)).astype(np.float32), kind),
        "assignments": Plane(stored.astype(np.uint16).view(np.int16), "I16"),
    }
    if scaled:
        planes["scales_full"] = float_plane(RNG.uniform(0.5, 2, shape).astype(np.float32), kind)
    params = {
        "shape": list(shape), "vq_dim": length, "bits_per_weight": bits // length,
        "columns_per_group": vectors * length, "group_size": vectors * length * height,
        "scaling_blocksize": 16 if scaled else -1,
    }  # fmt: skip
    return planes, params


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 4, 5, 3, 1), (3, 2, 4, 8, 4, 2), (1, 1, 5, 3, 8, 4), (1, 1, 2, 2, 16, 4)])
def test_gptvq(sizes, kind, scaled):
    planes, params = gptvq(*sizes, kind, scaled)
    check_round_trip("gptvq", planes, params)
    check_damage("gptvq", planes, params, {"scales_full missing"} if not scaled else ())
    _, _, height, vectors, _, length = sizes
    table, stored = planes["centroids"].float32(), planes["assignments"].data.view(np.uint16)
    want = np.empty(params["shape"], np.float32)
    for row in range(want.shape[0]):
        for column in range(want.shape[1]):
            vector, at = divmod(column, length)
            tile, place = divmod(vector, vectors)
            index = stored[tile, place, row // height, row % height]
            want[row, column] = table[tile, row // height, index, at]
    if scaled:
        want *= planes["scales_full"].float32()
    np.testing.assert_array_equal(subbyte.decode("gptvq", planes, params=params), want)


def test_gptvq_contradictions():
    planes, params = gptvq(2, 2, 4, 4, 4, 2)
    check_hostile_params("gptvq", planes, params)
    bad = planes["assignments"].data.copy()
    bad[0, 0, 0, 0] = 16
    with pytest.raises(subbyte.FormatError, match="16"):
        subbyte.decode("gptvq", planes | {"assignments": Plane(bad, "I16")}, params=params)


def check_hostile_params(id, planes, params):
    for key in params:
        for value in (None, -2, 0, 3, 10**30, 1.5, "x", [], {}, True):
            try:
                found = subbyte.decode(id, planes, params=params | {key: value})
                assert found.ndim == 2
            except subbyte.Error:
                continue


def squeezellm(rows, columns, bits, kind="F32", sparse=0, dense=0):
    codes = RNG.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    table = RNG.normal(0, 1, (rows, 1 << bits)).astype(np.float32)
    planes = {
        "qweight": np.ascontiguousarray(pack("stream", bits, codes).T).view(np.int32),
        "lookup_table": float_plane(table, kind),
    }
    want = np.take_along_axis(planes["lookup_table"].float32(), codes.astype(np.int64), axis=1)
    if sparse:
        mask = np.zeros(rows * columns, bool)
        mask[RNG.permutation(rows * columns)[:sparse]] = True
        mask = mask.reshape(rows, columns)
        planes["rows"] = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
        planes["cols"] = np.nonzero(mask)[1].astype(np.int32)
        planes["vals"] = RNG.normal(0, 1, sparse).astype(np.float32)
        want[mask] += planes["vals"]
    if dense:
        planes["full_row_indices"] = RNG.permutation(rows)[:dense].astype(np.int32)
        planes["full_rows"] = RNG.normal(0, 1, (columns, dense)).astype(np.float32)
        want[planes["full_row_indices"]] += planes["full_rows"].T
    return planes, want


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize(("sparse", "dense"), [(0, 0), (17, 0), (0, 2), (9, 3)])
def test_squeezellm(bits, kind, sparse, dense):
    planes, want = squeezellm(11, 96, bits, kind, sparse, dense)
    check_round_trip("squeezellm", planes, {"bits": bits, "sparse": bool(sparse)})
    check_round_trip("squeezellm", planes, {})
    check_damage("squeezellm", planes, {"bits": bits, "shape": [11, 96]})
    np.testing.assert_array_equal(subbyte.decode("squeezellm", planes), want)


def test_squeezellm_contradictions():
    planes, _ = squeezellm(11, 96, 4, sparse=9)
    check_hostile_settings("squeezellm", planes, {"bits": 4, "shape": [11, 96], "sparse": True})
    for name, at, value in (("cols", 3, 96), ("cols", 3, -1), ("rows", 1, 10), ("rows", 0, 1), ("rows", 11, 8)):
        bad = planes[name].copy()
        bad[at] = value
        with pytest.raises(subbyte.FormatError, match="'rows' and 'cols'"):
            subbyte.decode("squeezellm", planes | {name: bad})
    with pytest.raises(subbyte.FormatError, match="'sparse' is false"):
        subbyte.decode("squeezellm", planes, params={"sparse": False})


def compact3d(count, bits, tables):
    """Planes and settings of a file with these parameters: name, entries, values."""
    stored = {name: RNG.integers(0, entries, (count, 1)).astype(np.uint32) for name, entries, _ in tables}
    planes = {
        f"centers_{name}": RNG.normal(0, 1, (entries, length)).astype(np.float32) for name, entries, length in tables
    }
    planes["kmeans_inds_bin"] = pack_bits(np.concatenate(list(stored.values())), bits)
    params = {"params": list(stored), "n_bits": bits, "total_len": count * bits * len(tables), "gaussians": count}
    return planes, params, stored


@pytest.mark.parametrize("bits", [1, 5, 8, 13, 17])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_compact3d(bits, count):
    entries = min(1 << bits, 3000)
    planes, params, stored = compact3d(count, bits, [("dc", entries, 3), ("rot", 2, 4), ("x", entries, 1)])
    for name, indices in stored.items():
        only = {"kmeans_inds_bin": planes["kmeans_inds_bin"], f"centers_{name}": planes[f"centers_{name}"]}
        found = subbyte.decode("compact3d", only, params=params | {"tensor": name})
        np.testing.assert_array_equal(found, planes[f"centers_{name}"][indices[:, 0]])
    planes, params, _ = compact3d(count, bits, [("sh", entries, 9)])
    check_round_trip("compact3d", planes, params)


def test_compact3d_damage():
    planes, params, _ = compact3d(100, 6, [("dc", 64, 3), ("rot", 64, 4)])
    params |= {"tensor": "rot"}
    only = {name: planes[name] for name in ("kmeans_inds_bin", "centers_rot")}
    check_damage("compact3d", only, params, {"centers_rot cut"})
    check_hostile_params("compact3d", only, params)
    with pytest.raises(subbyte.FormatError, match="centers_rot"):
        subbyte.decode("compact3d", only | {"centers_rot": planes["centers_rot"][:32]}, params=params)
    with pytest.raises(subbyte.ArgumentError, match="tensor"):
        subbyte.decode("compact3d", planes, params={k: v for k, v in params.items() if k != "tensor"})
