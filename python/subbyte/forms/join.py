"""One form from forms of ranges of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import prod
from typing import Any

import numpy as np

from subbyte.forms.base import Form
from subbyte.forms.codes import Codes, PackedCodes
from subbyte.forms.scaled import BlockScaled
from subbyte.planes import Plane


def compact(form: Form) -> Form:
    """The same form with its codes in as few bits as they have."""
    changed = {
        field.name: PackedCodes(value.stream(), value.bits, value.shape)
        for field in fields(form)  # type: ignore[arg-type]
        if isinstance(value := getattr(form, field.name), Codes)
    }
    return replace(form, **changed)  # type: ignore[type-var]


def join(forms: Sequence[Form], shape: tuple[int, ...]) -> Form | None:
    """The form of shape ``shape`` whose rows are those of the parts, one part after the other.

    Args:
        forms: of one or more ranges of rows, each with whole blocks of its scales.
        shape: (..., rows, columns); leading dimensions are folded into the rows.

    Returns:
        None where the parts differ in what they have in common: their type, element types, factors of columns.
    """
    first = forms[0]
    if any(type(form) is not type(first) for form in forms):
        return None
    changed: dict[str, Any] = {"shape": shape}
    whole = [form.scales for form in forms if isinstance(form, BlockScaled) and _one_scale(form)]
    if len(whole) == len(forms):
        if not all(_same(scales, whole[0]) for scales in whole):
            return None
        changed |= {"scales": whole[0], "block": (prod(shape[:-1]), first.columns)}
    for field in fields(first):  # type: ignore[arg-type]
        if field.name in changed:
            continue
        joined = _joined([getattr(form, field.name) for form in forms], forms, field.name)
        if joined is None:
            if getattr(first, field.name) is None:
                continue
            return None
        changed[field.name] = joined
    return replace(first, **changed)  # type: ignore[type-var]


#: Fields that belong to columns or to the whole weight, not to rows.
_SHARED = ("table", "group_of", "factors", "multiplier", "divisor", "maximum", "factor")


def _joined(values: Sequence[Any], forms: Sequence[Form], name: str) -> Any:
    """The value of a field for all rows; None where the parts have no common one."""
    first = values[0]
    if any((value is None) != (first is None) for value in values) or first is None:
        return None
    if isinstance(first, Codes):
        words = np.concatenate([value.stream() for value in values])
        return PackedCodes(words, first.bits, (len(words), first.shape[1]))
    if isinstance(first, Form):
        return join(values, (sum(form.rows for form in values), first.columns))
    if name in _SHARED:
        return first if all(_same(value, first) for value in values) else None
    if isinstance(first, Plane):
        if any(value.kind != first.kind for value in values):
            return None
        return Plane(np.concatenate([value.data for value in values]), first.kind)
    if name == "zeros" and not all(isinstance(value, int) and value == first for value in values):
        wide = [np.broadcast_to(value, form.scales.shape) for value, form in zip(values, forms, strict=True)]  # type: ignore[attr-defined]
        return np.concatenate(wide).astype(np.int16)
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    return first if all(value == first for value in values) else None


def _one_scale(form: BlockScaled) -> bool:
    """Whether one scale belongs to all of it, of several rows."""
    return form.scales.data.size == 1 and form.block[0] > 1


def _same(value: Any, first: Any) -> bool:
    if isinstance(first, Plane):
        return value.kind == first.kind and np.array_equal(value.data, first.data)
    return bool(np.array_equal(value, first))
