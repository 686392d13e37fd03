"""Codes that are looked up in a table of floats, with a scale per block of the flattened weight (NF4, FP4, any4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.base import Form, Native
from subbyte.forms.codes import Codes


@dataclass(frozen=True, eq=False)
class QuantizedScales:
    """Scales that are stored as codes of 8 bits (double quantization).

    scale = table[code] * scale of its block + offset, both steps rounded to float32.

    Attributes:
        codes: uint8, (scales,).
        table: float32, (256,).
        scales: float32, (blocks,).
        block: scales of a block; the last one may be shorter.
        offset: float32.
    """

    codes: NDArray[np.uint8]
    table: NDArray[np.float32]
    scales: NDArray[np.float32]
    block: int
    offset: np.float32

    def __post_init__(self) -> None:
        blocks = -(-len(self.codes) // self.block)
        if self.scales.shape != (blocks,) or self.table.shape != (256,):
            raise FormatError(
                f"nested scales of shape {list(self.scales.shape)} and a table of {self.table.size} values do not fit "
                f"{len(self.codes)} scales in blocks of {self.block}: expected {blocks} and 256"
            )

    def values(self) -> NDArray[np.float32]:
        """The scales: float32, (scales,)."""
        with np.errstate(all="ignore"):
            return self.table[self.codes] * self.scales[np.arange(len(self.codes)) // self.block] + self.offset


@dataclass(frozen=True, eq=False)
class Table(Form):
    """w = table[code] * scale of its block; blocks run over the flattened weight and may cross rows.

    Attributes:
        codes: (rows, columns).
        table: float32, (2^bits,).
        scales: float32, (blocks,).
        block: elements of a block; the last one may be shorter.
        quantized_scales: what the scales are made of, where they are stored quantized.
        dtype: float type that the weight had before it was quantized, where the format says so.
    """

    shape: tuple[int, ...]
    codes: Codes
    table: NDArray[np.float32]
    scales: NDArray[np.float32]
    block: int
    quantized_scales: QuantizedScales | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        blocks = -(-self.rows * self.columns // self.block)
        if self.codes.shape != (self.rows, self.columns) or self.scales.shape != (blocks,):
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and scales of shape {list(self.scales.shape)} do not fit a "
                f"weight of shape {list(self.shape)} in blocks of {self.block}"
            )
        if self.table.shape != (1 << self.codes.bits,):
            raise FormatError(f"a table of shape {list(self.table.shape)}: expected {1 << self.codes.bits} values")

    def native(self, kind: str) -> Native | None:
        codes = self.codes.native() if self.codes.bits == 4 else None
        if codes is None:
            return None
        return Native(codes, self.columns, "table", self.block, self.scales, table=self.table, flat=True)

    def values(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.rows)
        block = np.arange(start * self.columns, stop * self.columns) // self.block
        scales = self.scales[block].reshape(stop - start, self.columns)
        with np.errstate(all="ignore"):
            return self.table[self.codes.unpack(rows)] * scales
