"""How a quantized layer is stored, in a few facts: what its codes stand for, their groups, their scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from subbyte.forms import (
    Affine,
    Biased,
    BlockScaled,
    DualScaled,
    FloatZero,
    Form,
    LowRank,
    Microscaled,
    RealBias,
    RowTable,
    Table,
    Ternary,
    TwoLevel,
)
from subbyte.planes import Plane

#: What the codes are, by form.
_WORDS = {
    Affine: "integer",
    Biased: "integer + bias",
    FloatZero: "integer, float zero",
    Table: "table",
    RowTable: "table by row",
    Ternary: "ternary",
    TwoLevel: "integer, two levels of scales",
    DualScaled: "integer, scales of rows and columns",
    RealBias: "small float, real exponent bias",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a layer is quantized; ``None`` stands for what does not apply, or cannot be told without reading much.

    Attributes:
        codes: what the codes are: ``integer``, ``E2M1``, ``table`` …
        bits: of a code.
        group: columns that share a scale, or rows x columns of a block.
        scales: element type of the scales.
        symmetric: whether every zero point is the middle of the codes.
        act_order: whether the columns of a group are no neighbours.
    """

    codes: str
    bits: int | None = None
    group: str | None = None
    scales: str | None = None
    symmetric: bool | None = None
    act_order: bool | None = None

    def __str__(self) -> str:
        facts = [self.codes]
        facts += [f"{self.bits} bits"] if self.bits is not None else []
        facts += [f"groups of {self.group}"] if self.group is not None else []
        facts += [f"scales {self.scales}"] if self.scales is not None else []
        facts += [] if self.symmetric is None else ["symmetric" if self.symmetric else "asymmetric"]
        facts += ["act-order"] if self.act_order else []
        return ", ".join(facts)


def scheme_of(form: Form, *, remote: bool = False) -> Scheme:
    """The scheme of a layer.

    Args:
        form: the layer.
        remote: its planes stand in for those of a remote file: only what headers tell is told.
    """
    inner = getattr(form, "inner", None)
    if isinstance(inner, Form):
        found = scheme_of(inner, remote=remote)
        beside = "low-rank part" if isinstance(form, LowRank) else "scales of columns"
        return Scheme(f"{found.codes} with {beside}", *_facts(found))
    codes, scales = getattr(form, "codes", None), getattr(form, "scales", None)
    kind = scales.kind if isinstance(scales, Plane) else None
    bits = getattr(codes, "bits", None)
    if isinstance(form, Microscaled):
        return Scheme(form.element, bits, str(form.block), form.scale_kind)
    if isinstance(form, BlockScaled):
        return Scheme(form.element, 8, " x ".join(map(str, form.block)), kind)
    words = next((text for known, text in _WORDS.items() if isinstance(form, known)), type(form).__name__.lower())
    size = getattr(form, "group_size", getattr(form, "block", None))
    group = None if size is None else "all columns" if size >= form.columns > 0 else str(size)
    if not isinstance(form, Affine):
        return Scheme(words, bits, group, kind)
    if remote:
        return Scheme(words, bits, group, kind)
    order = form.group_of is not None and bool(np.any(np.diff(form.group_of) < 0))
    return Scheme(words, bits, group, kind, form.symmetric, order)


def _facts(found: Scheme) -> tuple[Any, ...]:
    return found.bits, found.group, found.scales, found.symmetric, found.act_order


def parameters(form: Form) -> Iterator[tuple[str, Plane]]:
    """The planes of floats and zero points that the values of a layer are computed with, by their names."""
    inner = getattr(form, "inner", None)
    if isinstance(inner, Form):
        yield from parameters(inner)
    for name in ("scales", "biases", "zeros", "group_scales", "row_scales", "column_scales", "tables", "factors"):
        value = getattr(form, name, None)
        if isinstance(value, Plane):
            yield name, value
        elif isinstance(value, np.ndarray):
            yield name, Plane(value, "F32" if value.dtype.kind == "f" else f"I{8 * value.itemsize}")
