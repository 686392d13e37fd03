"""Orthogonal Hadamard transforms of rows, for every size that the formats with rotations have.

A size n is K * 2^k with K the first of `SIZES` that divides n, or 1. U = (H_K ⊗ H_(2^k)) / sqrt(n): H_(2^k) is the
natural-order Sylvester matrix, (-1)^popcount(i & j), and H_K a stored matrix. Most H_K are not symmetric, so U and its
transpose differ.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from subbyte.data import tables
from subbyte.errors import UnsupportedError

SIZES = (172, 156, 140, 124, 116, 108, 60, 52, 36, 28, 20, 12)
"""Sizes of the stored matrices, in the order in which they are tried."""


def factors(size: int) -> tuple[int, int]:
    """K and 2^k of a size.

    Raises:
        UnsupportedError: there is no transform of this size.
    """
    base = next((base for base in SIZES if size > 0 and size % base == 0), 1)
    power = size // base
    if size < 1 or power & (power - 1):
        raise UnsupportedError(
            f"there is no Hadamard transform of size {size}: it is no power of two, nor one times 12 …"
        )
    return base, power


@cache
def matrix(size: int) -> NDArray[np.float64]:
    """The stored Hadamard matrix of a size: -1 and 1, (size, size)."""
    if size == 1:
        return np.ones((1, 1))
    bits = np.unpackbits(tables("hadamard")[str(size)], count=size * size)
    return np.where(bits.reshape(size, size), np.float64(-1), np.float64(1))


def rotate(values: NDArray[np.float64], size: int, *, inverse: bool = False) -> NDArray[np.float64]:
    """Every block of ``size`` neighbours of the last axis as a row vector x: x @ U^T, or x @ U for the inverse.

    Sums are float64, in an order that is left open.

    Raises:
        UnsupportedError: there is no transform of this size.
    """
    base, power = factors(size)
    found = np.array(values, np.float64).reshape(-1, base, power)
    half = 1
    while half < power:
        pairs = found.reshape(-1, base, power // (2 * half), 2, half)
        found = np.concatenate([pairs[..., :1, :] + pairs[..., 1:, :], pairs[..., :1, :] - pairs[..., 1:, :]], axis=-2)
        half *= 2
    found = found.reshape(-1, base, power)
    if base > 1:
        mixing = matrix(base)
        found = np.matmul(mixing.T if inverse else mixing, found)
    turned: NDArray[np.float64] = found.reshape(values.shape) / np.sqrt(np.float64(size))
    return turned
