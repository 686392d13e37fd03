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
    found = np.ascontiguousarray(values.reshape(-1, base, power).T, np.float64)  # neighbours are added as long rows
    shape, half = found.shape, 1
    while half < power:
        pairs = found.reshape(power // (2 * half), 2, -1)
        found = np.empty_like(pairs)
        np.add(pairs[:, 0], pairs[:, 1], out=found[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=found[:, 1])
        half *= 2
    found = found.reshape(shape)
    if base > 1:
        found = np.matmul(matrix(base).T if inverse else matrix(base), found)
    turned: NDArray[np.float64] = found.T / np.sqrt(np.float64(size))
    return turned.reshape(values.shape)
