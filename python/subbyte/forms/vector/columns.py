"""Other forms put together, and their columns in another order, scaled and shifted (VPTQ, SpQR, Q-Palette)."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.planes import Plane, rounded


@dataclass(frozen=True, eq=False)
class Beside(Form):
    """Weights of the same rows, side by side.

    Attributes:
        parts: from left to right.
    """

    shape: tuple[int, ...]
    parts: tuple[Form, ...]

    def __post_init__(self) -> None:
        expected = [part.shape[:-1] for part in self.parts]
        if sum(part.columns for part in self.parts) != self.columns or any(one != self.shape[:-1] for one in expected):
            raise FormatError(f"parts of shapes {[list(p.shape) for p in self.parts]} do not make {list(self.shape)}")

    @property
    def together(self) -> int:
        return lcm(*(part.together for part in self.parts))

    def values(self, rows: slice) -> NDArray[np.float32]:
        return np.concatenate([part.values(rows) for part in self.parts], axis=1)

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return np.concatenate([part.rounded_values(rows, kind) for part in self.parts], axis=1)


@dataclass(frozen=True, eq=False)
class Stacked(Form):
    """Weights of the same columns, one above the other.

    Attributes:
        parts: from top to bottom.
    """

    shape: tuple[int, ...]
    parts: tuple[Form, ...]

    def __post_init__(self) -> None:
        if sum(part.rows for part in self.parts) != self.rows or any(p.columns != self.columns for p in self.parts):
            raise FormatError(f"parts of shapes {[list(p.shape) for p in self.parts]} do not make {list(self.shape)}")

    @property
    def together(self) -> int:
        return lcm(*(part.together for part in self.parts))

    def values(self, rows: slice) -> NDArray[np.float32]:
        return np.concatenate([part.values(chosen) for part, chosen in self._chosen(rows)])

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return np.concatenate([part.rounded_values(chosen, kind) for part, chosen in self._chosen(rows)])

    def _chosen(self, rows: slice) -> list[tuple[Form, slice]]:
        start, stop, _ = rows.indices(self.rows)
        found, begin = [], 0
        for part in self.parts:
            first, last = (min(max(at - begin, 0), part.rows) for at in (start, stop))
            found.append((part, slice(first, max(first, last))))
            begin += part.rows
        return found


@dataclass(frozen=True, eq=False)
class RowRange(Form):
    """Neighbouring rows of a weight that is stored together with others.

    Attributes:
        whole: the weight of all rows.
        first: the first row.
    """

    shape: tuple[int, ...]
    whole: Form
    first: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.first + self.rows <= self.whole.rows or self.columns != self.whole.columns:
            raise FormatError(f"rows {self.first} on of {list(self.whole.shape)} do not make {list(self.shape)}")

    @property
    def together(self) -> int:
        return max(self.rows, 1) if self.whole.together > 1 else 1

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self.whole.values(self._of_whole(rows))

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self.whole.rounded_values(self._of_whole(rows), kind)

    def _of_whole(self, rows: slice) -> slice:
        start, stop, _ = rows.indices(self.rows)
        return slice(self.first + start, self.first + max(start, stop))


@dataclass(frozen=True, eq=False)
class Ordered(Form):
    """A weight whose columns are stored in another order: column ``order[j]`` is the stored column j.

    Attributes:
        order: integers, (columns,), each column once.
    """

    shape: tuple[int, ...]
    inner: Form
    order: NDArray[np.int64]

    def __post_init__(self) -> None:
        columns = self.columns
        if self.inner.shape != self.shape or self.order.shape != (columns,):
            raise FormatError(f"an order of {self.order.size} columns does not fit a weight {list(self.inner.shape)}")
        if not np.array_equal(np.sort(self.order), np.arange(columns)):
            raise FormatError(f"the order of the columns does not name each of the {columns} columns once")

    @property
    def together(self) -> int:
        return self.inner.together

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._ordered(self.inner.values(rows))

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._ordered(self.inner.rounded_values(rows, kind))

    def _ordered(self, stored: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty_like(stored)
        out[:, self.order] = stored
        return out


@dataclass(frozen=True, eq=False)
class ColumnAffine(Form):
    """w = value * scale of its column + offset of its column, each step rounded; in 16 bits to the type of the scales.

    Attributes:
        scales, offsets: F16, BF16 or F32, (columns,), of one type.
    """

    shape: tuple[int, ...]
    inner: Form
    scales: Plane
    offsets: Plane

    def __post_init__(self) -> None:
        if self.inner.shape != self.shape or not self.scales.shape == self.offsets.shape == (self.columns,):
            raise FormatError(
                f"scales {list(self.scales.shape)} and offsets {list(self.offsets.shape)} of columns do not fit a "
                f"weight of shape {list(self.inner.shape)}"
            )

    @property
    def together(self) -> int:
        return self.inner.together

    def values(self, rows: slice) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            scaled: NDArray[np.float32] = self.inner.values(rows) * self.scales.float32()
            return scaled + self.offsets.float32()

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        own = self.scales.kind
        with np.errstate(all="ignore"):
            scaled = rounded(self.inner.rounded_values(rows, kind) * self.scales.float32(), own)
            return rounded(scaled + self.offsets.float32(), own)
