"""Codes of a weight that its format packs flattened, without regard for rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte import _native, arrays
from subbyte.arrays import Array
from subbyte.errors import FormatError
from subbyte.forms.codes import CodeArray, Codes


class FlatCodes(Codes):
    """Codes by their place in the flattened weight."""

    @abstractmethod
    def flat(self, start: int, stop: int) -> CodeArray:
        """The codes of the elements ``start`` to ``stop`` of the flattened weight."""

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        columns = self.shape[1]
        return self.flat(start * columns, stop * columns).reshape(-1, columns)


@dataclass(frozen=True, eq=False)
class NibbleCodes(FlatCodes):
    """Codes of 4 bits, two in a byte, the first of them in the high half (bitsandbytes).

    Attributes:
        data: uint8, (ceil(rows * columns / 2),).
    """

    data: NDArray[np.uint8]
    shape: tuple[int, int]
    bits: int = 4

    def __post_init__(self) -> None:
        expected = (self.shape[0] * self.shape[1] + 1) // 2
        if self.data.shape != (expected,):
            raise FormatError(f"{self.data.size} bytes of codes: expected {expected} for a weight {list(self.shape)}")

    def native(self) -> _native.PackedLayer | None:
        rows, columns = self.shape
        if columns % 2:
            return None  # rows begin within a byte
        data = np.ascontiguousarray(self.data)
        return _native.PackedLayer(data, 4, rows, columns, "rows", row_bytes=columns // 2, high_first=True)

    def flat(self, start: int, stop: int) -> CodeArray:
        found = self.data[start // 2 : (stop + 1) // 2]
        pairs = np.stack((found >> 4, found & 15), axis=1).reshape(-1)
        return pairs[start % 2 : start % 2 + stop - start]

    @staticmethod
    def pack(codes: CodeArray, padding: int) -> NDArray[np.uint8]:
        """The bytes of codes of any shape; ``padding`` follows an odd number of them."""
        flat = codes.reshape(-1)
        if flat.size % 2:
            flat = np.append(flat, np.uint8(padding))
        return np.asarray(flat[0::2] << 4 | flat[1::2], np.uint8)


@dataclass(frozen=True, eq=False)
class SlabCodes(FlatCodes):
    """Codes of a grouped matrix that are packed along its first axis, in slabs (HQQ, SINQ, quanto).

    The flattened weight is cut into rows of ``width`` codes. An item of ``fields`` fields, row r of the items, holds
    the rows r, r + items, r + 2 * items …; the rows after the last one are padding.

    Attributes:
        items: integers, (ceil(rows of the grouped matrix / fields), width).
        bits: of a code.
        shape: rows and columns of the weight.
        fields: codes of an item.
        field_bits: bits from one field to the next.
        low_first: the first field is the lowest one, not the highest.
    """

    items: Array
    bits: int
    shape: tuple[int, int]
    fields: int
    field_bits: int
    low_first: bool = False

    def __post_init__(self) -> None:
        elements = self.shape[0] * self.shape[1]
        width = self.items.shape[1] if self.items.ndim == 2 else 0
        if not width or elements % width or len(self.items) != -(-(elements // width) // self.fields):
            raise FormatError(
                f"packed codes have shape {list(self.items.shape)}, which does not fit a weight {list(self.shape)} "
                f"with {self.fields} codes in each item"
            )

    def native(self) -> _native.PackedLayer | None:
        if self.bits < self.field_bits:
            return None  # stored codes may be out of range
        items = arrays.as_bytes(np.ascontiguousarray(self.items))
        fields = None if self.low_first else self.fields
        size = self.items.itemsize
        return _native.PackedLayer(items, self.bits, *self.shape, "slabs", item_bytes=size, fields=fields)

    def flat(self, start: int, stop: int) -> CodeArray:
        step, width = self.items.shape
        row = np.arange(start // width, -(-stop // width))
        shifts = _shifts(self.fields, self.field_bits, self.low_first)[row // max(step, 1)]
        unsigned = self.items.view(f"u{self.items.itemsize}")
        codes = unsigned[row % max(step, 1)] >> shifts[:, None].astype(unsigned.dtype)
        codes = codes.astype(np.uint8) & np.uint8((1 << self.field_bits) - 1)
        if self.bits < self.field_bits and codes.size and codes.max() >> self.bits:
            raise FormatError(f"a stored code is out of the range of {self.bits} bits")
        first = start - start // width * width
        found: CodeArray = codes.reshape(-1)[first : first + stop - start]
        return found

    @staticmethod
    def pack(
        codes: CodeArray, width: int, fields: int, field_bits: int, kind: str, low_first: bool = False
    ) -> NDArray[np.uint8] | NDArray[np.int32]:
        """The items of codes of any shape, unsigned bytes (``kind`` U8) or words (I32); padding is 0."""
        grouped = codes.reshape(-1, width)
        step = -(-len(grouped) // fields)
        padded = np.zeros((step * fields, width), np.uint32)
        padded[: len(grouped)] = grouped
        shifts = _shifts(fields, field_bits, low_first).astype(np.uint32)
        shifted = padded.reshape(fields, step, width) << shifts[:, None, None]
        items: NDArray[np.uint32] = np.bitwise_or.reduce(shifted, axis=0)
        return items.view(np.int32) if kind == "I32" else items.astype(np.uint8)


def _shifts(fields: int, field_bits: int, low_first: bool) -> NDArray[np.int64]:
    shifts = np.arange(fields) * field_bits
    return shifts if low_first else shifts[::-1]
