"""What the ternary formats share when they encode: trits and their scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import arrays
from subbyte import planes as _planes
from subbyte.errors import ArgumentError, UnsupportedError
from subbyte.forms import Form, Ternary
from subbyte.planes import Plane


def matrix(array: Any) -> NDArray[np.float32]:
    """A matrix to encode, as float32: floats, or int8 trits.

    Raises:
        ArgumentError: other elements, or no matrix.
        NonFiniteError: NaN or infinity.
    """
    found, name = arrays.load(array)
    if name == "int8":
        if found.size and np.abs(found.astype(np.int16)).max() > 1:
            raise ArgumentError("int8 values beyond -1, 0 and 1: expected trits, or floats")
        values = found.astype(np.float32)
    else:
        values = _planes.source(array).float32()
    if values.ndim != 2 or not values.size:
        raise ArgumentError(f"an array of shape {list(values.shape)}: expected a matrix")
    return values


def by_mean(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], np.float32]:
    """trit + 1 and scale by the mean magnitude, at least 1e-5: the rule of BitNet b1.58 (arXiv 2402.17764)."""
    mean = np.float32(np.abs(values).mean(dtype=np.float64))
    scale = np.maximum(mean, np.float32(1e-5))
    trits = np.clip(np.rint(values / scale), -1, 1)
    return (trits + np.float32(1)).astype(np.uint8), scale


def only_scale(form: Form, format: str) -> tuple[Ternary, Plane]:
    """A form as a ternary one with a single scale that multiplies, (1, 1).

    Raises:
        UnsupportedError: it is another form, or has several scales.
    """
    if not isinstance(form, Ternary):
        raise UnsupportedError(f"format '{format}' cannot hold a {type(form).__name__.lower()} form")
    if form.scales.shape != (1, 1):
        raise UnsupportedError(f"format '{format}' has one scale for a weight, not {form.scales.data.size}")
    if not form.inverse:
        return form, form.scales
    return form, Plane(form.multipliers(), "F32")
