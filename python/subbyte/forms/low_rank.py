"""A quantized residual with what makes it whole: scales of rows, smoothing of columns, a low-rank term (SVDQuant)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.planes import Plane


@dataclass(frozen=True, eq=False)
class LowRank(Form):
    """w = residual * scale of its row / smoothing of its column + up @ down, without those that are None.

    Each step is rounded to float32. The product is summed over the rank in its order, from 0, before it is added.

    Attributes:
        inner: the residual.
        row_scales: F16, BF16 or F32, (rows,).
        smoothing: F16, BF16 or F32, (columns,).
        up, down: F16, BF16 or F32, (rows, rank) and (rank, columns); both or none.
    """

    shape: tuple[int, ...]
    inner: Form
    row_scales: Plane | None = None
    smoothing: Plane | None = None
    up: Plane | None = None
    down: Plane | None = None

    def __post_init__(self) -> None:
        rank = self.up.shape[-1] if self.up is not None else 0
        expected = {
            "scales of rows": (self.row_scales, (self.rows,)),
            "smoothing of columns": (self.smoothing, (self.columns,)),
            "up-projection": (self.up, (self.rows, rank)),
            "down-projection": (self.down, (rank, self.columns)),
        }
        for name, (found, shape) in expected.items():
            if found is not None and found.shape != shape:
                raise FormatError(f"the {name} has shape {list(found.shape)}: expected {list(shape)}")
        if self.inner.shape != self.shape or (self.up is None) != (self.down is None):
            raise FormatError("the low-rank term of a weight needs both projections, and a residual of its shape")

    def values(self, rows: slice) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            found = self.inner.values(rows)
            if self.row_scales is not None:
                found = found * self.row_scales.float32()[rows, None]
            if self.smoothing is not None:
                found = found / self.smoothing.float32()
            if self.up is None or self.down is None:
                return found
            up, down = self.up.float32()[rows], self.down.float32()
            product = np.zeros(found.shape, np.float32)
            for of_rows, of_columns in zip(up.T, down, strict=True):
                product = product + of_rows[:, None] * of_columns
            return found + product
