"""Checks of what callers pass where the type of an argument promises what Python does not enforce."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Mapping
from operator import index
from typing import Any

from subbyte.errors import ArgumentError

#: Sizes, offsets and dimensions are below this.
_END = 2**64


def integer(value: Any, what: str) -> int:
    """A size, offset or dimension: an integer from 0 to 2^64 - 1.

    Raises:
        ArgumentError: it is none.
    """
    try:
        number = index(value)
    except TypeError:
        raise ArgumentError(f"{what} is {value!r:.80}: expected an integer") from None
    if not 0 <= number < _END:
        raise ArgumentError(f"{what} is {number}: expected an integer that is not negative and below 2^64")
    return number


def dimensions(shape: Any, what: str = "the shape") -> tuple[int, ...]:
    """The shape of an array.

    Raises:
        ArgumentError: it is no sequence of sizes.
    """
    if not isinstance(shape, Iterable) or isinstance(shape, str | bytes):
        raise ArgumentError(f"{what} is {shape!r:.80}: expected a sequence of integers")
    return tuple(integer(dim, f"a dimension of {what}") for dim in shape)


def text(value: Any, what: str) -> str:
    """A string that can be encoded as UTF-8.

    Raises:
        ArgumentError: it is no string, or has lone surrogates.
    """
    if not isinstance(value, str):
        raise ArgumentError(f"{what} is {value!r:.80}: expected a string")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ArgumentError(f"{what} {value!r} has lone surrogates: they cannot be stored as UTF-8")
    return value


def entries(value: Any, what: str) -> ItemsView[Any, Any]:
    """Keys and values of a mapping.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{what} is {value!r:.80}: expected a mapping")
    return value.items()


def row_range(rows: Any) -> slice:
    """A range of rows.

    Raises:
        ArgumentError: it is no slice of integers, or its step is 0.
    """
    if not isinstance(rows, slice):
        raise ArgumentError(f"rows is {rows!r:.80}: expected a slice, such as slice(0, 16)")
    try:
        rows.indices(0)
    except (TypeError, ValueError) as e:
        raise ArgumentError(f"rows is {rows}: {e}") from None
    return rows


def flag(value: Any, what: str) -> bool:
    """A truth value.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"{what}: expected True or False, found {value!r:.80}")
    return value


def callback(value: Any, what: str) -> None:
    """Something that can be called, or nothing.

    Raises:
        ArgumentError: it is neither.
    """
    if value is not None and not callable(value):
        raise ArgumentError(f"{what}: expected something that can be called, found {value!r:.80}")
