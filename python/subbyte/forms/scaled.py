"""Small floats with scales.

* `Microscaled`: blocks along a row with a power of two or an E4M3 scale each, and perhaps one scale for the tensor
  (MXFP4, MXFP6, MXFP8: OCP Microscaling Formats 1.0; NVFP4).
* `BlockScaled`: codes of 8 bits with a scale per tensor, row or rectangle (FP8; also integers).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError, UnsupportedError
from subbyte.forms.base import Form, Native
from subbyte.forms.codes import ByteCodes, Codes
from subbyte.planes import Plane, float8_values, rounded


@cache
def element_values(kind: str) -> NDArray[np.float32]:
    """The values of an element type by code: ``E2M1`` (16), ``E2M3`` and ``E3M2`` (64), ``F8_E4M3``, ``F8_E5M2`` (256).

    OCP Microscaling Formats (MX) Specification 1.0, section 5.3.
    """
    fields = {"E2M1": (2, 1, 1), "E2M3": (2, 3, 1), "E3M2": (3, 2, 3)}.get(kind)
    if fields is None:
        return float8_values(kind)
    exponent_bits, mantissa_bits, bias = fields
    code = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    magnitude = code & ((1 << (exponent_bits + mantissa_bits)) - 1)
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    value = np.ldexp(mantissa / (1 << mantissa_bits) + (exponent > 0), np.maximum(exponent, 1) - bias)
    return np.asarray(np.copysign(value, np.where(code > magnitude, -1.0, 1.0)), np.float32)


@dataclass(frozen=True, eq=False)
class Microscaled(Form):
    """w = element * scale of its block (* scale of the tensor).

    Attributes:
        codes: codes of the elements, (rows, columns).
        element: ``E2M1``, ``E2M3``, ``E3M2``, ``F8_E4M3`` or ``F8_E5M2``.
        scales: bits of E8M0 or E4M3 as U8, F8_E8M0 or F8_E4M3, (rows, blocks).
        scale_kind: ``F8_E8M0`` or ``F8_E4M3``.
        block: columns of a block.
        multiplier: float32 scale of the tensor that multiplies a block's scale; None for none.
        divisor: float32 scale of the tensor that divides a block's scale (compressed-tensors), or one for each of its
            matrices; None for none.
        maximum: float32 largest magnitude of the tensor; a 2688th of it (6 * 448) multiplies a block's scale (MLX).
    """

    shape: tuple[int, ...]
    codes: Codes
    element: str
    scales: Plane
    scale_kind: str
    block: int
    multiplier: np.float32 | None = None
    divisor: np.float32 | NDArray[np.float32] | None = None
    maximum: np.float32 | None = None

    def __post_init__(self) -> None:
        expected = (self.rows, -(-self.columns // self.block))
        if self.codes.shape != (self.rows, self.columns) or self.scales.shape != expected:
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and scales of shape {list(self.scales.shape)} do not fit a "
                f"weight of shape {list(self.shape)} in blocks of {self.block}"
            )
        if self.scale_kind not in ("F8_E8M0", "F8_E4M3"):
            raise UnsupportedError(f"scales of type {self.scale_kind}: expected E8M0 or E4M3")

    def block_scaled(self) -> BlockScaled:
        """The same weight in rectangles of one row.

        Raises:
            UnsupportedError: elements of less than 8 bits, or a scale of the tensor.
        """
        if not self.element.startswith("F8_") or not self.plain:
            raise UnsupportedError(f"{self.element} elements with these scales are no FP8")
        scales = Plane(self.scales.data.view(np.uint8), self.scale_kind)
        block = (1, min(self.block, self.columns))
        return BlockScaled(self.shape, self.codes.unpack(), self.element, scales, block)

    @property
    def plain(self) -> bool:
        """Whether the tensor has no scale of its own."""
        return self.multiplier is None and self.divisor is None and self.maximum is None

    def block_scales(self, rows: slice) -> NDArray[np.float32]:
        """What multiplies the elements of each block, the scale of the tensor included: (rows, blocks)."""
        scales = float8_values(self.scale_kind)[self.scales.data[rows].view(np.uint8)]
        with np.errstate(all="ignore"):
            if self.multiplier is not None:
                scales = scales * self.multiplier
            if isinstance(self.divisor, np.ndarray):
                start, stop, _ = rows.indices(self.rows)
                scales = scales / self.divisor[np.arange(start, stop) // self.shape[-2], None]
            elif self.divisor is not None:
                scales = scales / self.divisor
            if self.maximum is not None:
                scales = scales * (self.maximum / np.float32(2688))
        return scales

    def native(self, kind: str) -> Native | None:
        codes, table = self.codes.native(), element_values(self.element)
        if codes is None or len(table) != 1 << self.codes.bits:
            return None
        scales = self.block_scales(slice(0, self.rows))
        return Native(codes, self.columns, "table", self.block, scales, table=table)

    def values(self, rows: slice) -> NDArray[np.float32]:
        elements = element_values(self.element)[self.codes.unpack(rows)]
        scales = np.repeat(self.block_scales(rows), self.block, axis=1)[:, : self.columns]
        with np.errstate(all="ignore"):
            return elements * scales


@dataclass(frozen=True, eq=False)
class BlockScaled(Form):
    """w = element * scale of its rectangle; rectangles begin anew in every matrix.

    Attributes:
        data: bits of the elements, (rows, columns): uint8, or int8 for ``I8``.
        element: ``F8_E4M3``, ``F8_E5M2``, a ``FNUZ`` variant, or ``I8``.
        scales: F32, F16, BF16, or an 8-bit float, (row blocks of all matrices, column blocks).
        block: rows and columns of a rectangle; those at the edges may be smaller.
        inverse: the scale divides instead of multiplying (gptqmodel's FP8).
        factor: multiplies the product in a second step (1/127 of bitsandbytes' int8); None for none.
        rounds_scale: for 16-bit results the original rounds the scale to that type first (ModelOpt).
    """

    shape: tuple[int, ...]
    data: NDArray[np.uint8] | NDArray[np.int8]
    element: str
    scales: Plane
    block: tuple[int, int]
    inverse: bool = False
    factor: np.float32 | None = None
    rounds_scale: bool = False

    def __post_init__(self) -> None:
        down, across = self.grid(self.block)
        expected = (prod(self.shape[:-2]) * down, across)
        if self.data.shape != (self.rows, self.columns) or self.scales.shape != expected:
            raise FormatError(
                f"elements of shape {list(self.data.shape)} and scales of shape {list(self.scales.shape)} do not fit a "
                f"weight of shape {list(self.shape)} in blocks of {list(self.block)}"
            )

    def grid(self, block: tuple[int, int]) -> tuple[int, int]:
        """Blocks of one matrix, down and across."""
        return -(-self.shape[-2] // block[0]), -(-self.columns // block[1])

    def regrid(self, block: tuple[int, int]) -> Plane | None:
        """The scales for smaller blocks, repeated as they are; None where a block would need two of them."""
        sources = []
        for size, have, want in zip(self.shape[-2:], self.block, block, strict=True):
            first = np.arange(0, size, want)
            of_first = first // have
            if np.any(of_first != (np.minimum(first + want, size) - 1) // have):
                return None
            sources.append(of_first)
        down, _ = self.grid(self.block)
        down_all = (np.arange(prod(self.shape[:-2]))[:, None] * down + sources[0]).reshape(-1)
        return Plane(np.ascontiguousarray(self.scales.data[down_all][:, sources[1]]), self.scales.kind)

    def microscaled(self) -> Microscaled:
        """The same weight in blocks of 32 columns with E8M0 scales.

        Raises:
            UnsupportedError: a scale is no power of two, 32 columns have two scales, or the elements are no FP8 of OCP.
        """
        scales = self.regrid((1, 32))
        if scales is None or self.element not in ("F8_E4M3", "F8_E5M2") or self.factor is not None:
            raise UnsupportedError(f"{self.element} elements in blocks of {list(self.block)} are no MXFP8")
        fraction, power = np.frexp(scales.float32())
        exponent = 1 - power if self.inverse else power - 1
        if np.any((fraction != 0.5) | (exponent < -127) | (exponent > 127)):
            raise UnsupportedError("a scale is no power of two, which MXFP8 needs")
        bits = Plane((exponent + 127).astype(np.uint8), "F8_E8M0")
        return Microscaled(self.shape, ByteCodes(self.data.view(np.uint8)), self.element, bits, "F8_E8M0", 32)

    def native(self, kind: str) -> Native | None:
        codes = ByteCodes(self.data.view(np.uint8)).native()
        if codes is None or self.inverse or self.factor is not None:
            return None
        integers = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
        table = integers if self.element == "I8" else element_values(self.element)
        scales = self._of_rows(slice(0, self.rows), kind if self.rounds_scale else "F32")
        return Native(codes, self.columns, "table", self.block[1], scales, table=table)

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, kind if self.rounds_scale else "F32")

    def _values(self, rows: slice, scale_kind: str) -> NDArray[np.float32]:
        found = self.data[rows]
        elements = found.astype(np.float32) if self.element == "I8" else element_values(self.element)[found]
        of_row = self._of_rows(rows, scale_kind)
        scales = of_row if of_row.shape[1] == 1 else np.repeat(of_row, self.block[1], axis=1)[:, : self.columns]
        with np.errstate(all="ignore"):
            scaled: NDArray[np.float32] = elements / scales if self.inverse else elements * scales
            return scaled if self.factor is None else scaled * self.factor

    def _of_rows(self, rows: slice, kind: str) -> NDArray[np.float32]:
        """The scales of rows, rounded to ``kind``: (rows, column blocks)."""
        start, stop, _ = rows.indices(self.rows)
        matrix, row = np.divmod(np.arange(start, stop), self.shape[-2])
        of_row: NDArray[np.float32] = rounded(self.scales.float32(), kind)[
            matrix * self.grid(self.block)[0] + row // self.block[0]
        ]
        return of_row


@dataclass(frozen=True, eq=False)
class ColumnScaled(Form):
    """w = value * factor of its column, for factors that a checkpoint stores apart from the weight.

    Attributes:
        inner: the weight without the factors.
        factors: F32, F16 or BF16, (columns,).
    """

    shape: tuple[int, ...]
    inner: Form
    factors: Plane

    def __post_init__(self) -> None:
        if self.inner.shape != self.shape or self.factors.shape != (self.columns,):
            raise FormatError(
                f"{list(self.factors.shape)} factors of columns do not fit a weight of shape {list(self.inner.shape)}"
            )

    def values(self, rows: slice) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):
            scaled: NDArray[np.float32] = self.inner.values(rows) * self.factors.float32()
        return scaled
