"""QTIP: rotated weights in a bitshift trellis (arXiv 2406.11235, Cornell-RelaxML/qtip).

Planes of a layer ``[m, n]``:

=============  ================================================  ==============================================
plane          type, shape                                       content
=============  ================================================  ==============================================
trellis        I16, [tiles, ceil(td_x * td_y * K / 16)]          tiles of td_x by td_y weights of K bits, row
                                                                 after row of tiles, W'
tlut           F16, [2^Q, V]                                     values, of the codes with a table
SU, SV         float, [n], [m]                                   factors of columns and rows, after the rotation
rcp, tp_rank   I64, one                                          which transforms are cut, in how many (0 and 8)
=============  ================================================  ==============================================

W = diag(SV) U_m W' U_n^T diag(SU), with the transforms of `subbyte.forms.hadamard`. With ``rcp`` 1, U_n consists of
``tp_rank`` equal transforms along its diagonal, with 2 U_m does. Floats may be F16, BF16 or F32.

The settings L, K, V, ``tlut_bits`` (Q), ``decode_mode``, ``td_x`` and ``td_y`` (16) are in ``quip_params`` of
config.json, with ``codebook`` "bitshift"; ``K_v_proj`` is the K of ``v_proj``. A state of L bits is a window of the
string of a tile, which is a ring, and has V weights, neighbours in a row; the next one is K * V bits further.

============  ====  =====================================================================================
decode_mode   V     values of state s, h = s * (s + 1)
============  ====  =====================================================================================
1mad, 2mad,   1     `subbyte.formats.trellis.codes`
3inst
quantlut      1, 2  row (h >> (16 - Q)) mod 2^Q of ``tlut``
quantlut_sym  2     row (h >> (15 - Q)) mod 2^Q, the first value negated where bit 15 of h is 1
lut           any   row s, with 2^L rows
============  ====  =====================================================================================

Words of the string are stored in order, the highest bit first, and padded with 0; weights are in the order of the rows
of a tile. Only ``quantlut_sym`` with L = 16, V = 2, K 2 to 4, Q = 9 and tiles of 16 by 16 has another order, that of
`subbyte.formats.vector.lanes.TrellisIndices` with 2 K bits a pair.

``m`` and ``n`` (``out_features``, ``in_features``) are needed where no factors tell them. The parameter ``part``:
``"inner"``, decoding gives W'; ``"states"``, encoding takes states, integers [tiles, td_x * td_y / V], and gives
``trellis``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_names, setting_text
from subbyte.formats.trellis import codes, ring
from subbyte.formats.vector import lanes
from subbyte.formats.vector.lanes import TrellisIndices
from subbyte.formats.vector.tables import finite, sides
from subbyte.forms import Form
from subbyte.forms.vector import Additive, Book, Rotated
from subbyte.forms.vector.indices import IndexArray, Indices
from subbyte.planes import Plane

_COMPUTED = {"1mad": codes.one_mad, "2mad": codes.two_mad, "3inst": codes.three_inst}
_LENGTHS = {**dict.fromkeys(_COMPUTED, (1,)), "quantlut": (1, 2), "quantlut_sym": (2,), "lut": range(1, 257)}
"""Weights of a state, by code."""


@dataclass(frozen=True)
class _Trellis:
    """The settings of a layer: L, K, V, the code, Q, and the sides of a tile."""

    state_bits: int
    width: int
    length: int
    mode: str
    table_bits: int
    tile: tuple[int, int]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> _Trellis:
        setting_text(params, "codebook", "bitshift", allowed=("bitshift",))
        setting_int(params, "codebook_version", 0, allowed=(0,))
        mode = setting_text(params, "decode_mode", allowed=_LENGTHS)
        state_bits = setting_int(params, "L", allowed=range(1, 21))
        length = setting_int(params, "V", allowed=_LENGTHS[mode])
        width = setting_int(params, "K", allowed=range(1, state_bits // length + 1))
        table_bits = setting_int(params, "tlut_bits", 0)
        if mode.startswith("quantlut") and not 0 < table_bits < 16:
            raise FormatError(f"setting 'tlut_bits' is {table_bits}: expected 1 to 15 for '{mode}'")
        tile = setting_int(params, "td_x", 16), setting_int(params, "td_y", 16)
        weights = tile[0] * tile[1]
        if min(tile) < 1 or max(tile) > 4096 or tile[1] % length or weights * width < state_bits:
            raise FormatError(
                f"settings 'td_x' and 'td_y' are {list(tile)}: no tile for 'L' {state_bits}, 'V' {length}"
            )
        return cls(state_bits, width, length, mode, table_bits, tile)

    @property
    def for_lanes(self) -> bool:
        """Whether the order is that of tensor cores."""
        fixed = (self.mode, self.state_bits, self.length, self.table_bits, self.tile)
        return fixed == ("quantlut_sym", 16, 2, 9, (16, 16)) and self.width in (2, 3, 4)

    def stored(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of the plane ``trellis``.

        Raises:
            FormatError: the weight is no whole number of tiles.
        """
        height, width = (32, 32) if self.for_lanes else self.tile
        if shape[0] % height or shape[1] % width or not all(shape):
            raise FormatError(
                f"a weight {list(shape)} (of 'SV' and 'SU', or settings 'm' and 'n') has no whole tiles of {height} by "
                f"{width}"
            )
        weights = self.tile[0] * self.tile[1]
        return shape[0] * shape[1] // weights, -(-weights * self.width // 16)


class Qtip(Format):
    """The format ``qtip``."""

    id = "qtip"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        trellis = _Trellis.of(params)
        if setting_text(params, "part", "weight", allowed=("weight", "inner")) == "inner":
            return _inner(planes, params, trellis, sides(params, None, None))
        row_factors, column_factors = finite(planes, "SV", shape=(None,)), finite(planes, "SU", shape=(None,))
        shape = sides(params, row_factors.shape[0], column_factors.shape[0])
        inner = _inner(planes, params, trellis, shape)
        cut, ranks = _number(planes, "rcp", 0), _number(planes, "tp_rank", 8)
        if cut not in (0, 1, 2) or (cut and (ranks < 1 or shape[2 - cut] % ranks)):
            raise FormatError(f"planes 'rcp' and 'tp_rank' hold {cut} and {ranks}, which is none for {list(shape)}")
        down, across = (side // ranks if cut == at else side for side, at in zip(shape, (2, 1), strict=True))
        return Rotated(shape, inner, across, down, row_factors, column_factors)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        if setting_text(params, "part", "weight", allowed=("weight", "states")) == "weight":
            return super().encode(array, params=params, importance=importance)
        trellis, shape = _Trellis.of(params), sides(params, None, None)
        source = _planes.plane(array)
        count = trellis.tile[0] * trellis.tile[1] // trellis.length
        if source.kind[0] not in "IU" or source.shape != (trellis.stored(shape)[0], count):
            raise ArgumentError(
                f"states of type {source.kind} and shape {list(source.shape)}: expected integers "
                f"{[trellis.stored(shape)[0], count]}"
            )
        if source.data.min() < 0 or int(source.data.max()) >> trellis.state_bits:
            raise ArgumentError(f"one of the states is out of the range of {trellis.state_bits} bits")
        packed = _packed(source.data.astype(np.uint32), trellis, shape)
        return encoded(self.id, {"trellis": packed}, shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        trellis, inner, planes = _Trellis.of(params), form, dict[str, Plane]()
        if isinstance(form, Rotated):
            planes |= _rotation(form)
            inner = form.inner
        if not isinstance(inner, Additive) or len(inner.books) != 1 or inner.scales is not None:
            return super().write(form, params)
        book, shape = inner.books[0], (inner.rows, inner.columns)
        entries = 1 << trellis.state_bits
        if book.entries.shape != (1, 1, entries, 1, trellis.length):
            raise UnsupportedError(f"a table {list(book.entries.shape)} is none of {trellis.state_bits} bits")
        if trellis.mode not in _COMPUTED:
            planes["tlut"] = _tlut(trellis, Plane(book.entries.data.reshape(entries, -1), book.entries.kind))
        try:
            trellis.stored(shape)
            planes["trellis"] = _packed(_in_tiles(book.indices.unpack(), trellis), trellis, shape)
            if not np.array_equal(_table(planes, trellis).float32(), book.entries.float32()):
                raise FormatError(f"the values of the states are not those of '{trellis.mode}'")
        except FormatError as e:
            raise UnsupportedError(f"format '{self.id}': {e.message}") from e
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        skipped = setting_names(folder.settings, "skip_list")
        every = folder.modules(("trellis", "SU", "SV"), ("tlut", "rcp", "tp_rank"), marker="trellis")
        for module, tensors in every.items():
            params = dict(folder.settings)
            if module.endswith("v_proj") and params.get("K_v_proj") is not None:
                params["K"] = params["K_v_proj"]
            trellis = _Trellis.of(params)
            lengths = [folder.source[tensors[plane]].shape for plane in ("SV", "SU")]
            if any(len(one) != 1 for one in lengths):
                raise FormatError(
                    f"factors have shapes {list(map(list, lengths))}: expected one dimension", tensor=module
                )
            shape, stored = (lengths[0][0], lengths[1][0]), folder.source[tensors["trellis"]]
            if stored.shape != trellis.stored(shape):
                raise FormatError(
                    f"has shape {list(stored.shape)}: expected {list(trellis.stored(shape))} for a weight "
                    f"{list(shape)} with 'K' {trellis.width} of quip_params",
                    tensor=stored.name,
                )
            place = re.search(r"(?:^|\.)(\d+)\..*?(\w+)_proj$", module)
            if place and f"{place[1]}_{place[2]}" in skipped:
                folder.notes.append(f"'{place[1]}_{place[2]}' is in 'skip_list', but {module}.weight is quantized")
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


def _number(planes: Mapping[str, Any], name: str, default: int) -> int:
    found = _planes.optional(planes, name, ("I64", "I32"))
    if found is None:
        return default
    if found.data.size != 1:
        raise FormatError(f"plane '{name}' has shape {list(found.shape)}: expected one number")
    return int(found.data.reshape(-1)[0])


def _rotation(form: Rotated) -> dict[str, Plane]:
    """The planes of factors and transforms."""
    if form.row_factors is None or form.column_factors is None or form.across is None or form.down is None:
        raise UnsupportedError("the weight lacks factors or transforms of rows or columns")
    rows, columns = form.inner.shape
    parts = (rows // form.down, columns // form.across)
    if 1 not in parts or form.shape != form.inner.shape:
        raise UnsupportedError(f"transforms of {form.down} rows and {form.across} columns of {[rows, columns]}")
    cut, ranks = (2, parts[0]) if parts[0] > 1 else (1, parts[1]) if parts[1] > 1 else (0, 8)
    return {
        "SU": form.column_factors,
        "SV": form.row_factors,
        "rcp": Plane(np.array(cut, np.int64), "I64"),
        "tp_rank": Plane(np.array(ranks, np.int64), "I64"),
    }


def _inner(planes: Mapping[str, Any], params: Mapping[str, Any], trellis: _Trellis, shape: tuple[int, int]) -> Form:
    """What is stored of the weight."""
    stored = _planes.get(planes, "trellis", "I16", trellis.stored(shape))
    raw = np.ascontiguousarray(stored.data)
    indices: Indices
    if trellis.for_lanes:
        bands = raw.view(np.uint8).reshape(shape[0] // 32, -1)
        indices = TrellisIndices(bands, 2 * trellis.width, 2, shape)
    else:
        indices = PlainIndices(raw.reshape(shape[0] // trellis.tile[0], -1, raw.shape[1]), trellis)
    return Additive(shape, (Book(indices, _table(planes, trellis)),))


def _table(planes: Mapping[str, Any], trellis: _Trellis) -> Plane:
    """The values of all states, as the table of a book."""
    if trellis.mode in _COMPUTED:
        values, kind = _COMPUTED[trellis.mode](trellis.state_bits), "F16" if trellis.mode == "3inst" else "F32"
    else:
        rows = trellis.state_bits if trellis.mode == "lut" else trellis.table_bits
        tlut = finite(planes, "tlut", shape=(1 << rows, trellis.length))
        values, kind = tlut.float32(), tlut.kind
        if trellis.mode != "lut":
            row, negated = _rows(trellis)
            values = values[row]
            values[negated, 0] = -values[negated, 0]
    return _planes.float_plane(values.reshape(1, 1, -1, 1, trellis.length), kind)


def _rows(trellis: _Trellis) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row of the table for every state, and whether its first value is negated."""
    symmetric = trellis.mode == "quantlut_sym"
    row, negated = codes.table_rows(trellis.state_bits, trellis.table_bits, 15 if symmetric else 16)
    return row, negated & symmetric


def _tlut(trellis: _Trellis, values: Plane) -> Plane:
    """The plane ``tlut`` of the values of all states; 0 for rows that no state has."""
    if trellis.mode == "lut":
        return values
    row, negated = _rows(trellis)
    found = np.zeros((1 << trellis.table_bits, trellis.length), np.float32)
    plain = values.float32().copy()
    plain[negated, 0] = -plain[negated, 0]
    found[row] = plain
    return _planes.float_plane(found, values.kind)


def _packed(states: IndexArray, trellis: _Trellis, shape: tuple[int, int]) -> Plane:
    """The plane ``trellis`` of states (tiles, states of a tile)."""
    if trellis.for_lanes:
        tiles = states.reshape(shape[0] // 16, shape[1] // 16, -1)
        raw = lanes.pack_states(tiles, 2 * trellis.width)
        return Plane(raw.reshape(-1).view(np.int16).reshape(trellis.stored(shape)), "I16")
    strings = ring.strings_of(states, trellis.width * trellis.length, trellis.state_bits)
    padded = np.pad(strings, ((0, 0), (0, -strings.shape[1] % 16)))
    return Plane(np.packbits(padded, axis=1).view(">i2").astype(np.int16), "I16")


def _in_tiles(states: IndexArray, trellis: _Trellis) -> IndexArray:
    """States of a weight, (m, n / V), by tile."""
    if trellis.for_lanes:
        return lanes.states_in_tiles(states).reshape(-1, lanes.PAIRS)
    height, width = trellis.tile[0], trellis.tile[1] // trellis.length
    tiled = states.reshape(len(states) // height, height, -1, width).swapaxes(1, 2)
    return np.ascontiguousarray(tiled).reshape(-1, height * width)


@dataclass(frozen=True, eq=False)
class PlainIndices(Indices):
    """States in the order of the rows of tiles.

    Attributes:
        data: int16, (m / td_x, n / td_y, words).
        trellis: the settings.
    """

    data: NDArray[np.int16]
    trellis: _Trellis

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.trellis.state_bits

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        height, width = self.trellis.tile
        return self.data.shape[0] * height, self.data.shape[1] * width // self.trellis.length

    @property
    def together(self) -> int:
        return self.trellis.tile[0]

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        start, stop, _ = rows.indices(self.shape[0])
        stop, (height, width) = max(start, stop), self.trellis.tile
        words = np.ascontiguousarray(self.data[start // height : -(-stop // height)], ">i2")
        weights, length = height * width, self.trellis.length
        strings = np.unpackbits(words.view(np.uint8), axis=2, count=weights * self.trellis.width)
        states = ring.states_of(strings, weights // length, self.trellis.width * length, self.trellis.state_bits)
        tiled = states.reshape(*words.shape[:2], height, width // length).swapaxes(1, 2)
        return tiled.reshape(-1, self.shape[1])[start % height : start % height + stop - start]


FORMATS = {"qtip": Qtip()}
