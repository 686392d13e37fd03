"""Small questions about ggml types."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import ArgumentError
from subbyte.ggml import TYPES

Raw = NDArray[np.uint8]

FLOATS = ("F32", "F16", "BF16")

WEIGHTS = tuple(name for name, facts in TYPES.items() if facts.encodes and name not in ("Q8_1", "Q8_K", "F64"))
"""Types that tensors of a model are written as; the others are for activations, or for copies."""


def quantized(name: str) -> bool:
    """Whether values of the type are stored in blocks."""
    return TYPES[name].block > 1


def nbytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of the type; ``shape`` in NumPy order.

    Raises:
        ArgumentError: the type's blocks do not divide the row.
    """
    return TYPES[name].row_bytes(shape[-1] if shape else 1) * prod(shape[:-1])


def parse_type(name: str) -> str:
    """The upper-case name of the ggml type for weights that the user's ``name`` means (``q6_k``, ``gguf.q6_k``).

    Raises:
        ArgumentError: there is no such type, or it is not one for weights.
    """
    upper = name.removeprefix("gguf.").upper() if isinstance(name, str) else name
    if upper not in WEIGHTS:
        raise ArgumentError(f"unknown tensor type {name!r}: expected one of {', '.join(WEIGHTS).lower()}")
    return upper
