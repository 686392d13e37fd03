"""Small floats whose exponent bias is a real number per row or tensor (LLM-FP4, arXiv 2310.16836)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.forms.codes import Codes
from subbyte.planes import Plane


def steps(exponents: NDArray[np.float32], mantissa_bits: int, biases: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance of neighbours with these exponent fields: 2^(max(e, 1) - M - bias).

    The exponent is computed in float32 from left to right, the power rounded to float32 once.
    """
    power = np.maximum(exponents, np.float32(1)) - np.float32(mantissa_bits) - biases
    with np.errstate(all="ignore"):
        return np.exp2(power.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class RealBias(Form):
    """w = sign * significand * 2^(max(e, 1) - M - bias); the significand is m, and m + 2^M where e > 0.

    Attributes:
        codes: sign, exponent e and mantissa m from the highest bit to the lowest, (rows, columns).
        exponent_bits, mantissa_bits: the widths of e and m (M); with the sign they are the bits of a code.
        biases: F32, (rows, 1) or (1, 1).
    """

    shape: tuple[int, ...]
    codes: Codes
    exponent_bits: int
    mantissa_bits: int
    biases: Plane

    def __post_init__(self) -> None:
        if self.codes.shape != (self.rows, self.columns) or self.biases.shape not in ((1, 1), (self.rows, 1)):
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and biases of shape {list(self.biases.shape)} do not fit a "
                f"weight of shape {list(self.shape)}"
            )

    def values(self, rows: slice) -> NDArray[np.float32]:
        codes = self.codes.unpack(rows)
        mantissa = codes & np.uint8((1 << self.mantissa_bits) - 1)
        exponent = codes >> np.uint8(self.mantissa_bits) & np.uint8((1 << self.exponent_bits) - 1)
        significand = (mantissa + ((exponent > 0) << self.mantissa_bits)).astype(np.float32)
        signed = np.where(codes >> np.uint8(self.codes.bits - 1), -significand, significand)
        biases = self.biases if self.biases.shape[0] == 1 else Plane(self.biases.data[rows], "F32")
        with np.errstate(all="ignore"):
            return signed * steps(exponent.astype(np.float32), self.mantissa_bits, biases.float32())
