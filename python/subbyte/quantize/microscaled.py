"""Scales of microscaled blocks with the least error, among the neighbours of what a writer's rule gives.

A power of two has one neighbour on each side that can pay. With E4M3 scales (NVFP4) the largest element of a block may
also become 4 instead of 6, where the steps of E2M1 are finer ("four over six", arXiv 2512.02010): a scale 1.5 times as
large, which is up to five codes further; all codes up to there are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.errors import ArgumentError, UnsupportedError
from subbyte.forms import ByteCodes, Form, Microscaled
from subbyte.forms.microfloat import divide_blocks, encode_element
from subbyte.forms.scaled import element_values
from subbyte.planes import Plane
from subbyte.quantize.grid import Floats, checked_weights

#: Codes of scales that are tried, relative to the writer's, and the least and largest ones that there are.
_STEPS = {"F8_E8M0": (-1, 1), "F8_E4M3": (-3, -2, -1, 1, 2, 3, 4, 5, 6)}
_RANGE = {"F8_E8M0": (0, 254), "F8_E4M3": (1, 126)}
_CHUNK = 1 << 16


def refined(form: Form, source: Plane, params: Mapping[str, Any], importance: Any = None) -> Form:
    """A writer's form with the scales and elements that the ``method`` among a format's parameters chooses.

    Args:
        form: what the writer made; its scale of the tensor stays.
        source: the floats that it was made of.
        params: parameters of the format; ``method`` is ``"writer"``, the default, or ``"mse"``.
        importance: weights of the columns, (columns,).

    Raises:
        ArgumentError: another method, or importance of another shape.
        UnsupportedError: another method than the writer's for a form without blocks of small floats.
        NonFiniteError: importance that is NaN or infinite.
    """
    method = params.get("method", "writer")
    if method == "writer":
        return form
    if not isinstance(form, Microscaled):
        raise UnsupportedError(f"these elements have no other method than writer, not {method!r:.40}")
    if method != "mse":
        raise ArgumentError(f"method {method!r:.40}: blocks of small floats have writer and mse")
    weights = checked_weights(importance, None, form.columns)
    return least_error_scales(form, _planes.folded(source.float32()), weights)


def least_error_scales(form: Microscaled, values: Floats, weights: Floats | None = None) -> Microscaled:
    """A form with the scale of each block that gives the least weighted square error; never worse than before.

    Args:
        form: the form to begin with.
        values: float32, (rows, columns), which blocks divide.
        weights: float32, (columns,); None for ones.
    """
    scales = form.scales.data.view(np.uint8).copy()
    codes = form.codes.unpack().copy()
    low, high = _RANGE[form.scale_kind]
    others = []
    for step in _STEPS[form.scale_kind]:
        moved = np.clip(scales.astype(np.int16) + step, low, high).astype(np.uint8)
        others.append(replace(form, scales=Plane(moved, form.scale_kind)))
    elements = element_values(form.element)
    blocks, of_columns = scales.shape[1], np.ones(form.columns, np.float32) if weights is None else weights
    height = max(_CHUNK // max(form.columns, 1), 1)
    for start in range(0, form.rows, height):
        rows = slice(start, min(start + height, form.rows))

        def loss(found: np.ndarray[Any, Any], factors: Floats, rows: slice = rows) -> Floats:
            with np.errstate(all="ignore"):
                errors = (elements[found].reshape(-1, blocks, form.block) * factors[..., None]).reshape(found.shape)
                errors -= values[rows]
                errors *= errors
                errors *= of_columns
                summed: Floats = errors.reshape(-1, blocks, form.block).sum(axis=2)
            return np.where(np.isfinite(summed), summed, np.float32(np.inf))

        least = loss(codes[rows], form.block_scales(rows))
        for other in others:
            factors = other.block_scales(rows)
            found = encode_element(divide_blocks(values[rows], factors), form.element, keep_negative_zero=False)
            candidate = loss(found, factors)
            better = candidate < least * np.float32(1 - 1e-6)
            least = np.where(better, candidate, least)
            scales[rows] = np.where(better, other.scales.data[rows], scales[rows])
            np.copyto(codes[rows], found, where=np.repeat(better, form.block, axis=1))
    stored = Plane(scales.view(form.scales.data.dtype), form.scales.kind)
    return replace(form, codes=ByteCodes(codes, form.codes.bits), scales=stored)
