"""Integers of 4 bits that become integers of 8 bits by group, and floats by row (W4A8: QServe, QQQ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.forms.codes import Codes
from subbyte.planes import Plane

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class TwoLevel(Form):
    """w = w8 * scale of its row, where w8 is the low byte, as int8, of

    * code * scale + offset of its group, for integer scales (QServe, arXiv 2405.04532);
    * (code - 8) * scale of its group, rounded to nearest, ties to even, for F16 scales (QQQ, arXiv 2406.09904).

    Attributes:
        codes: of 4 bits, (rows, columns).
        group_scales: I8 or F16, (rows, groups).
        group_offsets: int8, (rows, groups), for integer scales; None for F16.
        row_scales: F16 or F32, (rows, 1).
        group_size: columns of a group.
    """

    shape: tuple[int, ...]
    codes: Codes
    group_scales: Plane
    group_offsets: NDArray[np.int8] | None
    row_scales: Plane
    group_size: int

    def __post_init__(self) -> None:
        expected = (self.rows, -(-self.columns // max(self.group_size, 1)))
        if (
            self.codes.shape != (self.rows, self.columns)
            or self.group_scales.shape != expected
            or (self.group_offsets is not None and self.group_offsets.shape != expected)
            or self.row_scales.shape != (self.rows, 1)
        ):
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and scales of shapes {list(self.group_scales.shape)} and "
                f"{list(self.row_scales.shape)} do not fit a weight of shape {list(self.shape)}"
            )

    def int8(self, rows: slice) -> NDArray[np.int8]:
        """w8 of a range of rows: shape (rows, columns)."""
        codes = self.codes.unpack(rows)
        if self.group_offsets is not None:
            scale, offset = (
                self._spread(p[rows].astype(np.int16)) for p in (self.group_scales.data, self.group_offsets)
            )
            found: NDArray[np.int8] = (codes * scale + offset).astype(np.int8)
            return found
        scales = self._spread(Plane(self.group_scales.data[rows], self.group_scales.kind).float32())
        rounded: NDArray[np.float32] = np.rint((codes.astype(np.float32) - np.float32(8)) * scales)
        return rounded.astype(np.int32).astype(np.int8)

    def _spread(self, parameters: NDArray[_Number]) -> NDArray[_Number]:
        return np.repeat(parameters, self.group_size, axis=1)[:, : self.columns]

    def values(self, rows: slice) -> NDArray[np.float32]:
        scales = Plane(self.row_scales.data[rows], self.row_scales.kind).float32()
        with np.errstate(all="ignore"):
            return self.int8(rows).astype(np.float32) * scales
