"""Choosing one option for each unit so that the sum of losses is smallest and the bytes stay within a limit.

Units are independent, options are points (bytes, loss), one resource. First every unit walks its lower convex hull, the
best loss per byte over all units first, as long as it fits (:func:`_greedy`); that is close, and a bound for what
follows. Then the exact optimum: with the multiplier of the relaxed problem each option has a reduced cost, the part
of the gap between greedy solution and lower bound that choosing it uses up. Options that use up more than the gap are
out, and what is left is searched with a list of undominated partial sums (:func:`_exact`), which stays short.

Equal losses (relative difference below 1e-12) are decided by fewer bytes, then by the smaller option numbers over units
sorted by name, so that neither order nor names of the input change the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import ArgumentError

_SAME = 1e-12
_ROUNDING = 2.0**-50
_LARGEST_LOSS = 1e300

_MOST_AT_ONCE, _MOST_CANDIDATES = 1 << 21, 1 << 23
"""Partial sums that are looked at for one unit, and for all: models take some 100,000; seconds and 0.3 GB at most."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a unit: bytes, with everything that comes with it, and the loss that is predicted."""

    nbytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """What was chosen.

    Attributes:
        chosen: number of the option of each unit.
        nbytes: their bytes.
        loss: their losses, summed over units sorted by name.
        bound: no choice within the limit has a smaller loss than this.
        solver: ``"exact"``, or ``"greedy"`` where the search would have become too large.
    """

    chosen: dict[str, int]
    nbytes: int
    loss: float
    bound: float
    solver: str


def allocate(units: Mapping[str, Sequence[Option]], limit: int) -> Allocation:
    """The options with the smallest sum of losses whose bytes are at most ``limit``.

    Raises:
        ArgumentError: a unit has no option, or one with a negative or non-finite number; or even the smallest options
            do not fit: the message says what would.
    """
    names = sorted(units)
    kept = [_undominated(name, units[name]) for name in names]
    least = sum(int(points.nbytes[0]) for points in kept)
    if least > limit:
        raise ArgumentError(f"{limit:,} bytes are too few: the smallest choice of types takes {least:,}")
    greedy = _greedy(kept, limit)
    exact, bound = _exact(kept, limit, greedy)
    picked = greedy if exact is None else exact
    loss = _loss(kept, picked)
    return Allocation(
        {name: int(points.option[at]) for name, points, at in zip(names, kept, picked, strict=True)},
        sum(int(points.nbytes[at]) for points, at in zip(kept, picked, strict=True)),
        loss,
        min(max(bound, 0.0), loss),
        "greedy" if exact is None else "exact",
    )


@dataclass(frozen=True, slots=True)
class _Points:
    """The undominated options of one unit: bytes ascending, losses descending."""

    option: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    loss: NDArray[np.float64]


def _undominated(name: str, options: Sequence[Option]) -> _Points:
    for option in options:
        if not (0 <= option.nbytes < 1 << 62 and 0 <= option.loss <= _LARGEST_LOSS):
            raise ArgumentError(
                f"unit '{name}': {option}: expected bytes from 0 up, and a loss from 0 to {_LARGEST_LOSS:g}"
            )
    if not options:
        raise ArgumentError(f"unit '{name}' has no options")
    order = sorted(range(len(options)), key=lambda at: (options[at].nbytes, options[at].loss, at))
    kept: list[int] = []
    for at in order:
        if not kept or options[at].loss < options[kept[-1]].loss:
            kept.append(at)
    return _Points(
        np.array(kept, np.int64),
        np.array([options[at].nbytes for at in kept], np.int64),
        np.array([options[at].loss for at in kept], np.float64),
    )


def _hull(points: _Points) -> list[int]:
    """The corners of the lower convex hull, from the cheapest option to the best one."""
    corners: list[int] = []
    for at in range(len(points.option)):
        while len(corners) > 1 and _slope(points, corners[-2], corners[-1]) <= _slope(points, corners[-1], at):
            corners.pop()
        corners.append(at)
    return corners


def _slope(points: _Points, a: int, b: int) -> float:
    """Loss that the step from option ``a`` to the larger ``b`` saves, per byte."""
    return float(points.loss[a] - points.loss[b]) / float(points.nbytes[b] - points.nbytes[a])


def _greedy(kept: Sequence[_Points], limit: int) -> list[int]:
    """Steps along the hulls, the steepest first; a unit whose next step does not fit stays where it is."""
    steps = []
    for unit, points in enumerate(kept):
        corners = _hull(points)
        steps += [(-_slope(points, a, b), unit, a, b) for a, b in pairwise(corners)]
    chosen = [0] * len(kept)
    left = limit - sum(int(points.nbytes[0]) for points in kept)
    blocked = set()
    for _, unit, a, b in sorted(steps):
        cost = int(kept[unit].nbytes[b] - kept[unit].nbytes[a])
        if unit in blocked or cost > left:
            blocked.add(unit)
            continue
        chosen[unit], left = b, left - cost
    return chosen


def _loss(kept: Sequence[_Points], chosen: Sequence[int]) -> float:
    return math.fsum(float(points.loss[at]) for points, at in zip(kept, chosen, strict=True))


def _exact(kept: Sequence[_Points], limit: int, greedy: list[int]) -> tuple[list[int] | None, float]:
    """The best choice and the relaxed problem's lower bound; no choice where the list of states becomes too long."""
    multiplier = _multiplier(kept, limit)
    if not multiplier * limit < _LARGEST_LOSS:
        return None, 0.0
    reduced = [points.loss + multiplier * points.nbytes for points in kept]
    # Each cost is rounded, and their sum and what is taken from it may be far larger than the difference.
    base = math.fsum(float(costs.min()) for costs in reduced) - multiplier * limit * (1 + _ROUNDING)
    incumbent = _loss(kept, greedy)
    gap = incumbent - base + _SAME * max(abs(incumbent), abs(base))
    reduced = [costs - costs.min() for costs in reduced]
    cheapest_rest = np.cumsum([0, *(int(points.nbytes[0]) for points in reversed(kept))])[::-1]

    nbytes, used, loss = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    history: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    candidates = 0
    for unit, points in enumerate(kept):
        live = np.flatnonzero(reduced[unit] <= gap)
        candidates += len(nbytes) * len(live)
        if len(nbytes) * len(live) > _MOST_AT_ONCE or candidates > _MOST_CANDIDATES:
            return None, base
        # States are kept in the order of their option numbers, so a stable sort decides ties by it.
        parents = np.repeat(np.arange(len(nbytes), dtype=np.int32), len(live))
        options = np.tile(live.astype(np.int32), len(nbytes))
        new_bytes = nbytes[parents] + points.nbytes[options]
        new_used = used[parents] + reduced[unit][options]
        new_loss = loss[parents] + points.loss[options]
        fits = np.flatnonzero((new_bytes + cheapest_rest[unit + 1] <= limit) & (new_used <= gap))
        order = fits[np.lexsort((fits, new_loss[fits], new_bytes[fits]))]
        front = order[_improving(new_loss[order])]
        front.sort()
        nbytes, used, loss = new_bytes[front], new_used[front], new_loss[front]
        history.append((parents[front], options[front]))
    if not len(nbytes):
        return greedy, base  # rounding removed the incumbent, and nothing better is there
    best = float(loss.min())
    if best > incumbent:
        return greedy, base
    same = np.flatnonzero(loss <= best + _SAME * best)
    state = int(same[np.argmin(nbytes[same])])
    chosen = []
    for parents, options in reversed(history):
        chosen.append(int(options[state]))
        state = int(parents[state])
    chosen.reverse()
    return chosen, base


def _improving(loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where a loss is below all before it."""
    before = np.minimum.accumulate(np.concatenate(([np.inf], loss[:-1])))
    return np.flatnonzero(loss < before)


def _multiplier(kept: Sequence[_Points], limit: int) -> float:
    """The smallest price of a byte at which the relaxed solution fits, by bisection."""

    def fits(price: float) -> bool:
        total = 0
        for points in kept:
            costs = points.loss + price * points.nbytes
            total += int(points.nbytes[np.argmin(costs)])
        return total <= limit

    if fits(0.0):
        return 0.0
    low, high = 0.0, max(float(points.loss[0]) for points in kept) + 1.0  # no step saves more than that for a byte
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
