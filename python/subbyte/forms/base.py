"""What all canonical forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native, arrays, planes
from subbyte.arrays import Array


class Form(ABC):
    """A quantized weight in the terms of its family, whatever format stores it.

    A form is cheap to make: it holds views of the stored planes, and works when rows are asked for.

    Attributes:
        shape: dense shape ``(..., rows, columns)``. Inside, leading dimensions are folded into the rows.
    """

    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of all matrices together."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Row length in elements."""
        return self.shape[-1]

    @abstractmethod
    def values(self, rows: slice) -> NDArray[np.float32]:
        """float32 values of rows ``rows`` (a range with step 1 of all rows): shape (rows, columns).

        They are the values of the format's definition computed in float32; where the original computes in a 16-bit
        type, see `rounded_values`.
        """

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        """What the original library returns in the 16-bit type ``kind`` (F16 or BF16), as float32.

        The default is `values`; the caller rounds it once.
        """
        return self.values(rows)

    def decode(self, dtype: Any = "float32") -> Array:
        """The dense weight, see `subbyte.decode`."""
        return self.decode_rows(slice(0, self.rows), dtype).reshape(self.shape)

    def decode_rows(self, rows: slice, dtype: Any = "float32") -> Array:
        """Rows ``rows`` (a range with step 1 of all rows) in ``dtype``: shape (rows, columns)."""
        kind = planes.dtype_kind(dtype)
        if kind != "F64" and (native := self.native(kind)) is not None:
            return native.decode(rows, kind)
        found = self.rounded_values(rows, kind) if kind in ("F16", "BF16") else self.values(rows)
        return planes.result(found, dtype)

    def native(self, kind: str) -> Native | None:
        """How the extension decodes the form to F32, F16 or BF16 with the same bits; None where it cannot."""
        return None


@dataclass(frozen=True, eq=False)
class Native:
    """Packed codes and their parameters as the extension takes them (`subbyte_core::pack::layer`).

    Attributes:
        codes: the codes.
        columns: of the weight.
        op: ``"affine"``, ``"biased"`` or ``"table"``.
        group: codes of a group.
        scales: float32, (rows, groups), or (groups,) with ``flat``.
        offsets: float32, like the scales; None for ``"table"``.
        table: float32, (16,).
        group_of: int32, (columns,): the group of each column, where columns are not in order.
        flat: groups run through the flattened weight.
    """

    codes: _native.PackedLayer
    columns: int
    op: str
    group: int
    scales: NDArray[np.float32]
    offsets: NDArray[np.float32] | None = None
    table: NDArray[np.float32] | None = None
    group_of: NDArray[np.int32] | None = None
    flat: bool = False

    def decode(self, rows: slice, kind: str) -> Array:
        """Rows in the float type ``kind``: shape (rows, columns)."""
        name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
        dtype = arrays.result_dtype(name)
        out = arrays.empty((rows.stop - rows.start, self.columns), dtype)
        parameters = {
            key: None if value is None else arrays.as_bytes(np.ascontiguousarray(value))
            for key, value in (
                ("scales", self.scales),
                ("offsets", self.offsets),
                ("table", self.table),
                ("group_of", self.group_of),
            )
        }
        if out.size:
            self.codes.decode(
                self.op, rows.start, name, arrays.as_bytes(out), group=self.group, flat=self.flat, **parameters
            )
        return out
