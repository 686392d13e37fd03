"""Weights that are stored rotated by Hadamard transforms (HIGGS, Q-Palette, QuIP#, QTIP, EXL3)."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms import hadamard
from subbyte.forms.base import Form
from subbyte.planes import Plane


@dataclass(frozen=True, eq=False)
class Rotated(Form):
    """w = diag(row factors) · U_down · inner · U_across^T · diag(column factors), without those that are None.

    U_down and U_across have the transforms of `subbyte.forms.hadamard` along their diagonals. Everything after the
    inner weight is float64, and the result is rounded once to float32.

    Attributes:
        shape: rows and columns; columns of the inner weight beyond them are padding.
        inner: the weight as it is stored.
        across: size of the transforms of rows, which divides the columns of the inner weight.
        down: size of the transforms of columns, which divides the rows.
        row_factors, column_factors: F16, BF16 or F32, (rows,) and (columns of the inner weight,).
    """

    shape: tuple[int, ...]
    inner: Form
    across: int | None = None
    down: int | None = None
    row_factors: Plane | None = None
    column_factors: Plane | None = None

    def __post_init__(self) -> None:
        rows, columns = self.inner.shape
        for name, size, of in (("columns", self.across, columns), ("rows", self.down, rows)):
            if size is not None:
                if size < 1 or of % size:
                    raise FormatError(f"Hadamard transforms of size {size} do not divide {of} {name}")
                hadamard.factors(size)
        if self.rows != rows or not 0 < self.columns <= columns:
            raise FormatError(f"a rotated weight {list(self.inner.shape)} does not fit a weight {list(self.shape)}")
        for name, factors, of in (("rows", self.row_factors, rows), ("columns", self.column_factors, columns)):
            if factors is not None and factors.shape != (of,):
                raise FormatError(f"factors of {name} have shape {list(factors.shape)}: expected [{of}]")

    @property
    def together(self) -> int:
        return lcm(self.inner.together, self.down or 1)

    def values(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        stop = max(start, stop)
        size = self.down or 1
        chosen = slice(start // size * size, -(-stop // size) * size)
        found = self.inner.values(chosen).astype(np.float64)
        with np.errstate(all="ignore"):
            if self.across is not None:
                found = hadamard.rotate(found, self.across)
            if self.down is not None:
                found = hadamard.rotate(np.ascontiguousarray(found.T), self.down).T
            found = found[start - chosen.start : stop - chosen.start]
            if self.row_factors is not None:
                found = found * self.row_factors.float32()[start:stop, None]
            if self.column_factors is not None:
                found = found * self.column_factors.float32()
            return found[:, : self.columns].astype(np.float32)


@dataclass(frozen=True, eq=False)
class HalfRotated(Rotated):
    """A rotated weight that the original computes in half precision (EXL3).

    As F16, the result of every step is rounded to it: the transforms of rows, the column factors, the transforms of
    columns, the row factors.
    """

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        if kind != "F16" or self.across is None or self.down is None:
            return self.values(rows)
        start, stop, _ = rows.indices(self.rows)
        stop = max(start, stop)
        chosen = slice(start // self.down * self.down, -(-stop // self.down) * self.down)
        with np.errstate(all="ignore"):
            found = _half(hadamard.rotate(self.inner.values(chosen).astype(np.float64), self.across))
            if self.column_factors is not None:
                found = _half(found * self.column_factors.float32())
            found = _half(hadamard.rotate(np.ascontiguousarray(found.T), self.down).T)
            if self.row_factors is not None:
                found = _half(found * self.row_factors.float32()[chosen, None])
        return found[start - chosen.start : stop - chosen.start, : self.columns].astype(np.float32)


def _half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float16).astype(np.float64)
