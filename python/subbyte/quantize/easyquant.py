"""EasyQuant: outliers kept as they are, and the range of all other values optimized (arXiv 2403.02775).

A value is an outlier beyond so many standard deviations of its row. The scale that the original descends to along the
gradient of the reconstruction error is searched for directly (`least_error`), with outliers weighing nothing.

No checkpoint format of the registry has a place for outliers beside integer codes, so that this is no method of a
conversion: `quantize` returns them.
"""

from __future__ import annotations

import numpy as np

from subbyte.quantize.grid import Floats, Outliers


def find_outliers(values: Floats, deviations: float) -> Outliers:
    """The values beyond so many standard deviations of their row around its mean.

    Args:
        values: float32, (rows, columns).
        deviations: 3 in the paper; less than 1 % of usual weights are beyond that.
    """
    wide = values.astype(np.float64)
    away = np.abs(wide - wide.mean(axis=1, keepdims=True))
    rows, columns = np.nonzero(away > deviations * wide.std(axis=1, keepdims=True))
    return Outliers(rows, columns, values[rows, columns])


def without(values: Floats, outliers: Outliers) -> Floats:
    """The values with outliers replaced by the mean of their row, which leaves ranges to the others."""
    found = values.copy()
    found[outliers.rows, outliers.columns] = values.mean(axis=1, dtype=np.float64)[outliers.rows]
    return found
