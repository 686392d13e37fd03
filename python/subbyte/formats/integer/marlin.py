"""Marlin tiles: symmetric codes of 4 bits in the order that the Marlin kernel reads (arXiv 2408.11743).

Codes ``[in, out]`` are cut into tiles of 16 x 16, each flattened row by row, and the values of every four tiles of a
row of tiles (1024) are permuted; 8 make a 32-bit word, the first in its low bits: I32 ``[in / 16, 2 out]``.
Scales ``[groups, out]`` are permuted in runs of 64 outputs, or of 32 where there is one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte.arrays import Array, as_bytes
from subbyte.errors import FormatError, UnsupportedError
from subbyte.forms import Affine
from subbyte.forms.codes import CodeArray, Codes, pack, unpack
from subbyte.planes import Plane

_MIDDLE = 8


@cache
def _order() -> NDArray[np.int64]:
    """Which value of four tiles is stored at each place."""
    found = [
        16 * row + i // 4 + 8 * half + 256 * tile
        for i in range(32)
        for tile in range(4)
        for half in (0, 1)
        for row in (2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4) + 8, 2 * (i % 4) + 9)
    ]
    return np.array(found).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)


GROUP_ORDER = np.arange(64).reshape(8, 8).T.flatten()
"""Which scale of a run is stored at each place, for scales of groups."""

CHANNEL_ORDER = (2 * np.arange(4)[:, None] + np.array([0, 1, 8, 9, 16, 17, 24, 25])).flatten()
"""The same for one scale an output."""


@dataclass(frozen=True, eq=False)
class MarlinCodes(Codes):
    """Codes in Marlin tiles.

    Attributes:
        words: 32-bit integers, shape (in / 16, 2 out).
    """

    words: Array
    bits: int = 4

    def __post_init__(self) -> None:
        if self.words.ndim != 2 or self.words.shape[1] % 128 or not self.words.size:
            raise FormatError(f"Marlin tiles have shape {list(self.words.shape)}: expected [in / 16, 2 out], 64 | out")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.words.shape[1] // 2, self.words.shape[0] * 16

    def native(self) -> _native.PackedLayer:
        return _native.PackedLayer(as_bytes(np.ascontiguousarray(self.words)), 4, *self.shape, "tiles")

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        first, end = start // 64, max(-(-stop // 64), start // 64)
        tiles, runs = self.words.shape[0], end - first
        stored = unpack("aligned", 4, self.words[:, 128 * first : 128 * end], 1024 * runs).reshape(tiles, runs, 1024)
        values = np.empty_like(stored)
        values[..., _order()] = stored
        found = values.reshape(tiles, runs, 4, 16, 16).transpose(1, 2, 4, 0, 3).reshape(64 * runs, 16 * tiles)
        return found[start - 64 * first : stop - 64 * first]


def read(words: Plane, scales: Plane, group_size: int) -> Affine:
    """The form of a layer of Marlin tiles.

    Raises:
        FormatError: words, scales and group size do not fit together.
    """
    codes = MarlinCodes(words.data)
    out, columns = codes.shape
    groups = scales.shape[0]
    size = min(group_size, columns)
    if scales.shape != (-(-columns // size), out):
        raise FormatError(
            f"scales of Marlin tiles have shape {list(scales.shape)}: expected {[-(-columns // size), out]} for a "
            f"weight {[out, columns]} in groups of {group_size}"
        )
    turned = permuted(scales.data, np.argsort(GROUP_ORDER if groups > 1 else CHANNEL_ORDER))
    return Affine((out, columns), codes, Plane(np.ascontiguousarray(turned.T), scales.kind), _MIDDLE, size)


def write(form: Affine) -> tuple[Plane, Plane]:
    """Words and scales of a form.

    Raises:
        UnsupportedError: it does not fit.
    """
    out, columns = form.shape[-2:]
    groups = form.scales.shape[1]
    if form.codes.bits != 4 or not np.all(form.zeros == _MIDDLE) or form.group_of is not None:
        raise UnsupportedError("Marlin tiles hold symmetric codes of 4 bits without act-order")
    if len(form.shape) != 2 or columns % 128 or out % 256 or (form.group_size != 128 and groups > 1):
        raise UnsupportedError(
            f"a weight {list(form.shape)} in groups of {form.group_size}: Marlin tiles need columns that 128 divides, "
            "rows that 256 divides, and groups of 128 or one for all columns"
        )
    codes = form.codes.unpack().reshape(out // 64, 4, 16, columns // 16, 16).transpose(3, 0, 1, 4, 2)
    stored = np.ascontiguousarray(codes).reshape(columns // 16, out // 64, 1024)[..., _order()]
    words = pack("aligned", 4, stored.reshape(columns // 16, 16 * out)).view(np.int32)
    return Plane(words, "I32"), Plane(
        permuted(form.scales.data.T, GROUP_ORDER if groups > 1 else CHANNEL_ORDER), form.scales.kind
    )


def permuted(data: Array, order: NDArray[np.int64]) -> NDArray[Any]:
    """A matrix whose columns are reordered in runs of ``len(order)``: place j of a run takes column ``order[j]``."""
    return np.ascontiguousarray(data).reshape(len(data), -1, len(order))[..., order].reshape(data.shape)
