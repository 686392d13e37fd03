"""Steps from one form of small floats to another that keep every value, or say what rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import UnsupportedError
from subbyte.forms import BlockScaled, Form, Microscaled
from subbyte.planes import FLOATS, Plane
from subbyte.routes.fit import Fit, MisfitError

HALF_ULP = 2.0**-24
"""The largest relative change of a float32 number that is rounded once."""

#: What the elements of the FNUZ types are in the types of OCP, whose bias is smaller by one.
_OCP = {"F8_E4M3FNUZ": ("F8_E4M3", (0x7F, 0xFF)), "F8_E5M2FNUZ": ("F8_E5M2", tuple(range(0x7C, 0x80)))}


def block_scaled(form: Form) -> Fit:
    """The weight as FP8 of OCP whose scales multiply, of type F32, F16, BF16 or E8M0.

    Raises:
        MisfitError: it is of another family, or has codes that OCP's types lack.
    """
    if isinstance(form, Microscaled) and form.plain and form.element.startswith("F8_"):
        return Fit(form.block_scaled())
    if not isinstance(form, BlockScaled) or form.element == "I8" or form.factor is not None:
        raise MisfitError("no 8-bit floats with scales")
    if form.element in _OCP:
        form = _without_fnuz(form)
    form = replace(form, rounds_scale=False)
    if not form.inverse:
        return Fit(form)
    turned, exact = reciprocal(form.scales)
    found = replace(form, scales=turned, inverse=False)
    return Fit(found) if exact else Fit(found, "rounded", bound=HALF_ULP, why="the reciprocals of the scales round")


def _without_fnuz(form: BlockScaled) -> BlockScaled:
    """The same bytes as types of OCP, with scales half as large (or twice, where they divide)."""
    element, missing = _OCP[form.element]
    data = form.data.view(np.uint8)
    absent = np.isin(data, (0x80, *missing, *(code | 0x80 for code in missing)))
    if absent.any():
        raise MisfitError(f"holds codes of {form.element} that {element} has no number for")
    with np.errstate(over="ignore"):
        scales = form.scales.float32() * np.float32(2 if form.inverse else 0.5)
    if not np.isfinite(scales).all():
        raise MisfitError("half of a scale is out of the range of F32")
    return replace(form, element=element, scales=Plane(scales, "F32"))


def standard_block(form: BlockScaled) -> tuple[int, int] | None:
    """Rows and columns of a block as settings for a whole model say them; None for one scale a matrix.

    Blocks are 128 long where a matrix is shorter than that.
    """
    sides = form.shape[-2:]
    if form.block[0] >= sides[0] and form.block[1] >= sides[1]:
        return None
    rows, columns = (max(step, 128) if step >= side else step for step, side in zip(form.block, sides, strict=True))
    return rows, columns


def regridded(form: BlockScaled, block: tuple[int, int]) -> Fit:
    """The weight with a scale for each block of ``block``, repeated as they are.

    Raises:
        MisfitError: a block would need two of them.
    """
    block = (min(block[0], form.shape[-2]), min(block[1], form.columns))
    scales = form.regrid(block)
    if scales is None:
        raise MisfitError(f"blocks of {list(form.block)} have scales of their own where {list(block)} share one")
    return Fit(replace(form, scales=scales, block=block))


def float_scales(form: BlockScaled) -> BlockScaled:
    """The weight with scales that are F32, F16 or BF16; powers of two become F32."""
    if form.scales.kind in FLOATS:
        return form
    return replace(form, scales=Plane(form.scales.float32(), "F32"))


def microscaled(form: Form, element: str, scale_kind: str, block: int) -> Fit:
    """The weight as ``element`` in blocks of ``block`` columns with scales of type ``scale_kind``.

    Raises:
        MisfitError: it is something else.
    """
    wanted = f"{element} in blocks of {block} with {scale_kind[3:]} scales"
    if isinstance(form, BlockScaled) and (scale_kind, block) == ("F8_E8M0", 32) and form.element == element:
        try:
            form = form.microscaled()
        except UnsupportedError as e:
            raise MisfitError(e.message) from None
    if not isinstance(form, Microscaled) or (form.element, form.scale_kind, form.block) != (element, scale_kind, block):
        raise MisfitError(f"no {wanted}")
    if form.columns % block:
        raise MisfitError(f"rows of {form.columns} columns are no whole blocks of {block}")
    return Fit(form)


def tensor_scale(form: Microscaled, kind: str | None) -> Fit:
    """The weight with its scale of the tensor as a target keeps it.

    Conventions for NVFP4 differ: ``multiplier`` (ModelOpt, torchao, GGUF), ``divisor`` (compressed-tensors), and
    ``maximum``, the largest magnitude, a 2688th of which multiplies (MLX). None is for formats without one. Reciprocals
    and quotients round.

    Raises:
        MisfitError: there is no place for the scale, or it is out of range.
    """
    if form.plain:
        one = np.float32(1)
        if kind == "divisor":
            return Fit(replace(form, divisor=one))
        return Fit(replace(form, multiplier=one) if kind == "multiplier" else form)
    exact, own = _multiplier(form)
    if own == kind:
        return Fit(form)
    if kind is None:
        raise MisfitError("a scale of the tensor, which the format has no place for")
    if np.size(exact) != 1:
        raise MisfitError("every matrix has a scale of its own, where the format has one for all")
    scale = np.float64(np.reshape(exact, ())[()])
    if not scale or not np.isfinite(scale):
        raise MisfitError(f"a scale of the tensor that is {scale:g}")
    bare = replace(form, multiplier=None, divisor=None, maximum=None)
    with np.errstate(all="ignore"):
        if kind == "divisor":
            stored = np.float32(1 / scale)
            held, found = 1 / np.float64(stored), replace(bare, divisor=stored)
        elif kind == "multiplier":
            stored = np.float32(scale)
            held, found = np.float64(stored), replace(bare, multiplier=stored)
        else:
            stored = np.float32(scale * 2688)
            held, found = np.float64(stored / np.float32(2688)), replace(bare, maximum=stored)
    if not np.isfinite(stored) or not stored:
        raise MisfitError("the scale of the tensor is out of range when it is turned over")
    change = abs(float(held / scale) - 1)
    power_of_two = np.frexp(stored)[0] == 0.5
    if not change and (power_of_two or "divisor" not in (own, kind)):
        return Fit(found)
    # A block's scale times or over that of the tensor is rounded once on either side.
    bound = change + 2 * HALF_ULP
    return Fit(found, "rounded", bound=bound, why="the scale of the tensor rounds when it is turned over")


def _multiplier(form: Microscaled) -> tuple[NDArray[np.float64], str]:
    """What multiplies the scales of blocks, as exactly as double precision has it, and which convention it follows."""
    with np.errstate(all="ignore"):
        if form.multiplier is not None:
            return np.asarray(form.multiplier, np.float64), "multiplier"
        if form.divisor is not None:
            return 1 / np.asarray(form.divisor, np.float64), "divisor"
        return np.asarray(np.float32(form.maximum or 0) / np.float32(2688), np.float64), "maximum"


def reciprocal(scale: Plane) -> tuple[Plane, bool]:
    """1 / a scale in float32, and whether that is exact.

    Raises:
        MisfitError: it is out of range.
    """
    stored = scale.float32()
    with np.errstate(all="ignore"):
        turned = np.float32(1) / stored
    if not np.isfinite(turned).all() or not np.all(turned):
        raise MisfitError("the reciprocal of a scale is out of the range of F32")
    powers = np.frexp(stored)[0]
    return Plane(np.asarray(turned, np.float32), "F32"), bool(np.all(np.abs(powers) == 0.5))


def float8(form: Form) -> BlockScaled:
    """The form, which is known to be FP8."""
    if not isinstance(form, BlockScaled):
        raise TypeError(f"expected 8-bit floats, found {form!r}")
    return form


def block_floats(form: Form) -> Microscaled:
    """The form, which is known to be microscaled."""
    if not isinstance(form, Microscaled):
        raise TypeError(f"expected floats in blocks, found {form!r}")
    return form
