"""A weight that is stored without quantization, in a layout of its own (sparse formats)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.planes import Plane


@dataclass(frozen=True, eq=False)
class Dense(Form):
    """w as it is.

    Attributes:
        data: F32, F16 or BF16, (rows, columns).
    """

    shape: tuple[int, ...]
    data: Plane

    def __post_init__(self) -> None:
        if self.data.shape != (self.rows, self.columns):
            raise FormatError(f"values of shape {list(self.data.shape)} do not fit a weight {list(self.shape)}")

    def values(self, rows: slice) -> NDArray[np.float32]:
        return Plane(self.data.data[rows], self.data.kind).float32()
