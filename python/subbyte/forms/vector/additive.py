"""Sums of vectors from tables (AQLM, VPTQ, GPTVQ, HIGGS, Q-Palette, QuIP#)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.forms.vector.indices import Indices
from subbyte.planes import Plane, rounded


@dataclass(frozen=True, eq=False)
class Book:
    """Tables of vectors, and the index of a vector for every block of the weight.

    Attributes:
        indices: (rows of blocks, columns of blocks).
        entries: F16, BF16 or F32, (tiles down, tiles across, entries, height, width): a table for every tile of the
            weight. Tiles have the same number of blocks, which the shapes give; a block is ``height`` by ``width``.
    """

    indices: Indices
    entries: Plane

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of weights that an entry holds."""
        height, width = self.entries.shape[3:]
        return height, width

    def __post_init__(self) -> None:
        shape = self.entries.shape
        if (
            len(shape) != 5
            or not all(shape)
            or any(blocks % tiles for blocks, tiles in zip(self.indices.shape, shape, strict=False))
        ):
            raise FormatError(f"tables of shape {list(shape)} do not fit {list(self.indices.shape)} indices")

    def values(self, rows: slice) -> NDArray[np.float32]:
        """The vectors of a range of rows of blocks as a matrix: float32, (rows * height, columns * width).

        Raises:
            FormatError: an index is beyond the table.
        """
        start, stop, _ = rows.indices(self.indices.shape[0])
        down, across, entries, height, width = self.entries.shape
        found = self.indices.unpack(slice(start, stop)).astype(np.intp)
        if found.size and found.max() >= entries:
            raise FormatError(f"an index is {found.max()}: the table has {entries} entries")
        tile_row = np.arange(start, stop) * down // max(self.indices.shape[0], 1)
        tile_column = np.arange(found.shape[1]) * across // max(found.shape[1], 1)
        first = (tile_row[:, None] * across + tile_column) * entries
        vectors: NDArray[np.float32] = np.take(self._table, first + found, axis=0)
        if height > 1:
            vectors = vectors.reshape(*found.shape, height, width).swapaxes(1, 2)
        return vectors.reshape(len(found) * height, found.shape[1] * width)

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """The entries of all tiles, one a row."""
        height, width = self.block
        return np.ascontiguousarray(self.entries.float32()).reshape(-1, height * width)


@dataclass(frozen=True, eq=False)
class Additive(Form):
    """w = (entry of the first book + entry of the second + …) * scale.

    float32 values are summed in the order of the books, then multiplied, each step rounded to float32. In a 16-bit
    type the sum and the product are each rounded once to the type of the entries.

    Attributes:
        shape: rows and columns; what blocks hold beyond them is padding.
        books: all with blocks of one size.
        scales: F16, BF16 or F32, (down, across), each for a rectangle of the weight, of the size that the shapes give;
            none if the entries are the weights.
    """

    shape: tuple[int, ...]
    books: tuple[Book, ...]
    scales: Plane | None = None

    def __post_init__(self) -> None:
        height, width = self.books[0].block
        blocks = (-(-self.rows // height), -(-self.columns // width))
        for book in self.books:
            if book.block != (height, width) or book.indices.shape != blocks:
                raise FormatError(
                    f"{list(book.indices.shape)} indices of blocks {list(book.block)} do not fit a weight of shape "
                    f"{list(self.shape)}"
                )
        if self.scales is not None:
            scales = self.scales.shape
            if len(scales) != 2 or not all(scales) or self.rows % scales[0] or self.columns % scales[1]:
                raise FormatError(f"scales of shape {list(scales)} do not fit a weight of shape {list(self.shape)}")

    @property
    def together(self) -> int:
        return lcm(*(book.block[0] * book.indices.together for book in self.books))

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, self.books[0].entries.kind)

    def _values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        height = self.books[0].block[0]
        blocks = slice(start // height, -(-stop // height))
        begin = blocks.start * height
        with np.errstate(all="ignore"):
            total = self.books[0].values(blocks)
            for book in self.books[1:]:
                total = total + book.values(blocks)
            total = rounded(total[start - begin : max(stop, start) - begin, : self.columns], kind)
            if self.scales is None:
                return total
            down, across = self.scales.shape
            of_row = np.arange(start, max(stop, start)) // max(self.rows // down, 1)
            scales = Plane(self.scales.data[of_row], self.scales.kind).float32()
            return rounded(total * np.repeat(scales, self.columns // across, axis=1), kind)


@dataclass(frozen=True, eq=False)
class Residual(Form):
    """w = main + residual / divisor (QuIP#).

    The quotient and the sum are float32. In a 16-bit type both are rounded to it, the quotient being that of float32.

    Attributes:
        main, residual: of the same shape.
        divisor: of the residual.
    """

    shape: tuple[int, ...]
    main: Form
    residual: Form
    divisor: float

    def __post_init__(self) -> None:
        if self.main.shape != self.shape or self.residual.shape != self.shape:
            raise FormatError(f"{list(self.main.shape)} and {list(self.residual.shape)} do not make {list(self.shape)}")

    @property
    def together(self) -> int:
        return lcm(self.main.together, self.residual.together)

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, kind)

    def _values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            rest = rounded(self.residual.values(rows) / np.float32(self.divisor), kind)
            return rounded(self.main.values(rows) + rest, kind)
