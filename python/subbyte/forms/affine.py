"""Integers with a scale per group, and a zero point or a bias.

* `Affine`: w = (code - zero) * scale with integer zeros (GPTQ, AWQ, compressed-tensors, torchao).
* `Biased`: w = code * scale + bias (MLX, quanto, torchao tile formats).
* `FloatZero`: w = (code - zero) * scale with float zeros (HQQ, SINQ).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError, UnsupportedError
from subbyte.forms.base import Form, Native
from subbyte.forms.codes import Codes
from subbyte.planes import Plane, float_plane, rounded


def spread(values: NDArray[np.float32], columns: int, group_size: int) -> NDArray[np.float32]:
    """Values of groups, (rows, groups), repeated for each of ``columns`` columns."""
    if values.shape[1] == 1:
        return values
    return np.repeat(values, group_size, axis=1)[:, :columns]


@dataclass(frozen=True, eq=False)
class Affine(Form):
    """w = (code - zero) * scale.

    The difference is an integer and exact; the product is rounded to float32 (exact for 16-bit scales), and once more
    to a 16-bit result.

    Attributes:
        codes: (rows, columns).
        scales: F16, BF16 or F32, (rows, groups).
        zeros: int16, (rows, groups), in the range of the codes or one above it; one number if all are equal.
        group_size: columns of a group; the last group may be shorter.
        group_of: int32, (columns,): the group of each column where columns are not in order (act-order).
    """

    shape: tuple[int, ...]
    codes: Codes
    scales: Plane
    zeros: NDArray[np.int16] | int
    group_size: int
    group_of: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        rows, groups = self.scales.shape
        if self.codes.shape != (self.rows, self.columns) or rows != self.rows:
            raise FormatError(
                f"codes of shape {list(self.codes.shape)} and scales of shape {list(self.scales.shape)} do not fit a "
                f"weight of shape {list(self.shape)}"
            )
        if not isinstance(self.zeros, int) and self.zeros.shape != (rows, groups):
            raise FormatError(f"zero points of shape {list(self.zeros.shape)}: expected {[rows, groups]} as the scales")
        if self.group_of is None:
            if self.group_size < 1 or groups != -(-self.columns // self.group_size):
                raise FormatError(f"{groups} groups of {self.group_size} columns do not fit {self.columns} columns")
        elif self.group_of.shape != (self.columns,) or not 0 <= self.group_of.min() <= self.group_of.max() < groups:
            raise FormatError(f"the group of a column is out of range: expected {self.columns} numbers below {groups}")

    @property
    def symmetric(self) -> bool:
        """Whether every zero is the middle of the range of codes."""
        return bool(np.all(self.zeros == 1 << (self.codes.bits - 1)))

    def regrouped(self, group_size: int) -> Affine:
        """The same weight in groups of another size; one that exceeds the columns makes one group.

        Raises:
            UnsupportedError: a new group would need two scales or zeros, or columns have no order.
        """
        size, old = min(group_size, self.columns), min(self.group_size, self.columns)
        if size == old:
            return self
        if self.group_of is not None:
            raise UnsupportedError("the groups of columns out of order (act-order) cannot be divided anew")
        if size < 1 or (old % size and size % old and size != self.columns):
            raise UnsupportedError(f"groups of {old} columns cannot be stored as groups of {group_size}")
        groups = -(-self.columns // size)
        chosen = np.arange(groups) * size // old
        scales = Plane(np.ascontiguousarray(self.scales.data[:, chosen]), self.scales.kind)
        zeros = self.zeros if isinstance(self.zeros, int) else np.ascontiguousarray(self.zeros[:, chosen])
        if size > old:
            back = np.arange(self.scales.shape[1]) * old // size
            same = np.array_equal(scales.data[:, back], self.scales.data)
            if not same or (not isinstance(zeros, int) and not np.array_equal(zeros[:, back], self.zeros)):
                raise UnsupportedError(
                    f"groups of {old} columns differ where one group of {group_size} has to hold them"
                )
        return replace(self, scales=scales, zeros=zeros, group_size=size)

    def rescaled(self, kind: str) -> Affine:
        """The same weight with scales of type ``kind`` (F16, BF16, F32).

        Raises:
            UnsupportedError: a scale would round.
        """
        if kind == self.scales.kind:
            return self
        exact = self.scales.float32()
        scales = float_plane(exact, kind)
        if not np.array_equal(scales.float32(), exact, equal_nan=True):
            raise UnsupportedError(f"a scale of type {self.scales.kind} is no {kind} number")
        return replace(self, scales=scales)

    def biased(self, kind: str | None = None) -> Biased:
        """The same weight with biases -zero * scale.

        Args:
            kind: type of scales and biases; that of the scales if None.

        Raises:
            UnsupportedError: a bias or scale does not fit the type exactly, or columns are not in order.
        """
        kind = kind or self.scales.kind
        scales = self.scales.float32()
        with np.errstate(all="ignore"):
            biases = scales * -np.asarray(self.zeros, np.float32)
        if self.group_of is not None:
            raise UnsupportedError("groups are not in the order of the columns (act-order)")
        exact = scales.astype(np.float64) * -np.asarray(self.zeros, np.float64)
        found_scales, found_biases = float_plane(scales, kind), float_plane(biases, kind)
        if np.any(found_scales.float32() != scales) or np.any(found_biases.float32() != exact):
            raise UnsupportedError(f"a scale or bias cannot be stored as {kind} without rounding")
        return Biased(self.shape, self.codes, found_scales, found_biases, self.group_size)

    def _columns(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.group_of is not None:
            return values[:, self.group_of]
        return spread(values, self.columns, self.group_size)

    def differences(self, rows: slice) -> NDArray[np.int16]:
        """code - zero: int16, shape (rows, columns)."""
        codes = self.codes.unpack(rows).astype(np.int16)
        if isinstance(self.zeros, int):
            return codes - np.int16(self.zeros)
        zeros = self.zeros[rows]
        wide = zeros[:, self.group_of] if self.group_of is not None else np.repeat(zeros, self.group_size, axis=1)
        return codes - wide[:, : self.columns]

    def native(self, kind: str) -> Native | None:
        codes = self.codes.native()
        if codes is None:
            return None
        scales = self.scales.float32()
        zeros = np.broadcast_to(np.asarray(self.zeros, np.float32), scales.shape)
        return Native(codes, self.columns, "affine", self.group_size, scales, zeros, group_of=self.group_of)

    def values(self, rows: slice) -> NDArray[np.float32]:
        scales = self._columns(Plane(self.scales.data[rows], self.scales.kind).float32())
        with np.errstate(all="ignore"):
            scaled: NDArray[np.float32] = self.differences(rows).astype(np.float32) * scales
        return scaled


@dataclass(frozen=True, eq=False)
class Biased(Form):
    """w = code * scale + bias, each step rounded in the type of the scales.

    Attributes:
        codes: (rows, columns).
        scales, biases: F16, BF16 or F32, (rows, groups), of one type.
        group_size: columns of a group, which divides the columns.
        signed: subtracted from a code before it is scaled (for codes that the format stores with a sign).
        compute: F16, BF16 or F32: the type in which the original computes 16-bit results; that of the scales if None.
    """

    shape: tuple[int, ...]
    codes: Codes
    scales: Plane
    biases: Plane
    group_size: int
    signed: int = 0
    compute: str | None = None

    def __post_init__(self) -> None:
        _check_groups(self, self.codes, (self.scales, self.biases), self.group_size)

    def native(self, kind: str) -> Native | None:
        codes = self.codes.native()
        if codes is None or self.signed:
            return None
        scales, biases = self.scales.float32(), self.biases.float32()
        steps = _steps(self.compute or self.scales.kind)
        return Native(codes, self.columns, "biased", self.group_size, scales, biases, steps=steps)

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, self.compute or self.scales.kind)

    def _values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        codes = self.codes.unpack(rows).astype(np.float32) - np.float32(self.signed)
        scales, biases = (Plane(p.data[rows], p.kind).float32() for p in (self.scales, self.biases))
        with np.errstate(all="ignore"):
            product = rounded(codes * spread(scales, self.columns, self.group_size), kind)
            return rounded(product + spread(biases, self.columns, self.group_size), kind)


@dataclass(frozen=True, eq=False)
class FloatZero(Form):
    """w = (code - zero) * scale with a float zero, each step rounded in ``compute``.

    Attributes:
        codes: (rows, columns).
        scales, zeros: F16, BF16 or F32, (rows, groups); or (groups,), for groups of the flattened weight.
        group_size: columns of a group, which divides the columns; elements of a group of the flattened weight.
        compute: F16, BF16 or F32: the type in which the original computes 16-bit results.
        strided: a group of the flattened weight is every ``groups``-th element, not ``group_size`` neighbours.
    """

    shape: tuple[int, ...]
    codes: Codes
    scales: Plane
    zeros: Plane
    group_size: int
    compute: str
    strided: bool = False

    def __post_init__(self) -> None:
        if len(self.scales.shape) != 1:
            _check_groups(self, self.codes, (self.scales, self.zeros), self.group_size)
            return
        groups = len(self.scales.data)
        if self.zeros.shape != (groups,) or groups * self.group_size != self.rows * self.columns:
            raise FormatError(
                f"scales of shape {list(self.scales.shape)} and zeros of shape {list(self.zeros.shape)} do not fit a "
                f"weight of shape {list(self.shape)} in groups of {self.group_size}"
            )

    def native(self, kind: str) -> Native | None:
        codes = self.codes.native()
        if codes is None or self.strided:
            return None
        scales, zeros = self.scales.float32(), self.zeros.float32()
        flat = len(self.scales.shape) == 1
        steps = _steps(self.compute)
        return Native(codes, self.columns, "affine", self.group_size, scales, zeros, flat=flat, steps=steps)

    def values(self, rows: slice) -> NDArray[np.float32]:
        return self._values(rows, "F32")

    def rounded_values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        return self._values(rows, self.compute)

    def _values(self, rows: slice, kind: str) -> NDArray[np.float32]:
        codes = self.codes.unpack(rows).astype(np.float32)
        with np.errstate(all="ignore"):
            difference = rounded(codes - self._of_elements(self.zeros, rows), kind)
            return rounded(difference * self._of_elements(self.scales, rows), kind)

    def _of_elements(self, parameters: Plane, rows: slice) -> NDArray[np.float32]:
        if len(parameters.shape) == 2:
            return spread(Plane(parameters.data[rows], parameters.kind).float32(), self.columns, self.group_size)
        start, stop, _ = rows.indices(self.rows)
        element = np.arange(start * self.columns, stop * self.columns)
        group = element % len(parameters.data) if self.strided else element // self.group_size
        return parameters.float32()[group].reshape(-1, self.columns)


def _steps(compute: str) -> str | None:
    return None if compute == "F32" else compute


def _check_groups(form: Form, codes: Codes, parameters: tuple[Plane, ...], group_size: int) -> None:
    expected = (form.rows, -(-form.columns // max(group_size, 1)))
    for found in parameters:
        if found.shape != expected or codes.shape != (form.rows, form.columns):
            raise FormatError(
                f"codes of shape {list(codes.shape)} and group parameters of shape {list(found.shape)} do not fit a "
                f"weight of shape {list(form.shape)} in groups of {group_size}"
            )
