"""Recipes: where the rows of a tensor to be written come from. Nothing is read before a recipe is asked for rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.rows import ByteRange, Rows, Shifted, SourceTensor
from subbyte.convert.types import Raw, quantized
from subbyte.convert.values import kind
from subbyte.errors import Error, FormatError, UnsupportedError
from subbyte.routes.fit import KINDS

__all__ = ["ByteRange", "Held", "Raw", "Recipe", "computed"]


class Held(NamedTuple):
    """How a tensor gets the type of a target.

    Attributes:
        recipe: its rows: in that type, or in one that is encoded to it.
        kind: what happens to the values.
        why: what rounds, and by how much at most; or why the codes cannot be moved; empty where all is said.
        bound: largest relative change of a parameter that rounds.
    """

    recipe: Recipe
    kind: str
    why: str = ""
    bound: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a tensor of the target is made.

    Attributes:
        name: name in the target.
        shape: shape in the target, NumPy order.
        content: its rows.
    """

    name: str
    shape: tuple[int, ...]
    content: Rows

    def __post_init__(self) -> None:
        if self.content.columns != self.columns or self.content.rows != self.rows:
            raise FormatError(f"expected shape {self.shape}, found {self.content.shape}", tensor=self.name)

    @property
    def type(self) -> str:
        """Type in which the source stores the tensor."""
        return self.content.type

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

    def cut(self, columns: int) -> Recipe:
        """The same tensor in rows of ``columns`` elements; itself where its rows cannot be read in pieces."""
        content = None if columns == self.columns else self.content.cut(columns)
        return self if content is None else Recipe(self.name, content.shape, content)

    @property
    def source_nbytes(self) -> int:
        """Bytes in the source."""
        if self.content.layered:
            return sum(part.nbytes for part in self.ranges)
        return self.content.source_nbytes

    def kind(self, target: str) -> str:
        """What happens to the values in type ``target`` (:func:`~subbyte.convert.values.kind`)."""
        found = kind(self.content.stored, target)
        shifted = isinstance(self.content, Shifted) and found in ("exact", "exact-value")
        return "rounded" if shifted else found  # the sum has at most 24 significant bits

    def held_as(self, target: str) -> Held:
        """How the tensor gets type ``target``.

        The codes of a quantized layer move where blocks of the target hold them; its values are encoded otherwise.
        """
        content = self.content
        if not content.layered:
            return Held(self, self.kind(target))
        held = content if content.type == target else content.as_type(target)
        if held is not None and quantized(target):
            grades = held.grades
            worst = max((grade.kind for grade in grades), key=KINDS.index, default="exact")
            reasons = dict.fromkeys(grade.reason for grade in grades if grade.reason)
            bound = max((grade.bound for grade in grades), default=0.0)
            return Held(replace(self, content=held), worst, "; ".join(reasons), bound)
        if held is not None:
            return Held(replace(self, content=held), "exact-value" if target == "F32" else "rounded")
        floats = content.as_type("F32")
        if floats is None:
            raise UnsupportedError(f"cannot become {target}", tensor=self.name)
        return Held(replace(self, content=floats), "requantized", content.misfit(target))

    def in_blocks(self) -> Recipe:
        """The recipe that gives the blocks which the tensor's values are from; the same where there are none."""
        found = None if self.content.layered else self.content.in_blocks()
        return self if found is None else replace(self, content=found)

    @property
    def ranges(self) -> list[ByteRange]:
        """The parts of the source files that the tensor needs."""
        return self.content.ranges

    def read(self, start: int, stop: int) -> Raw:
        """Rows ``start`` to ``stop`` in the source's type: uint8, shape (rows, bytes of a row)."""
        return self.content.read(start, stop)

    def locate(self, error: Error, first: int) -> None:
        """Complete an error met in the rows from ``first`` on: names and place become those of the source."""
        tensor, row, column = self.content.place(first + (error.row or 0), error.column or 0)
        if error.file is None and tensor.where is not None:
            error.file = str(tensor.where.path)
        if error.tensor not in (None, self.name):
            return  # the source's reader has named the place
        error.tensor = tensor.name
        if error.row is not None:
            error.row, error.column = row, column
        if tensor.name != self.name:
            error.message += f" (in '{self.name}' of the target)"


def computed(name: str, array: NDArray[np.float32]) -> Recipe:
    """The recipe of a tensor that is computed rather than read."""
    data = np.ascontiguousarray(array, dtype=np.float32).view(np.uint8).reshape(-1)
    source = SourceTensor(name, "F32", array.shape, None, lambda start, count: data[start : start + count])
    return Recipe(name, array.shape, source)
