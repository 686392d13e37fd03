"""Sparse weights of compressed-tensors before March 2026: the elements that are not zero, and a mask of their places.

===================  ==============================  ===========================  ===================================
``sparse-bitmask``   ``sparse-24-bitmask``           type and shape               content
===================  ==============================  ===========================  ===================================
weight.shape         shape                           I64 [2] or [2, 1]            rows and columns
weight.compressed    compressed                      [n] or [rows, columns / 2]   elements in the order of rows
weight.bitmask       bitmask                         U8 [rows, ceil(columns/8)]   a bit for each element, low bits first
weight.row_offsets   none                            I64 [rows]                   elements before each row
===================  ==============================  ===========================  ===================================

``sparse-24-bitmask`` keeps two of every four elements in a row of the flattened matrix, zeros among them perhaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.errors import FormatError, UnsupportedError
from subbyte.planes import FLOATS, Plane

_PREFIX = "weight."


def prefix(planes: Mapping[str, Any]) -> str | None:
    """What the names of the planes of a sparse layer begin with; None for another layer."""
    return next((before for before in ("", _PREFIX) if {before + "bitmask", before + "compressed"} & set(planes)), None)


def read(planes: Mapping[str, Any], before: str) -> Plane:
    """The elements of a sparse layer as a matrix.

    Raises:
        FormatError: mask, elements and shape do not fit together.
    """
    kinds = (*FLOATS, "F8_E4M3", "I8")
    bitmask = _planes.get(planes, before + "bitmask", "U8", (None, None))
    elements = _planes.get(planes, before + "compressed", kinds)
    sides = _planes.get(planes, before + "shape", "I64", (2,) if before else (2, 1))
    shape = tuple(int(side) for side in sides.data.reshape(-1))
    if bitmask.shape != (shape[0], -(-shape[1] // 8)) or not prod(shape):
        raise FormatError(
            f"plane '{before}bitmask' has shape {list(bitmask.shape)}, which does not fit plane '{before}shape', "
            f"{list(shape)!r:.60}"
        )
    bits = np.unpackbits(bitmask.data, axis=1, bitorder="little")
    mask = bits[:, : shape[1]].astype(bool)
    count = int(mask.sum())
    expected = (count,) if before else (shape[0], shape[1] // 2)
    if bits[:, shape[1] :].any() or elements.shape != expected or (not before and not _two_of_four(mask)):
        raise FormatError(
            f"plane '{before}compressed' has shape {list(elements.shape)}: plane '{before}bitmask' marks {count} of "
            f"{prod(shape)} elements"
        )
    if before:
        offsets = _planes.get(planes, before + "row_offsets", "I64", (shape[0],)).data
        if not np.array_equal(offsets, _offsets(mask)):
            raise FormatError(f"plane '{before}row_offsets' does not count the bits of plane '{before}bitmask'")
    found = np.zeros(shape, elements.data.dtype)
    found[mask] = elements.data.reshape(-1)
    return Plane(found, elements.kind)


def write(matrix: Plane, format: str) -> dict[str, Plane]:
    """The planes of a matrix.

    Raises:
        UnsupportedError: more than two of four elements are not zero, for ``sparse-24-bitmask``.
    """
    if matrix.data.ndim != 2 or not matrix.data.size:
        raise UnsupportedError(f"sparse formats store matrices; the array has shape {list(matrix.shape)}")
    mask = matrix.float32() != 0
    before = _PREFIX if format == "sparse-bitmask" else ""
    shape = np.array(matrix.shape, np.int64)
    if not before:
        mask = _filled(mask)
    elements = matrix.data[mask]
    planes = {
        before + "shape": Plane(shape if before else shape[:, None], "I64"),
        before + "compressed": Plane(elements if before else elements.reshape(matrix.shape[0], -1), matrix.kind),
        before + "bitmask": Plane(np.packbits(mask, axis=1, bitorder="little"), "U8"),
    }
    if before:
        planes[before + "row_offsets"] = Plane(_offsets(mask), "I64")
    return planes


def _offsets(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = mask.sum(axis=1, dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)[:-1]])


def _two_of_four(mask: NDArray[np.bool_]) -> bool:
    return not mask.size % 4 and bool(np.all(mask.reshape(-1, 4).sum(axis=1) == 2))


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with exactly two of every four: the first places that are free are added."""
    if mask.shape[1] % 2 or mask.size % 4:
        raise UnsupportedError(f"a matrix {list(mask.shape)} cannot be cut into fours")
    fours = mask.reshape(-1, 4)
    if fours.sum(axis=1).max() > 2:
        raise UnsupportedError("more than two of four elements are not zero: the weight is not sparse 2:4")
    kept = np.argsort(~fours, axis=1, kind="stable")[:, :2]
    filled = np.zeros_like(fours)
    np.put_along_axis(filled, kept, True, axis=1)
    return filled.reshape(mask.shape)
