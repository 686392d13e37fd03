"""Orders of the codes of QuIP#, described in `subbyte.formats.vector.quip`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.vector.indices import IndexArray, Indices

_PLACES = tuple((p, q, p + 2 * q) for p in (0, 1) for q in (0, 1))
_SIGNS = np.arange(8, dtype=np.uint32)


@dataclass(frozen=True, eq=False)
class E8Indices(Indices):
    """Codes of 16 bits in words of four.

    Attributes:
        words: int64, (m, n / 32).
    """

    words: NDArray[np.int64]
    bits: int = 16

    def __post_init__(self) -> None:
        rows, columns = self.words.shape
        if rows % 16 or columns % 2 or not self.words.size:
            raise FormatError(f"a weight {[rows, columns * 32]} is not made of blocks of 16 rows and 64 columns")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.words.shape[0], self.words.shape[1] * 4

    @property
    def together(self) -> int:
        return 16

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        bands = self.words[start // 16 * 16 : -(-stop // 16) * 16].view(np.uint64).reshape(-1, self.shape[1] // 8, 8, 4)
        low, high = bands.astype(np.uint32), (bands >> np.uint64(32)).astype(np.uint32)
        codes = np.empty((*bands.shape, 2, 2), np.uint32)
        for p, q, at in _PLACES:
            signs = np.zeros(bands.shape, np.uint32)
            for bit in _SIGNS:
                signs |= (high >> (np.uint32(4) * bit + np.uint32(at)) & np.uint32(1)) << bit
            codes[..., p, q] = (low >> np.uint32(8 * at) & np.uint32(255)) << np.uint32(8) | signs
        ordered = codes.transpose(0, 2, 4, 1, 3, 5).reshape(-1, self.shape[1])
        return ordered[start % 16 : start % 16 + stop - start]

    @staticmethod
    def pack(codes: IndexArray) -> NDArray[np.int64]:
        """The words of codes (m, n / 8).

        Raises:
            FormatError: they are not made of whole blocks.
        """
        rows, columns = codes.shape
        if rows % 16 or columns % 8:
            raise FormatError(f"a weight {[rows, columns * 8]} is not made of blocks of 16 rows and 64 columns")
        blocks = codes.reshape(rows // 16, 8, 2, columns // 8, 4, 2).transpose(0, 3, 1, 4, 2, 5).astype(np.uint64)
        words = np.zeros(blocks.shape[:4], np.uint64)
        for p, q, at in _PLACES:
            words |= blocks[..., p, q] >> np.uint64(8) << np.uint64(8 * at)
            for bit in range(8):
                words |= (blocks[..., p, q] >> np.uint64(bit) & np.uint64(1)) << np.uint64(32 + 4 * bit + at)
        return words.reshape(rows, columns // 4).view(np.int64)


@dataclass(frozen=True, eq=False)
class D4Indices(Indices):
    """Codes of 8 bits, four of a row together, in columns of such fours.

    Attributes:
        data: uint8, (m, n / 4), in truth (n / 16, m, 4).
    """

    data: NDArray[np.uint8]
    bits: int
    columns: int

    def __post_init__(self) -> None:
        if self.columns % 4 or not self.columns:
            raise FormatError(f"{self.columns * 4} columns: expected a multiple of 16")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.data.shape[0], self.columns

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        found = self.data.reshape(self.columns // 4, -1, 4)[:, rows].swapaxes(0, 1)
        return found.reshape(-1, self.columns).astype(np.uint32)

    @staticmethod
    def pack(codes: IndexArray) -> NDArray[np.uint8]:
        """The bytes of codes (m, n / 4)."""
        if codes.shape[1] % 4:
            raise FormatError(f"{codes.shape[1] * 4} columns: expected a multiple of 16")
        fours = codes.reshape(len(codes), -1, 4).swapaxes(0, 1).astype(np.uint8)
        return np.ascontiguousarray(fours).reshape(codes.shape)


@dataclass(frozen=True, eq=False)
class NibbleIndices(Indices):
    """Codes of 4 bits, eight columns a word, even columns before odd ones, from the highest nibble.

    Attributes:
        words: int32, (m, n / 8).
    """

    words: NDArray[np.int32]
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.words.shape[0], self.words.shape[1] * 8

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        nibbles = self.words[rows].view(np.uint32)[..., None] >> _SHIFTS & np.uint32(15)
        return nibbles.reshape(len(nibbles), self.shape[1])

    @staticmethod
    def pack(codes: IndexArray) -> NDArray[np.int32]:
        """The words of codes (m, n)."""
        if codes.shape[1] % 8:
            raise FormatError(f"{codes.shape[1]} columns: expected a multiple of 8")
        placed = codes.reshape(len(codes), -1, 8) << _SHIFTS
        words: NDArray[np.uint32] = np.bitwise_or.reduce(placed, axis=-1)
        return words.view(np.int32)


_SHIFTS = np.array([28, 12, 24, 8, 20, 4, 16, 0], np.uint32)
"""Place of each of eight columns."""
