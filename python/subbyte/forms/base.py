"""What all canonical forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes
from subbyte.arrays import Array


class Form(ABC):
    """A quantized weight in the terms of its family, whatever format stores it.

    A form is cheap to make: it holds views of the stored planes, and works when rows are asked for.

    Attributes:
        shape: dense shape ``(..., rows, columns)``. Inside, leading dimensions are folded into the rows.
    """

    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of all matrices together."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Row length in elements."""
        return self.shape[-1]

    @abstractmethod
    def values(self, rows: slice) -> NDArray[np.float32]:
        """float32 values of rows ``rows`` (a range with step 1 of all rows): shape (rows, columns).

        They are the values of the format's definition computed in float32; where the original computes in a 16-bit
        type, see `rounded_values`.
        """

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        """What the original library returns in the 16-bit type ``kind`` (F16 or BF16), as float32.

        The default is `values`; the caller rounds it once.
        """
        return self.values(rows)

    def decode(self, dtype: Any = "float32") -> Array:
        """The dense weight, see `subbyte.decode`."""
        kind = planes.dtype_kind(dtype)
        everything = slice(0, self.rows)
        found = self.rounded_values(everything, kind) if kind in ("F16", "BF16") else self.values(everything)
        return planes.result(found.reshape(self.shape), dtype)
