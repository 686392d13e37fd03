"""How far the values of a tensor are from those of its source, and whether that is what its class allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.types import FLOATS, quantized
from subbyte.convert.values import to_float32
from subbyte.forms import Biased, BlockScaled, Codes, DualScaled, FloatZero, Form, Microscaled
from subbyte.ggml import TYPES
from subbyte.layout import can_clip, clipped
from subbyte.routes import blocks
from subbyte.routes.fit import Grade

_ARITHMETIC = 2.0**-22
"""Relative error of a few float32 operations: formats multiply and add in different orders."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How the checked file stores a tensor.

    Attributes:
        type: ggml type, or dtype; F32 for a layer of a quantized checkpoint, whose values are decoded.
        bits: whole bits per weight of a quantized tensor; None for floats.
        form: the layer's form; None for a tensor of its own.
        scale: what its values are multiplied by, by row; None where that is 1.
    """

    type: str
    bits: int | None
    form: Form | None = None
    scale: NDArray[np.float32] | None = None


class Errors:
    """Running sums over the chunks of two tensors, in float64.

    Args:
        source: type in which the source's values are passed.
        stored: the checked tensor.
        grade: what its class promises; an empty kind promises nothing, and is found out.
    """

    def __init__(self, source: str, stored: Stored, grade: Grade) -> None:
        self.source, self.stored, self.grade = source, stored, grade
        self.clips = can_clip(stored.type) and stored.form is None and grade.kind not in ("exact", "exact-value")
        self.count = self.clipped = 0
        self.max = self.noise = self.signal = self.power = self.product = 0.0
        self.beyond = self.unequal = 0

    def add(
        self,
        source: NDArray[np.uint8],
        target: NDArray[np.uint8],
        columns: int,
        first: int,
        rounded: NDArray[np.uint8] | None = None,
    ) -> None:
        """Add rows of both, from row ``first`` on.

        Args:
            source: rows of the source.
            target: rows of the checked tensor.
            columns: their length.
            first: number of the first one.
            rounded: the same rows of the source in the checked tensor's own type, where they have to be equal to them.
        """
        if not all(name in TYPES and TYPES[name].decodes for name in (self.source, self.stored.type)):
            self.beyond += not np.array_equal(source, target)
            return
        values = to_float32(self.source, source, columns)
        if self.clips:
            self.clipped += clipped(self.stored.type, target, values.reshape(-1))
        want = values.astype(np.float64)
        got = to_float32(self.stored.type, target, columns).astype(np.float64)
        if self.stored.scale is not None:
            got = got * self.stored.scale[first : first + len(got), None]
        with np.errstate(invalid="ignore"):  # infinities are reported as such
            difference = np.abs(got - want)
        self.count += want.size
        self.max = float(np.maximum(self.max, difference.max(initial=0.0)))
        self.noise += _dot(difference, difference)
        self.signal += _dot(want, want)
        self.power += _dot(got, got)
        self.product += _dot(got, want)
        self.unequal += int(np.count_nonzero(difference))
        if rounded is not None:
            self.beyond += int(np.count_nonzero(got != to_float32(self.stored.type, rounded, columns)))
        else:
            self.beyond += int(np.count_nonzero(~(difference <= self._allowed(target, want, first))))

    def _allowed(self, target: NDArray[np.uint8], want: NDArray[np.float64], first: int) -> NDArray[np.float64] | float:
        """The difference that the class allows of each element."""
        stored = self.stored
        if stored.bits is None:
            return _half_unit(stored.type, self.source, want)
        form, rows = stored.form, slice(first, first + len(want))
        if form is None and self.grade.kind == "rounded":
            form, rows = blocks.form_of(stored.type, target, want.shape), slice(0, len(want))
        operands = _operands(form, rows)
        size = np.abs(want) if operands is None else np.maximum(np.abs(want), operands)
        if self.grade.kind == "rounded":
            return size * (self.grade.bound + _ARITHMETIC)
        inexact = stored.scale is not None or operands is not None
        return size * _ARITHMETIC if inexact else 0.0

    def kind(self, from_floats: bool) -> str:
        """The class: as promised, or what the values show."""
        if self.grade.kind:
            return self.grade.kind
        return "exact-value" if not self.beyond else "quantized" if from_floats else "requantized"

    def problem(self, name: str) -> str:
        """What is wrong with the values; empty where they are as they may be.

        An encoder of one bit scores a relative error of up to 0.85 on real weights, unrelated weights score about the
        root of 2.
        """
        kind = self.grade.kind
        if self.stored.bits is not None and kind not in ("exact", "exact-value", "rounded"):
            limit = min(2.0 ** (2 - self.stored.bits), 1.0)
            if not self.relative < limit:
                return f"relative error {self.relative:.3g}, {name} stays below {limit:.3g}"
            return ""
        if not self.beyond:
            return ""
        allowed = "differ by more than rounding" if kind == "rounded" else "differ, equal values are expected"
        return f"{self.beyond:,} elements {allowed}"

    @property
    def relative(self) -> float:
        """Frobenius norm of the difference over that of the source."""
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf if self.noise else 0.0

    def numbers(self) -> dict[str, float]:
        """The errors by the names that `Comparison` has for them."""
        relative = self.relative
        angle = self.product / math.sqrt(self.signal * self.power) if self.signal and self.power else not self.noise
        return {
            "max_error": self.max,
            "rms_error": math.sqrt(self.noise / max(self.count, 1)),
            "relative_error": relative,
            "sqnr": -20 * math.log10(relative) if relative else math.inf,
            "cosine": min(float(angle), 1.0),
            "clipped": self.clipped / max(self.count, 1) if self.clips else math.nan,
        }


def _operands(form: Form | None, rows: slice) -> NDArray[np.float64] | None:
    """By row, the largest sum of magnitudes that a value is computed from, where it is a sum; shape (rows, 1)."""
    if isinstance(form, Biased):
        biases = np.abs(form.biases.float32().astype(np.float64))
        scales = np.abs(form.scales.float32().astype(np.float64))
    elif isinstance(form, FloatZero | DualScaled) and form.scales.data.ndim == 2:
        scales = np.abs(form.scales.float32().astype(np.float64))
        if isinstance(form, DualScaled):
            scales = scales * np.abs(form.column_scales.float32().astype(np.float64)).max()
        biases = scales * np.abs(form.zeros.float32().astype(np.float64))
    else:
        return None
    top = float(1 << form.codes.bits)
    found: NDArray[np.float64] = (scales * top + biases)[rows].max(axis=1, keepdims=True)
    return found


def bits_of(name: str) -> int | None:
    """Whole bits per weight of a ggml type in blocks; None for others."""
    return 8 * TYPES[name].block_bytes // TYPES[name].block if quantized(name) else None


def code_bits(form: Form) -> int:
    """Bits of integers that round as finely as the codes of a form, which may be stored in wider elements."""
    if isinstance(form, BlockScaled | Microscaled) and form.element != "I8":
        # A float of m digits after the first one rounds like an integer of m + 3 bits.
        return {"F8_E5M2": 5, "F8_E5M2FNUZ": 5, "E2M1": 4, "E3M2": 5}.get(form.element, 6)
    codes = getattr(form, "codes", None)
    return codes.bits if isinstance(codes, Codes) else 8


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The scalar product in one fixed order: BLAS splits it among its threads, which wait for each other when busy."""
    return float(np.einsum("i,i->", a.reshape(-1), b.reshape(-1)))


def _half_unit(target: str, source: str, values: NDArray[np.float64]) -> NDArray[np.float64] | float:
    """Half a unit in the last place of a float type that the source's values are rounded to; 0 where all fit."""
    if target not in FLOATS or target in (source, "F32"):
        return 0.0
    digits, lowest = (11, -14) if target == "F16" else (8, -126)
    _, exponents = np.frexp(values)  # |value| < 2^exponent
    result: NDArray[np.float64] = np.ldexp(0.5, np.maximum(exponents, lowest + 1) - digits)
    return result
