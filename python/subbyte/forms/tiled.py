"""Codes in tiles: the orders in which kernels of accelerators and lookup kernels of CPUs want the bits of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from subbyte.arrays import Array
from subbyte.errors import FormatError
from subbyte.forms.codes import CodeArray, Codes, pack, unpack
from subbyte.forms.flat import FlatCodes


class Tiling:
    """An order of the elements of a matrix that is cut into tiles of one size.

    Args:
        stored: the axes in memory, the slowest first: ``"R C n=8 k=4"``. ``R`` and ``C`` count tiles down and across;
            ``~n=2`` runs backwards.
        rows: the axes that make up the row within a tile, the most significant first.
        columns: those that make up the column.

    Attributes:
        height, width: rows and columns of a tile.
    """

    def __init__(self, stored: str, rows: str, columns: str) -> None:
        axes = [axis.lstrip("~").partition("=") for axis in stored.split()]
        self._axes = [name for name, _, _ in axes]
        self._sizes = {name: int(size) for name, _, size in axes if size}
        self._backwards = tuple(at for at, axis in enumerate(stored.split()) if axis.startswith("~"))
        self._natural = ["R", *rows.split(), "C", *columns.split()]
        self._order = [self._axes.index(name) for name in self._natural]
        self._inverse = [self._natural.index(name) for name in self._axes]
        self.height = prod(self._sizes[name] for name in rows.split())
        self.width = prod(self._sizes[name] for name in columns.split())

    def check(self, rows: int, columns: int) -> None:
        """Refuses a matrix that is no whole number of tiles.

        Raises:
            FormatError: it is none.
        """
        if rows % self.height or columns % self.width or rows <= 0 or columns <= 0:
            raise FormatError(
                f"a weight [{rows}, {columns}] cannot be cut into tiles of {self.height} rows and {self.width} columns"
            )

    def tiles_across(self) -> bool:
        """Whether tiles of one column of tiles lie together (column of tiles slower than row of tiles)."""
        return self._axes.index("C") < self._axes.index("R")

    def arrange(self, stored: Array, rows: int, columns: int) -> Array:
        """The matrix of elements that are stored in this order: shape (rows, columns)."""
        sizes = self._sizes | {"R": rows // self.height, "C": columns // self.width}
        cut = np.flip(stored.reshape([sizes[name] for name in self._axes]), self._backwards)
        return np.ascontiguousarray(cut.transpose(self._order)).reshape(rows, columns)

    def collect(self, matrix: Array) -> Array:
        """The reverse of `arrange`: one dimension."""
        rows, columns = matrix.shape
        sizes = self._sizes | {"R": rows // self.height, "C": columns // self.width}
        cut = matrix.reshape([sizes[name] for name in self._natural]).transpose(self._inverse)
        return np.ascontiguousarray(np.flip(cut, self._backwards)).reshape(-1)


@dataclass(frozen=True, eq=False)
class TiledCodes(Codes):
    """Codes whose fields lie in the order of a `Tiling`, the first in the lowest bits of the first byte.

    Attributes:
        data: the packed bytes, in integers of any size: exactly those of ``shape``.
        tiling: the order of the fields.
        offset: what is added to a field, modulo 2^bits, to give the code (8 for two's complement of 4 bits).
    """

    data: Array
    bits: int
    shape: tuple[int, int]
    tiling: Tiling
    offset: int = 0

    def __post_init__(self) -> None:
        self.tiling.check(*self.shape)
        expected = prod(self.shape) * self.bits // 8
        if self.data.nbytes != expected:
            raise FormatError(
                f"packed codes take {self.data.nbytes} bytes: expected {expected} for a weight {list(self.shape)} of "
                f"{self.bits} bits"
            )

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        height, columns = self.tiling.height, self.shape[1]
        first, last = start // height, -(-stop // height)
        count = self.shape[0] // height
        bands = columns // self.tiling.width if self.tiling.tiles_across() else 1
        packed = np.ascontiguousarray(self.data).view(np.uint8).reshape(bands, count, -1)[:, first:last]
        fields = _fields(packed.reshape(-1), self.bits)
        codes = self.tiling.arrange(fields, (last - first) * height, columns)
        if self.offset:
            codes = codes + np.uint8(self.offset) & np.uint8((1 << self.bits) - 1)
        return codes[start - first * height : stop - first * height]


def _fields(packed: CodeArray, bits: int) -> CodeArray:
    """The fields of all bytes, the lowest bits first."""
    words = np.zeros(-(-packed.size // 4), np.uint32)
    words.view(np.uint8)[: packed.size] = packed
    return unpack("stream", bits, words.reshape(1, -1), packed.size * 8 // bits).reshape(-1)


def pack_tiles(codes: CodeArray, bits: int, tiling: Tiling, offset: int = 0) -> CodeArray:
    """The bytes that `TiledCodes` of these arguments reads: one dimension.

    Raises:
        FormatError: the codes are no whole number of tiles.
    """
    tiling.check(*codes.shape)
    fields = (codes - np.uint8(offset)) & np.uint8((1 << bits) - 1) if offset else codes
    words = pack("stream", bits, tiling.collect(fields).reshape(1, -1))
    return words.view(np.uint8).reshape(-1)[: fields.size * bits // 8]


@dataclass(frozen=True, eq=False)
class ReshapedCodes(FlatCodes):
    """The codes of another matrix, row after row, as a matrix of another shape.

    Attributes:
        source: as many codes.
    """

    source: Codes
    shape: tuple[int, int]

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.source.bits

    def flat(self, start: int, stop: int) -> CodeArray:
        width = self.source.shape[1]
        first = start // width
        found = self.source.unpack(slice(first, -(-stop // width))).reshape(-1)
        return found[start - first * width : stop - first * width]


@dataclass(frozen=True, eq=False)
class CroppedCodes(Codes):
    """The upper left of a padded matrix of codes.

    Attributes:
        source: at least as many rows and columns.
    """

    source: Codes
    shape: tuple[int, int]

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.source.bits

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        return self.source.unpack(slice(start, stop))[:, : self.shape[1]]
