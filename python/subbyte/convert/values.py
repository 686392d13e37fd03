"""From stored rows of one type to stored rows of another, and to float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte.convert.types import Raw, quantized
from subbyte.errors import Error, UnsupportedError
from subbyte.ggml import TYPES

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def to_float32(name: str, raw: Raw, columns: int) -> NDArray[np.float32]:
    """The values of stored rows, float32, shape (rows, columns).

    Raises:
        UnsupportedError: the type has no decoder.
    """
    if name == "F64":
        return aligned(raw, 8).view(np.float64).astype(np.float32)
    if name not in TYPES or not TYPES[name].decodes:
        raise UnsupportedError(f"values of type {name} cannot be decoded")
    out = np.empty((len(raw), columns), dtype=np.float32)
    _native.decode(name, np.ascontiguousarray(raw), columns, "float32", out.view(np.uint8))
    return out


def encode(source: str, raw: Raw, columns: int, target: str, importance: NDArray[np.float32] | None = None) -> Raw:
    """Stored rows of type ``source`` as rows of type ``target``: uint8, shape (rows, bytes of a row).

    Values pass through float32. Rows of the same type are returned as they are.

    Args:
        importance: float32, shape (columns,): weights of the columns, for types that use them.

    Raises:
        NonFiniteError: a value, or the scale of a block of the result, is not finite.
        UnsupportedError: ``source`` has no decoder or ``target`` no encoder.
    """
    if source == target:
        return raw
    if source in _FLOATS:
        dtype, values = _FLOATS[source], aligned(raw, TYPES[source].block_bytes)
    else:
        dtype, values = "float32", to_float32(source, raw, columns).view(np.uint8)
    out = np.empty((len(raw), TYPES[target].row_bytes(columns)), dtype=np.uint8)
    weights = None if importance is None else importance.view(np.uint8)
    _native.encode(target, values, dtype, columns, 1, weights, out)
    return out


@dataclass(frozen=True, slots=True)
class Importance:
    """Importance of the columns of a tensor.

    Attributes:
        rows: number of rows that share a vector: those of one matrix of a stack.
        load: the vectors, float32, shape (matrices, columns).
    """

    rows: int
    load: Callable[[], NDArray[np.float32]]

    def encode(self, source: str, raw: Raw, columns: int, target: str, first: int) -> Raw:
        """As :func:`encode`, for rows from number ``first`` on."""
        vectors = self.load()
        last = first + len(raw)
        pieces = []
        for at in range(first - first % self.rows, last, self.rows):
            begin, end = max(at - first, 0), at + self.rows - first
            try:
                pieces.append(encode(source, raw[begin:end], columns, target, vectors[at // self.rows]))
            except Error as error:
                if error.row is not None:
                    error.row += begin
                raise
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def aligned(raw: Raw, size: int) -> Raw:
    """``raw``, contiguous and at an address that elements of ``size`` bytes may have: files promise no alignment."""
    raw = np.ascontiguousarray(raw)
    return raw if raw.ctypes.data % size == 0 else raw.copy()


def first_invalid_block(name: str, raw: Raw) -> int | None:
    """The first block with a scale (or the first value) that is not finite; ``None`` where all are."""
    return _native.first_invalid_block(name, np.ascontiguousarray(raw)) if name in TYPES else None


def kind(source: str, target: str) -> str:
    """What happens to the values of a tensor.

    ``exact``: the same codes; ``exact-value``: other codes with the same values; ``rounded``: to a float type that
    cannot hold them all; ``quantized``; ``requantized``: quantized a second time.
    """
    if source == target:
        return "exact"
    if quantized(target):
        return "requantized" if quantized(source) else "quantized"
    return "exact-value" if target == "F32" and source != "F64" else "rounded"
