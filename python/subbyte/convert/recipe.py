"""Recipes: where the rows of a tensor to be written come from. Nothing is read before a recipe is asked for rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subbyte.arch.base import interleave_heads
from subbyte.convert.types import nbytes
from subbyte.errors import FormatError

Raw = NDArray[np.uint8]


class ByteRange(NamedTuple):
    """A part of a source file."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor as a source file stores it.

    Attributes:
        name: its name in the source.
        type: ggml type name; safetensors' names of the plain types are the same.
        shape: NumPy order, row length last.
        where: its bytes in the file; ``None`` for a computed tensor.
        load: ``count`` stored bytes from byte ``start`` of the tensor: uint8, flat.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    where: ByteRange | None
    load: Callable[[int, int], Raw]

    @property
    def rows(self) -> int:
        """Number of rows; a vector is one row."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return nbytes(self.type, self.shape)


@dataclass(frozen=True)
class Part:
    """All rows of one source tensor, in the order in which the target wants them.

    Attributes:
        source: the tensor.
        heads: number of attention heads whose rows are interleaved (:func:`~subbyte.arch.base.interleave_heads`);
            0 keeps the order.
    """

    source: SourceTensor
    heads: int = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.source.rows

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        size = self.source.shape[-1] if len(self.source.shape) == 1 else self.source.rows
        try:
            return interleave_heads(size, self.heads)
        except FormatError as error:
            error.tensor = self.source.name
            raise

    def read(self, start: int, stop: int) -> Raw:
        """Rows ``start`` to ``stop`` in the source's type: uint8, shape (rows, bytes of a row)."""
        if not self.heads:
            return self._stored(start, stop)
        if len(self.source.shape) == 1:  # a bias: its elements belong to the heads
            columns = self.source.shape[0]
            return self._stored(start, stop).reshape(columns, -1)[self._order].reshape(1, -1)
        order = self._order[start:stop]
        first = int(order.min())
        return self._stored(first, int(order.max()) + 1)[order - first]

    def _stored(self, start: int, stop: int) -> Raw:
        size = self.source.nbytes // self.rows
        return self.source.load(start * size, (stop - start) * size).reshape(stop - start, size)


@dataclass(frozen=True)
class Recipe:
    """How a tensor of the target is made: the rows of its parts, one after the other.

    Attributes:
        name: name in the target.
        shape: shape in the target, NumPy order.
        parts: source tensors of one type and row length; together they have the rows of ``shape``.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        columns = {part.source.shape[-1] if part.source.shape else 1 for part in self.parts}
        if len({part.source.type for part in self.parts}) != 1 or columns != {self.columns}:
            raise FormatError("its parts differ in type or row length", tensor=self.name)
        if sum(part.rows for part in self.parts) != self.rows:
            raise FormatError(f"its parts have other rows than shape {self.shape}", tensor=self.name)

    @property
    def type(self) -> str:
        """Type in which the source stores the tensor."""
        return self.parts[0].source.type

    @property
    def columns(self) -> int:
        """Row length in elements."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows; a vector is one row."""
        return prod(self.shape[:-1])

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def source_nbytes(self) -> int:
        """Bytes in the source."""
        return sum(part.source.nbytes for part in self.parts)

    @property
    def ranges(self) -> list[ByteRange]:
        """The parts of the source files that the tensor needs."""
        return [part.source.where for part in self.parts if part.source.where is not None]

    def read(self, start: int, stop: int) -> Raw:
        """Rows ``start`` to ``stop`` in the source's type: uint8, shape (rows, bytes of a row)."""
        pieces = []
        for part, end in zip(self.parts, accumulate(part.rows for part in self.parts), strict=True):
            first = end - part.rows
            if first < stop and start < end:
                pieces.append(part.read(max(start - first, 0), min(stop - first, part.rows)))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def computed(name: str, array: NDArray[np.float32]) -> Recipe:
    """The recipe of a tensor that is computed rather than read."""
    data = np.ascontiguousarray(array, dtype=np.float32).view(np.uint8).reshape(-1)
    source = SourceTensor(name, "F32", array.shape, None, lambda start, count: data[start : start + count])
    return Recipe(name, array.shape, (Part(source),))
