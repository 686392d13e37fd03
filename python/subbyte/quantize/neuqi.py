"""NeUQI: scales and zeros of uniform codes without the constraints of minimum and maximum (arXiv 2505.17595).

For a given scale the best zero is found nearly exactly, which leaves a search over scales alone. In units of the scale
a value t has the error t + z - clip(rint(t + z), 0, L):

1. Values inside the range are taken to have the mean square error of rounding, 1/12, so that only those outside of it
   depend on z: a piecewise quadratic function with two breakpoints for a value.
2. In the interval of length 1 around its minimum each value changes its code at most once, so that one sorted sweep
   gives the exact minimum.
"""

from __future__ import annotations

import numpy as np

from subbyte.quantize.grid import Floats, Grid
from subbyte.quantize.search import Best, least_error

#: Shares of the minimum-to-maximum scale, and of the best one of them.
_COARSE = np.linspace(0.35, 1.05, 11, dtype=np.float32)
_FINE = np.array([0.96, 1.04, 0.98, 1.02], np.float32)


def near_optimal(groups: Floats, weights: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """Scales and zeros of groups, arguments and result as of `least_error`.

    A symmetric grid has no zeros to choose: there it is `least_error`.
    """
    if grid.symmetric:
        return least_error(groups, weights, grid)
    best = Best(groups, weights, grid)
    with np.errstate(all="ignore"):
        whole = (groups.max(axis=-1) - groups.min(axis=-1)) / grid.largest
        for ratio in _COARSE:
            scales, _ = grid.stored(whole * ratio, best.zeros)
            steps = groups / scales[..., None]
            _offer(best, scales, steps, tail_zeros(steps, weights, grid.largest))
        coarse, half = best.scales, grid.largest / np.float32(2)
        middles = (half - best.zeros) * coarse
        for ratio in _FINE:
            scales, _ = grid.stored(coarse * ratio, best.zeros)
            _offer(best, scales, groups / scales[..., None], half - middles / scales)
    best.fit()
    return best.scales, best.zeros


def _offer(best: Best, scales: Floats, steps: Floats, near: Floats) -> None:
    """Offers the best zeros near these."""
    zeros = swept_zeros(steps, best.weights, near, best.grid.largest)
    if best.grid.zeros == "integer":
        best.offer(scales, np.floor(zeros))
        zeros = np.ceil(zeros)
    best.offer(scales, zeros)


def tail_zeros(steps: Floats, weights: Floats, largest: np.float32) -> Floats:
    """The zeros with the least error if values inside the range have a mean square error of 1/12: (rows, groups).

    Args:
        steps: values over their scales, float32, (rows, groups, elements).
        weights: float32, (1, groups, elements).
        largest: largest code.
    """
    # Rising zeros move a value from below the range into it at -t, and above it at largest - t. The sums of a, a t and
    # a t^2 over the values outside make the function a z^2 + 2 b z + c of each interval.
    weighted, constant = weights * steps, np.broadcast_to(weights / np.float32(12), steps.shape)
    wide = np.broadcast_to(weights, steps.shape)
    squares, over = weighted * steps, steps - largest
    a, b = np.concatenate([-wide, wide], axis=-1), np.concatenate([-weighted, weights * over], axis=-1)
    c = np.concatenate([constant - squares, weights * over * over - constant], axis=-1)
    places = np.concatenate([-steps, largest - steps], axis=-1)
    order = np.argsort(places, axis=-1)
    places = np.take_along_axis(places, order, axis=-1)
    sums = [
        start.sum(axis=-1, keepdims=True) + np.cumsum(np.take_along_axis(changes, order, axis=-1), axis=-1)[..., :-1]
        for start, changes in ((wide, a), (weighted, b), (squares, c))
    ]
    a, b, c = sums
    low, high = places[..., :-1], places[..., 1:]
    outside = a > np.float32(1e-3)
    vertex = np.where(outside, -b / np.where(outside, a, np.float32(1)), (low + high) / np.float32(2))
    zeros = np.clip(vertex, low, high)
    return _least((a * zeros + 2 * b) * zeros + c, zeros)


def swept_zeros(steps: Floats, weights: Floats, near: Floats, largest: np.float32) -> Floats:
    """The best zeros within half a code of ``near``: float32, (rows, groups). Arguments as of `tail_zeros`."""
    first = near - np.float32(0.5)
    codes = np.clip(np.rint(steps + first[..., None]), np.float32(0), largest)
    wide = np.broadcast_to(weights, steps.shape)
    rises = codes + np.float32(0.5) - steps  # the zero at which the code becomes the next one
    changing = (codes < largest) & (rises <= near[..., None] + np.float32(0.5))
    order = np.argsort(np.where(changing, rises, np.inf), axis=-1)
    ahead = codes - steps
    of_changes = np.where(changing, wide, np.float32(0))
    moved = np.take_along_axis(of_changes, order, axis=-1)
    grown = np.take_along_axis(of_changes * (2 * ahead + 1), order, axis=-1)
    total = wide.sum(axis=-1, keepdims=True)
    sums = _after((wide * ahead).sum(axis=-1, keepdims=True), moved)
    squares = _after((wide * ahead * ahead).sum(axis=-1, keepdims=True), grown)
    return _least(squares - sums * sums / total, sums / total)


def _after(start: Floats, changes: Floats) -> Floats:
    """A sum before the first and after each change."""
    return np.concatenate([start, start + np.cumsum(changes, axis=-1)], axis=-1)


def _least(loss: Floats, values: Floats) -> Floats:
    """The values with the least loss along the last axis."""
    at = np.argmin(np.nan_to_num(loss, nan=np.inf), axis=-1)[..., None]
    return np.take_along_axis(values, at, axis=-1)[..., 0]
