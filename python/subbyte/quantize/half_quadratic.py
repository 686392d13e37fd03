"""HQQ's half-quadratic splitting: zeros with a small l_p norm of the error (https://mobiusml.github.io/hqq_blog/)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 16  # elements that are searched at a time, so that they stay in the caches


def half_quadratic(
    groups: NDArray[np.float32],
    largest: int,
    *,
    round_zero: bool = False,
    optimize: bool = True,
    norm: float = 0.7,
    beta: float = 10.0,
    growth: float = 1.01,
    steps: int = 20,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zeros of groups by half-quadratic splitting.

    Args:
        groups: float32, (groups, elements).
        largest: largest code.
        round_zero: start from whole zeros.
        optimize: search; without it, zeros follow from the range of each group.
        norm: p of the l_p norm of the error that is minimized.
        beta: weight of the quadratic term at the start, multiplied by ``growth`` after each of at most ``steps``.

    Returns:
        Both float32, (groups, 1): w = (code - zero) * scale.
    """
    low = groups.min(axis=1, keepdims=True, initial=np.inf)
    high = groups.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(all="ignore"):  # a range that overflows gives an infinite scale
        # a group of one value has no range: its inverse scale is bounded, as that of HQQ's own quantizer
        inverse = np.minimum(np.float32(largest) / (high - low), np.float32(2e4))
        scales, zeros = np.float32(1) / inverse, -low * inverse
        if round_zero:
            zeros = np.rint(zeros)
        if optimize:
            for start in range(0, len(groups), step := max(_CHUNK // max(groups.shape[1], 1), 1)):
                part = slice(start, start + step)
                zeros[part] = _searched(groups[part], inverse[part], zeros[part], largest, norm, beta, growth, steps)
    return scales, zeros


def _searched(
    groups: NDArray[np.float32],
    inverse: NDArray[np.float32],
    zeros: NDArray[np.float32],
    largest: int,
    norm: float,
    beta: float,
    growth: float,
    steps: int,
) -> NDArray[np.float32]:
    """The zeros with the least mean error of each group on the way from ``zeros``."""
    scaled, scales = groups * inverse, np.float32(1) / inverse
    best, least = zeros.copy(), np.full(zeros.shape, np.inf, np.float32)
    for step in range(steps):
        codes = np.clip(np.rint(scaled + zeros), 0, largest)
        error = groups - (codes - zeros) * scales
        mean = np.abs(error).mean(axis=1, keepdims=True)
        better = mean < least
        if not better.any():
            break
        np.copyto(best, zeros, where=better)
        np.copyto(least, mean, where=better)
        sparse = shrink(error, norm, beta * growth**step)
        zeros = (codes - (groups - sparse) * inverse).mean(axis=1, keepdims=True)
    return best


def shrink(error: NDArray[np.float32], norm: float, beta: float) -> NDArray[np.float32]:
    """The generalized soft threshold: what minimizes |x|^p + beta / 2 * (x - error)^2 approximately."""
    magnitude = np.abs(error)
    with np.errstate(divide="ignore"):
        less = magnitude - np.power(magnitude, np.float32(norm - 1)) / np.float32(beta)
    return np.sign(error) * np.maximum(less, np.float32(0))
