"""Ternary weights: -1, 0 and 1 with one scale, or one per row or group (BitNet b1.58, arXiv 2402.17764)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.affine import spread
from subbyte.forms.base import Form


@dataclass(frozen=True, eq=False)
class Ternary(Form):
    """w = trit * scale, or trit / scale.

    Attributes:
        trits: the trits of a range of rows: int8, (rows, columns).
        scales: float32, (rows, groups) or (1, 1) for the whole tensor.
        group_size: columns of a group.
        inverse: the scale divides.
    """

    shape: tuple[int, ...]
    trits: Callable[[slice], NDArray[np.int8]]
    scales: NDArray[np.float32]
    group_size: int
    inverse: bool = False

    def __post_init__(self) -> None:
        groups = -(-self.columns // max(self.group_size, 1))
        if self.scales.shape not in ((1, 1), (self.rows, groups)):
            raise FormatError(f"scales of shape {list(self.scales.shape)} do not fit a weight of shape {self.shape}")

    def values(self, rows: slice) -> NDArray[np.float32]:
        scales = self.scales if self.scales.shape == (1, 1) else self.scales[rows]
        scales = spread(scales, self.columns, self.group_size)
        trits = self.trits(rows).astype(np.float32)
        with np.errstate(all="ignore"):
            return trits / scales if self.inverse else trits * scales
