"""Codes that are looked up in a table of their row, perhaps scaled and shifted by group (any4, SqueezeLLM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.affine import spread
from subbyte.forms.base import Form
from subbyte.forms.codes import Codes
from subbyte.planes import Plane, rounded


@dataclass(frozen=True, eq=False)
class RowTable(Form):
    """w = (table[row, code] - centre) * scale + zero, each step rounded in the type of the table.

    float32 values are rounded to float32 in each step instead.

    Attributes:
        codes: (rows, columns).
        tables: F16, BF16 or F32, (rows, 2^bits), or (1, 2^bits) for one table for all.
        scales, zeros: F16, BF16 or F32, (rows, groups); scales of None do not multiply, zeros of None are not added.
        group_size: columns of a group.
        centre: subtracted from the entries of the tables.
    """

    shape: tuple[int, ...]
    codes: Codes
    tables: Plane
    scales: Plane | None
    zeros: Plane | None
    group_size: int
    centre: int = 0

    def __post_init__(self) -> None:
        expected = (self.rows, -(-self.columns // max(self.group_size, 1)))
        if (
            self.codes.shape != (self.rows, self.columns)
            or any(one is not None and one.shape != expected for one in (self.scales, self.zeros))
            or self.tables.shape not in ((1, 1 << self.codes.bits), (self.rows, 1 << self.codes.bits))
        ):
            raise FormatError(
                f"codes of shape {list(self.codes.shape)}, tables of shape {list(self.tables.shape)} and scales in "
                f"groups of {self.group_size} do not fit a weight {list(self.shape)} of {self.codes.bits} bits"
            )

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, self.tables.kind)

    def _values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        codes = self.codes.unpack(rows)
        tables = self.tables if self.tables.shape[0] == 1 else _rows(self.tables, rows)
        with np.errstate(all="ignore"):
            centred = tables.float32()
            if self.centre:
                centred = rounded(centred - np.float32(self.centre), kind)
            every = np.broadcast_to(centred, (len(codes), centred.shape[1]))
            found = np.take_along_axis(every, codes.astype(np.intp), axis=1)
            if self.scales is not None:
                scales = spread(_rows(self.scales, rows).float32(), self.columns, self.group_size)
                found = rounded(found * scales, kind)
            if self.zeros is not None:
                zeros = spread(_rows(self.zeros, rows).float32(), self.columns, self.group_size)
                found = rounded(found + zeros, kind)
            return found


def _rows(plane: Plane, rows: slice) -> Plane:
    return Plane(plane.data[rows], plane.kind)
