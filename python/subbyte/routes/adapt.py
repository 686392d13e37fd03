"""Steps from one form to another that keep every value, or say what rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import UnsupportedError
from subbyte.forms import Affine, Biased, BlockScaled, ByteCodes, Codes, FloatZero, Form, Ternary
from subbyte.forms.codes import CodeArray
from subbyte.planes import FLOATS, Plane, float_plane
from subbyte.routes.fit import Fit, MisfitError

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
    if isinstance(form, BlockScaled) and form.element == "I8" and not form.inverse and form.factor is None:
        return _of_integers(form)
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
    return Fit(Affine(form.shape, ByteCodes(form.data, offset=128), scales, 128, width))


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
class ShiftedCodes(Codes):
    """The codes of a symmetric weight: code - zero of another one, plus the middle of the range.

    Attributes:
        source: the weight whose differences they are.
        bits: 1 to 8.
    """

    source: Affine
    bits: int

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.source.codes.shape

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        found = self.source.differences(slice(start, stop)) + np.int16(1 << (self.bits - 1))
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
        bound = float(np.nanmax(np.where(exact == 0, 0, change)))
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


def biased(form: Affine, kind: str) -> Fit:
    """The weight as code * scale + bias in ``kind``, rounded where it has to be.

    Raises:
        MisfitError: columns are out of order, or a parameter is out of range.
    """
    try:
        return Fit(form.biased(kind))
    except UnsupportedError as e:
        if form.group_of is not None:
            raise MisfitError(e.message) from None
    step = with_scales(form, kind)
    scaled = step.form
    if not isinstance(scaled, Affine):
        raise TypeError("scales of an affine form")
    exact = scaled.scales.float32() * -np.asarray(scaled.zeros, np.float32)
    biases = float_plane(exact, kind)
    if not np.isfinite(biases.float32()).all():
        raise MisfitError(f"a bias is out of the range of {kind}")
    with np.errstate(all="ignore"):
        change = np.abs(biases.float32() - exact) / np.abs(exact)
    bound = float(np.nanmax(np.where(exact == 0, 0, change), initial=0))
    found = Biased(scaled.shape, scaled.codes, scaled.scales, biases, scaled.group_size)
    return step.then(found, "rounded" if bound else "exact", bound, f"biases round to {kind}" if bound else "")
