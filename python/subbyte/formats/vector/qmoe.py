"""QMoE: ternary rows in a code of fixed-length words for runs of pairs (arXiv 2310.16795, github.com/IST-DASLab/qmoe).

A weight ``[o, i]`` whose rows hold 0, a minimum and a maximum:

==========  ====  =======  =============================================================================================
plane       type  shape    content
==========  ====  =======  =============================================================================================
w_comp      I16   [words]  words of 16 bits (uint16) of all rows
row_off     I32   [o + 1]  where the words of each row begin
ter_minmax  BF16  [2 * o]  minimum and maximum of each row; 0 where a row has no such value
==========  ====  =======  =============================================================================================

A word is an entry of a fixed dictionary: a sequence of 1 to 14 pairs of trits r = t0 + 3 * t1. Trits are 0: zero, 1:
minimum, 2: maximum. A row is the sequences of its words, the last trit left out where i is odd. The parameter ``shape``
is [o, i].

Dictionary: the 65536 most probable sequences in the order of a heap of (-probability, sequence), which starts with the
empty sequence of probability 1. The sequence that is taken from it is an entry, unless it is empty, and if it has fewer
than 14 pairs, its nine extensions are put in. A trit is 0 with probability 0.885, and 1 or 2 with (1 - 0.885) / 2 each;
all products are rounded to double precision, pair by pair, and equal probabilities are in the order of the sequences.

Writer: from the beginning of a row the longest sequence that the dictionary has, a missing last trit taken as 0.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Format, encoded, setting_shape
from subbyte.formats.vector.tables import finite
from subbyte.forms import Codes, Form, RowTable
from subbyte.forms.codes import CodeArray
from subbyte.planes import Plane

ENTRIES = 1 << 16
LONGEST = 14
"""Pairs of an entry at most."""

_ZERO = 0.885


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The dictionary of the format.

    Attributes:
        trits: uint8, (ENTRIES, 2 * LONGEST): those of a sequence, then zeros.
        pairs: int64, (ENTRIES,): pairs of a sequence.
        children: int32, (ENTRIES + 1, 9): the entry that extends an entry by each pair, -1 where there is none; the
            last row extends the empty sequence.
    """

    trits: NDArray[np.uint8]
    pairs: NDArray[np.int64]
    children: NDArray[np.int32]


@cache
def dictionary() -> Dictionary:
    """The dictionary; it is built once, in about a second."""
    single = (_ZERO, (1 - _ZERO) / 2, (1 - _ZERO) / 2)
    of_pair = [single[pair // 3] * single[pair % 3] for pair in range(9)]
    heap: list[tuple[float, tuple[int, ...], int]] = [(-1.0, (), ENTRIES)]  # the entry that it extends is last
    trits = np.zeros((ENTRIES, 2 * LONGEST), np.uint8)
    pairs = np.zeros(ENTRIES, np.int64)
    children = np.full((ENTRIES + 1, 9), -1, np.int32)
    count = 0
    while count < ENTRIES:
        negative, sequence, parent = heapq.heappop(heap)
        entry = ENTRIES
        if sequence:
            entry, count = count, count + 1
            pairs[entry] = len(sequence)
            children[parent, sequence[-1]] = entry
            trits[entry] = trits[parent] if parent < ENTRIES else 0
            trits[entry, 2 * len(sequence) - 2 : 2 * len(sequence)] = (sequence[-1] % 3, sequence[-1] // 3)
        if len(sequence) < LONGEST:
            for pair, probability in enumerate(of_pair):
                heapq.heappush(heap, (negative * probability, (*sequence, pair), entry))
    return Dictionary(trits, pairs, children)


@dataclass(frozen=True, eq=False)
class WordCodes(Codes):
    """Trits of rows in words of the dictionary.

    Attributes:
        words: uint16, (words,).
        offsets: int64, (rows + 1,): where the words of each row begin.
    """

    words: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    shape: tuple[int, int]
    bits: int = 2

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        offsets = self.offsets[start : max(stop, start) + 1]
        found = self.words[offsets[0] : offsets[-1]]
        known = dictionary()
        lengths = 2 * known.pairs[found]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        of_rows = np.diff(ends[offsets - offsets[0]])
        columns = self.shape[1]
        padded = columns + columns % 2
        if np.any(of_rows != padded):
            row = int(np.argmax(of_rows != padded))
            raise FormatError(
                f"the words of row {start + row} hold {of_rows[row]} values: expected {padded} for {columns} columns"
            )
        trits = known.trits[found][np.arange(2 * LONGEST) < lengths[:, None]]
        return np.ascontiguousarray(trits.reshape(-1, padded)[:, :columns])


class Qmoe(Format):
    """The format ``qmoe``."""

    id = "qmoe"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        row_off = _planes.get(planes, "row_off", "I32", (None,))
        rows, columns = setting_shape(params)
        if row_off.shape != (rows + 1,):
            raise FormatError(f"plane 'row_off' has shape {list(row_off.shape)}: expected [{rows + 1}] for {rows} rows")
        words = _planes.get(planes, "w_comp", "I16", (None,))
        offsets = row_off.data.astype(np.int64)
        lengths = np.diff(offsets)
        least = -(-columns // (2 * LONGEST))
        if offsets[0] or offsets[-1] != words.shape[0] or np.any(lengths < least) or np.any(lengths * 2 > columns + 1):
            raise FormatError(
                f"plane 'row_off': expected {rows + 1} numbers that rise from 0 to the {words.shape[0]} words of "
                f"'w_comp', by the words of {columns} columns"
            )
        both = finite(planes, "ter_minmax", "BF16", (2 * rows,)).data.reshape(rows, 2)
        tables = np.zeros((rows, 4), np.uint16)
        tables[:, 1:3] = both
        codes = WordCodes(np.ascontiguousarray(words.data).view(np.uint16), offsets, (rows, columns))
        return RowTable((rows, columns), codes, Plane(tables, "BF16"), None, None, columns)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"QMoE stores matrices; the array has shape {list(source.shape)}")
        values = source.float32()
        low, high = (np.where(one == 0, np.float32(0), one) for one in (values.min(1), values.max(1)))
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        trits = np.where(values == 0, 0, np.where(values == low[:, None], 1, 2)).astype(np.uint8)
        bounds = _planes.float_plane(np.stack([low, high], axis=1), "BF16")
        tables = np.stack([np.zeros_like(low), low, high], axis=1)
        if np.any(np.take_along_axis(tables, trits.astype(np.intp), axis=1) != values):
            raise UnsupportedError(
                "a row holds more than 0, one negative and one positive value: make it ternary first"
            )
        if np.any(bounds.float32() != tables[:, 1:]):
            raise UnsupportedError("a value is no bfloat16, which QMoE stores")
        planes = _planes_of(trits, bounds.data)
        return encoded(self.id, planes, source.shape, {"shape": list(source.shape), **params})

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, RowTable) or form.codes.bits != 2 or len(form.shape) != 2:
            return super().write(form, params)
        tables = np.broadcast_to(form.tables.float32(), (form.rows, 4))
        codes = form.codes.unpack()
        if form.scales is not None or form.zeros is not None or form.centre or form.tables.kind != "BF16":
            raise UnsupportedError("format 'qmoe' holds bfloat16 tables of rows without scales")
        if tables[:, 0].any() or (codes.size and codes.max() > 2):
            raise UnsupportedError("format 'qmoe' holds rows of 0 and two other values")
        return _planes_of(codes, np.broadcast_to(form.tables.data, (form.rows, 4))[:, 1:3])


def _planes_of(trits: CodeArray, bounds: NDArray[np.uint16]) -> dict[str, Plane]:
    """The planes of trits (rows, columns) and the bits of minima and maxima (rows, 2)."""
    rows, columns = trits.shape
    padded = np.zeros((rows, columns + columns % 2), np.uint8)
    padded[:, :columns] = trits
    words, counts = _words(padded[:, ::2] + 3 * padded[:, 1::2])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if offsets[-1] >> 31:
        raise UnsupportedError(f"{offsets[-1]} words: QMoE counts them in 32 bits")
    return {
        "w_comp": Plane(words.view(np.int16), "I16"),
        "row_off": Plane(offsets.astype(np.int32), "I32"),
        "ter_minmax": Plane(np.ascontiguousarray(bounds).reshape(-1), "BF16"),
    }


def _words(pairs: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The words of all rows of pairs, and how many each has: the longest match, all rows at once."""
    children = dictionary().children
    rows, steps = pairs.shape
    entry = children[np.full(rows, ENTRIES), pairs[:, 0]]
    out = np.empty((rows, steps), np.uint16)
    counts = np.zeros(rows, np.int64)
    for at in range(1, steps):
        longer = children[entry, pairs[:, at]]
        ended = np.flatnonzero(longer < 0)
        out[ended, counts[ended]] = entry[ended]
        counts[ended] += 1
        longer[ended] = children[ENTRIES, pairs[ended, at]]
        entry = longer
    out[np.arange(rows), counts] = entry
    counts += 1
    return out[np.arange(steps) < counts[:, None]], counts


FORMATS = {"qmoe": Qmoe()}
