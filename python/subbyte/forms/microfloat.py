"""Encoding small floats, and the powers of two that scale blocks of them.

Elements are those of the OCP Microscaling Formats (MX) Specification 1.0, section 5.3; their values by code are
`element_values`. How a value half-way between two codes rounds, whether a negative value that rounds to zero keeps its
sign, and which power of two a block gets differ between writers: all of it is a parameter here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import UnsupportedError
from subbyte.forms.scaled import element_values
from subbyte.planes import rounded

#: Largest magnitude and its code, by element type.
LARGEST = {"E2M1": 6.0, "E2M3": 7.5, "E3M2": 28.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}


@cache
def _thresholds(element: str, ties: str) -> NDArray[np.float32]:
    """The smallest magnitude of each code from 1: float32, ascending."""
    if element not in LARGEST or ties not in ("even", "toward-zero"):
        raise UnsupportedError(f"no encoder of {element} with ties {ties}")
    values = element_values(element)
    top = int(np.flatnonzero(values[: len(values) // 2] == LARGEST[element])[0])
    middles = (values[:top] + values[1 : top + 1]) / np.float32(2)  # exact: a bit more than the elements have
    upwards = (np.arange(top) % 2 == 1) & (ties == "even")
    return np.where(upwards, middles, np.nextafter(middles, np.float32(np.inf)))


def encode_element(
    values: NDArray[np.float32], element: str, *, ties: str = "even", keep_negative_zero: bool = True
) -> NDArray[np.uint8]:
    """Codes of the nearest elements; magnitudes above the largest one become it.

    Args:
        values: float32 of any shape; NaN becomes NaN where the element type has it and the largest element otherwise.
        element: ``E2M1``, ``E2M3``, ``E3M2``, ``F8_E4M3`` or ``F8_E5M2``.
        ties: ``"even"`` (the code with a zero in its last bit) or ``"toward-zero"``.
        keep_negative_zero: whether negative values that round to zero, and -0 itself, become the code of -0.

    Returns:
        uint8 of the same shape.
    """
    thresholds = _thresholds(element, ties)
    codes = np.searchsorted(thresholds, np.abs(values), side="right").astype(np.uint8)
    negative = np.signbit(values)
    if not keep_negative_zero:
        negative &= codes != 0
    if element.startswith("F8_"):
        codes[np.isnan(values)] = 0x7F
    codes |= negative.astype(np.uint8) * np.uint8(len(element_values(element)) // 2)
    return codes


def encode_e2m1(
    values: NDArray[np.float32], ties: str = "even", *, keep_negative_zero: bool = True
) -> NDArray[np.uint8]:
    """Codes of E2M1 (FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6), see `encode_element`."""
    return encode_element(values, "E2M1", ties=ties, keep_negative_zero=keep_negative_zero)


def encode_e2m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of E2M3 (FP6, up to 7.5), ties to even, see `encode_element`."""
    return encode_element(values, "E2M3")


def encode_e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bits of E4M3 (FP8 without infinities, up to 448), ties to even, see `encode_element`."""
    return encode_element(values, "F8_E4M3")


def encode_e5m2(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bits of E5M2 (up to 57344; never infinity), ties to even, see `encode_element`."""
    return encode_element(values, "F8_E5M2")


def e8m0_scales(maxima: NDArray[np.float32], element: str, rule: str, kind: str | None = None) -> NDArray[np.uint8]:
    """Scales of blocks as E8M0: exponent + 127, never 255.

    Args:
        maxima: largest magnitude of each block, float32. A block of zeros gets the smallest scale, 0.
        element: what is scaled.
        rule: the exponent for the maximum ``a`` and the largest element ``X``:

            * ``"floor"`` (OCP, ggml, torchao): floor(log2 a) - floor(log2 X);
            * ``"nearest"`` (compressed-tensors): the same, but with ``a`` raised to the next power of two where that is
              what rounding its significand to the element's precision does: from 1.75, with E2M3 from 1.9375;
            * ``"ceil"`` (ModelOpt, MLX, DeepSeek): ceil(log2(a / X)).
        kind: for ``"ceil"``, see `ceil_log2`.
    """
    top = np.float32(LARGEST[element])
    if rule == "ceil":
        exponent = ceil_log2(maxima / top, kind)
    elif rule in ("floor", "nearest"):
        fraction, power = np.frexp(maxima)
        exponent = power - 1 - np.floor(np.log2(top))
        if rule == "nearest":
            exponent += fraction * 2 >= (1.9375 if element == "E2M3" else 1.75)
        exponent = np.where(maxima > 0, exponent, -127)
    else:
        raise UnsupportedError(f"no rule '{rule}' for the scales of blocks")
    return (np.clip(exponent, -127, 127) + 127).astype(np.uint8)


def ceil_log2(values: NDArray[np.float32], kind: str | None = None) -> NDArray[np.float32]:
    """Exponent of the smallest power of two that is not below each value; -inf for 0.

    Args:
        values: float32, not negative.
        kind: type of the logarithm that a writer takes (F32, F16, BF16): what lies barely above a power of two is then
            taken for it. None for the exact exponent.
    """
    if kind is None:
        fraction, power = np.frexp(values)
        return np.where(values > 0, power - (fraction == 0.5), -np.inf).astype(np.float32)
    with np.errstate(divide="ignore"):
        logarithm = np.log2(values.astype(np.float64)).astype(np.float32)
    return np.ceil(rounded(logarithm, kind))


def block_maxima(values: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Largest magnitude of each block of ``block`` columns, which divides them: (rows, columns / block)."""
    rows, columns = values.shape
    found: NDArray[np.float32] = np.abs(values).reshape(rows, columns // block, block).max(axis=2, initial=0)
    return found


def divide_blocks(values: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by the scales of their blocks, (rows, blocks); 0 where the scale is 0."""
    rows, columns = values.shape
    blocks = scales.shape[1]
    with np.errstate(all="ignore"):
        quotients = values.reshape(rows, blocks, columns // max(blocks, 1)) / scales[:, :, None]
    quotients[scales == 0] = 0
    return quotients.reshape(rows, columns)
