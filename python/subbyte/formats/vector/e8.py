"""The codebooks of QuIP# (arXiv 2402.04396), and the nearest entry of each.

All values are multiples of 1/4. A code of E8P has a row of the 256 magnitudes in its high byte and signs in its low
one; bit `SIGN_BIT` [i] of the signs is for coordinate i.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

SIGN_BIT = (0, 4, 1, 5, 2, 6, 3, 7)
_NORM_12 = """
    31113333 13113333 11313333 11133333 33313311 33313131 33311331 33313113 33311313 33311133 33133311 33133131
    33131331 33133113 33131313 33131133 31333311 31333131 31331331 31333113 31331313 13331133 13333311 13333131
    13331331 13333113 13331313 11331333 33113331
"""
"""Twice the magnitudes of the last rows, of squared norm 12."""

_PIECE = 1 << 12
"""Vectors that are compared with all magnitudes at once."""


@cache
def magnitudes() -> NDArray[np.float64]:
    """All of squared norm up to 10 with coordinates 1/2, 3/2, 5/2 in ascending order, then the others: (256, 8)."""
    every = np.array(list(product((0.5, 1.5, 2.5), repeat=8)))
    small = every[(every * every).sum(axis=1) <= 10]
    return np.concatenate([small, np.array([[int(digit) / 2 for digit in row] for row in _NORM_12.split()])])


@cache
def _signed() -> NDArray[np.float64]:
    """Magnitudes whose coordinate 7 is negated where the sum is odd."""
    found = magnitudes().copy()
    found[found.sum(axis=1) % 2 == 1, 7] *= -1
    return found


@cache
def e8p() -> NDArray[np.float32]:
    """The vectors of all codes of E8P: (65536, 8)."""
    sign = np.arange(256)
    parity = (sign[:, None] >> np.arange(8) & 1).sum(axis=1) & 1
    negated = (sign ^ parity)[:, None] >> np.array(SIGN_BIT) & 1
    found = _signed()[:, None] * (1.0 - 2 * negated) + (0.25 - 0.5 * parity)[:, None]
    values: NDArray[np.float32] = found.reshape(-1, 8).astype(np.float32)
    return values


def nearest_e8p(vectors: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The codes of the entries of E8P nearest to vectors (…, 8).

    Of each of the two cosets, shifted by 1/4 and -1/4, every row of magnitudes is tried with the best signs: those of
    the vector, one of them flipped where the parity of their number would be wrong. Ties go to the shift by 1/4, then
    to the first row.
    """
    flat = vectors.reshape(-1, 8)
    found = np.empty(len(flat), np.uint32)
    for start in range(0, len(flat), _PIECE):
        found[start : start + _PIECE] = _nearest_piece(flat[start : start + _PIECE])
    return found.reshape(vectors.shape[:-1])


def _nearest_piece(vectors: NDArray[np.float64]) -> NDArray[np.uint32]:
    rows, every = magnitudes(), np.arange(len(vectors))
    odd = rows.sum(axis=1) % 2 == 1
    best, codes = np.full(len(vectors), np.inf), np.zeros(len(vectors), np.uint32)
    for parity, shift in enumerate((0.25, -0.25)):
        moved = vectors - shift
        size, negative = np.abs(moved), moved < 0
        cost = (rows * rows).sum(axis=1) - 2 * size @ rows.T
        wrong = (negative.sum(axis=1) % 2 == 1)[:, None] != odd
        flip = np.min(size[:, None] * rows, axis=2)
        cost = cost + np.where(wrong, 4 * flip, 0) + (size * size).sum(axis=1)[:, None]
        row = np.argmin(cost, axis=1)
        at = np.argmin(size * rows[row], axis=1)
        signs = negative.copy()
        signs[every, at] ^= wrong[every, row]
        bits = (signs != (_signed()[row] < 0)).astype(np.uint32) << np.array(SIGN_BIT, np.uint32)
        code = row.astype(np.uint32) << np.uint32(8) | bits.sum(axis=1, dtype=np.uint32) ^ np.uint32(parity)
        better = cost[every, row] < best
        best, codes = np.where(better, cost[every, row], best), np.where(better, code, codes)
    return codes


@cache
def e81b() -> NDArray[np.float32]:
    """The second codebook of three bits: (256, 8)."""
    whole = np.array([v for v in product((-1.0, 0.0, 1.0), repeat=8) if sum(v) % 2 == 0 and sum(map(abs, v)) <= 2])
    half = np.array([v for v in product((-0.5, 0.5), repeat=8) if sum(v) % 2 == 0])
    axes = 2 * np.eye(8)
    return np.concatenate([whole, half, axes, -axes[:7]]).astype(np.float32)


@cache
def d4() -> NDArray[np.float32]:
    """The codebook of four coordinates: (256, 4)."""
    found = np.empty((256, 4), np.float32)
    for code in range(256):
        value = np.array(_d4_shape(code & 31)) / 2
        value[2] *= -1 if code & 32 else 1
        value[1] *= -1 if code & 64 else 1
        value[3] *= -1 if value.sum() % 2 else 1
        found[code] = -value if code & 128 else value
    return found


def _d4_shape(t: int) -> list[int]:
    """Twice the magnitudes."""
    shape = [1, 1, 1, 1]
    if t < 2:
        return [1 + 2 * t] * 4
    if t < 8:
        plain, other = (1, 3) if t & 1 else (3, 1)
        return [other if at in (0, t >> 1) else plain for at in range(4)]
    if t < 20:
        plain, other = ((1, 3), (3, 1), (1, 5))[t // 4 - 2]
        return [other if at == t & 3 else plain for at in range(4)]
    three, five = (t - 20) & 3, (t - 20) >> 2
    shape[three], shape[five + (five >= three)] = 3, 5
    return shape


def nearest(vectors: NDArray[np.float64], book: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The entries of a small codebook (entries, width) nearest to vectors (…, width), the first of several."""
    wide = book.astype(np.float64)
    flat, half = vectors.reshape(-1, book.shape[1]), (wide * wide).sum(axis=1) / 2
    found = np.empty(len(flat), np.uint32)
    for start in range(0, len(flat), 1 << 15):
        found[start : start + (1 << 15)] = np.argmin(half - flat[start : start + (1 << 15)] @ wide.T, axis=1)
    return found.reshape(vectors.shape[:-1])
