"""SINQ's dual scales: rows and columns of a tile balanced before it is quantized (arXiv 2509.22944)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subbyte.forms.affine import spread
from subbyte.planes import Plane


def dual_scales(
    values: NDArray[np.float32], levels: NDArray[np.float32], group: int, tile: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zeros of groups, (rows, groups), and scales of columns, (tiles, columns), all float32.

    A power of two near the deviation of each tile goes to the scales of the columns, so that those of groups stay in
    the range of float16.

    Args:
        values: float32, (rows, columns).
        levels: float32, ascending: what codes stand for.
        group: columns of a group and of a tile.
        tile: rows of a tile.
    """
    rows, columns = values.shape
    grid = (rows // tile, columns // group)
    scales, zeros = np.empty((2, *grid, tile), np.float32)
    of_columns = np.empty((*grid, group), np.float32)
    for down in range(grid[0]):
        for across in range(grid[1]):
            part = values[down * tile : (down + 1) * tile, across * group : (across + 1) * group]
            found = _of_tile(part, levels)
            scales[down, across], zeros[down, across], of_columns[down, across] = found
    turned = (one.transpose(0, 2, 1).reshape(rows, grid[1]) for one in (scales, zeros))
    return *turned, of_columns.reshape(grid[0], columns)


def _of_tile(
    tile: NDArray[np.float32], levels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zeros of the rows of a tile, and scales of its columns."""
    of_rows, of_columns = balance(tile)
    normal = tile / of_rows / of_columns
    power = np.exp2(np.floor(np.log2(np.maximum(normal.std(), np.float32(2.0**-24)))))
    normal, of_columns = normal / power, of_columns * power
    low, high = normal.min(axis=1), normal.max(axis=1)
    step = np.maximum((high - low) / (levels[-1] - levels[0]), np.float32(2.0**-20))
    # float16 holds zeros up to 2^11 to the step; a group far from zero would need larger ones
    step = np.maximum(step, np.maximum(-low, high) / np.float32(2048))
    return step * of_rows[:, 0], levels[0] - low / step, of_columns[0]


def nearest_codes(
    values: NDArray[np.float32], scales: Plane, zeros: Plane, column: Plane, levels: NDArray[np.float32], tile: int
) -> NDArray[np.uint8]:
    """The codes whose levels come nearest for parameters as they are stored: uint8, (rows, columns)."""
    wide = np.repeat(column.float32(), tile, axis=0)[: len(values)]
    group = values.shape[1] // max(scales.shape[1], 1)
    scale, zero = (spread(one.float32(), values.shape[1], group) for one in (scales, zeros))
    with np.errstate(all="ignore"):
        exact = np.nan_to_num(values / wide / scale + zero, nan=0.0)
    return np.asarray(np.searchsorted((levels[:-1] + levels[1:]) / np.float32(2), exact), np.uint8)


def balance(tile: NDArray[np.float32], steps: int = 16) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factors of rows and columns after whose division the standard deviations of both are alike.

    A Sinkhorn-like iteration: every step divides rows and columns by their deviations over the smallest one of the
    start, within 0.7 and 2, and the factors with the least imbalance (largest deviation over smallest) are kept.

    Args:
        tile: float32, (rows, columns).

    Returns:
        float32, (rows, 1) and (1, columns).
    """
    factors = [np.ones((len(tile), 1), np.float32), np.ones((1, tile.shape[1]), np.float32)]
    best, least, target = factors, np.inf, np.float32(1)
    for step in range(steps if tile.size else 0):
        deviations = _deviations(tile / factors[0] / factors[1])
        largest = max(one.max() for one in deviations)
        if largest == 0:
            break
        # rows and columns that hardly vary, those of zeros above all, are left out of the balance
        deviations = [np.maximum(one, largest * np.float32(1e-3)) for one in deviations]
        smallest = min(one.min() for one in deviations)
        target = smallest if step == 0 else target
        if largest / smallest < least:
            best, least = factors, largest / smallest
        factors = [
            factor * np.clip(one / target, np.float32(0.7), np.float32(2))
            for factor, one in zip(factors, deviations, strict=True)
        ]
    return best[0], best[1]


def _deviations(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Standard deviations of rows, (rows, 1), and columns, (1, columns)."""
    squares = values * values
    found = []
    for axis in (1, 0):
        mean = values.mean(axis=axis, keepdims=True)
        variance = squares.mean(axis=axis, keepdims=True) - mean * mean
        found.append(np.sqrt(np.maximum(variance, np.float32(0))))
    return found
