"""Encoding of large weights by ranges of rows, in memory that does not grow with the weight beyond the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.errors import Error
from subbyte.formats.base import Format
from subbyte.forms.join import compact, join
from subbyte.planes import Plane

#: Elements of a range: its float32 values and what encoders need beside them stay small.
_ELEMENTS = 1 << 21


def encode_ranges(
    format: Format,
    rows: Callable[[int, int], Array],
    shape: tuple[int, ...],
    params: Mapping[str, Any],
    importance: Any = None,
) -> dict[str, Plane]:
    """The planes of a weight that is read by ranges of rows: those that encoding all of it gives.

    A weight whose rows are not independent in the format (`Format.separable`) is read and encoded whole; one whose rows
    share their largest magnitude is read twice.

    Args:
        format: the format.
        rows: floats of rows from a first one to before a last one, (rows, columns); leading dimensions of the weight
            are folded into its rows.
        shape: of the weight.
        params: the format's parameters.
        importance: weights of the columns, (columns,).

    Raises:
        As `subbyte.encode`; ``row`` counts all rows of the weight.
    """
    count = 1
    for size in shape[:-1]:
        count *= size
    step = format.separable(params, shape) if count * shape[-1] > 2 * _ELEMENTS else 0
    if step and count >= 2 * step:
        forms = []
        if format.shares_maximum(params, shape):
            largest = [np.abs(_planes.source(rows(*part)).float32()).max() for part in _ranges(count, step, shape[-1])]
            params = {**params, "maximum": float(max(largest))}
        for start, stop in _ranges(count, step, shape[-1]):
            own = {**params, "shape": [stop - start, shape[-1]]} if "shape" in params else params
            try:
                made = format.encode(rows(start, stop), params=own, importance=importance)
            except Error as error:
                if error.row is not None:
                    error.row += start
                raise
            forms.append(compact(format.read(made, own)))
            del made
        whole = join(forms, shape)
        del forms
        if whole is not None:
            return format.write(whole, params)
    made = format.encode(rows(0, count).reshape(shape), params=params, importance=importance)
    return {name: _planes.plane(made[name]) for name in made}


def _ranges(rows: int, step: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that begin at multiples of ``step``; the last one has at least as many rows as that."""
    height = max(_ELEMENTS // max(columns, 1) // step, 1) * step
    start = 0
    while start < rows:
        stop = start + height if rows - start - height >= step else rows
        yield start, stop
        start = stop
