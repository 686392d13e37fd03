"""Facts about the ggml tensor types, from the one table in the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from .. import _native
from ..errors import ArgumentError, FormatError


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """One ggml type: its id, the elements and bytes of a block, and whether blocks can be decoded."""

    name: str
    number: int
    block: int
    bytes: int
    decodable: bool


@cache
def types() -> dict[str, TypeInfo]:
    """Every ggml type by its upper-case name."""
    return {
        name: TypeInfo(name, number, block, size, decodable)
        for name, number, block, size, _, decodable, _ in _native.ggml_types()
    }


def block_size(name: str) -> int:
    """Elements of one block of the type."""
    return types()[name].block


def quantized(name: str) -> bool:
    """Whether values of the type are stored in blocks."""
    return types()[name].block > 1


def row_bytes(name: str, columns: int) -> int:
    """Bytes of one row.

    Raises:
        FormatError: the type's blocks do not divide the row.
    """
    info = types()[name]
    if columns % info.block:
        raise FormatError(f"rows of {columns} elements cannot be {name}, whose blocks hold {info.block} elements")
    return columns // info.block * info.bytes


def nbytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of the type; ``shape`` in NumPy order."""
    return row_bytes(name, shape[-1] if shape else 1) * prod(shape[:-1])


_NOT_FOR_WEIGHTS = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")


def type_name(name: str) -> str:
    """The upper-case name of a ggml type for weights.

    Raises:
        ArgumentError: there is no such type, or it is not one for weights.
    """
    upper = name.upper()
    if upper not in types() or upper in _NOT_FOR_WEIGHTS:
        known = ", ".join(known.lower() for known in types() if known not in _NOT_FOR_WEIGHTS)
        raise ArgumentError(f"unknown tensor type '{name}': expected one of {known}")
    return upper
