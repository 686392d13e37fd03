"""Scales and zeros with the least error: a grid of scales, then fits in closed form.

For given codes the best parameters are a linear regression of the values on the codes; codes and parameters are fitted
in turn, and every step is kept only where it lowers the error of a group. With a norm p other than 2 the regression
weighs an error e with |e|^(p - 2) (iteratively reweighted least squares).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subbyte.quantize.grid import Floats, Grid

#: Shares of the minimum-to-maximum scale that are tried. Above 1: the one side of symmetric codes is shorter.
_RATIOS = np.concatenate([np.linspace(1.2, 0.4, 33), [1.5, 1.35, 0.35, 0.3]]).astype(np.float32)
_FITS = 4
#: A step counts as better only beyond what float32 sums can be off.
_CLEARLY = 1 - 1e-6


class Best:
    """The best parameters of each group so far, as they are stored.

    Attributes:
        scales, zeros: float32, (rows, groups).
        loss: float64, (rows, groups).
    """

    def __init__(self, groups: Floats, weights: Floats, grid: Grid, norm: float = 2) -> None:
        """Begins with minimum and maximum."""
        self.groups, self.weights, self.grid, self.norm = groups, weights, grid, norm
        self.scales, self.zeros = grid.min_max(groups)
        self.loss = grid.loss(groups, weights, self.scales, self.zeros, norm)

    def offer(self, scales: Floats, zeros: Floats) -> NDArray[np.bool_]:
        """Takes these parameters where they are better; says where."""
        stored = self.grid.stored(scales, zeros)
        loss = self.grid.loss(self.groups, self.weights, *stored, self.norm)
        better = loss < self.loss * _CLEARLY
        self.scales = np.where(better, stored[0], self.scales)
        self.zeros = np.where(better, stored[1], self.zeros)
        self.loss = np.where(better, loss, self.loss)
        return np.asarray(better)

    def fit(self, steps: int = _FITS) -> None:
        """Regresses the values on the codes, in turn with new codes, until no group gains."""
        for _ in range(steps):
            if not self.offer(*self._regression()).any():
                return

    def _regression(self) -> tuple[Floats, Floats]:
        grid, groups = self.grid, self.groups
        with np.errstate(all="ignore"):
            codes = grid.codes(groups, self.scales, self.zeros)
            weights = self.weights
            if self.norm != 2:
                errors = np.abs((codes - self.zeros[..., None]) * self.scales[..., None] - groups)
                weights = weights * np.maximum(errors, self.scales[..., None] * 1e-3) ** np.float32(self.norm - 2)
            if grid.symmetric:
                return self._through(codes - self.zeros[..., None], weights), self.zeros
            total = (weights * np.ones_like(codes)).sum(axis=-1)
            mean_code, mean_value = (weights * codes).sum(axis=-1) / total, (weights * groups).sum(axis=-1) / total
            scales = self._through(codes - mean_code[..., None], weights)
            zeros = mean_code - mean_value / scales
            if grid.zeros == "integer":
                zeros = np.clip(np.rint(zeros), np.float32(0), grid.largest)
                scales = self._through(codes - zeros[..., None], weights)
            return scales, zeros

    def _through(self, steps: Floats, weights: Floats) -> Floats:
        """The best scales for values at these steps from zero; the present ones where there are none."""
        weighted = weights * steps
        found = (weighted * self.groups).sum(axis=-1) / (weighted * steps).sum(axis=-1)
        return np.where(np.isfinite(found) & (found > 0), found, self.scales)


def least_error(groups: Floats, weights: Floats, grid: Grid, norm: float = 2) -> tuple[Floats, Floats]:
    """Scales and zeros with the least weighted sum of |error|^norm that a grid of scales and fits find.

    Never worse than minimum and maximum.

    Args:
        groups: float32, (rows, groups, elements).
        weights: float32, (1, groups, elements).
        grid: what codes can stand for.
        norm: at least 1; 2 for the mean square error, 2.4 in GPTQ's reference implementation (arXiv 2210.17323).

    Returns:
        Both float32, (rows, groups).
    """
    best = Best(groups, weights, grid, norm)
    low, high = grid.span(groups)
    with np.errstate(all="ignore"):
        whole = (high - low) / grid.largest
        middle = (low + high) / np.float32(2)
        for ratio in _RATIOS[_RATIOS <= 1.05] if not grid.symmetric else _RATIOS:
            scales = whole * ratio
            # the range shrinks towards 0, where most weights are, and towards its own middle
            best.offer(scales, -low / whole)
            if not grid.symmetric:
                best.offer(scales, grid.largest / np.float32(2) - middle / scales)
    best.fit()
    if grid.zeros == "integer" and not grid.symmetric:
        for step in (-1, 1):
            if best.offer(best.scales, best.zeros + np.float32(step)).any():
                best.fit()
    return best.scales, best.zeros
