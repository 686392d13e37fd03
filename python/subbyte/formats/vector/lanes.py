"""Orders of indices that Q-Palette and QTIP store for the lanes of tensor cores, and Q-Palette for other kernels.

A weight ``[m, n]`` is cut into tiles of 16 by 16. Of the 128 pairs of neighbours of a tile, pair q = 4 * lane + j is in
row 8 * (j & 1) + (lane >> 2) and columns 8 * (j >> 1) + 2 * (lane & 3) + {0, 1}: the operand of a product of 16 by 8 by
16. Bits of a tile are a string of 32 lanes; the lanes of 2 by 2 neighbouring tiles are stored together.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subbyte.arrays import Array
from subbyte.errors import FormatError
from subbyte.forms.vector.indices import IndexArray, Indices, StreamIndices, pack_stream

TILE = 16
PAIRS = TILE * TILE // 2
_LANES = 32
STATE_BITS = 16
Bits = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LaneIndices(Indices):
    """Indices in the strings of lanes.

    Attributes:
        data: the bytes, (m / 32, bytes of 32 rows).
        width: bits of an index in the string.
        length: weights of an index: 1 or 2.
        weights: m and n, multiples of 32.
    """

    data: NDArray[np.uint8]
    width: int
    length: int
    weights: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.weights
        expected = (rows // 32, columns * 32 // self.length * self.width // 8)
        if rows % 32 or columns % 32 or self.data.shape != expected:
            raise FormatError(f"{self.data.size} bytes do not fit a weight {[rows, columns]} with sides of whole 32")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.weights[0], self.weights[1] // self.length

    @property
    def together(self) -> int:
        return 2 * TILE

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        start, stop, _ = rows.indices(self.weights[0])
        if stop <= start:
            return np.zeros((0, self.shape[1]), np.uint32)
        blocks = self.data[start // 32 : -(-stop // 32)]
        across = self.weights[1] // 32
        unit = np.unpackbits(blocks, axis=1, bitorder="little").reshape(len(blocks), across, _LANES, 2, 2, -1)
        strings = self.in_string(unit).transpose(0, 4, 1, 3, 2, 5)  # [block, sm, J, sk, lane, bits]
        tiles = strings.reshape(2 * len(blocks), 2 * across, -1)
        found = self.of_string(tiles).reshape(*tiles.shape[:2], _LANES // 4, 4, 2, 2, -1)
        ordered = found.transpose(0, 5, 2, 1, 4, 3, 6).reshape(32 * len(blocks), -1)  # row: j & 1, lane >> 2
        return ordered[start % 32 : start % 32 + stop - start]

    @staticmethod
    @abstractmethod
    def in_string(unit: Bits) -> Bits:
        """Bits of a lane, the last axis, as they are stored, in the order of the string; it is its own reverse."""

    @abstractmethod
    def of_string(self, tiles: Bits) -> IndexArray:
        """The indices of strings of tiles, the last axis, in the order of the pairs."""


def _lane_bytes(tiles: Bits) -> NDArray[np.uint8]:
    """The bytes of strings of tiles (m / 16, n / 16, bits) whose lanes have their bits as stored: (m / 32, bytes)."""
    down, across, _ = tiles.shape
    lanes = tiles.reshape(down // 2, 2, across // 2, 2, _LANES, -1).transpose(0, 2, 4, 3, 1, 5)
    return np.packbits(np.ascontiguousarray(lanes).reshape(down // 2, -1), axis=1, bitorder="little")


def _in_pairs(indices: IndexArray) -> IndexArray:
    """Indices (m, n / length) by tile and in the order of the pairs: (m / 16, n / 16, pairs or weights)."""
    rows, columns = indices.shape
    if rows % 32 or not rows or not columns:
        raise FormatError(f"{rows} rows: expected a multiple of 32")
    tiled = indices.reshape(rows // TILE, 2, _LANES // 4, -1, 2, 4, 1)
    return tiled.transpose(0, 3, 2, 5, 4, 1, 6).reshape(rows // TILE, tiled.shape[3], -1)


@dataclass(frozen=True, eq=False)
class CodeIndices(LaneIndices):
    """Codes of a table for weights, or pairs of weights: low bits first, in the string and where it is stored."""

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.width

    @staticmethod
    def in_string(unit: Bits) -> Bits:
        return unit

    def of_string(self, tiles: Bits) -> IndexArray:
        fields = tiles.reshape(*tiles.shape[:2], -1, self.width).astype(np.uint32)
        found: IndexArray = np.bitwise_or.reduce(fields << np.arange(self.width, dtype=np.uint32), axis=-1)
        return found


def pack_codes(codes: IndexArray, width: int, length: int) -> NDArray[np.uint8]:
    """The bytes that `CodeIndices` reads."""
    pairs = codes.reshape(len(codes), -1, 2) if length == 1 else codes[..., None]
    ordered = np.stack([_in_pairs(pairs[..., at]) for at in range(pairs.shape[-1])], axis=-1)
    bits = (ordered[..., None] >> np.arange(width, dtype=np.uint32) & np.uint32(1)).astype(np.uint8)
    return _lane_bytes(bits.reshape(*ordered.shape[:2], -1))


@dataclass(frozen=True, eq=False)
class TrellisIndices(LaneIndices):
    """States of a trellis: windows of 16 bits of the string, which is a ring, ``width`` bits further for every pair.

    The first bit of a window is the highest; lanes are stored with their bits in reverse.
    """

    bits: int = STATE_BITS

    @staticmethod
    def in_string(unit: Bits) -> Bits:
        return unit[..., ::-1]

    def of_string(self, tiles: Bits) -> IndexArray:
        return states_of(tiles, self.width)


def states_of(tiles: Bits, width: int) -> IndexArray:
    """The states of strings of tiles: uint32, (…, PAIRS)."""
    ring = np.concatenate([tiles, tiles[..., :STATE_BITS]], axis=-1)
    found = np.zeros((*tiles.shape[:-1], PAIRS), np.uint32)
    for at in range(STATE_BITS):
        found = found << np.uint32(1) | ring[..., at : at + PAIRS * width : width]
    return found


def pack_states(states: IndexArray, width: int) -> NDArray[np.uint8]:
    """The bytes that `TrellisIndices` reads, of states (m / 16, n / 16, PAIRS).

    Raises:
        FormatError: they are not the windows of a ring.
    """
    shifts = np.arange(STATE_BITS - 1, STATE_BITS - 1 - width, -1, dtype=np.uint32)
    strings = (states[..., None] >> shifts & np.uint32(1)).astype(np.uint8).reshape(*states.shape[:2], -1)
    if not np.array_equal(states_of(strings, width), states):
        raise FormatError(f"the states of a tile do not follow from each other by {width} bits")
    lanes = strings.reshape(*states.shape[:2], _LANES, -1)[..., ::-1]
    return _lane_bytes(lanes.reshape(*states.shape[:2], -1))


def states_in_tiles(states: IndexArray) -> IndexArray:
    """States of pairs (m, n / 2) by tile, in the order of the string: (m / 16, n / 16, PAIRS)."""
    return _in_pairs(states)


@dataclass(frozen=True, eq=False)
class SimtIndices(Indices):
    """Codes of vectors in the order of kernels without tensor cores.

    A row is cut into chunks of 32 vectors, and these into groups of 32 chunks, the last one perhaps of fewer. Element e
    of chunk l of a group of g chunks is column (e / 8) * 8 * g + 8 * l + e mod 8 of the group. The codes of a chunk are
    ``bits`` 32-bit words, low bits first; word w of chunk l is word w * g + l of the group.

    Attributes:
        words: 32-bit integers, (rows, bits * chunks).
        length: weights of a vector: 1, 2 or 4.
    """

    words: Array
    bits: int
    length: int

    def __post_init__(self) -> None:
        if not self.words.size or self.words.shape[1] % self.bits:
            raise FormatError(f"{list(self.words.shape)} words: rows have no whole chunks of {self.bits} words")

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.words.shape[0], self.words.shape[1] // self.bits * 32

    def unpack(self, rows: slice = slice(None)) -> IndexArray:
        words = self.words[rows]
        found = np.empty((len(words), self.shape[1]), np.uint32)
        for group, size in _groups(self.shape[1] // 32):
            some = words[:, group * self.bits : (group + size) * self.bits].reshape(-1, self.bits, size)
            by_chunk = np.ascontiguousarray(some.swapaxes(1, 2)).reshape(-1, self.bits)
            codes = StreamIndices(by_chunk, self.bits, (len(by_chunk), 32), self.bits).unpack()
            ordered = codes.reshape(len(words), size, 4 * self.length, 8 // self.length).swapaxes(1, 2)
            found[:, group * 32 : (group + size) * 32] = ordered.reshape(len(words), -1)
        return found

    @staticmethod
    def pack(codes: IndexArray, bits: int, length: int) -> NDArray[np.uint32]:
        """The words of codes (rows, vectors).

        Raises:
            FormatError: a row is no whole number of chunks.
        """
        rows, vectors = codes.shape
        if vectors % 32 or not codes.size:
            raise FormatError(f"{vectors} vectors in a row: expected a multiple of 32")
        words = np.empty((rows, vectors // 32 * bits), np.uint32)
        for group, size in _groups(vectors // 32):
            some = codes[:, group * 32 : (group + size) * 32].reshape(rows, 4 * length, size, 8 // length)
            packed = pack_stream([(np.ascontiguousarray(some.swapaxes(1, 2)).reshape(-1, 32), bits)])
            words[:, group * bits : (group + size) * bits] = (
                packed.reshape(rows, size, bits).swapaxes(1, 2).reshape(rows, -1)
            )
        return words


def _groups(chunks: int) -> list[tuple[int, int]]:
    """First chunk and chunks of every group."""
    return [(first, min(32, chunks - first)) for first in range(0, chunks, 32)]
