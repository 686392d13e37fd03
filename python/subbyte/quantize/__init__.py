"""Quantizers that need no data: from floats to the codes, scales and zeros of integer formats.

========== ============================================================================================================
method     scales and zeros of a group
========== ============================================================================================================
rtn        from minimum and maximum
mse        the least weighted square error: a grid of scales, then closed fits (`subbyte.quantize.search`)
lp         the same for the sum of |error|^2.4, as the ``mse`` option of GPTQ's reference implementation
hqq        half-quadratic splitting of the l_0.7 norm over the zeros (`subbyte.quantize.half_quadratic`)
neuqi      near-optimal zeros for every scale (`subbyte.quantize.neuqi`)
easyquant  ``mse`` for what is no outlier; outliers are kept (`subbyte.quantize.easyquant`)
========== ============================================================================================================

Codes are always the nearest ones for scales and zeros as they are stored. SINQ's dual scales
(`subbyte.quantize.sinkhorn`) are a form of their own, and so are microscaled floats (`subbyte.quantize.microscaled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.errors import ArgumentError
from subbyte.forms import Affine, Biased, FloatZero
from subbyte.planes import Plane
from subbyte.quantize.easyquant import find_outliers, without
from subbyte.quantize.grid import (
    LARGEST_ZERO,
    Floats,
    Grid,
    Outliers,
    Quantized,
    checked_values,
    checked_weights,
    chunks,
)
from subbyte.quantize.half_quadratic import half_quadratic
from subbyte.quantize.neuqi import near_optimal
from subbyte.quantize.search import least_error

__all__ = ["METHODS", "Grid", "Outliers", "Quantized", "quantize", "quantized"]

METHODS = ("rtn", "mse", "lp", "hqq", "neuqi")
"""Methods that any target of integer codes can hold."""


def quantize(
    values: Any,
    grid: Grid,
    method: str = "mse",
    *,
    importance: Any = None,
    hessian: Any = None,
    outliers: float = 3,
) -> Quantized:
    """Quantizes a matrix by groups of columns, in memory that does not grow with its rows beyond the result.

    Args:
        values: floats, (rows, columns).
        grid: what codes can stand for.
        method: one of the table above.
        importance: weights of the columns, (columns,): of squared errors in ``mse`` and ``neuqi``, of the powers in
            ``lp``; ``rtn`` and ``hqq`` have no weights.
        hessian: (columns, columns), the second moments of the layer's inputs. These methods use its diagonal as the
            importance where none is given; a method that feeds rounding errors back to later columns needs all of it.
        outliers: with ``easyquant``, the standard deviations beyond which a value is kept as it is.

    Raises:
        ArgumentError: an unknown method, arguments of other shapes, a method that cannot make such a grid.
        NonFiniteError: NaN or infinity.
    """
    if method not in (*METHODS, "easyquant"):
        raise ArgumentError(f"method '{method}': expected one of {', '.join((*METHODS, 'easyquant'))}")
    if method == "hqq" and grid.symmetric:
        raise ArgumentError("method 'hqq' searches zeros, which are fixed in symmetric codes: use 'mse' or 'neuqi'")
    found = checked_values(values)
    columns = found.shape[1]
    weights = checked_weights(importance, hessian, columns)
    kept = find_outliers(found, outliers) if method == "easyquant" else None
    if kept is not None:
        found = without(found, kept)
    of_groups = (len(found), -(-columns // grid.group_size))
    scales, zeros = np.empty(of_groups, np.float32), np.empty(of_groups, np.float32)
    codes = np.empty(found.shape, np.uint8)
    for rows, groups, of_columns in chunks(found, weights, grid.group_size):
        scales[rows], zeros[rows] = _parameters(method, groups, of_columns, grid)
        with np.errstate(all="ignore"):
            nearest = grid.codes(groups, scales[rows], zeros[rows])
        codes[rows] = np.nan_to_num(nearest, nan=0).reshape(len(groups), -1)[:, :columns]
    return Quantized(grid, codes, scales, zeros, kept)


def _parameters(method: str, groups: Floats, weights: Floats, grid: Grid) -> tuple[Floats, Floats]:
    if method == "rtn":
        return grid.min_max(groups)
    if method == "neuqi":
        return near_optimal(groups, weights, grid)
    if method != "hqq":
        return least_error(groups, weights, grid, 2.4 if method == "lp" else 2)
    flat = groups.reshape(-1, groups.shape[-1])
    if grid.zeros == "integer":  # a range with 0 in it has its zero among the codes
        flat = np.concatenate([flat, np.zeros((len(flat), 1), np.float32)], axis=1)
    scales, zeros = half_quadratic(flat, int(grid.largest), round_zero=grid.bits == 4)
    found = grid.stored(scales.reshape(groups.shape[:-1]), zeros.reshape(groups.shape[:-1]))
    # the zero of a group that hardly varies lies so many steps away that it could not be stored
    usable = np.abs(found[1]) <= LARGEST_ZERO[grid.zeros]
    plain = grid.min_max(groups)
    return np.where(usable, found[0], plain[0]), np.where(usable, found[1], plain[1])


def quantized(
    source: Plane, params: Mapping[str, Any], grid: Grid, importance: Any = None
) -> Affine | FloatZero | Biased | None:
    """The form that the ``method`` among a format's parameters makes of a weight; None for the writer's own rule.

    Args:
        source: floats, (..., columns).
        params: parameters of the format; ``method`` is one of `METHODS`, or ``"writer"``, the default.
        grid: what codes of the format can stand for.
        importance: weights of the columns, (columns,).

    Raises:
        As `quantize`.
        NonFiniteError: a scale, zero or bias is too large for the type of the grid.
    """
    method = params.get("method", "writer")
    if method == "writer":
        return None
    if method not in METHODS:
        raise ArgumentError(f"method {method!r:.40}: expected writer, {', '.join(METHODS)}")
    if not source.data.size:
        raise ArgumentError(f"an array of shape {list(source.shape)}: expected a matrix with elements")
    values = _planes.folded(source.float32())
    return quantize(values, grid, method, importance=importance).form(source.shape)
