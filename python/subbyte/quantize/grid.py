"""The grids that codes of integer formats form, and matrices quantized to them.

A group of values x with a scale s and a zero z becomes the codes clip(rint(x / s + z), 0, 2^bits - 1), which stand for
s * (code - z). Searches compare parameters as they are stored, rounded to the format's type, so that what they find is
the best of what can be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.errors import ArgumentError, NonFiniteError, UnsupportedError
from subbyte.forms import Affine, Biased, ByteCodes, FloatZero
from subbyte.planes import rounded

Floats = NDArray[np.float32]

#: Elements that are worked on at a time, so that they stay in the caches.
_CHUNK = 1 << 16
#: Scales are at least this: what is left of smaller ones after rounding, and their inverses, are still usable.
_LEAST_SCALE = {"F16": np.float32(2.0**-24), "BF16": np.float32(2.0**-126), "F32": np.float32(2.0**-126)}
LARGEST_ZERO = {"integer": np.inf, "float": 2.0**11, "bias": 2.0**14}
"""Zeros from minimum and maximum are at most this: float16 holds whole numbers up to 2^11, and beyond 2^14, where
a group hardly varies, float32 could not tell its codes apart."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What the codes of a format can stand for.

    Attributes:
        bits: 1 to 8.
        group_size: columns of a group; the last one of a row may be shorter.
        symmetric: every zero is the middle of the codes, 2^(bits - 1).
        zeros: ``"integer"``: zeros are among the codes; ``"float"``: any; ``"bias"``: the product with the scale is
            stored, as s * (code - signed) + bias.
        kind: F16, BF16 or F32: the type of scales, float zeros and biases.
        signed: what is subtracted from a code before it is scaled, with biases.
    """

    bits: int
    group_size: int
    symmetric: bool = False
    zeros: str = "integer"
    kind: str = "F16"
    signed: int = 0

    @property
    def largest(self) -> np.float32:
        """The largest code."""
        return np.float32((1 << self.bits) - 1)

    @property
    def middle(self) -> np.float32:
        """The zero of a symmetric grid."""
        return np.float32(1 << (self.bits - 1))

    def span(self, groups: Floats) -> tuple[Floats, Floats]:
        """The range that the codes of each group have to cover: from minimum to maximum.

        Integer zeros are among the codes, so that 0 is always in the range; that of a symmetric grid is as wide on both
        sides.
        """
        low, high = groups.min(axis=-1), groups.max(axis=-1)
        if self.zeros == "integer":
            low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        if self.symmetric:
            high = np.maximum(-low, high)
            low = -high
        return low, high

    def min_max(self, groups: Floats) -> tuple[Floats, Floats]:
        """Scales and zeros from the range of each group."""
        with np.errstate(all="ignore"):
            low, high = self.span(groups)
            scales = (high - low) / self.largest
            scales = np.maximum(scales, np.maximum(-low, high) / np.float32(LARGEST_ZERO[self.zeros]))
            scales = np.maximum(scales, _LEAST_SCALE[self.kind])
            return self.stored(scales, -low / scales)

    def stored(self, scales: Floats, zeros: Floats) -> tuple[Floats, Floats]:
        """Scales and zeros as they can be stored."""
        with np.errstate(all="ignore"):
            scales = np.maximum(rounded(scales, self.kind), _LEAST_SCALE[self.kind])
            if self.symmetric:
                zeros = np.full_like(scales, self.middle)
            elif self.zeros == "integer":
                zeros = np.clip(np.rint(zeros), np.float32(0), self.largest)
            elif self.zeros == "float":
                zeros = rounded(zeros, self.kind)
            else:
                zeros = self.signed - rounded((self.signed - zeros) * scales, self.kind) / scales
        return scales, zeros

    def codes(self, groups: Floats, scales: Floats, zeros: Floats) -> Floats:
        """The nearest codes: float32, shape of the groups."""
        codes = groups * (np.float32(1) / scales)[..., None]
        codes += zeros[..., None]
        np.rint(codes, out=codes)
        return np.clip(codes, np.float32(0), self.largest, out=codes)

    def errors(self, groups: Floats, scales: Floats, zeros: Floats) -> Floats:
        """What the nearest codes stand for, less the values."""
        found = self.codes(groups, scales, zeros)
        found -= zeros[..., None]
        found *= scales[..., None]
        found -= groups
        return found

    def loss(
        self, groups: Floats, weights: Floats, scales: Floats, zeros: Floats, norm: float = 2
    ) -> NDArray[np.float64]:
        """Weighted sum of the errors' powers of each group; infinite where it is not a number."""
        with np.errstate(all="ignore"):
            errors = self.errors(groups, scales, zeros)
            powers = np.square(errors, out=errors) if norm == 2 else np.abs(errors) ** np.float32(norm)
            powers *= weights
            found: NDArray[np.float64] = powers.sum(axis=-1).astype(np.float64)
        found[~np.isfinite(found)] = np.inf
        return found


@dataclass(frozen=True, eq=False)
class Outliers:
    """Values that are kept as they are.

    Attributes:
        rows, columns: where they are, ordered by rows: int64.
        values: float32.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized matrix.

    Attributes:
        grid: what the codes stand for.
        codes: uint8, (rows, columns).
        scales: float32, (rows, groups), numbers of the grid's type.
        zeros: float32, (rows, groups): w = (code - zero) * scale.
        outliers: values that take the place of what their codes stand for; None for none.
    """

    grid: Grid
    codes: NDArray[np.uint8]
    scales: Floats
    zeros: Floats
    outliers: Outliers | None = None

    def form(self, shape: tuple[int, ...] | None = None) -> Affine | FloatZero | Biased:
        """The canonical form, of shape ``shape`` (that of the matrix if None), without the outliers.

        Raises:
            NonFiniteError: a scale, zero or bias is too large for the type of the grid.
        """
        grid, size = self.grid, shape or self.codes.shape
        codes = ByteCodes(self.codes, grid.bits)
        scales = _planes.finite_plane(self.scales, grid.kind)
        if grid.zeros == "integer":
            zeros = int(grid.middle) if grid.symmetric else self.zeros.astype(np.int16)
            return Affine(size, codes, scales, zeros, grid.group_size)
        if grid.zeros == "float":
            return FloatZero(
                size, codes, scales, _planes.finite_plane(self.zeros, grid.kind), grid.group_size, grid.kind
            )
        with np.errstate(all="ignore"):
            biases = _planes.finite_plane((grid.signed - self.zeros) * self.scales, grid.kind)
        return Biased(size, codes, scales, biases, grid.group_size, signed=grid.signed)

    def dense(self) -> Floats:
        """The values that codes and outliers stand for: float32, (rows, columns)."""
        found = self.form().values(slice(0, len(self.codes)))
        if self.outliers is not None:
            found[self.outliers.rows, self.outliers.columns] = self.outliers.values
        return found


def writer_only(params: Mapping[str, Any], what: str) -> None:
    """Refuses a ``method`` among a format's parameters where there is only the rule of the format's own library.

    Raises:
        UnsupportedError: there is one; ``what`` says of what.
    """
    if params.get("method", "writer") != "writer":
        raise UnsupportedError(f"{what} have no other method than writer, not {params['method']!r:.40}")


def checked_values(values: Any) -> Floats:
    """A matrix to quantize: float32, (rows, columns).

    Raises:
        ArgumentError: it is no matrix of floats, or empty.
        NonFiniteError: NaN or infinity.
    """
    found = _planes.source(values)
    if found.data.ndim != 2 or not found.data.size:
        raise ArgumentError(f"an array of shape {list(found.shape)}: expected a matrix with elements")
    return found.float32()


def checked_weights(importance: Any, hessian: Any, columns: int) -> Floats | None:
    """Weights of the columns, (columns,), with a mean of 1: the importance, else the diagonal of the Hessian.

    Raises:
        ArgumentError: another shape, or a negative number.
        NonFiniteError: NaN or infinity.
    """
    if hessian is not None:
        matrix = np.asarray(hessian)
        if matrix.shape != (columns, columns):
            raise ArgumentError(f"a Hessian of shape {list(matrix.shape)}: expected {[columns, columns]}")
        importance = np.diagonal(matrix) if importance is None else importance
    if importance is None:
        return None
    found = np.asarray(importance, np.float64)
    if found.shape != (columns,):
        raise ArgumentError(f"importance of shape {list(found.shape)}: expected {[columns]}, one number for a column")
    if not np.isfinite(found).all():
        raise NonFiniteError("the importance holds NaN or infinity", column=int(np.argmin(np.isfinite(found))))
    if found.min() < 0:
        raise ArgumentError(f"the importance of column {int(found.argmin())} is negative")
    largest = found.max()
    scaled = found / largest if largest > 0 else np.ones(columns)
    return np.asarray(scaled / scaled.mean(), np.float32)


def chunks(values: Floats, weights: Floats | None, group_size: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """Ranges of rows, with their values and weights in groups.

    The last group of a row is filled up with its last value, without a weight. Groups without any weight weigh 1.

    Yields:
        The rows; values (rows, groups, group_size); weights (1, groups, group_size).
    """
    rows, columns = values.shape
    groups = -(-columns // group_size)
    missing = groups * group_size - columns
    flat = np.ones(columns, np.float32) if weights is None else weights
    of_groups = np.pad(flat, (0, missing)).reshape(1, groups, group_size)
    needless = (of_groups.sum(axis=-1, keepdims=True) == 0) & np.ones((1, 1, group_size), bool)
    if missing:
        needless[0, -1, group_size - missing :] = False
    of_groups = np.where(needless, np.float32(1), of_groups)
    step = max(_CHUNK // columns, 1)
    for start in range(0, rows, step):
        part = values[start : start + step]
        wide = np.pad(part, ((0, 0), (0, missing)), mode="edge") if missing else part
        yield slice(start, start + len(part)), wide.reshape(len(part), groups, group_size), of_groups
