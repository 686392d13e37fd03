"""Bit strings of tiles, which are rings, and the states in them (QTIP, EXL3).

State i of a ring is the window of ``length`` bits from bit ``first + i * step`` on, the first bit highest. Any string
is valid; states are, when each follows from the one before by ``step`` bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.vector.indices import IndexArray

Bits = NDArray[np.uint8]


def states_of(strings: Bits, count: int, step: int, length: int, first: int = 0) -> IndexArray:
    """The states of strings, the last axis: (…, count)."""
    start = first + np.arange(count) * step
    found = np.zeros((*strings.shape[:-1], count), np.uint32)
    for at in range(length):
        found = found << np.uint32(1) | strings[..., (start + at) % strings.shape[-1]]
    return found


def strings_of(states: IndexArray, step: int, length: int, first: int = 0) -> Bits:
    """The strings of states (…, count): (…, count * step).

    Raises:
        FormatError: the states are not those of a ring.
    """
    count = states.shape[-1]
    shifts = np.arange(length + first - 1, length + first - 1 - step, -1, dtype=np.int64).astype(np.uint32)
    strings = (states[..., None] >> shifts & np.uint32(1)).astype(np.uint8).reshape(*states.shape[:-1], count * step)
    if not np.array_equal(states_of(strings, count, step, length, first), states):
        raise FormatError(f"the states of a tile do not follow from each other by {step} bits")
    return strings
