"""Integers whose scales and zeros are quantized integers themselves (SpQR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.forms.codes import Codes
from subbyte.planes import Plane, rounded


@dataclass(frozen=True, eq=False)
class Bilevel(Form):
    """w = scale * (code - zero), scale and zero of a group being scale * (code - zero) of their own.

    Every difference and product is rounded to the type of the parameters of the second level, and values are of that
    type.

    Attributes:
        codes: (rows, columns).
        scale_codes, zero_codes: (rows, groups).
        scale_scales, scale_zeros, zero_scales, zero_zeros: F16, BF16 or F32, (tiles of rows, groups), of one type.
    """

    shape: tuple[int, ...]
    codes: Codes
    scale_codes: Codes
    zero_codes: Codes
    scale_scales: Plane
    scale_zeros: Plane
    zero_scales: Plane
    zero_zeros: Plane

    def __post_init__(self) -> None:
        groups = self.scale_codes.shape
        second = self.scale_scales.shape
        if (
            self.codes.shape != (self.rows, self.columns)
            or groups != self.zero_codes.shape
            or groups[0] != self.rows
            or not groups[1]
            or self.columns % groups[1]
            or len(second) != 2
            or not second[0]
            or self.rows % second[0]
            or any(
                p.shape != (second[0], groups[1]) or p.kind != self.scale_scales.kind
                for p in (self.scale_scales, self.scale_zeros, self.zero_scales, self.zero_zeros)
            )
        ):
            raise FormatError(
                f"codes {list(self.codes.shape)}, codes of scales {list(groups)} and parameters {list(second)} of "
                f"their own do not fit a weight {list(self.shape)}"
            )

    def values(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        tile = np.arange(start, stop) // (self.rows // self.scale_scales.shape[0])
        scales = self._parameters(self.scale_codes, self.scale_scales, self.scale_zeros, rows, tile)
        zeros = self._parameters(self.zero_codes, self.zero_scales, self.zero_zeros, rows, tile)
        size, kind = self.columns // self.scale_codes.shape[1], self.scale_scales.kind
        with np.errstate(all="ignore"):
            codes = self.codes.unpack(rows).astype(np.float32)
            difference = rounded(codes - np.repeat(zeros, size, axis=1), kind)
            return rounded(np.repeat(scales, size, axis=1) * difference, kind)

    def _parameters(
        self, codes: Codes, scales: Plane, zeros: Plane, rows: slice, tile: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            difference = rounded(codes.unpack(rows).astype(np.float32) - zeros.float32()[tile], zeros.kind)
            return rounded(scales.float32()[tile] * difference, scales.kind)
