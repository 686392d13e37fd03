"""Ternary weights: -1, 0 and 1 with one scale, or one per row or group (BitNet b1.58, arXiv 2402.17764)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.affine import spread
from subbyte.forms.base import Form, Native
from subbyte.forms.codes import Codes
from subbyte.planes import Plane


@dataclass(frozen=True, eq=False)
class Ternary(Form):
    """w = trit * scale, or trit / scale.

    Attributes:
        codes: trit + 1 in two bits, (rows, columns); code 3 is invalid.
        scales: F16, BF16 or F32, (rows, groups), or (1, 1) for the whole tensor.
        group_size: columns of a group.
        inverse: the scale divides.
    """

    shape: tuple[int, ...]
    codes: Codes
    scales: Plane
    group_size: int
    inverse: bool = False

    def __post_init__(self) -> None:
        groups = -(-self.columns // max(self.group_size, 1))
        if self.scales.shape not in ((1, 1), (self.rows, groups)):
            raise FormatError(f"scales of shape {list(self.scales.shape)} do not fit a weight of shape {self.shape}")
        if self.codes.shape != (self.rows, self.columns) or self.codes.bits != 2:
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and {self.codes.bits} bits do not fit a ternary weight of "
                f"shape {list(self.shape)}"
            )

    def digits(self, rows: slice = slice(None)) -> NDArray[np.uint8]:
        """trit + 1 of a range of rows: uint8, 0 to 2, (rows, columns).

        Raises:
            FormatError: a stored code is no trit.
        """
        found = self.codes.unpack(rows)
        if found.size and found.max() > 2:
            raise FormatError("a stored code is none of the three of a ternary weight")
        return found

    def multipliers(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """The value of trit 1: float32, (rows, groups) or (1, 1)."""
        chosen = self.scales if self.scales.shape == (1, 1) else Plane(self.scales.data[rows], self.scales.kind)
        with np.errstate(all="ignore"):
            return np.float32(1) / chosen.float32() if self.inverse else chosen.float32()

    def native(self, kind: str) -> Native | None:
        codes = self.codes.native()
        if codes is None or self.columns % 16:
            return None
        words = self.codes.stream()
        if np.any(words & words >> np.uint32(1) & np.uint32(0x5555_5555)):
            return None  # some code is no trit
        with np.errstate(all="ignore"):
            scales = np.broadcast_to(self.multipliers(), (self.rows, self.multipliers().shape[1]))
        group_size = self.columns if scales.shape[1] == 1 else self.group_size
        return Native(codes, self.columns, "affine", group_size, scales, np.ones_like(scales))

    def values(self, rows: slice) -> NDArray[np.float32]:
        trits = self.digits(rows).astype(np.float32) - np.float32(1)
        with np.errstate(all="ignore"):
            return trits * spread(self.multipliers(rows), self.columns, self.group_size)
