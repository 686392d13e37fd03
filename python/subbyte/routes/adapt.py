"""Steps from one form to another that keep every value, or say what rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import UnsupportedError
from subbyte.forms import (
    Affine,
    Biased,
    BlockScaled,
    ByteCodes,
    Codes,
    DualScaled,
    FloatZero,
    Form,
    Ternary,
    TwoLevel,
)
from subbyte.forms.codes import CodeArray
from subbyte.planes import FLOATS, Plane, float_plane
from subbyte.routes.fit import Fit, MisfitError

_MOST_CHANGE = 2.0**-8

#: Rows that are looked at together where a decision needs the codes themselves.
_ROWS = 256


def narrowest(values: NDArray[np.float32]) -> Plane:
    """The values in the smallest float type that holds them all: F16, BF16, else F32."""
    for kind in ("F16", "BF16"):
        found = float_plane(values, kind)
        if np.array_equal(found.float32(), values, equal_nan=True):
            return found
    return Plane(np.ascontiguousarray(values, np.float32), "F32")


def affine(form: Form) -> Fit:
    """The weight as (code - zero) * scale with integer zeros.

    Raises:
        MisfitError: its zeros or biases are no integers in units of the scale, or it is of another family.
    """
    if isinstance(form, Affine):
        return Fit(form)
    if isinstance(form, Ternary):
        multipliers = np.broadcast_to(form.multipliers(), (form.rows, form.multipliers().shape[1]))
        scales = narrowest(np.ascontiguousarray(multipliers))
        bound = 2.0**-24 if form.inverse else 0.0
        group_size = form.group_size if scales.shape[1] > 1 else form.columns
        integers = Affine(form.shape, form.codes, scales, 1, group_size)
        if not bound:
            return Fit(integers)
        return Fit(integers, "rounded", bound=bound, why="the reciprocal of the scale rounds")
    if isinstance(form, BlockScaled) and form.element == "I8" and not form.inverse:
        return _of_integers(form)
    if isinstance(form, TwoLevel):
        # The integers of 8 bits that the codes become, with the scale of their row.
        codes = FirstLevelCodes(form)
        return Fit(Affine(form.shape, codes, form.row_scales, 128, form.columns), "exact-value")
    if isinstance(form, DualScaled):
        form = as_float_zero(form)
    if isinstance(form, FloatZero) and len(form.scales.shape) == 2:
        zeros = form.zeros.float32()
        return Fit(Affine(form.shape, form.codes, form.scales, _integers(zeros), form.group_size))
    if isinstance(form, Biased):
        steps, biases = form.scales.float32().astype(np.float64), form.biases.float32().astype(np.float64)
        with np.errstate(all="ignore"):
            zeros = np.where(biases == 0, 0, -biases / steps)
        whole = _integers(zeros) + np.int16(form.signed)
        if np.any(-(whole - form.signed) * steps != biases):
            raise MisfitError("a bias is no whole multiple of its scale")
        if np.abs(whole).max(initial=0) > 1 << form.codes.bits:
            raise MisfitError("a bias is too far from the codes for an integer zero point")
        return Fit(Affine(form.shape, form.codes, form.scales, whole, form.group_size))
    raise MisfitError(f"a {_family(form)} has no integer codes with scales")


def _of_integers(form: BlockScaled) -> Fit:
    height, width = form.block
    if len(form.shape) > 2 and height > 1:
        raise MisfitError("integers of several matrices in blocks of rows")
    rows = np.arange(form.rows) // height
    scales = Plane(np.ascontiguousarray(form.scales.data[rows]), form.scales.kind)
    if scales.kind not in FLOATS:
        scales = narrowest(scales.float32())
    step = Fit(form)
    if form.factor is not None:
        scales = Plane(scales.float32() * form.factor, "F32")
        step = Fit(form, "rounded", bound=2.0**-23, why="scales round when they are multiplied by their factor")
    return step.then(Affine(form.shape, ByteCodes(form.data, offset=128), scales, 128, width))


def as_float_zero(form: DualScaled) -> FloatZero:
    """The weight without the scales of its columns.

    Raises:
        MisfitError: they are not all 1, or codes are looked up in a table.
    """
    if form.table is not None or np.any(form.column_scales.float32() != 1):
        raise MisfitError("columns have scales of their own" if form.table is None else "a table of floats")
    return FloatZero(form.shape, form.codes, form.scales, form.zeros, form.group_size, form.compute)


def _integers(values: NDArray[np.floating]) -> NDArray[np.int16]:
    with np.errstate(all="ignore"):
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 512 or np.any(values != np.rint(values)):
            raise MisfitError("a zero point is no integer")
    return values.astype(np.int16)


def _family(form: Form) -> str:
    return {
        "Table": "table of floats", "Microscaled": "weight of small floats", "BlockScaled": "weight of 8-bit floats",
    }.get(type(form).__name__, type(form).__name__.lower())  # fmt: skip


@dataclass(frozen=True, eq=False)
class FirstLevelCodes(Codes):
    """The integers of 8 bits of a weight of two levels, plus 128.

    Attributes:
        source: the weight.
    """

    source: TwoLevel
    bits: int = 8

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.source.rows, self.source.columns

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        return self.source.int8(rows).view(np.uint8) ^ np.uint8(128)


@dataclass(frozen=True, eq=False)
class ShiftedCodes(Codes):
    """The codes of a symmetric weight: code - zero of another one, plus the middle of the range.

    Attributes:
        source: the weight whose differences they are.
        bits: 1 to 8.
        trits: 1 is added, not the middle of the range.
    """

    source: Affine
    bits: int
    trits: bool = False

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.source.codes.shape

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        middle = 1 if self.trits else 1 << (self.bits - 1)
        found = self.source.differences(slice(start, stop)) + np.int16(middle)
        if found.size and (found.min() < 0 or found.max() >> self.bits):
            raise MisfitError(f"code less zero point is out of the range of {self.bits} bits")
        return found.astype(np.uint8)


def difference_range(form: Affine, least: int, most: int) -> tuple[int, int]:
    """The smallest and the largest code - zero, or one outside ``least`` to ``most``, which ends the search."""
    low, high = 0, 0
    for start in range(0, form.rows, _ROWS):
        found = form.differences(slice(start, min(start + _ROWS, form.rows)))
        if found.size:
            low, high = min(low, int(found.min())), max(high, int(found.max()))
        if low < least or high > most:
            break
    return low, high


def symmetric(form: Affine, bits: int) -> Fit:
    """The weight with zeros in the middle of codes of ``bits`` bits: nothing rounds, the scales stay.

    A difference of codes and zeros of b bits always has room in b + 1 bits; in fewer, the codes decide.

    Raises:
        MisfitError: a difference has no room.
    """
    if bits == form.codes.bits and form.symmetric:
        return Fit(form)
    top = (1 << form.codes.bits) - 1
    zeros = np.asarray(form.zeros)
    low, high = -int(zeros.max(initial=0)), top - int(zeros.min(initial=top))
    half = 1 << (bits - 1)
    if low < -half or high >= half:
        low, high = difference_range(form, -half, half - 1)
    if low < -half or high >= half:
        raise MisfitError(
            f"code less zero point reaches {low if low < -half else high}: {bits} symmetric bits hold {-half} to "
            f"{half - 1}"
        )
    return Fit(replace(form, codes=ShiftedCodes(form, bits), zeros=half), "exact-value")


def zero_range(form: Affine) -> tuple[int, int]:
    """The smallest and the largest zero point."""
    zeros = np.asarray(form.zeros)
    return int(zeros.min(initial=int(zeros.flat[0]))), int(zeros.max(initial=0))


def with_bits(form: Affine, bits: int) -> Fit:
    """The weight with codes of ``bits`` bits: as it is, or symmetric with more bits.

    Raises:
        MisfitError: codes have no room.
    """
    return Fit(form) if bits == form.codes.bits else symmetric(form, bits)


def with_scales(form: Affine, kind: str) -> Fit:
    """The weight with scales of type ``kind``, rounded where they have to be.

    Raises:
        MisfitError: a scale would become infinite or zero.
    """
    try:
        return Fit(form.rescaled(kind))
    except UnsupportedError:
        exact = form.scales.float32()
        scales = float_plane(exact, kind)
        found = scales.float32()
        if not np.isfinite(found).all() or np.any((found == 0) != (exact == 0)):
            raise MisfitError(f"a scale is out of the range of {kind}") from None
        with np.errstate(all="ignore"):
            change = np.abs(found - exact) / np.abs(exact)
        bound = _bounded(float(np.nanmax(np.where(exact == 0, 0, change))), "scale", kind)
        return Fit(replace(form, scales=scales), "rounded", bound=bound, why=f"scales round to {kind}")


def in_groups(form: Affine, size: int) -> Affine:
    """The weight in groups of ``size`` columns.

    Raises:
        MisfitError: a group would need several scales.
    """
    try:
        return form.regrouped(size)
    except UnsupportedError as e:
        raise MisfitError(e.message) from None


def biased(form: Form, kind: str) -> Fit:
    """The weight as code * scale + bias with unsigned codes, both in ``kind``, rounded where it has to be.

    Raises:
        MisfitError: columns are out of order, a parameter is out of range, or it is of another family.
    """
    if isinstance(form, Biased):
        return _rebiased(form, kind)
    if isinstance(form, DualScaled):
        form = as_float_zero(form)
    if isinstance(form, FloatZero):
        return _of_float_zeros(form, kind)
    step = affine(form)
    found = step.form
    if not isinstance(found, Affine):
        raise TypeError("an affine form")
    sums = _sums(found) if kind == "F32" else Fit(found)
    step = step.then(found, sums.kind, sums.bound, sums.why)
    try:
        return step.then(found.biased(kind))
    except UnsupportedError as e:
        if found.group_of is not None:
            raise MisfitError(e.message) from None
    scaled = with_scales(found, kind)
    step, found = step.then(scaled.form, scaled.kind, scaled.bound, scaled.why), scaled.form
    if not isinstance(found, Affine):
        raise TypeError("scales of an affine form")
    exact = found.scales.float32().astype(np.float64) * -np.asarray(found.zeros, np.float64)
    biases, bound = _narrowed(exact, kind, "bias")
    whole = Biased(found.shape, found.codes, found.scales, biases, found.group_size)
    return step.then(whole, "rounded" if bound else "exact", bound, f"biases round to {kind}" if bound else "")


def _sums(form: Affine) -> Fit:
    """How well code * scale + bias in float32 is (code - zero) * scale: products of many digits round on their own."""
    if significant_bits(form.scales) + form.codes.bits + 1 <= 24:
        return Fit(form)
    return Fit(form, "rounded", bound=2.0**-22, why="products with scales of many digits round before biases are added")


def significant_bits(plane: Plane) -> int:
    """The most digits that a number of a float plane has between its first and its last binary 1."""
    if plane.kind != "F32":
        return 11 if plane.kind == "F16" else 8
    bits = plane.float32().view(np.uint32) & np.uint32(0x7FFFFF)
    lowest = bits & (~bits + np.uint32(1))
    return 24 - int(np.log2(lowest[lowest > 0].min(initial=1 << 23)))


def _rebiased(form: Biased, kind: str) -> Fit:
    if not form.signed and form.scales.kind == form.biases.kind == kind:
        return Fit(form)
    exact = form.scales.float32().astype(np.float64)
    scales, of_scales = _narrowed(exact, kind, "scale")
    biases, of_biases = _narrowed(form.biases.float32() - form.signed * exact, kind, "bias")
    bound = max(of_scales, of_biases)
    found = Biased(form.shape, form.codes, scales, biases, form.group_size)
    if form.signed:
        return Fit(found, "rounded", bound=bound + 2.0**-23, why="biases and sums round without the sign of the codes")
    return Fit(found, "rounded", bound=bound, why=f"scales and biases round to {kind}") if bound else Fit(found)


def _of_float_zeros(form: FloatZero, kind: str) -> Fit:
    if form.scales.data.ndim != 2:
        raise MisfitError("groups of the flattened weight do not follow its rows")
    exact = form.scales.float32().astype(np.float64)
    scales, of_scales = _narrowed(exact, kind, "scale")
    biases, of_biases = _narrowed(-form.zeros.float32().astype(np.float64) * exact, kind, "bias")
    found = Biased(form.shape, form.codes, scales, biases, form.group_size)
    bound = max(of_scales, of_biases) + 2.0**-23
    return Fit(found, "rounded", bound=bound, why=f"biases round to {kind}, and sums otherwise than differences")


def _narrowed(exact: NDArray[np.float64], kind: str, what: str) -> tuple[Plane, float]:
    """Parameters in ``kind``, and the largest relative change.

    Raises:
        MisfitError: one would become infinite, or zero.
    """
    with np.errstate(all="ignore"):
        plane = float_plane(exact.astype(np.float32), kind)
        found = plane.float32()
        change = np.abs(found - exact) / np.abs(exact)
    if not np.isfinite(found).all() or np.any((found == 0) != (exact == 0)):
        raise MisfitError(f"a {what} is out of the range of {kind}")
    return plane, _bounded(float(np.max(np.where(exact == 0, 0, change), initial=0)), what, kind)


def _bounded(change: float, what: str, kind: str) -> float:
    """A relative change of parameters that is no more than what rounding a normal number to 8 digits does.

    Raises:
        MisfitError: it is more.
    """
    if change > _MOST_CHANGE:
        raise MisfitError(f"a {what} is so small that it would change by {change:.2g} of itself in {kind}")
    return change


def rebased(form: Biased, size: int) -> Biased:
    """The weight in smaller groups of ``size`` columns, with the parameters repeated.

    Raises:
        MisfitError: a group would need several of them.
    """
    if form.group_size % size and form.group_size < form.columns:
        raise MisfitError(f"groups of {form.group_size} columns cannot be stored as groups of {size}")
    chosen = np.arange(-(-form.columns // size)) * size // form.group_size
    scales, biases = (Plane(np.ascontiguousarray(p.data[:, chosen]), p.kind) for p in (form.scales, form.biases))
    return replace(form, scales=scales, biases=biases, group_size=size)


def float_zeros(form: Form) -> Fit:
    """The weight as (code - zero) * scale with zeros that are floats.

    Raises:
        MisfitError: columns are out of order, or it is of another family.
    """
    if isinstance(form, DualScaled):
        form = as_float_zero(form)
    if isinstance(form, FloatZero):
        return Fit(form)
    if isinstance(form, Biased):
        steps = form.scales.float32().astype(np.float64)
        with np.errstate(all="ignore"):
            exact = form.signed - form.biases.float32() / steps
        exact = np.where((form.biases.float32() == 0), form.signed, exact)
        zeros, bound = _narrowed(exact, "F32", "zero point")
        if not bound:
            whole = np.all(exact == np.rint(exact))
            if whole and np.abs(exact).max(initial=0) <= 256:
                zeros = float_plane(exact.astype(np.float32), form.scales.kind)
                found = FloatZero(form.shape, form.codes, form.scales, zeros, form.group_size, form.scales.kind)
                return Fit(found)
        found = FloatZero(form.shape, form.codes, form.scales, zeros, form.group_size, "F32")
        return Fit(found, "rounded", bound=bound + 2.0**-23, why="zero points, -bias / scale, round to F32")
    step = affine(form)
    integers = step.form
    if not isinstance(integers, Affine):
        raise TypeError("an affine form")
    if integers.group_of is not None:
        raise MisfitError("columns are out of order (act-order)")
    kind = integers.scales.kind
    whole_zeros = np.broadcast_to(np.asarray(integers.zeros, np.float32), integers.scales.shape)
    return step.then(
        FloatZero(
            integers.shape, integers.codes, integers.scales, float_plane(np.ascontiguousarray(whole_zeros), kind),
            integers.group_size, kind,
        )
    )  # fmt: skip


def ternary(form: Form) -> Fit:
    """The weight as trits.

    Raises:
        MisfitError: code less zero point is not always -1, 0 or 1.
    """
    if isinstance(form, Ternary):
        return Fit(form)
    step = affine(form)
    found = step.form
    if not isinstance(found, Affine) or found.group_of is not None:
        raise MisfitError("columns are out of order (act-order)")
    low, high = difference_range(found, -1, 1)
    if low < -1 or high > 1:
        raise MisfitError(f"code less zero point runs from {low} to {high}: trits are -1, 0 and 1")
    bits = found.scales.data.view(f"u{found.scales.data.itemsize}")
    one = bits.size and np.all(bits == bits.reshape(-1)[0])
    scales = Plane(found.scales.data[:1, :1], found.scales.kind) if one else found.scales
    size = found.columns if one else found.group_size
    return step.then(Ternary(found.shape, ShiftedCodes(found, 2, trits=True), scales, size), "exact-value")


def bytes_by_row(form: Form) -> Fit:
    """The weight as integers of 8 bits with one scale a row.

    Raises:
        MisfitError: rows have several scales, or integers have no room.
    """
    if isinstance(form, BlockScaled) and form.element == "I8":
        scales = form.regrid((1, form.columns)) if form.factor is None else None
        if scales is not None and not form.inverse and scales.kind in FLOATS:
            return Fit(replace(form, scales=scales, block=(1, form.columns)))
    step = affine(form)
    found = step.form
    if not isinstance(found, Affine):
        raise TypeError("an affine form")
    if found.group_of is not None:
        raise MisfitError("columns are out of order (act-order)")
    wider = symmetric(in_groups(found, found.columns), 8)
    whole = wider.form
    if not isinstance(whole, Affine):
        raise TypeError("an affine form")
    data = (whole.codes.unpack() ^ np.uint8(128)).view(np.int8)
    return step.then(BlockScaled(found.shape, data, "I8", whole.scales, (1, found.columns)), wider.kind)
