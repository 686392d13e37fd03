"""k-means, weighted: of numbers, of vectors, and of sums of vectors from several tables. Nothing is random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subbyte.planes import rounded
from subbyte.quantize.grid import Floats

_ROUNDS = 50
"""Rounds of k-means of numbers; it ends earlier where the error stays."""

_VECTOR_ROUNDS = 20
_DISTANCES = 1 << 22
"""Distances that are computed at once."""

Codes = NDArray[np.int64]


def k_means_of_row(
    row: NDArray[np.float32], weight: NDArray[np.float32], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and means of the better of two weighted one-dimensional k-means: from quantiles, and from even steps."""
    order = np.argsort(row, kind="stable")
    values, mass = row[order].astype(np.float64), weight[order].astype(np.float64)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(mass * values**power)]) for power in range(3)])
    quantiles = values[((np.arange(count) + 0.5) / count * len(values)).astype(np.intp)]
    results = [_lloyd(values, sums, start) for start in (quantiles, np.linspace(values[0], values[-1], count))]
    table = min(results, key=lambda result: result[1])[0].astype(np.float32)
    codes = np.searchsorted((table[1:] + table[:-1]) / np.float32(2), row, side="right")
    return codes.astype(np.uint8), table


def _lloyd(
    values: NDArray[np.float64], sums: NDArray[np.float64], means: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Means of Lloyd's algorithm, and the weighted sum of squared errors.

    Args:
        values: sorted.
        sums: of the weights, and of them times the first and second powers of the values, before each value.
        means: where to start.
    """
    error = np.inf
    for _ in range(_ROUNDS):
        means = np.sort(means)  # that of an empty cluster stays where it was
        ends = np.searchsorted(values, (means[1:] + means[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], ends, [len(values)]])
        total, moment, square = np.diff(sums[:, bounds], axis=1)
        means = np.where(total > 0, moment / np.where(total > 0, total, 1), means)
        before, error = error, float((square - 2 * means * moment + means**2 * total).sum())
        if not error < before:
            break
    return np.sort(means), error


def nearest(points: Floats, weights: Floats, table: Floats) -> Codes:
    """The entries of a table with the least weighted square error: (points,).

    Args:
        points: float32, (points, length).
        weights: float32, (points, length) or (points, 1), none negative.
        table: float32, (entries, length).
    """
    return _offers(points[:, None], weights, table, 1)[0][:, 0] % len(table)


def _offers(targets: Floats, weights: Floats, table: Floats, width: int) -> tuple[Codes, Floats]:
    """The best ``width`` pairs of target and entry of every point, as target * entries + entry, and their errors.

    Args:
        targets: (points, targets, length).
    """
    points, count, _length = targets.shape
    pairs = count * len(table)
    kept = min(width, pairs)
    chosen, errors = np.empty((points, kept), np.int64), np.empty((points, kept), np.float32)
    squares = (table * table).T
    step = max(1, _DISTANCES // pairs)
    for start in range(0, points, step):
        some, heavy = targets[start : start + step], weights[start : start + step, None]
        if heavy.shape[2] == 1:
            own = (some * some).sum(axis=2, keepdims=True) - 2 * (some @ table.T) + squares.sum(axis=0)
        else:
            own = (some * some * heavy).sum(axis=2, keepdims=True) - 2 * ((some * heavy) @ table.T) + heavy @ squares
        flat = own.reshape(len(some), pairs)
        best = flat.argmin(axis=1)[:, None] if kept == 1 else np.argpartition(flat, kept - 1, axis=1)[:, :kept]
        chosen[start : start + step] = best
        errors[start : start + step] = np.take_along_axis(flat, best, axis=1)
    return chosen, errors


def means(points: Floats, weights: Floats, codes: Codes, table: Floats) -> Floats:
    """The weighted means of the points of every entry; an entry without points stays as it is."""
    heavy = np.broadcast_to(weights, points.shape)
    mass, moment = (
        np.stack([np.bincount(codes, one, len(table)) for one in columns.T], axis=1)
        for columns in (heavy, heavy * points)
    )
    return np.where(mass > 0, moment / np.where(mass > 0, mass, 1), table).astype(np.float32)


def k_means(points: Floats, weights: Floats, count: int) -> Floats:
    """A table of ``count`` vectors: float32, (count, length).

    It starts from the points at even ranks of their Mahalanobis distance (GPTVQ); an entry that no point is nearest to
    moves to a point that is farthest from its own.

    Args:
        points, weights: see `nearest`.
        count: entries; more than points repeat them.
    """
    centred = points - points.mean(axis=0)
    spread = centred.T @ centred / np.float32(len(points)) + np.float32(1e-12) * np.eye(
        points.shape[1], dtype=np.float32
    )
    order = np.argsort(np.einsum("ni,ij,nj->n", centred, np.linalg.pinv(spread), centred), kind="stable")
    table = points[order[((np.arange(count) + 0.5) * len(points) / count).astype(np.int64)]]
    error = np.inf
    for _ in range(_VECTOR_ROUNDS if count < len(points) else 0):
        codes = nearest(points, weights, table)
        errors = (weights * (points - table[codes]) ** 2).sum(axis=1)
        before, error = error, float(errors.sum(dtype=np.float64))
        if not error < before * (1 - 1e-4):
            break
        empty = np.setdiff1d(np.arange(count), codes)
        if len(empty):
            far = np.argsort(-errors, kind="stable")[: len(empty)]
            codes[far] = empty[: len(far)]
        table = means(points, weights, codes, table)
    return table


def beam_search(points: Floats, weights: Floats, tables: list[Floats], codes: Codes, width: int) -> Codes:
    """Codes of sums of one entry of every table, (points, tables), with less error than ``codes`` or the same.

    One pass over the tables in their order; the ``width`` best combinations of every point are kept (AQLM).
    """
    sums = sum((table[codes[:, at]] for at, table in enumerate(tables)), np.zeros_like(points))
    held, rests = codes[:, None], (points - sums)[:, None]
    for at, table in enumerate(tables):
        targets = rests + table[held[..., at]]
        chosen, errors = _offers(targets, weights, table, width)
        order = np.argsort(errors, axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, axis=1)
        parent, entry = np.divmod(chosen, len(table))
        held = np.take_along_axis(held, parent[..., None], axis=1)
        held[..., at] = entry
        rests = np.take_along_axis(targets, parent[..., None], axis=1) - table[entry]
    return np.ascontiguousarray(held[:, 0])


def additive(
    points: Floats, weights: Floats, counts: list[int], kind: str, width: int = 4, rounds: int = 3
) -> tuple[list[Floats], Codes]:
    """Tables of ``counts`` vectors, as they are stored in type ``kind``, and codes (points, tables) of their sums.

    Tables are k-means of what the ones before leave, then means for codes of `beam_search`, in turn.

    Args:
        points, weights: see `nearest`.
        counts: entries of every table.
        kind: F32, F16 or BF16.
        width: combinations that the beam search keeps.
        rounds: of means and beam search.
    """
    tables: list[Floats] = []
    codes = np.zeros((len(points), len(counts)), np.int64)
    rest = points
    for at, count in enumerate(counts):
        tables.append(rounded(k_means(rest, weights, count), kind))
        codes[:, at] = nearest(rest, weights, tables[at])
        rest = rest - tables[at][codes[:, at]]
    for _ in range(rounds if len(counts) > 1 else 0):
        codes = beam_search(points, weights, tables, codes, width)
        for at in range(len(counts)):
            others = sum(
                (table[codes[:, other]] for other, table in enumerate(tables) if other != at), np.zeros_like(points)
            )
            tables[at] = rounded(means(points - others, weights, codes[:, at], tables[at]), kind)
    return tables, beam_search(points, weights, tables, codes, width)
