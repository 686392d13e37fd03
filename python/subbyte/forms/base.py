"""What all canonical forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native, arrays, planes
from subbyte.arrays import Array

#: Elements that are decoded at once where it takes NumPy.
_PIECE = 1 << 20


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

    @property
    def together(self) -> int:
        """Rows of a block that decode together: a part of a block costs as much as the whole."""
        return 1

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

    def decode_rows(self, rows: slice, dtype: Any = "float32", out: Array | None = None) -> Array:
        """Rows ``rows`` (a range with step 1 of all rows) in ``dtype``: shape (rows, columns).

        Args:
            rows: which.
            dtype: float32, float16, bfloat16 or float64.
            out: array to write into, C-contiguous, of the shape and ``dtype`` of the result.

        Raises:
            ArgumentError: ``dtype`` or ``out`` does not fit.
        """
        name = arrays.dtype_name(dtype)
        kind = planes.dtype_kind(name)
        result = arrays.destination(out, (rows.stop - rows.start, self.columns), arrays.result_dtype(name))
        if kind != "F64" and (native := self._natives(kind)) is not None:
            native.decode(rows, kind, result)
            return result
        step = -(-max(1, _PIECE // max(self.columns, 1)) // self.together) * self.together
        bounds = sorted({rows.start, *range(-(-rows.start // step) * step, rows.stop, step), rows.stop})
        for piece in (slice(*pair) for pair in pairwise(bounds)):
            found = self.rounded_values(piece, kind) if kind in ("F16", "BF16") else self.values(piece)
            planes.narrow(found, kind, result[piece.start - rows.start : piece.stop - rows.start])
        return result

    @cached_property
    def _found(self) -> dict[str, Native | None]:
        return {}

    def _natives(self, kind: str) -> Native | None:
        """What `native` gives, made once."""
        if kind not in self._found:
            self._found[kind] = self.native(kind)
        return self._found[kind]

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
        table: float32, a value for every code, at least 16.
        group_of: int32, (columns,): the group of each column, where columns are not in order.
        flat: groups run through the flattened weight.
        steps: F16 or BF16: what each step of 16-bit results is rounded to; None for float32.
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
    steps: str | None = None

    def decode(self, rows: slice, kind: str, out: Array) -> None:
        """Writes rows in the float type ``kind`` to ``out``: C-contiguous, shape (rows, columns)."""
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        steps = names[self.steps if self.steps is not None and kind != "F32" else "F32"]
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
                self.op,
                steps,
                rows.start,
                names[kind],
                arrays.as_bytes(out),
                group=self.group,
                flat=self.flat,
                **parameters,
            )
