"""EXL3: weights rotated in blocks of 128, in a trellis of 1 to 8 bits a weight (turboderp-org/exllamav3).

Files store the transpose [n, m] of a layer ``[m, n]`` (out, in features):

=========  ==============================  =====================================================================
plane      type, shape                     content
=========  ==============================  =====================================================================
trellis    I16, [n / 16, m / 16, 16 * K]   tiles of 16 by 16 weights of K bits, W'
suh, svh   F16, [n], [m]                   factors of inputs and outputs
su, sv     I16, [n / 16], [m / 16]         instead of them in old files: signs; bit i of word w, 1 for -1, is that
                                           of element 16 w + i
mcg, mul1  I32, one                        marks the code, and holds its factor
=========  ==============================  =====================================================================

W^T = diag(suh) B W' B diag(svh); B has Hadamard matrices of 128 along its diagonal, over sqrt(128), so that m and n are
multiples of 128. As F16, the values are those of the original's export, which rounds to it after every step: B W', the
product with suh, the second B, the product with svh.

16 K words of a tile are 8 K words of 32 bits, low half first; its string is their bits, the highest first. State t, of
256, is the window of 16 bits that ends with bit K t + K - 1 of the ring. With lane = t >> 3 and j = t & 7 it is the
weight of input 2 * (lane & 3) + (j & 1) + 8 * (j >> 1 & 1) and output (lane >> 2) + 8 * (j >> 2) of the tile.

Codes (`subbyte.formats.trellis.codes`): ``mcg`` or ``mul1`` where that plane is, with its factor, and ``3inst``
without; ``mcg`` counts where both are. The settings of a checkpoint say nothing that decoding needs.

Inputs and outputs are padded to multiples of 128; ``in_features`` and ``out_features`` cut the padding off. The
parameter ``part``:

* ``"inner"``: decoding gives W'; ``codebook`` is the code where there is no plane of it;
* ``"states"``: encoding takes states, integers [n / 16, m / 16, 256], and gives ``trellis`` of ``K`` bits;
* ``"tile"``: encoding takes tiles of weights, [tiles, 256] in the order of states, and gives the plane ``states``, I16,
  of ``K`` bits and the code ``codebook``: `subbyte.formats.trellis.search` for the weights times ``input_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_text
from subbyte.formats.trellis import codes, ring
from subbyte.formats.trellis.search import quantize_tiles
from subbyte.formats.vector.tables import finite
from subbyte.forms import Form
from subbyte.forms.vector import Additive, Book, HalfRotated, RowRange
from subbyte.forms.vector.indices import IndexArray, Indices
from subbyte.planes import Plane

_TILE = 16
_BLOCK = 128
_STATE_BITS = 16
_WIDTHS = range(1, 9)
_CODES = {"3inst": codes.three_inst, "mcg": codes.mcg, "mul1": codes.mul1}
_FACTORS = {"mcg": codes.MCG, "mul1": codes.MUL1}


class Exl3(Format):
    """The format ``exl3``."""

    id = "exl3"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        part = setting_text(params, "part", "weight", allowed=("weight", "inner"))
        trellis = _planes.get(planes, "trellis", "I16", (None, None, None))
        width = trellis.shape[2] // _TILE
        if not trellis.data.size or width not in _WIDTHS or trellis.shape[2] % _TILE:
            raise FormatError(f"plane 'trellis' has shape {list(trellis.shape)}: expected [n, m, 16 * K], K 1 to 8")
        if setting_int(params, "K", width) != width:
            raise FormatError(f"setting 'K' is {params['K']}, but plane 'trellis' has {width} bits a weight")
        rows, columns = trellis.shape[1] * _TILE, trellis.shape[0] * _TILE
        chosen = _code(planes, params, part)
        inner = Additive((rows, columns), (Book(TileIndices(np.ascontiguousarray(trellis.data), width), chosen),))
        if part == "inner":
            _sides(params, rows, columns, 1)
            return inner
        if rows % _BLOCK or columns % _BLOCK:
            raise FormatError(f"plane 'trellis' is for a weight {[rows, columns]}: expected multiples of {_BLOCK}")
        shape = _sides(params, rows, columns, _BLOCK)
        row_factors, column_factors = _factors(planes, "sv", rows), _factors(planes, "su", columns)
        whole = HalfRotated((rows, shape[1]), inner, _BLOCK, _BLOCK, row_factors, column_factors)
        return whole if shape[0] == rows else RowRange(shape, whole, 0)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        part = setting_text(params, "part", "weight", allowed=("weight", "states", "tile"))
        if part == "weight":
            return super().encode(array, params=params, importance=importance)
        width = setting_int(params, "K", allowed=_WIDTHS)
        if part == "states":
            source = _planes.plane(array)
            if source.kind not in ("I16", "U16", "I32", "I64") or source.data.ndim != 3 or source.shape[2] != 256:
                raise ArgumentError(
                    f"states of type {source.kind} and shape {list(source.shape)}: expected integers [n, m, 256]"
                )
            if not source.data.size or source.data.min() < -1 << 15 or int(source.data.max()) >= 1 << _STATE_BITS:
                raise ArgumentError(f"states are none, or out of the range of {_STATE_BITS} bits")
            states = source.data.astype(np.int64).astype(np.uint32) & np.uint32(0xFFFF)
            packed = Plane(pack_states(states, width), "I16")
            shape = (states.shape[1] * _TILE, states.shape[0] * _TILE)
            return encoded(self.id, {"trellis": packed}, shape, params)
        source = _planes.source(array)
        if source.data.ndim != 2 or source.shape[1] != 256 or not source.data.size:
            raise ArgumentError(f"tiles of shape {list(source.shape)}: expected [tiles, 256]")
        scale = params.get("input_scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
            raise FormatError(f"setting 'input_scale' is {scale!r:.60}: expected a number")
        values = _CODES[setting_text(params, "codebook", allowed=_CODES)](_STATE_BITS)
        states = quantize_tiles(source.float32() * np.float32(scale), values, width)
        return encoded(self.id, {"states": Plane(states.astype(np.uint16).view(np.int16), "I16")}, source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        inner, planes = form, dict[str, Plane]()
        if isinstance(form, HalfRotated) and form.row_factors is not None and form.column_factors is not None:
            inner = form.inner
            planes |= {"suh": form.column_factors, "svh": form.row_factors}
        indices = inner.books[0].indices if isinstance(inner, Additive) and len(inner.books) == 1 else None
        if not isinstance(inner, Additive) or not isinstance(indices, TileIndices) or inner.scales is not None:
            return super().write(form, params)
        values = inner.books[0].entries.float32().reshape(-1)
        name = next((one for one, code in _CODES.items() if np.array_equal(code(_STATE_BITS), values)), None)
        if name is None:
            raise UnsupportedError(f"format '{self.id}' has no code with these values of states")
        if name in _FACTORS and planes:
            planes[name] = Plane(np.array(_FACTORS[name], np.uint32).view(np.int32), "I32")
        planes["trellis"] = Plane(indices.data, "I16")
        try:
            read = self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"format '{self.id}': {e.message}") from e
        if type(read) is not type(form) or read.shape != form.shape:
            return super().write(form, params)
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        every = folder.modules(("trellis",), ("suh", "svh", "su", "sv", *_FACTORS), marker="trellis")
        for module, tensors in every.items():
            trellis = folder.source[tensors["trellis"]]
            if len(trellis.shape) != 3:
                raise FormatError(f"has shape {list(trellis.shape)}: expected three dimensions", tensor=trellis.name)
            shape = (trellis.shape[1] * _TILE, trellis.shape[0] * _TILE)
            for short, size in (("su", shape[1]), ("sv", shape[0])):
                name = tensors.get(f"{short}h", tensors.get(short))
                if name is None:
                    raise FormatError(
                        f"tensor '{module}.{short}h', which belongs to it, is missing", tensor=trellis.name
                    )
                expected = size if f"{short}h" in tensors else size // _TILE
                if folder.source[name].shape != (expected,):
                    raise FormatError(
                        f"has shape {list(folder.source[name].shape)}: expected [{expected}], since '{trellis.name}' "
                        f"has shape {list(trellis.shape)}",
                        tensor=name,
                    )
            for marker, locked in _FACTORS.items():
                if marker in tensors and (given := _marker(folder.source.array(tensors[marker]))) != locked:
                    folder.notes.append(f"'{tensors[marker]}' is {given:#x}, not {locked:#x}: the code is made with it")
            found.append(Layer(f"{module}.weight", shape, tensors, {}))
        return found


def _marker(value: Any) -> int:
    """The factor of a code."""
    data = np.asarray(value)
    return int(data.reshape(-1)[0]) & 0xFFFFFFFF if data.size == 1 else 0


def _sides(params: Mapping[str, Any], rows: int, columns: int, block: int) -> tuple[int, int]:
    """Outputs and inputs without their padding."""
    found = []
    for key, side in (("out_features", rows), ("in_features", columns)):
        given = setting_int(params, key, side)
        if not side - block < given <= side:
            raise FormatError(f"setting '{key}' is {given}, but plane 'trellis' makes it {side}")
        found.append(given)
    return found[0], found[1]


def _code(planes: Mapping[str, Any], params: Mapping[str, Any], part: str) -> Plane:
    """The values of all states, as the table of a book."""
    name = next((marker for marker in _FACTORS if marker in planes), "3inst")
    if part == "inner" and name == "3inst":
        name = setting_text(params, "codebook", allowed=_CODES)
    if name in planes:
        stored = _planes.get(planes, name, ("I32", "U32"))
        if stored.data.size != 1:
            raise FormatError(f"plane '{name}' has shape {list(stored.shape)}: expected one number")
        values = {"mcg": codes.mcg, "mul1": codes.mul1}[name](_STATE_BITS, _marker(stored.data))
    else:
        values = _CODES[name](_STATE_BITS)
    return _planes.float_plane(values.reshape(1, 1, -1, 1, 1), "F16")


def _factors(planes: Mapping[str, Any], short: str, size: int) -> Plane:
    """``suh`` or ``svh``, or those of the signs ``su`` or ``sv``."""
    if f"{short}h" in planes or short not in planes:
        return finite(planes, f"{short}h", shape=(size,))
    words = np.ascontiguousarray(_planes.get(planes, short, "I16", (size // _TILE,)).data, "<i2")
    negative = np.unpackbits(words.view(np.uint8), bitorder="little")
    return _planes.float_plane(1 - 2 * negative.astype(np.float32), "F16")


@dataclass(frozen=True, eq=False)
class TileIndices(Indices):
    """States in the order of the weight [m, n].

    Attributes:
        data: int16, (n / 16, m / 16, 16 * width).
        width: bits of a weight.
    """

    data: NDArray[np.int16]
    width: int
    bits: int = _STATE_BITS

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.data.shape[1] * _TILE, self.data.shape[0] * _TILE

    @property
    def together(self) -> int:
        return _TILE

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        tiles = np.ascontiguousarray(self.data[:, start // _TILE : -(-stop // _TILE)], "<i2")
        strings = np.unpackbits(tiles.view("<u4").astype(">u4").view(np.uint8), axis=2)
        states = ring.states_of(strings, 256, self.width, _STATE_BITS, self.width - _STATE_BITS)
        axes = states.reshape(*tiles.shape[:2], 8, 4, 2, 2, 2).transpose(1, 4, 2, 0, 5, 3, 6)
        return axes.reshape(-1, self.shape[1])[start % _TILE : start % _TILE + stop - start]


def pack_states(states: IndexArray, width: int) -> NDArray[np.int16]:
    """The words that `TileIndices` reads, of states (n / 16, m / 16, 256).

    Raises:
        FormatError: they are not those of a ring.
    """
    strings = ring.strings_of(states, width, _STATE_BITS, width - _STATE_BITS)
    words = np.packbits(strings, axis=2).view(">u4").astype("<u4")
    return words.view("<i2").astype(np.int16)


FORMATS = {"exl3": Exl3()}
