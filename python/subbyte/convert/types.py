"""Small questions about ggml types and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import ArgumentError
from subbyte.ggml import TYPES

Raw = NDArray[np.uint8]

FLOATS = ("F32", "F16", "BF16")

WEIGHTS = tuple(name for name, facts in TYPES.items() if facts.encodes and name not in ("Q8_1", "Q8_K", "F64"))
"""Types that tensors of a model are written as; the others are for activations, or for copies."""

_BITS = {
    "BOOL": 8, "U8": 8, "U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of an element of the dtypes of safetensors that ggml lacks."""


LONGEST_ROW = 1 << 21
"""Elements of a row that is read whole; longer ones are read in pieces (:func:`piece_columns`)."""


@lru_cache(maxsize=256)
def piece_columns(columns: int, *types: str) -> int:
    """The length of equal pieces of a row that are at most ``LONGEST_ROW`` long and whole blocks of all ``types``.

    The length of the row itself where it is short enough, or no piece divides it.
    """
    block = lcm(*(TYPES[name].block if name in TYPES else 1 for name in types))
    if columns <= LONGEST_ROW or columns % block:
        return columns
    blocks = columns // block
    return block * next((size for size in range(LONGEST_ROW // block, 0, -1) if blocks % size == 0), blocks)


def quantized(name: str) -> bool:
    """Whether values of the type are stored in blocks."""
    return name in TYPES and TYPES[name].block > 1


def is_dtype(name: str) -> bool:
    """Whether the type is one of numbers by themselves: a dtype, not blocks and no format of layers."""
    return name in _BITS or (name in TYPES and TYPES[name].block == 1)


def nbytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of the ggml type, or the dtype of safetensors; ``shape`` in NumPy order.

    Raises:
        ArgumentError: the type's blocks do not divide the row, or its elements fill no whole bytes.
    """
    columns = shape[-1] if shape else 1
    if name in TYPES:
        return TYPES[name].row_bytes(columns) * prod(shape[:-1])
    if _BITS[name] * columns % 8:
        raise ArgumentError(f"rows of {columns} elements of {name} are no whole bytes")
    return _BITS[name] * columns // 8 * prod(shape[:-1])


def parse_type(name: str) -> str:
    """The upper-case name of the ggml type for weights that the user's ``name`` means (``q6_k``, ``gguf.q6_k``).

    Raises:
        ArgumentError: there is no such type, or it is not one for weights.
    """
    upper = name.removeprefix("gguf.").upper() if isinstance(name, str) else name
    if upper not in WEIGHTS:
        raise ArgumentError(f"unknown tensor type {name!r}: expected one of {', '.join(WEIGHTS).lower()}")
    return upper
