"""Indices into tables of vectors: like codes, but of up to 32 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.arrays import Array
from subbyte.errors import FormatError

IndexArray = NDArray[np.uint32]


class Indices(ABC):
    """Indices 0 to 2^bits - 1, one for every block of a weight.

    Attributes:
        bits: 1 to 32.
        shape: rows and columns of blocks.
    """

    bits: int
    shape: tuple[int, int]

    @property
    def together(self) -> int:
        """Rows of indices that are unpacked together."""
        return 1

    @abstractmethod
    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        """The indices of a range of rows: uint32, shape (rows, columns).

        Raises:
            FormatError: a stored index is out of the range of the bits.
        """


@dataclass(frozen=True, eq=False)
class ArrayIndices(Indices):
    """Indices as the elements of an integer array.

    Attributes:
        data: integers, (rows, columns).
        signed: indices from 2^(bits - 1) on are stored minus 2^bits.
    """

    data: Array
    bits: int
    signed: bool = False

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        rows, columns = self.data.shape
        return rows, columns

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        found = self.data[rows]
        low, high = (-1 << (self.bits - 1), 1 << (self.bits - 1)) if self.signed else (0, 1 << self.bits)
        if found.size and not low <= int(found.min()) <= int(found.max()) < high:
            wrong = int(found.min()) if found.min() < low else int(found.max())
            raise FormatError(f"a stored index is {wrong}: expected {low} to {high - 1} for {self.bits} bits")
        return found.astype(np.uint32) & np.uint32((1 << self.bits) - 1)


def as_signed(indices: IndexArray, bits: int) -> NDArray[np.int64]:
    """Indices as `ArrayIndices` stores them with ``signed``."""
    wide = indices.astype(np.int64)
    return wide - (wide >> (bits - 1) << bits)


@dataclass(frozen=True, eq=False)
class StreamIndices(Indices):
    """Fields of a row of entries that are packed one after the other, low bits first, from 32-bit word to word.

    Attributes:
        words: 32-bit integers, (rows, ceil(columns * width / 32)).
        bits: of the field.
        shape: rows and columns.
        width: bits of an entry, at most 64.
        offset: lowest bit of the field in its entry.
    """

    words: Array
    bits: int
    shape: tuple[int, int]
    width: int
    offset: int = 0

    def __post_init__(self) -> None:
        expected = (self.shape[0], -(-self.shape[1] * self.width // 32))
        if self.words.shape != expected or not 0 < self.bits + self.offset <= self.width <= 64:
            raise FormatError(
                f"packed indices have shape {list(self.words.shape)}: expected {list(expected)} for {self.shape[1]} "
                f"entries of {self.width} bits"
            )

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        words = np.ascontiguousarray(self.words[rows]).view(np.uint32).astype(np.uint64)
        start = np.arange(self.shape[1]) * self.width + self.offset
        at, shift = start // 32, (start % 32).astype(np.uint64)
        following = np.minimum(at + 1, self.words.shape[1] - 1)  # of the last word: itself, and its bits are masked
        both = words[:, at] | words[:, following] << np.uint64(32)
        return ((both >> shift) & np.uint64((1 << self.bits) - 1)).astype(np.uint32)


def pack_stream(fields: list[tuple[IndexArray, int]]) -> NDArray[np.uint32]:
    """The words that `StreamIndices` reads: entries of these fields and their bits, the first one lowest."""
    width = sum(bits for _, bits in fields)
    rows, columns = fields[0][0].shape
    words = np.zeros((-(-columns * width // 32) + 1, rows), np.uint64)  # the last one never has a bit
    offset = 0
    for indices, bits in fields:
        start = np.arange(columns) * width + offset
        at = start // 32
        placed = indices.T.astype(np.uint64) << (start % 32).astype(np.uint64)[:, None]
        np.bitwise_or.at(words, at, placed & np.uint64(0xFFFFFFFF))
        np.bitwise_or.at(words, at + 1, placed >> np.uint64(32))
        offset += bits
    return np.ascontiguousarray(words[:-1].T).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class BitIndices(Indices):
    """Indices packed into bytes one after the other without a gap between rows, high bits first.

    Attributes:
        data: uint8, (bytes,).
        bits: of an index.
        shape: rows and columns.
        start: bit of the first index.
    """

    data: NDArray[np.uint8]
    bits: int
    shape: tuple[int, int]
    start: int = 0

    def __post_init__(self) -> None:
        end = self.start + self.shape[0] * self.shape[1] * self.bits
        if not 0 < self.bits <= 32 or len(self.data) * 8 < end:
            raise FormatError(f"{len(self.data)} bytes of indices: expected at least {-(-end // 8)}")

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        first, stop, _ = rows.indices(self.shape[0])
        columns = self.shape[1]
        begin = self.start + first * columns * self.bits
        end = self.start + max(stop, first) * columns * self.bits
        bits = np.unpackbits(self.data[begin // 8 : -(-end // 8)])[begin % 8 :][: end - begin]
        weights = np.uint32(1) << np.arange(self.bits - 1, -1, -1, dtype=np.uint32)
        found: IndexArray = (bits.reshape(-1, self.bits) * weights).sum(axis=1, dtype=np.uint32)
        return found.reshape(-1, columns)


def pack_bits(indices: IndexArray, bits: int) -> NDArray[np.uint8]:
    """The bytes that `BitIndices` reads, zero bits at the end."""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits((indices.reshape(-1, 1) >> shifts & np.uint32(1)).astype(np.uint8).reshape(-1))
