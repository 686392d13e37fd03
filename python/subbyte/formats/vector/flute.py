"""The order of codes in FLUTE's packed weights (arXiv 2407.10960, github.com/HanGuo97/flute).

Codes of b = 2, 3 or 4 bits of a weight of N outputs and K inputs (even), in 16-bit words ``[b * N / 16, K]``. A field
of 2b bits holds the codes of inputs 2i (above) and 2i + 1 of one output. P is 32 or 64, the parameter of the kernel.

* 2 and 4 bits: a group of outputs is S * P with S = 16 / b; in group g, output s * P + t. Word [g * P + t, 2i + r] has
  the fields of s = r * S / 2 and the following ones, low bits first.
* 3 bits, P = 32 only: a group is 512 outputs 32 * s + t. The fields of s = 0, 3, 6, 9, 12, 1, 4, …, 14, 15 make 96
  bits. Word f = 0, 1, 2 of input 2i has bits 30f to 30f + 15, that of input 2i + 1 bits 30f + 16 to 30f + 29, then
  90 + 2f and 91 + 2f. Word 0 is in row 32 * g + t, word f > 0 in row N / 16 + 64 * g + 32 * (f - 1) + t.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from subbyte.arrays import Array
from subbyte.errors import FormatError
from subbyte.forms.vector.indices import IndexArray, Indices

_ORDER = (0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15)


def group_rows(bits: int, tile: int) -> int:
    """Outputs of a group, which divides the outputs of a weight."""
    return 512 if bits == 3 else 16 // bits * tile


@dataclass(frozen=True, eq=False)
class FluteIndices(Indices):
    """Fields of two codes each: the index of a pair of inputs.

    Attributes:
        words: I16, (width * N / 16, K), width bits of a code.
        bits: of a field: 4, 6 or 8.
        tile: P.
    """

    words: Array
    bits: int
    tile: int

    def __post_init__(self) -> None:
        width, (rows, columns) = self.bits // 2, self.words.shape
        outputs, rest = divmod(rows * 16, width)
        if rest or not outputs or not columns or columns % 2 or outputs % group_rows(width, self.tile):
            raise FormatError(
                f"words of shape {list(self.words.shape)}: expected [{width} * N / 16, K], K even and N a multiple of "
                f"{group_rows(width, self.tile)}"
            )

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.words.shape[0] * 32 // self.bits, self.words.shape[1] // 2

    @property
    def together(self) -> int:
        return group_rows(self.bits // 2, self.tile)

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        start, stop, _ = rows.indices(self.shape[0])
        size = group_rows(self.bits // 2, self.tile)
        groups = slice(start // size, -(-max(stop, start) // size))
        found = self._three(groups) if self.bits == 6 else self._even(groups)
        begin = groups.start * size
        return found[start - begin : max(stop, start) - begin]

    def _even(self, groups: slice) -> IndexArray:
        words = np.ascontiguousarray(self.words).view(np.uint16).reshape(-1, self.tile, self.shape[1], 2)[groups]
        shifts = np.arange(0, 16, self.bits, dtype=np.uint16)
        fields = words[..., None] >> shifts & np.uint16((1 << self.bits) - 1)
        return fields.transpose(0, 3, 4, 1, 2).reshape(-1, self.shape[1]).astype(np.uint32)

    def _three(self, groups: slice) -> IndexArray:
        outputs, pairs = self.shape
        words = np.ascontiguousarray(self.words).view(np.uint16)
        first = words[: outputs // 16].reshape(-1, 1, 32, pairs, 2)
        others = words[outputs // 16 :].reshape(-1, 2, 32, pairs, 2)
        every = np.concatenate([first, others], axis=1)[groups]
        bits = np.unpackbits(np.ascontiguousarray(every).view(np.uint8), axis=-1, bitorder="little")  # [g, f, t, i, 32]
        string = bits.transpose(0, 2, 3, 1, 4).reshape(-1, 32, pairs, 96)[..., np.argsort(_places())]
        fields = string.reshape(*string.shape[:-1], 16, 6) @ (1 << np.arange(6, dtype=np.uint8))
        return fields[..., np.argsort(_ORDER)].transpose(0, 3, 1, 2).reshape(-1, pairs).astype(np.uint32)


def pack(indices: IndexArray, bits: int, tile: int) -> NDArray[np.int16]:
    """The words that `FluteIndices` reads, of fields of ``bits`` bits.

    Raises:
        FormatError: the outputs are no whole number of groups.
    """
    outputs, pairs = indices.shape
    size = group_rows(bits // 2, tile)
    if outputs % size or not indices.size:
        raise FormatError(
            f"{outputs} outputs: FLUTE needs a multiple of {size} for codes of {bits // 2} bits, P = {tile}"
        )
    grouped = indices.reshape(outputs // size, -1, tile, pairs)
    if bits != 6:
        fields = grouped.reshape(len(grouped), 2, -1, tile, pairs).transpose(0, 3, 4, 1, 2).astype(np.uint16)
        shifted = fields << np.arange(0, 16, bits, dtype=np.uint16)
        joined: NDArray[np.uint16] = np.bitwise_or.reduce(shifted, axis=-1)
        return joined.reshape(-1, 2 * pairs).view(np.int16)
    in_order = grouped[:, list(_ORDER)].transpose(0, 2, 3, 1)
    string = (in_order[..., None] >> np.arange(6, dtype=np.uint32) & np.uint32(1)).astype(np.uint8)
    placed = string.reshape(-1, 32, pairs, 96)[..., _places()].reshape(-1, 32, pairs, 3, 32)
    words = np.packbits(placed.transpose(0, 3, 1, 2, 4), axis=-1, bitorder="little").view(np.uint16)
    rows = words.reshape(len(grouped), 3, 32, 2 * pairs)
    return np.concatenate([rows[:, 0].reshape(-1, 2 * pairs), rows[:, 1:].reshape(-1, 2 * pairs)]).view(np.int16)


@cache
def _places() -> NDArray[np.intp]:
    """Bit of the string by place in the words f = 0, 1, 2, each of input 2i, then of input 2i + 1."""
    return np.concatenate([np.r_[30 * f : 30 * f + 30, 90 + 2 * f : 92 + 2 * f] for f in range(3)])
