"""Integers, or values of a table, with a scale per group and another one per column (SINQ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.affine import spread
from subbyte.forms.base import Form
from subbyte.forms.codes import Codes
from subbyte.planes import Plane, promoted, rounded


@dataclass(frozen=True, eq=False)
class DualScaled(Form):
    """w = ((value - zero) * scale) * scale of the column, each step rounded in the type its operands share.

    The types that two operands share is theirs if they have the same, and float32 otherwise.

    Attributes:
        codes: (rows, columns).
        scales, zeros: F16, BF16 or F32, (rows, groups).
        column_scales: F16, BF16 or F32, (tiles, columns): of each tile of ``tile`` rows.
        group_size: columns of a group, which divides the columns.
        tile: rows of a tile, which divides the rows.
        compute: F16, BF16 or F32: the type of the values.
        table: float32, (2^bits,): the values by code; without it, a code is its own value.
        stored: the planes that scales and zeros were computed from, where the format stores them quantized.
    """

    shape: tuple[int, ...]
    codes: Codes
    scales: Plane
    zeros: Plane
    column_scales: Plane
    group_size: int
    tile: int
    compute: str
    table: NDArray[np.float32] | None = None
    stored: Mapping[str, Plane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = (self.rows, self.columns // max(self.group_size, 1))
        tiles = (self.rows // max(self.tile, 1), self.columns)
        fits = groups[1] * self.group_size == self.columns and tiles[0] * self.tile == self.rows
        if not fits or (self.scales.shape, self.zeros.shape, self.column_scales.shape) != (groups, groups, tiles):
            raise FormatError(
                f"scales {list(self.scales.shape)}, zeros {list(self.zeros.shape)} and scales of columns "
                f"{list(self.column_scales.shape)} do not fit a weight {list(self.shape)} in groups of "
                f"{self.group_size}: expected {list(groups)}, the same, and {list(tiles)}"
            )
        if self.codes.shape != (self.rows, self.columns):
            raise FormatError(f"codes {list(self.codes.shape)} do not fit a weight {list(self.shape)}")
        if self.table is not None and self.table.shape != (1 << self.codes.bits,):
            raise FormatError(f"a table of shape {list(self.table.shape)}: expected {1 << self.codes.bits} values")

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, ("F32", "F32", "F32"))

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        difference = promoted(self.compute, self.zeros.kind)
        product = promoted(difference, self.scales.kind)
        return self._values(rows, (difference, product, promoted(product, self.column_scales.kind)))

    def _values(self, rows: slice, kinds: tuple[str, str, str]) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        codes = self.codes.unpack(rows)
        values = codes.astype(np.float32) if self.table is None else self.table[codes]
        zeros, scales = (
            spread(Plane(one.data[rows], one.kind).float32(), self.columns, self.group_size)
            for one in (self.zeros, self.scales)
        )
        columns = self.column_scales.float32()[np.arange(start, stop) // self.tile]
        with np.errstate(all="ignore"):
            scaled = rounded(rounded(values - zeros, kinds[0]) * scales, kinds[1])
            return rounded(scaled * columns, kinds[2])
