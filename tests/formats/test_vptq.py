"""VPTQ: vectors along the outputs from a codebook and a residual one."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip, damaged
from subbyte.formats import checkpoint_format
from subbyte.forms.vector.indices import pack_stream
from subbyte.planes import FLOATS, Plane, float_plane

RNG = np.random.default_rng(22)


def layer(rows, groups, size, length, entries, residuals, kind="F16", outliers=None, packed=True, perm=True, norm=True):
    """Planes and settings; ``outliers`` is (columns, vector length, entries)."""
    down = -(-rows // length)
    extra, extra_length, extra_entries = outliers or (0, -1, -1)
    columns = groups * size + extra

    def table(*shape):
        return float_plane(RNG.normal(0, 1, shape).astype(np.float32), kind)

    planes = {"centroids.weight": table(groups, entries * length)}
    fields = [(RNG.integers(0, entries, (groups, down, size)).astype(np.uint32), (entries - 1).bit_length())]
    if residuals > 0:
        planes["res_centroids.weight"] = table(groups, residuals * length)
        fields.append(
            (RNG.integers(0, residuals, (groups, down, size)).astype(np.uint32), (residuals - 1).bit_length())
        )
    if packed:
        words = [pack_stream([(field[g], bits) for field, bits in fields]) for g in range(groups)]
        planes["indices"] = Plane(np.stack(words).view(np.int32), "I32")
    else:
        for (field, _), name in zip(fields, ("indices", "res_indices"), strict=False):
            planes[name] = Plane(field.astype(np.uint16).view(np.int16), "I16")
    if extra:
        planes["outlier_centroids.weight"] = table(1, extra_entries * extra_length)
        shape = (1, -(-rows // extra_length), extra)
        planes["outlier_indices"] = Plane(RNG.integers(0, extra_entries, shape).astype(np.int16), "I16")
    if perm:
        order = RNG.permutation(columns)
        planes["perm"] = Plane(order.astype(np.uint16).view(np.int16), "I16") if packed else Plane(order, "I64")
    if norm:
        planes["weight_scale"], planes["weight_bias"] = table(columns), table(columns)
    params = {
        "in_features": columns, "out_features": rows, "group_num": groups, "group_size": size, "outlier_size": extra,
        "vector_lens": [extra_length, length], "num_centroids": [extra_entries, entries],
        "num_res_centroids": [-1, residuals], "is_indice_packed": packed, "enable_perm": perm, "enable_norm": norm,
        "indices_as_float": False,
    }  # fmt: skip
    return planes, params, fields


CASES = {
    "packed": ((24, 1, 40, 8, 256, -1), {}),
    "residual, padding": ((26, 1, 36, 6, 1024, 64), {"perm": False}),
    "across words": ((9, 2, 13, 3, 1 << 11, 1 << 9), {"kind": "BF16"}),
    "residual wider": ((8, 1, 7, 2, 4, 256), {"norm": False}),
    "outliers": ((24, 1, 40, 6, 256, 16), {"outliers": (4, 4, 64)}),
    "outliers, groups": ((10, 3, 5, 4, 16, 16), {"outliers": (2, 5, 7), "kind": "F32"}),
    "one column": ((8, 1, 1, 2, 1 << 16, -1), {}),
    "not packed": ((12, 2, 6, 4, 300, 7), {"packed": False}),
    "wide": ((4, 1, 5, 2, 1 << 16, 1 << 16), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    (rows, groups, size, length, entries, residuals), options = CASES[name]
    planes, params, fields = layer(rows, groups, size, length, entries, residuals, **options)
    check_round_trip("vptq", planes, params)
    columns, extra = params["in_features"], params["outlier_size"]
    stored = np.zeros((rows, columns), np.float32)
    if extra:
        table = planes["outlier_centroids.weight"].float32().reshape(-1, params["vector_lens"][0])
        for row in range(rows):
            for column in range(extra):
                index = planes["outlier_indices"].data[0, row // table.shape[1], column]
                stored[row, column] = table[index, row % table.shape[1]]
    tables = [planes["centroids.weight"].float32().reshape(groups, entries, length)]
    if residuals > 0:
        tables.append(planes["res_centroids.weight"].float32().reshape(groups, residuals, length))
    for group in range(groups):
        for row in range(rows):
            for column in range(size):
                entry = [
                    table[group, field[group, row // length, column], row % length]
                    for (field, _), table in zip(fields, tables, strict=True)
                ]
                stored[row, extra + group * size + column] = sum(entry[1:], entry[0])
    order = planes["perm"].data if "perm" in planes else np.arange(columns)
    want = np.empty_like(stored)
    want[:, order] = stored
    if params["enable_norm"]:
        want = want * planes["weight_scale"].float32() + planes["weight_bias"].float32()
    np.testing.assert_array_equal(subbyte.decode("vptq", planes, params=params), want)


@pytest.mark.parametrize("kind", FLOATS)
def test_damage(kind):
    planes, params, _ = layer(24, 1, 40, 6, 256, 16, kind, outliers=(4, 4, 64))
    check_damage("vptq", planes, params)


def test_hostile_settings():
    planes, params, _ = layer(24, 1, 40, 6, 256, 16, outliers=(4, 4, 64))
    values = (None, -1, 0, 1, 3, 7, 44, 10**30, 2**31, 1.5, "x", True, [], [4], [4, 6, 6], ["a", "b"], [10**30, 6], {})
    outcomes = set()
    for key in params:
        for value in values:
            try:
                subbyte.decode("vptq", planes, params=params | {key: value})
                outcomes.add("read")
            except subbyte.Error:
                outcomes.add("refused")
    assert "refused" in outcomes
    for what, broken in damaged(planes):
        with pytest.raises(subbyte.Error):
            subbyte.decode("vptq", broken, params=params | {"out_features": 25})
        assert what


def test_indices_and_orders_out_of_range():
    planes, params, _ = layer(12, 2, 6, 4, 300, 7, packed=False)
    bad = planes["indices"].data.copy()
    bad[1, 2, 3] = 301
    with pytest.raises(subbyte.FormatError, match="301"):
        subbyte.decode("vptq", planes | {"indices": Plane(bad, "I16")}, params=params)
    repeated = planes["perm"].data.copy()
    repeated[0] = repeated[1]
    with pytest.raises(subbyte.FormatError, match="perm"):
        subbyte.decode("vptq", planes | {"perm": Plane(repeated, "I64")}, params=params)


def test_what_cannot_be_written():
    vptq, aqlm = (checkpoint_format(id) for id in ("vptq", "aqlm"))
    planes, params, _ = layer(12, 2, 6, 4, 256, -1)
    form = vptq.read(planes, params)
    with pytest.raises(subbyte.UnsupportedError, match="another layer"):
        vptq.write(form, params | {"num_centroids": [-1, 128]})
    with pytest.raises(subbyte.UnsupportedError):
        aqlm.write(form, {})
