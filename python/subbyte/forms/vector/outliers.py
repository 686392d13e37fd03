"""Sparse values and whole rows that are added to a quantized weight (SqueezeLLM, SpQR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.planes import Plane, rounded


@dataclass(frozen=True, eq=False)
class Outliers(Form):
    """w = value of the inner weight + outliers at its place, added in float32 in the order they are stored.

    Attributes:
        inner: the weight without them.
        row_offsets: integers, (rows + 1,): where the outliers of each row begin (compressed sparse rows).
        columns_of: integers, (outliers,): the column of each.
        added: F16, BF16 or F32, (outliers,).
        kind: the type that every value is rounded to in the end, also one without outliers.
    """

    shape: tuple[int, ...]
    inner: Form
    row_offsets: NDArray[np.int64]
    columns_of: NDArray[np.int64]
    added: Plane
    kind: str = "F32"

    def __post_init__(self) -> None:
        offsets, count = self.row_offsets, self.columns_of.size
        if self.inner.shape != self.shape or self.added.shape != (count,) or self.columns_of.shape != (count,):
            raise FormatError(f"{self.added.shape} outliers in {count} columns do not fit a weight {list(self.shape)}")
        if offsets.shape != (self.rows + 1,) or offsets[0] != 0 or offsets[-1] != count or np.any(np.diff(offsets) < 0):
            raise FormatError(
                f"the beginnings of the rows of outliers have shape {list(offsets.shape)}: expected "
                f"{self.rows + 1} numbers that rise from 0 to {count}"
            )
        if count and not 0 <= self.columns_of.min() <= self.columns_of.max() < self.columns:
            raise FormatError(f"an outlier is in a column that a weight {list(self.shape)} does not have")

    @property
    def together(self) -> int:
        return self.inner.together

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._with_outliers(self.inner.values(rows), rows)

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._with_outliers(self.inner.rounded_values(rows, kind), rows)

    def _with_outliers(self, found: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        offsets = self.row_offsets[start : max(stop, start) + 1]
        chosen = slice(int(offsets[0]), int(offsets[-1]))
        of_row = np.repeat(np.arange(len(found)), np.diff(offsets))
        total = np.array(found)
        with np.errstate(all="ignore"):
            added = Plane(self.added.data[chosen], self.added.kind).float32()
            np.add.at(total, (of_row, self.columns_of[chosen]), added)
            return rounded(total, self.kind)


@dataclass(frozen=True, eq=False)
class AddedRows(Form):
    """w = value of the inner weight + value of a dense row, for the few rows that have one.

    Attributes:
        inner: the weight without them.
        rows_of: integers, (dense rows,): the row that each belongs to, each at most once.
        added: F16, BF16 or F32, (dense rows, columns).
    """

    shape: tuple[int, ...]
    inner: Form
    rows_of: NDArray[np.int64]
    added: Plane

    def __post_init__(self) -> None:
        rows_of = self.rows_of
        if self.inner.shape != self.shape or self.added.shape != (rows_of.size, self.columns):
            raise FormatError(f"dense rows of shape {list(self.added.shape)} do not fit a weight {list(self.shape)}")
        if rows_of.size and (not 0 <= rows_of.min() <= rows_of.max() < self.rows or len(set(rows_of)) < rows_of.size):
            raise FormatError(f"dense rows: expected different numbers below {self.rows}")

    @property
    def together(self) -> int:
        return self.inner.together

    def values(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        total = np.array(self.inner.values(rows))
        chosen = np.flatnonzero((self.rows_of >= start) & (self.rows_of < stop))
        with np.errstate(all="ignore"):
            total[self.rows_of[chosen] - start] += Plane(self.added.data[chosen], self.added.kind).float32()
        return total
