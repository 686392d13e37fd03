"""The search of EXL3 for the states of a tile of 256 weights, with its arithmetic in half precision.

A state of 16 bits belongs to the class of its low 16 - K bits, and the next state has these as its high bits. The cost
of a class is the least, over its 2^K states s, of fp16(d² + cost of the class s >> K), d = fp16(value of s - weight);
the first of equal ones is taken. Two passes:

1. Weights 128 to 255, then 0 to 127, from cost 0 everywhere. The last class is that of least cost before the last
   weight. Of equal ones, with e = 1024 i + 32 j + k, the first in the order of the reversed bits of j, then of k, then
   of i. What the states of weights 255 and 0 share, 16 - K bits, is kept.
2. Weights 0 to 255, from the class of these bits to the same class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.forms.vector.indices import IndexArray

_STATES = 1 << 16
_REVERSED = np.array([int(f"{at:05b}"[::-1], 2) for at in range(32)])


def quantize_tiles(tiles: NDArray[np.float32], values: NDArray[np.float32], width: int) -> IndexArray:
    """The states of tiles (tiles, 256).

    Args:
        tiles: the weights, which are rounded to half precision first.
        values: of all 65536 states, of half precision.
        width: K.
    """
    with np.errstate(all="ignore"):
        rounded = _planes.rounded(tiles, "F16")
        return np.stack([_quantize(tile, values, width) for tile in rounded])


def _quantize(tile: NDArray[np.float32], values: NDArray[np.float32], width: int) -> IndexArray:
    classes = _STATES >> width
    start = np.zeros(classes)
    turned, before = _forward(np.roll(tile, -128), values, width, start)
    first = _backward(turned, _cheapest(before), width)
    shared = int(first[127]) & (classes - 1)
    start = np.full(classes, np.inf)
    start[shared] = 0
    choices, _ = _forward(tile, values, width, start)
    return _backward(choices, shared, width)


def _forward(
    weights: NDArray[np.float32], values: NDArray[np.float32], width: int, costs: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The high bits of the best state of every class at every weight, and the costs before the last weight."""
    classes = _STATES >> width
    choices = np.empty((len(weights), classes), np.uint8)
    before, every = costs, np.arange(classes)
    for at, weight in enumerate(weights):
        before = costs
        distance = _planes.rounded(values - weight, "F16").astype(np.float64)
        total = _half(distance * distance + np.repeat(costs, 1 << width)).reshape(1 << width, classes)
        choice = total.argmin(axis=0)
        choices[at] = choice
        costs = total[choice, every]
    return choices, before


def _backward(choices: NDArray[np.uint8], last: int, width: int) -> IndexArray:
    """The states that lead to a class."""
    found = np.empty(len(choices), np.uint32)
    for at in range(len(choices) - 1, -1, -1):
        state = int(choices[at, last]) << (16 - width) | last
        found[at] = state
        last = state >> width
    return found


def _cheapest(costs: NDArray[np.float64]) -> int:
    equal = np.flatnonzero(costs == costs.min())
    order = np.lexsort((equal >> 10, _REVERSED[equal & 31], _REVERSED[equal >> 5 & 31]))
    return int(equal[order[0]])


def _half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values that are not negative rounded to half precision; sums here are exact in float64 where it matters."""
    bits = values.view(np.uint64)
    kept = (bits + np.uint64((1 << 41) - 1) + (bits >> np.uint64(42) & np.uint64(1))) & ~np.uint64((1 << 42) - 1)
    found = kept.view(np.float64)
    if values.min() < 2.0**-14:
        found = np.where(values < 2.0**-14, np.rint(values * 2.0**24) * 2.0**-24, found)
    return np.where(found > 65504, np.inf, found) if found.max() > 65504 else found
