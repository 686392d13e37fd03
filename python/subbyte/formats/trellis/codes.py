"""Computed codes of trellises: the value of every state, a function of few instructions (arXiv 2406.11235, EXL3).

Integers are taken modulo 2^32; a halves' sum is that of the two halves of (x & 0x8FFF8FFF) ^ 0x3B603B60, read as F16
and rounded to it.

=====  =================================================================================================
code   value of state s
=====  =================================================================================================
1mad   x = s * 34038481 + 76625530; (sum of the bytes of x - 510) / 147.800537109375, in float32
2mad   x = s * 264435761 + 1013904223, then x + (x * 1664525 >> 32); like 1mad
3inst  x = s * 89226354 + 64248484; halves' sum
mcg    x = s * 0xCBAC1FED; halves' sum
mul1   x = s * 0x83DCD12D; (1024 + sum of the bytes of x) * 0.00676727294921875 - 10.3828125, rounded once
       to F16
=====  =================================================================================================
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MCG = 0xCBAC1FED
MUL1 = 0x83DCD12D
_BYTES = np.arange(0, 32, 8, dtype=np.uint64)
_WORD = np.uint64(0xFFFFFFFF)


def _mixed(bits: int, factor: int, offset: int = 0) -> NDArray[np.uint64]:
    """state * factor + offset for every state of so many bits."""
    return (np.arange(1 << bits, dtype=np.uint64) * np.uint64(factor) + np.uint64(offset)) & _WORD


def _byte_sums(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = (words[:, None] >> _BYTES & np.uint64(255)).sum(axis=1).astype(np.float64)
    return sums


def _half_sums(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    mixed = (words.astype(np.uint32) & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
    low, high = ((mixed >> np.uint32(shift)).astype(np.uint16).view(np.float16) for shift in (0, 16))
    return (low.astype(np.float32) + high.astype(np.float32)).astype(np.float16).astype(np.float32)


def one_mad(bits: int) -> NDArray[np.float32]:
    """The code 1mad, of so many bits."""
    return _normalized(_mixed(bits, 34038481, 76625530))


def two_mad(bits: int) -> NDArray[np.float32]:
    """The code 2mad."""
    x = _mixed(bits, 264435761, 1013904223)
    return _normalized((x + (x * np.uint64(1664525) >> np.uint64(32))) & _WORD)


def _normalized(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    return (_byte_sums(words) - 510).astype(np.float32) / np.float32(147.800537109375)


def three_inst(bits: int) -> NDArray[np.float32]:
    """The code 3inst."""
    return _half_sums(_mixed(bits, 89226354, 64248484))


def mcg(bits: int, factor: int = MCG) -> NDArray[np.float32]:
    """The code mcg, perhaps with another factor."""
    return _half_sums(_mixed(bits, factor))


def mul1(bits: int, factor: int = MUL1) -> NDArray[np.float32]:
    """The code mul1, perhaps with another factor."""
    sums = (1024 + _byte_sums(_mixed(bits, factor))) * 0.00676727294921875 - 10.3828125
    return sums.astype(np.float16).astype(np.float32)


def table_rows(bits: int, table_bits: int, shift: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of every state of so many bits, h = state * (state + 1): row (h >> (shift - table_bits)) mod 2^table_bits, and
    whether bit 15 of h is 1.
    """
    state = np.arange(1 << bits, dtype=np.int64)
    mixed = state * (state + 1)
    return mixed >> (shift - table_bits) & ((1 << table_bits) - 1), (mixed >> 15 & 1).astype(bool)
