"""Q-Palette: rotated weights in tables of scalars or vectors, or in trellises (arXiv 2509.20214, snu-mllab/Q-Palette).

The original stores a dictionary for every layer ``[m, n]``; these are its tensors. What is stored of the weight, W':

=================  =========  ==============================  ==========================================================
plane              type       shape                           content
=================  =========  ==============================  ==========================================================
qweight            I32        [m, b * n / (32 * v)]           codes of b bits of vectors of v weights of a row
lut                F16        [2^b, v]                        their values
trellis            I16        [m * n / 256, 8 * KV]           trellis of KV bits a pair of weights
trellis1,          I16        the same for each part          two trellises, side by side (``in_part``: the columns of
trellis2                                                      each) or one above the other (``out_part``: the rows)
tlut               F16        [2^Q, 2]                        values of the trellis
SU, SV             F16        [n], [m]                        factors of columns and rows, after the rotation
Wscale             F16        [m]                             factors of rows, before it
=================  =========  ==============================  ==========================================================

W = diag(SV) U_m diag(Wscale) W' U_n^T diag(SU), with the transforms of `subbyte.forms.hadamard`, of sizes ``hadV``
(U_m) and ``hadU`` (U_n) where these are smaller. ``rot_info`` "skip_r" leaves out U_m, "skip_l" U_n, "skip_lr" both,
"all" none. Planes of floats may be BF16 or F32.

Tables: ``lut_bits`` (b), ``vec_sz`` (v) 1, 2 or 4. ``layout`` is ``"tensorcore"``, or ``"simt"``, the only one for
v = 4 (`subbyte.formats.vector.lanes`). Trellises: the state of a pair is a window of 16 bits, h = state * (state + 1),
and the values are row (h >> (15 - Q)) mod 2^Q of ``tlut``, the first one negated where bit 15 of h is 1. ``KV`` is a
number or, for two trellises, a pair of them; ``tlut_bits`` is Q (9; 10 for KV = 9 and 11 for KV = 10).

``m`` and ``n`` (``out_features``, ``in_features``) are needed where no other plane tells them. The parameter ``part``:

* ``"inner"``: decoding gives W', from the planes that store it;
* ``"codes"``: encoding takes codes, integers [m, n / v], and gives ``qweight``;
* ``"states"``: encoding takes the states of the pairs, integers [m * n / 256, 128], and gives ``trellis``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Format, encoded, setting_int, setting_text
from subbyte.formats.trellis.codes import table_rows
from subbyte.formats.vector import lanes
from subbyte.formats.vector.lanes import CodeIndices, SimtIndices, TrellisIndices
from subbyte.formats.vector.tables import check_setting, finite, sides
from subbyte.forms import Form
from subbyte.forms.vector import Additive, Beside, Book, Rotated, Stacked
from subbyte.forms.vector.indices import Indices
from subbyte.planes import Plane

_ROTATIONS = {"all": (True, True), "skip_r": (False, True), "skip_l": (True, False), "skip_lr": (False, False)}
"""Whether there are U_m and U_n, by ``rot_info``."""

_KV = range(2, 11)
_TLUT_BITS = range(1, 15)
"""Bits of a row of `tlut`; with 15 there would be rows that no state has."""


class QPalette(Format):
    """The format ``qpalette``."""

    id = "qpalette"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        if setting_text(params, "part", "weight", allowed=("weight", "inner")) == "inner":
            return _inner(planes, params, sides(params, None, None), None)
        row_factors, scales = (finite(planes, name, shape=(None,)) for name in ("SV", "Wscale"))
        column_factors = finite(planes, "SU", shape=(None,))
        shape = sides(params, row_factors.shape[0], column_factors.shape[0])
        if scales.shape != row_factors.shape:
            raise FormatError(
                f"plane 'Wscale' has shape {list(scales.shape)}: expected {list(row_factors.shape)} of 'SV'"
            )
        inner = _inner(planes, params, shape, scales)
        turned = _ROTATIONS[setting_text(params, "rot_info", "skip_r", allowed=_ROTATIONS)]
        down, across = (
            setting_int(params, key, side) if wanted else None
            for key, side, wanted in zip(("hadV", "hadU"), shape, turned, strict=True)
        )
        return Rotated(shape, inner, across, down, row_factors, column_factors)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        part = setting_text(params, "part", "weight", allowed=("weight", "codes", "states"))
        if part == "weight":
            return super().encode(array, params=params, importance=importance)
        source = _planes.plane(array)
        if source.kind not in ("U8", "U16", "I16", "I32", "I64") or source.data.ndim != 2 or not source.data.size:
            raise ArgumentError(
                f"{part} of type {source.kind} and shape {list(source.shape)}: expected integers in rows"
            )
        bits = lanes.STATE_BITS if part == "states" else _table_bits(params, None)
        if source.data.min() < 0 or int(source.data.max()) >> bits:
            raise ArgumentError(f"one of the {part} is out of the range of {bits} bits")
        found = source.data.astype(np.uint32)
        if part == "codes":
            length = setting_int(params, "vec_sz", 1, allowed=(1, 2, 4))
            rows, columns = sides(params, len(found), found.shape[1] * length)
            return encoded(
                self.id, {"qweight": _packed(found, bits, length, _layout(params, length))}, (rows, columns), params
            )
        rows, columns = sides(params, None, None)
        width = setting_int(params, "KV", allowed=_KV)
        if rows % 32 or columns % 32 or found.shape != (rows * columns // 256, lanes.PAIRS):
            raise FormatError(
                f"states of shape {list(found.shape)} do not fit a weight {[rows, columns]} with sides of 32"
            )
        tiles = found.reshape(rows // lanes.TILE, columns // lanes.TILE, lanes.PAIRS)
        return encoded(self.id, {"trellis": _trellis_plane(tiles, width)}, (rows, columns), params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        planes: dict[str, Plane] = {}
        inner = form
        if isinstance(form, Rotated):
            inner = form.inner
            if form.row_factors is None or form.column_factors is None:
                return super().write(form, params)
            planes |= {"SU": form.column_factors, "SV": form.row_factors}
        parts = inner.parts if isinstance(inner, Beside | Stacked) else (inner,)
        found = [part for part in parts if isinstance(part, Additive) and len(part.books) == 1]
        if len(found) < len(parts) or len(parts) > 2:
            return super().write(form, params)
        if isinstance(form, Rotated):
            scales = [part.scales for part in (found if isinstance(inner, Stacked) else found[:1])]
            kept = [one for one in scales if one is not None and one.shape[1] == 1]
            if len(kept) < len(scales):
                return super().write(form, params)
            planes["Wscale"] = Plane(np.concatenate([one.data[:, 0] for one in kept]), kept[0].kind)
        try:
            planes |= _stored(found, params)
            if not _same(self.read(planes, params), form):
                raise FormatError("the layer has other factors or parts than the format holds")
        except FormatError as e:
            raise UnsupportedError(f"format '{self.id}': {e.message}") from e
        return planes


def _same(read: Form, form: Form) -> bool:
    """Whether a form is the one that was read again, as far as its structure tells."""
    if isinstance(read, Rotated) and isinstance(form, Rotated):
        return (read.across, read.down) == (form.across, form.down) and _same(read.inner, form.inner)
    return type(read) is type(form) and read.shape == form.shape


def _inner(planes: Mapping[str, Any], params: Mapping[str, Any], shape: tuple[int, int], scales: Plane | None) -> Form:
    """What is stored of the weight, with factors of its rows."""
    kinds = [name for name in ("qweight", "trellis", "trellis1") if name in planes]
    if len(kinds) != 1:
        raise ArgumentError("one of the planes 'qweight', 'trellis' or 'trellis1' with 'trellis2' is needed")
    by_row = None if scales is None else Plane(scales.data.reshape(-1, 1), scales.kind)
    if kinds == ["qweight"]:
        return Additive(shape, (_table_book(planes, params, shape),), by_row)
    table = _hybrid(finite(planes, "tlut", shape=(None, 2)), params)
    if kinds == ["trellis"]:
        width = setting_int(params, "KV", _width(planes), allowed=_KV)
        return Additive(shape, (Book(_trellis(planes, "trellis", width, shape), table),), by_row)
    widths, key = _numbers(params, "KV"), "in_part" if "in_part" in params else "out_part"
    sizes = _numbers(params, key)
    at = 1 if key == "in_part" else 0
    if sum(sizes) != shape[at] or any(width not in _KV for width in widths):
        raise FormatError(f"settings '{key}' {list(sizes)} and 'KV' {list(widths)} do not fit a weight {list(shape)}")
    parts, begin = [], 0
    for name, width, size in zip(("trellis1", "trellis2"), widths, sizes, strict=True):
        of_part = (shape[0], size) if at else (size, shape[1])
        chosen = by_row if at or by_row is None else Plane(by_row.data[begin : begin + size], by_row.kind)
        parts.append(Additive(of_part, (Book(_trellis(planes, name, width, of_part), table),), chosen))
        begin += size
    return Beside(shape, tuple(parts)) if at else Stacked(shape, tuple(parts))


def _numbers(params: Mapping[str, Any], key: str) -> tuple[int, int]:
    """A setting of a pair of positive integers."""
    found = params.get(key)
    if (
        not isinstance(found, list | tuple)
        or len(found) != 2
        or any(isinstance(one, bool) or not isinstance(one, int) or not 0 < one < 1 << 31 for one in found)
    ):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected two positive integers, for two trellises")
    return found[0], found[1]


def _width(planes: Mapping[str, Any]) -> int:
    """KV of the trellis by its shape."""
    return _planes.get(planes, "trellis", "I16", (None, None)).shape[1] // 8


def _trellis(planes: Mapping[str, Any], name: str, width: int, shape: tuple[int, int]) -> TrellisIndices:
    rows, columns = shape
    if rows % 32 or columns % 32:
        raise FormatError(f"plane '{name}' is for a weight {list(shape)}: trellises need sides that 32 divides")
    stored = _planes.get(planes, name, "I16", (rows * columns // 256, 8 * width))
    raw = np.ascontiguousarray(stored.data).view(np.uint8).reshape(rows // 32, -1)
    return TrellisIndices(raw, width, 2, shape)


def _trellis_plane(states: NDArray[np.uint32], width: int) -> Plane:
    """The plane of states (m / 16, n / 16, 128)."""
    return Plane(lanes.pack_states(states, width).reshape(-1).view(np.int16).reshape(-1, 8 * width), "I16")


def _hybrid(tlut: Plane, params: Mapping[str, Any]) -> Plane:
    """The values of all states, as the table of a book."""
    count = tlut.shape[0]
    bits = count.bit_length() - 1
    if bits not in _TLUT_BITS or count != 1 << bits:
        raise FormatError(f"plane 'tlut' has shape {list(tlut.shape)}: expected [2^Q, 2], Q 1 to {_TLUT_BITS[-1]}")
    check_setting(params, "tlut_bits", bits, "plane 'tlut' makes it")
    row, negated = table_rows(lanes.STATE_BITS, bits, 15)
    table = tlut.float32()[row]
    table[negated, 0] = -table[negated, 0]
    return _planes.float_plane(table.reshape(1, 1, -1, 1, 2), tlut.kind)


def _tlut(table: Plane, bits: int) -> Plane:
    """The plane ``tlut`` of the values of all states."""
    row, negated = table_rows(lanes.STATE_BITS, bits, 15)
    first = np.zeros(1 << bits, np.int64)
    plain = np.flatnonzero(~negated)[::-1]
    first[row[plain]] = plain
    return Plane(table.data.reshape(-1, 2)[first], table.kind)


def _table_bits(params: Mapping[str, Any], found: int | None) -> int:
    bits = setting_int(params, "lut_bits", found, allowed=range(1, 17))
    if found not in (None, bits):
        raise FormatError(f"setting 'lut_bits' is {bits}, but plane 'lut' has 2^{found} rows")
    return bits


def _layout(params: Mapping[str, Any], length: int) -> str:
    layout = setting_text(params, "layout", "simt" if length == 4 else "tensorcore", allowed=("tensorcore", "simt"))
    if length == 4 and layout != "simt":
        raise FormatError("vectors of 4 are in the layout 'simt' only")
    return layout


def _table_book(planes: Mapping[str, Any], params: Mapping[str, Any], shape: tuple[int, int]) -> Book:
    """Codes and their table."""
    lut = finite(planes, "lut", shape=(None, None))
    entries, length = lut.shape
    if length not in (1, 2, 4) or entries < 2 or entries & (entries - 1):
        raise FormatError(f"plane 'lut' has shape {list(lut.shape)}: expected [2^b, 1, 2 or 4]")
    check_setting(params, "vec_sz", length, "plane 'lut' makes it")
    bits = _table_bits(params, entries.bit_length() - 1)
    rows, columns = shape
    simt = _layout(params, length) == "simt"
    if columns % (32 * length if simt else 32) or (rows % 32 and not simt):
        raise FormatError(f"plane 'qweight' is for a weight {list(shape)}: its sides have to be whole 32 vectors")
    stored = _planes.get(planes, "qweight", "I32", (rows, bits * columns // (32 * length)))
    indices: Indices
    if simt:
        indices = SimtIndices(stored.data, bits, length)
    else:
        raw = np.ascontiguousarray(stored.data).view(np.uint8).reshape(rows // 32, -1)
        indices = CodeIndices(raw, bits, length, shape)
    return Book(indices, Plane(lut.data.reshape(1, 1, entries, 1, length), lut.kind))


def _packed(codes: NDArray[np.uint32], bits: int, length: int, layout: str) -> Plane:
    """The plane ``qweight``."""
    if layout == "simt":
        return Plane(SimtIndices.pack(codes, bits, length).view(np.int32), "I32")
    if codes.shape[1] * length % 32:
        raise FormatError(f"{codes.shape[1] * length} columns: expected a multiple of 32")
    raw = lanes.pack_codes(codes, bits, length)
    return Plane(raw.reshape(-1).view(np.int32).reshape(len(codes), -1), "I32")


def _stored(parts: list[Additive], params: Mapping[str, Any]) -> dict[str, Plane]:
    """The planes of the stored parts of a weight."""
    book = parts[0].books[0]
    height, length = book.block
    indices = [part.books[0].indices for part in parts]
    trellises = [one for one in indices if isinstance(one, TrellisIndices)]
    if len(trellises) == len(parts):
        bits = setting_int(params, "tlut_bits", max(9, max(one.width for one in trellises) + 1), allowed=_TLUT_BITS)
        planes = {"tlut": _tlut(book.entries, bits)}
        values = _hybrid(planes["tlut"], params).float32()
        if any(not np.array_equal(values, part.books[0].entries.float32()) for part in parts):
            raise FormatError("the values of the states are not made of a table as the format has it")
        names = ("trellis",) if len(parts) == 1 else ("trellis1", "trellis2")
        for name, one in zip(names, trellises, strict=True):
            planes[name] = _trellis_plane(lanes.states_in_tiles(one.unpack()), one.width)
        return planes
    entries = book.entries.shape[2]
    if len(parts) > 1 or book.entries.shape[:2] != (1, 1) or height != 1 or entries & (entries - 1):
        raise FormatError(f"tables of shape {list(book.entries.shape)}: expected one of 2^b vectors along rows")
    bits = entries.bit_length() - 1
    return {
        "qweight": _packed(book.indices.unpack(), bits, length, _layout(params, length)),
        "lut": Plane(book.entries.data.reshape(entries, length), book.entries.kind),
    }


FORMATS = {"qpalette": QPalette()}
