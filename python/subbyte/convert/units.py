"""Units of work: ranges of rows of the tensors to be written, and how their bytes are made; none needs another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from subbyte.convert.manifest import digest
from subbyte.convert.types import Raw, piece_columns
from subbyte.convert.values import encode, first_invalid_block
from subbyte.errors import CancelledError, Error, NonFiniteError
from subbyte.ggml import TYPES
from subbyte.planning.output import TensorPlan

CHUNK = 1 << 21
"""Elements of a unit, which is written, hashed and noted at once."""

PIECE = 1 << 19
"""Elements that are encoded at once: the slowest encoders take less than a second, so a run stops quickly."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of rows of one tensor, and its bytes in the target's tensor."""

    number: int
    tensor: int
    first: int
    last: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a unit.

    Attributes:
        data: its bytes, uint8, in rows.
        sha256: their hash.
        seconds: the time it took.
    """

    data: Raw
    sha256: str
    seconds: float


def in_pieces(tensor: TensorPlan) -> TensorPlan:
    """The tensor with rows of a bounded length: memory must not grow with the rows of a file."""
    if tensor.importance is not None:
        return tensor
    columns = piece_columns(tensor.recipe.columns, tensor.recipe.type, tensor.type)
    recipe = tensor.recipe.cut(columns)
    return tensor if recipe is tensor.recipe else replace(tensor, recipe=recipe)


def unit_rows(tensor: TensorPlan) -> int:
    """Rows of a unit of the tensor, whose rows are those of :func:`in_pieces`."""
    return max(1, CHUNK // max(tensor.recipe.columns, 1))


def units(tensors: Sequence[TensorPlan]) -> Iterator[Unit]:
    """The units of all tensors, in file order."""
    number = 0
    for index, tensor in enumerate(map(in_pieces, tensors)):
        rows = tensor.recipe.rows if tensor.nbytes else 0
        size, step = tensor.nbytes // max(rows, 1), unit_rows(tensor)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield Unit(number, index, first, last, first * size, (last - first) * size)
            number += 1


def together(tensors: Sequence[TensorPlan], todo: Sequence[Unit], most: int) -> Iterator[list[Unit]]:
    """The units in groups for one worker each: those of a layer that is made as a whole, up to ``most`` bytes."""
    batch: list[Unit] = []
    size, layer = 0, None
    for unit in todo:
        if not batch or unit.tensor != batch[-1].tensor:
            content = tensors[unit.tensor].recipe.content
            before, layer = layer, content.ranges if content.whole else None
        else:
            before = layer
        if batch and (layer is None or layer != before or size + unit.nbytes > most):
            yield batch
            batch, size = [], 0
        batch.append(unit)
        size += unit.nbytes
    if batch:
        yield batch


def make(tensor: TensorPlan, unit: Unit, stop: threading.Event) -> Made:
    """Read and convert a unit of ``tensor``.

    Raises:
        CancelledError: ``stop`` is set.
        Error: the source is damaged, cannot be read, or has values that the target lacks.
    """
    begin = time.perf_counter()
    data = np.ascontiguousarray(_rows(in_pieces(tensor), unit.first, unit.last, stop))
    sha256 = digest(data)
    return Made(data, sha256, time.perf_counter() - begin)


def _rows(tensor: TensorPlan, first: int, last: int, stop: threading.Event) -> Raw:
    recipe = tensor.recipe
    begin = first
    try:
        if recipe.type == tensor.type:
            data = recipe.read(first, last)
            bad = first_invalid_block(tensor.type, data)
            if bad is not None:
                _refuse(tensor, bad)
            return data
        data = np.empty((last - first, tensor.nbytes // recipe.rows), np.uint8)
        step = max(1, PIECE // max(recipe.columns, 1))
        for begin in range(first, last, step):
            if stop.is_set():
                raise CancelledError("stopped")
            end = min(begin + step, last)
            raw = recipe.read(begin, end)
            data[begin - first : end - first] = (
                encode(recipe.type, raw, recipe.columns, tensor.type)
                if tensor.importance is None
                else tensor.importance.encode(recipe.type, raw, recipe.columns, tensor.type, begin)
            )
        return data
    except Error as error:
        recipe.locate(error, begin)
        raise


def _refuse(tensor: TensorPlan, block: int) -> None:
    if tensor.part is not None:
        raise NonFiniteError(
            f"its {tensor.type} scales or zero points are NaN or infinite: the values are not finite, or too large for "
            "the format",
            tensor=tensor.name,
        )
    columns, size = tensor.recipe.columns, TYPES[tensor.type].block
    row, column = divmod(block * size, columns)
    what = "a value" if size == 1 else "the scale of a block"
    raise NonFiniteError(f"{what} is NaN or infinite", tensor=tensor.name, row=row, column=column)
