"""Unsigned codes of a weight, packed as their format stores them and unpacked by ranges of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from subbyte import _native, arrays
from subbyte.arrays import Array
from subbyte.errors import FormatError

CodeArray = NDArray[np.uint8]


def words_per_row(order: str, bits: int, columns: int) -> int:
    """32-bit words of a row of ``columns`` codes in this order (see `subbyte_core::pack`)."""
    if order == "stream":
        return -(-columns * bits // 32)
    return -(-columns // (32 // bits)) if order == "aligned" else -(-columns // 32) * bits


def unpack(order: str, bits: int, words: Array, columns: int) -> CodeArray:
    """Codes of rows of little-endian 32-bit words: uint8, shape (rows, columns).

    Args:
        order: ``"stream"``, ``"aligned"`` or ``"planar"``.
        bits: 1 to 8.
        words: 32-bit integers, shape (rows, words of a row).
        columns: codes of a row.

    Raises:
        FormatError: rows of words have another length.
    """
    expected = words_per_row(order, bits, columns)
    if words.ndim != 2 or words.shape[1] != expected or words.itemsize != 4:
        raise FormatError(f"words of shape {list(words.shape)}: expected {expected} for {columns} codes of {bits} bits")
    out = np.empty((len(words), columns), np.uint8)
    if out.size:
        _native.unpack(order, bits, np.ascontiguousarray(words).view(np.uint8).reshape(-1), columns, out.reshape(-1))
    return out


def pack(order: str, bits: int, codes: CodeArray) -> NDArray[np.uint32]:
    """The reverse of `unpack`: uint32, shape (rows, words of a row).

    Raises:
        ArgumentError: a code has more than ``bits`` bits.
    """
    rows, columns = codes.shape
    out = np.zeros((rows, words_per_row(order, bits, columns)), np.uint32)
    if codes.size:
        flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
        _native.pack_codes(order, bits, flat, columns, out.view(np.uint8).reshape(-1))
    return out


def laid(words: NDArray[np.uint32], layout: str) -> NDArray[np.int32]:
    """Rows of words in ``stream`` order as formats store them: int32.

    Args:
        words: uint32, (rows, words of a row).
        layout: ``"down"`` for GPTQ's order, (words of a row, rows); ``"across"`` for AWQ's ``gemm`` order of codes of 4
            bits, (columns, rows / 8).
    """
    rows, count = words.shape
    out = np.empty((count, rows) if layout == "down" else (8 * count, rows // 8), np.int32)
    if out.size:
        _native.lay_words(layout, rows, arrays.as_bytes(np.ascontiguousarray(words)), arrays.as_bytes(out))
    return out


class Codes(ABC):
    """Codes of ``bits`` bits, 0 to 2^bits - 1, of a matrix.

    Attributes:
        bits: 1 to 8.
        shape: rows and columns.
    """

    bits: int
    shape: tuple[int, int]

    @abstractmethod
    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        """The codes of a range of rows: uint8, shape (rows, columns)."""

    def stream(self, rows: slice = slice(None)) -> NDArray[np.uint32]:
        """The codes of a range of rows in ``stream`` order: uint32, shape (rows, words of a row)."""
        if (layer := self.native()) is None or self.shape[1] * self.bits % 32:
            return pack("stream", self.bits, self.unpack(rows))  # bits after the end of a row may hold anything
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((max(stop - start, 0), self.shape[1] * self.bits // 32), np.uint32)
        if out.size:
            layer.stream(start, out.view(np.uint8).reshape(-1))
        return out

    def native(self) -> _native.PackedLayer | None:
        """The codes as the extension decodes them without unpacking; None where it cannot."""
        return None


@dataclass(frozen=True, eq=False)
class PackedCodes(Codes):
    """Codes in 32-bit words.

    Attributes:
        words: shape (rows, words of a row); with ``down`` (words of a row, rows).
        order: ``"stream"``, ``"aligned"`` or ``"planar"``.
        down: the words of a row of the weight run down a column.
    """

    words: Array
    bits: int
    shape: tuple[int, int]
    order: str = "stream"
    down: bool = False

    def __post_init__(self) -> None:
        rows, columns = self.shape
        expected = (rows, words_per_row(self.order, self.bits, columns))
        if self.words.shape != (expected[::-1] if self.down else expected) or self.words.itemsize != 4:
            raise FormatError(
                f"packed codes have shape {list(self.words.shape)}: expected "
                f"{list(expected[::-1] if self.down else expected)} for a weight {list(self.shape)} of {self.bits} bits"
            )

    def _words(self, rows: slice) -> Array:
        if not self.down:
            return self.words[rows]
        start, stop, _ = rows.indices(self.shape[0])
        out = np.empty((max(stop - start, 0), self.words.shape[0]), np.uint32)
        if out.size:
            self._layer("words").stream(start, out.view(np.uint8).reshape(-1))
        return out

    def _layer(self, order: str) -> _native.PackedLayer:
        words = np.ascontiguousarray(self.words)
        bits, columns = (self.bits, self.shape[1]) if order == "stream" else (8, 4 * self.words.shape[1 - self.down])
        flat = words.view(np.uint8).reshape(-1)
        if self.down:
            return _native.PackedLayer(flat, bits, self.shape[0], columns, "down")
        return _native.PackedLayer(flat, bits, self.shape[0], columns, "rows", row_bytes=4 * words.shape[1])

    def native(self) -> _native.PackedLayer | None:
        return self._layer("stream") if self._streams else None

    @property
    def _streams(self) -> bool:
        return self.order == "stream" or (self.order == "aligned" and 8 % self.bits == 0)

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        return unpack(self.order, self.bits, self._words(rows), self.shape[1])

    def stream(self, rows: slice = slice(None)) -> NDArray[np.uint32]:
        if self.down or not self._streams or self.shape[1] * self.bits % 32:
            return super().stream(rows)
        return self.words[rows].view(np.uint32)


@dataclass(frozen=True, eq=False)
class ByteCodes(Codes):
    """Codes of one byte each.

    Attributes:
        data: uint8 or int8, shape (rows, columns).
        offset: what is added to an element to give the code (128 for signed codes of 8 bits).
    """

    data: Array
    bits: int = 8
    offset: int = 0

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        rows, columns = self.data.shape
        return rows, columns

    def native(self) -> _native.PackedLayer | None:
        if self.bits < 8 or self.offset not in (0, 128):
            return None  # stored codes may be out of range
        data = arrays.as_bytes(np.ascontiguousarray(self.data))
        columns = self.shape[1]
        return _native.PackedLayer(data, 8, *self.shape, "rows", row_bytes=columns, signed=self.offset == 128)

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        found = self.data[rows]
        if self.offset:
            found = (found.astype(np.int16) + self.offset).astype(np.uint8)
        found = found.view(np.uint8)
        if self.bits < 8 and found.size and found.max() >> self.bits:
            raise FormatError(f"a stored code is out of the range of {self.bits} bits")
        return found


@dataclass(frozen=True, eq=False)
class SignedCodes(Codes):
    """Codes that are stored in two's complement: code = integer + 2^(bits - 1).

    Attributes:
        stored: the codes as they are stored.
    """

    stored: Codes

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.stored.bits

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.stored.shape

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        return self.stored.unpack(rows) ^ np.uint8(1 << (self.bits - 1))


def packed_bytes(data: Array, bits: int) -> PackedCodes:
    """Codes in bytes, low bits first: the last axis of ``data``, in whole 32-bit words; the others are folded.

    Raises:
        FormatError: a row is no whole number of words.
    """
    width = data.shape[-1]
    if width % 4:
        raise FormatError(f"rows of {width} bytes of codes: expected a multiple of 4")
    flat = np.ascontiguousarray(data).view(np.uint8).reshape(prod(data.shape[:-1]), width)
    return PackedCodes(flat.view("<u4"), bits, (len(flat), width * 8 // bits))


def as_packed_bytes(codes: Codes) -> NDArray[np.uint8]:
    """The reverse of `packed_bytes`: uint8, shape (rows, bytes of a row), whole words."""
    return np.ascontiguousarray(codes.stream()).view(np.uint8)


@dataclass(frozen=True, eq=False)
class ByteRowCodes(Codes):
    """Codes of 1, 2 or 4 bits in rows of whole bytes, the first of them in the lowest bits.

    Attributes:
        data: uint8, (rows, ceil(columns * bits / 8)).
    """

    data: Array
    bits: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        expected = (self.shape[0], -(-self.shape[1] * self.bits // 8))
        if self.data.shape != expected or self.bits not in (1, 2, 4):
            raise FormatError(
                f"packed codes have shape {list(self.data.shape)}: expected {list(expected)} for a weight "
                f"{list(self.shape)} of {self.bits} bits"
            )

    def native(self) -> _native.PackedLayer:
        data = arrays.as_bytes(np.ascontiguousarray(self.data))
        return _native.PackedLayer(data, self.bits, *self.shape, "rows", row_bytes=self.data.shape[1])

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        fields = self.data[rows][..., None] >> shifts & np.uint8((1 << self.bits) - 1)
        return fields.reshape(len(fields), self.data.shape[1] * len(shifts))[:, : self.shape[1]]

    @staticmethod
    def pack(codes: CodeArray, bits: int) -> CodeArray:
        """The bytes of a matrix of codes; the fields after the end of a row are zero."""
        rows, columns = codes.shape
        fields = 8 // bits
        padded = np.zeros((rows, -(-columns // fields), fields), np.uint8)
        padded.reshape(rows, -1)[:, :columns] = codes
        packed: CodeArray = np.bitwise_or.reduce(padded << np.arange(0, 8, bits, dtype=np.uint8), axis=2)
        return packed
