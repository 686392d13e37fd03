"""The first rows of a form as a form of its own, to see what a format makes of them without writing all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from subbyte.forms.base import Form
from subbyte.forms.coded import Coded
from subbyte.forms.codes import Codes
from subbyte.forms.dual import DualScaled
from subbyte.forms.scaled import BlockScaled
from subbyte.forms.tiled import CroppedCodes
from subbyte.planes import Plane

Signature = tuple[Any, ...]


def sample(form: Form, matrices: int, rows: int) -> Form | None:
    """A form of ``matrices`` matrices of ``rows`` rows that is made of the first rows of another one.

    Args:
        form: one matrix, or several along one leading axis.
        matrices, rows: at most as many as there are.

    Returns:
        None where parameters do not belong to rows.
    """
    if len(form.shape) > 3 or getattr(form, "stored", None):
        return None
    count = matrices * rows
    if isinstance(form, Coded):
        leading = (matrices,) if len(form.shape) == 3 else ()
        return None if form.ggml_type is None else form.first(count, (*leading, rows, form.columns))
    changed: dict[str, Any] = {"shape": (*((matrices,) if len(form.shape) == 3 else ()), rows, form.columns)}
    for field in fields(form):  # type: ignore[arg-type]
        value = getattr(form, field.name)
        if isinstance(value, Codes):
            changed[field.name] = CroppedCodes(value, (count, form.columns))
        elif isinstance(value, Form):
            inner = sample(value, matrices, rows)
            if inner is None:
                return None
            changed[field.name] = inner
        elif isinstance(form, BlockScaled) and field.name == "scales":
            continue
        elif isinstance(value, Plane | np.ndarray):
            cut = _cut(form, value, matrices, count)
            if cut is None:
                return None
            changed[field.name] = cut
    if isinstance(form, BlockScaled):
        down = matrices * -(-rows // min(form.block[0], rows))
        changed |= {"scales": Plane(form.scales.data[:down], form.scales.kind),
                    "block": (min(form.block[0], rows), form.block[1])}  # fmt: skip
    if isinstance(form, DualScaled):
        if form.tile != form.rows:
            return None
        changed["tile"] = rows
    return replace(form, **changed)  # type: ignore[type-var]


def _cut(form: Form, value: Plane | np.ndarray[Any, Any], matrices: int, count: int) -> Any:
    """Parameters of the first rows; those of columns, tables and the tensor are kept whole."""
    data = value.data if isinstance(value, Plane) else value
    if data.ndim == 1 and len(form.shape) == 3 and len(data) == form.shape[0]:
        found = data[:matrices]
    elif data.ndim == 1 and len(data) != form.columns and len(data) not in (16, 256):
        return None
    elif data.ndim == 2 and len(data) == form.rows:
        found = data[:count]
    else:
        found = data
    return Plane(found, value.kind) if isinstance(value, Plane) else found


def signature(form: Form) -> Signature:
    """What the sizes of a form's planes depend on: types and shapes of its parts, and its settings."""

    def of(value: Any) -> Any:
        if isinstance(value, Plane):
            return value.kind, value.shape
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape
        if isinstance(value, Codes):
            return value.bits, value.shape
        if isinstance(value, Form):
            return signature(value)
        if isinstance(value, Mapping):
            return tuple((name, of(part)) for name, part in value.items())
        return repr(value)

    return (type(form).__name__, *(of(getattr(form, field.name)) for field in fields(form)))  # type: ignore[arg-type]
