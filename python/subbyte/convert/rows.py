"""Rows of tensors that are read when they are asked for, and the views that turn a checkpoint's rows into a target's.

A view wraps other rows and reads only what a range of its own rows needs, so that views nest without anything being
held whole. The one exception is an exchange of axes, which keeps the matrix it is in the middle of.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte.arrays import as_bytes
from subbyte.convert.types import Raw, nbytes, quantized
from subbyte.convert.values import to_float32
from subbyte.errors import FormatError
from subbyte.ggml import TYPES
from subbyte.routes.fit import Grade


class ByteRange(NamedTuple):
    """A part of a source file."""

    path: str
    offset: int
    nbytes: int


class Place(NamedTuple):
    """An element of a tensor of the source."""

    tensor: SourceTensor
    row: int
    column: int


class Rows(ABC):
    """Rows of one type.

    Attributes:
        type: ggml type name, or the dtype of a safetensors file that ggml lacks.
        shape: NumPy order, row length last.
    """

    type: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Row length in elements."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of rows; a vector is one row."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return nbytes(self.type, (self.columns,))

    @property
    def source_nbytes(self) -> int:
        """Bytes that the source stores the rows in; views of decoded values count what they decode."""
        return self.rows * self.row_bytes

    @property
    @abstractmethod
    def ranges(self) -> list[ByteRange]:
        """The parts of the source files that the rows need."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Raw:
        """Rows ``start`` to ``stop``: uint8, shape (rows, bytes of a row)."""

    @abstractmethod
    def place(self, row: int, column: int) -> Place:
        """Where the source stores an element; of a block, its scale."""

    def cut(self, columns: int) -> Rows | None:
        """The same bytes in shorter rows of ``columns`` elements; ``None`` where they could only be read whole."""
        return None

    @property
    def layered(self) -> bool:
        """Whether the rows are those of a quantized layer, or made of some."""
        return False

    @property
    def whole(self) -> bool:
        """Whether any of the rows take the work of the layer that ``ranges`` hold: they are best read together."""
        return self.layered

    @property
    def stored(self) -> str:
        """What the source stores: a type, or of a quantized layer the format in upper case."""
        return self.type

    @property
    def grades(self) -> list[Grade]:
        """How well the type holds each quantized layer that the rows are made of."""
        return []

    @property
    def tensor_scales(self) -> list[float]:
        """The scale of the whole tensor of each layer, where blocks of NVFP4 need one beside them."""
        return []

    def in_blocks(self) -> Rows | None:
        """The blocks of a ggml type that these rows are the values of; None where they are of no such type, or not
        whole rows of it."""
        return self if quantized(self.type) else None

    def as_type(self, type: str) -> Rows | None:
        """The rows of a quantized layer with its codes in blocks of ``type``, or its values as floats; else None."""
        return None

    def misfit(self, type: str) -> str:
        """Why blocks of ``type`` cannot hold the codes of a quantized layer."""
        return ""


@dataclass(frozen=True, eq=False)
class SourceTensor(Rows):
    """A tensor as a source file stores it.

    Attributes:
        name: its name in the source.
        where: its bytes in the file; ``None`` for a computed tensor.
        load: ``count`` stored bytes from byte ``start`` of the tensor: uint8, flat.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    where: ByteRange | None
    load: Callable[[int, int], Raw]

    @property
    def ranges(self) -> list[ByteRange]:
        return [] if self.where is None else [self.where]

    def read(self, start: int, stop: int) -> Raw:
        size = self.row_bytes
        return self.load(start * size, (stop - start) * size).reshape(stop - start, size)

    def place(self, row: int, column: int) -> Place:
        return Place(self, row, column)

    def cut(self, columns: int) -> Rows:
        return _Cut(replace(self, shape=(prod(self.shape) // columns, columns)), self)


@dataclass(frozen=True, eq=False)
class Blocks(Rows):
    """The blocks of rows as bytes."""

    source: Rows
    type: ClassVar[str] = "U8"  # type: ignore[misc]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.source.shape[:-1], self.source.row_bytes)

    @property
    def ranges(self) -> list[ByteRange]:
        return self.source.ranges

    @property
    def stored(self) -> str:
        return self.source.stored

    def read(self, start: int, stop: int) -> Raw:
        return self.source.read(start, stop)

    def place(self, row: int, column: int) -> Place:
        return self.source.place(row, 0)


@dataclass(frozen=True, eq=False)
class _View(Rows):
    source: Rows

    @property
    def type(self) -> str:  # type: ignore[override]
        return self.source.type

    @property
    def source_nbytes(self) -> int:
        return self.source.source_nbytes * prod(self.shape) // max(prod(self.source.shape), 1)

    @property
    def ranges(self) -> list[ByteRange]:
        return self.source.ranges

    def place(self, row: int, column: int) -> Place:
        return self.source.place(row, column)

    @property
    def layered(self) -> bool:
        return self.source.layered

    @property
    def stored(self) -> str:
        return self.source.stored

    @property
    def grades(self) -> list[Grade]:
        return self.source.grades

    @property
    def tensor_scales(self) -> list[float]:
        return self.source.tensor_scales

    def misfit(self, type: str) -> str:
        return self.source.misfit(type)

    def as_type(self, type: str) -> Rows | None:
        return self._over(self.source.as_type(type))

    def _over(self, source: Rows | None) -> Rows | None:
        """The same view of other rows."""
        return None if source is None else replace(self, source=source)


@dataclass(frozen=True, eq=False)
class _Cut(_View):
    """Stored rows in pieces; places are those of the whole rows."""

    uncut: Rows

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    def read(self, start: int, stop: int) -> Raw:
        return self.source.read(start, stop)

    def place(self, row: int, column: int) -> Place:
        return self.uncut.place(*divmod(row * self.columns + column, self.uncut.columns))


@dataclass(frozen=True, eq=False)
class Reshaped(_View):
    """The same elements in rows of another length; the type has no blocks unless the length stays."""

    shape: tuple[int, ...]

    def in_blocks(self) -> Rows | None:
        return self._over(self.source.in_blocks()) if self.columns == self.source.columns else None

    def read(self, start: int, stop: int) -> Raw:
        size, inner = self.row_bytes, self.source.row_bytes
        if size == inner:
            return self.source.read(start, stop)
        first, last = start * size, stop * size
        begin = first // inner
        flat = self.source.read(begin, -(-last // inner)).reshape(-1)
        return flat[first - begin * inner : last - begin * inner].reshape(stop - start, size)

    def place(self, row: int, column: int) -> Place:
        return self.source.place(*divmod(row * self.columns + column, self.source.columns))


@dataclass(frozen=True, eq=False)
class Reordered(_View):
    """Row ``i`` is row ``order[i]`` of the source."""

    order: NDArray[np.int64]

    def in_blocks(self) -> Rows | None:
        return self._over(self.source.in_blocks())

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.order), self.source.columns)

    def read(self, start: int, stop: int) -> Raw:
        return _gather(self.source, self.order[start:stop])

    def place(self, row: int, column: int) -> Place:
        return self.source.place(int(self.order[row]), column)


def _gather(source: Rows, order: NDArray[np.int64]) -> Raw:
    first = int(order.min())
    found = source.read(first, int(order.max()) + 1)
    step = int(order[1] - order[0]) if len(order) > 1 else 1
    if step > 0 and np.array_equal(order, np.arange(first, first + step * len(order), step)):
        return found[::step]
    return found[order - first]


@dataclass(frozen=True, eq=False)
class Selected(_View):
    """Every so many rows and columns of each matrix of a stack, with the axes exchanged if asked for.

    Attributes:
        view: the source's elements as (matrices, rows, columns).
        taken: the rows and columns of each matrix.
        swapped: exchange the axes after selecting.
    """

    view: tuple[int, int, int]
    taken: tuple[slice, slice]
    swapped: bool = False

    @cached_property
    def _kept(self) -> tuple[range, range]:
        return range(self.view[1])[self.taken[0]], range(self.view[2])[self.taken[1]]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows, columns = (len(kept) for kept in self._kept)
        return (self.view[0], columns, rows) if self.swapped else (self.view[0], rows, columns)

    def read(self, start: int, stop: int) -> Raw:
        if self.swapped:
            per = self.shape[1]
            pieces = [
                self._matrix(at)[max(start - at * per, 0) : stop - at * per]
                for at in range(start // per, -(-stop // per))
            ]
            return np.ascontiguousarray(np.concatenate(pieces)).view(np.uint8).reshape(stop - start, -1)
        matrix, row = np.divmod(np.arange(start, stop), self.shape[1])
        rows = self._kept[0]
        found = _gather(self.source, matrix * self.view[1] + rows.start + row * rows.step)
        return self._columns(found).view(np.uint8).reshape(stop - start, -1)

    def place(self, row: int, column: int) -> Place:
        matrix, row = divmod(row, self.shape[1])
        if self.swapped:
            row, column = column, row
        rows, columns = self._kept
        return self.source.place(matrix * self.view[1] + rows[row], columns[column])

    def as_type(self, type: str) -> Rows | None:
        return super().as_type(type) if self._whole_rows or TYPES[type].block == 1 else None

    def in_blocks(self) -> Rows | None:
        return self._over(self.source.in_blocks()) if self._whole_rows else None

    @property
    def _whole_rows(self) -> bool:
        return not self.swapped and len(self._kept[1]) == self.view[2]

    def _columns(self, raw: Raw) -> NDArray[np.void]:
        """The wanted columns of stored rows, as elements without a meaning."""
        if len(self._kept[1]) == self.view[2]:
            return raw.view(np.dtype(f"V{raw.shape[1]}"))  # all of them: a row of blocks has no single elements
        elements = raw.view(np.dtype(f"V{TYPES[self.type].block_bytes}"))
        return np.ascontiguousarray(elements[:, self.taken[1]])

    def _matrix(self, at: int) -> NDArray[np.void]:
        last: tuple[int, NDArray[np.void]] | None = self.__dict__.get("_last")
        if last is not None and last[0] == at:
            return last[1]
        rows = self._kept[0]
        found = self.source.read(at * self.view[1] + rows.start, at * self.view[1] + rows[-1] + 1)[:: rows.step]
        elements = np.ascontiguousarray(found).view(np.dtype(f"V{TYPES[self.type].block_bytes}"))
        matrix = np.ascontiguousarray(elements[:, self.taken[1]].T)
        self.__dict__["_last"] = at, matrix  # chunks of rows come in order: the next one wants the same matrix
        return matrix


def stacked(parts: Sequence[Rows]) -> Stacked:
    """The rows of the parts, one part after the other; quantized layers in a type that holds all of them.

    Raises:
        FormatError: the parts differ in type or shape.
    """
    types = sorted({part.type for part in parts}, key=lambda name: TYPES[name].block_bytes / TYPES[name].block)
    if len(types) > 1 and all(part.layered for part in parts):
        for type in (*types, "F32"):
            found = [part if part.type == type else part.as_type(type) for part in parts]
            if all(part is not None for part in found):
                return Stacked(tuple(part for part in found if part is not None))
    return Stacked(tuple(parts))


@dataclass(frozen=True, eq=False)
class Stacked(Rows):
    """The rows of the parts, one part after the other.

    Raises:
        FormatError: the parts differ in type or shape.
    """

    parts: tuple[Rows, ...]

    def __post_init__(self) -> None:
        if len({(part.type, part.shape) for part in self.parts}) != 1:
            kinds = sorted({f"{part.type} {part.shape}" for part in self.parts})
            raise FormatError(f"tensors to be stacked differ: {', '.join(kinds[:4])}")

    @property
    def type(self) -> str:  # type: ignore[override]
        return self.parts[0].type

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (sum(part.rows for part in self.parts), self.parts[0].columns)

    @property
    def source_nbytes(self) -> int:
        return sum(part.source_nbytes for part in self.parts)

    @property
    def ranges(self) -> list[ByteRange]:
        return [where for part in self.parts for where in part.ranges]

    def read(self, start: int, stop: int) -> Raw:
        pieces = []
        for part, end in zip(self.parts, accumulate(part.rows for part in self.parts), strict=True):
            first = end - part.rows
            if first < stop and start < end:
                pieces.append(part.read(max(start - first, 0), min(stop - first, part.rows)))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def place(self, row: int, column: int) -> Place:
        part, row = divmod(row, self.parts[0].rows)
        return self.parts[part].place(row, column)

    @property
    def layered(self) -> bool:
        return any(part.layered for part in self.parts)

    @property
    def stored(self) -> str:
        return self.parts[0].stored

    @property
    def grades(self) -> list[Grade]:
        return [grade for part in self.parts for grade in part.grades]

    @property
    def tensor_scales(self) -> list[float]:
        return [scale for part in self.parts for scale in part.tensor_scales]

    def misfit(self, type: str) -> str:
        return next(filter(None, (part.misfit(type) for part in self.parts)), "")

    def as_type(self, type: str) -> Rows | None:
        parts = [part.as_type(type) for part in self.parts]
        found = [part for part in parts if part is not None]
        return Stacked(tuple(found)) if len(found) == len(parts) else None


@dataclass(frozen=True, eq=False)
class Assembled(Rows):
    """The reverse of :class:`Selected`: a stack of matrices whose rows and columns come from several parts.

    Attributes:
        parts: rows of one type without blocks.
        places: the rows and columns of each matrix that each part fills; together they fill all.
        view: (matrices, rows, columns).
    """

    parts: tuple[Rows, ...]
    places: tuple[tuple[slice, slice], ...]
    view: tuple[int, int, int]

    @property
    def type(self) -> str:  # type: ignore[override]
        return self.parts[0].type

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.view

    @property
    def source_nbytes(self) -> int:
        return sum(part.source_nbytes for part in self.parts)

    @property
    def ranges(self) -> list[ByteRange]:
        return [where for part in self.parts for where in part.ranges]

    @property
    def stored(self) -> str:
        return self.parts[0].stored

    def read(self, start: int, stop: int) -> Raw:
        size = TYPES[self.type].block_bytes
        element = np.dtype(f"V{size}")
        out = np.zeros((stop - start, self.view[2] * size), np.uint8)
        matrix, row = np.divmod(np.arange(start, stop), self.view[1])
        for part, (rows, columns) in zip(self.parts, self.places, strict=True):
            taken = range(self.view[1])[rows]
            mine = (row >= taken.start) & (row < taken.stop) & ((row - taken.start) % taken.step == 0)
            if mine.any():
                wanted = matrix[mine] * len(taken) + (row[mine] - taken.start) // taken.step
                found = np.ascontiguousarray(_gather(part, wanted))
                out.view(element)[np.ix_(np.flatnonzero(mine), np.arange(self.view[2])[columns])] = found.view(element)
        return out

    def place(self, row: int, column: int) -> Place:
        matrix, row = divmod(row, self.view[1])
        for part, (rows, columns) in zip(self.parts, self.places, strict=True):
            taken, kept = range(self.view[1])[rows], range(self.view[2])[columns]
            if row in taken and column in kept:
                return part.place(matrix * len(taken) + taken.index(row), kept.index(column))
        raise AssertionError("the parts fill all of it")


@dataclass(frozen=True, eq=False)
class Decoded(_View):
    """The values as F32."""

    @property
    def type(self) -> str:  # type: ignore[override]
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.shape

    def cut(self, columns: int) -> Rows | None:
        source = self.source.cut(columns)
        return None if source is None else replace(self, source=source)

    def in_blocks(self) -> Rows | None:
        return self.source.in_blocks()

    def read(self, start: int, stop: int) -> Raw:
        values = to_float32(self.source.type, self.source.read(start, stop), self.columns)
        return values.view(np.uint8).reshape(stop - start, -1)


@dataclass(frozen=True, eq=False)
class Shifted(Decoded):
    """The values with a constant added, as F32. The sum of F16 values is rounded to F16, as the original does."""

    addend: float

    def in_blocks(self) -> Rows | None:
        return None

    def read(self, start: int, stop: int) -> Raw:
        values = super().read(start, stop).view(np.float32)
        if self.source.type == "F16":
            values = (values.astype(np.float16) + np.float16(self.addend)).astype(np.float32)
        else:
            values = values + np.float32(self.addend)
        return values.view(np.uint8)


@dataclass(frozen=True, eq=False)
class Mxfp4(Rows):
    """MXFP4 rows from a pair of tensors: codes [..., blocks, 16] and scales [..., blocks], both U8.

    A byte of the checkpoint holds elements 2j (low half) and 2j + 1, a byte of a ggml block elements j and j + 16;
    codes and scales themselves are the same (OCP Microscaling Formats 1.0).
    """

    codes: Rows
    scales: Rows

    def __post_init__(self) -> None:
        if self.codes.shape != (*self.scales.shape, 16) or len(self.scales.shape) < 2:
            raise FormatError(
                f"MXFP4 codes of shape {self.codes.shape} and scales of shape {self.scales.shape} do not fit together"
            )

    @property
    def type(self) -> str:  # type: ignore[override]
        return "MXFP4"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.scales.shape[:-1], self.scales.shape[-1] * 32)

    @property
    def ranges(self) -> list[ByteRange]:
        return self.codes.ranges + self.scales.ranges

    def read(self, start: int, stop: int) -> Raw:
        blocks = self.scales.shape[-1]
        out = np.empty((stop - start, 17 * blocks), np.uint8)
        if out.size:
            codes = as_bytes(np.ascontiguousarray(self.codes.read(start * blocks, stop * blocks)))
            scales = self.scales.read(start, stop).astype(np.uint16)
            packed = _native.PackedLayer(codes, 4, len(out), 32 * blocks, "rows", row_bytes=16 * blocks)
            packed.assemble("MXFP4", 0, as_bytes(out), group=32, zeros=None, scales=as_bytes(scales), minima=None)
        return out

    def place(self, row: int, column: int) -> Place:
        return self.scales.place(row, column // 32)
