"""TL1 and TL2 of bitnet.cpp (github.com/microsoft/BitNet), ggml types 38 and 39 of its fork: codes for lookup kernels.

A weight ``[M, K]`` is cut into tiles of BM rows and BK columns, and those into strips of bm rows; the parameters
``shape``, ``BM``, ``BK`` and ``bm`` give the sizes. The plane ``scale`` (F32, [1]; a tensor ``<name>_scale`` of the
file) holds the scale; without it the weight is its trits. w = trit * scale.

TL1, plane ``packed`` (U8, [M * K / 64, 16]): a pair of trits is 3 * w0 + w1 + 4 (0 to 8) in four bits. Bytes are
nested, the outermost first: tile down, tile across, strip, step of 256 / bm columns, 16 rows, two pairs, row; the first
pair is in the high half of its byte. bm is 32 or 64.

TL2, plane ``packed`` (U8, one dimension), bm = 32: K % BK columns at the end (a multiple of 32) are pairs, those before
are triples, 9 * w0 + 3 * w1 + w2 (-13 to 13) as magnitude and sign. Regions, one after the other:

1. magnitudes in four bits: tile down, tile across, strip, step of six columns, and 32 bytes: byte p is row
   8 * (0, 2, 1, 3)[p / 8] + p % 8 of its strip, the first triple in the high half;
2. signs in words of 16 bits: tile down, tile across, strip, step of 24 columns, row j of 16: bit 15 - (2t + h) belongs
   to triple t of row 16h + j, and is 1 for negative ones;
3. pairs as in TL1, with the order of region 1, BK = 32 and steps of four columns;
4. zeros, up to 5 * ((K - 256) * M / 3) / 8 + 4 * (256 * M / 2) / 8 bytes altogether, each division rounded down.

Writer: scale = max|W|, trit = round(W / scale), ties to even; a scale of 1 is left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError
from subbyte.formats.base import Format, encoded, setting_int, setting_shape
from subbyte.formats.ternary.source import matrix, only_scale
from subbyte.forms import ByteCodes, Codes, Form, Ternary, TiledCodes, Tiling
from subbyte.forms.codes import CodeArray
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane


@dataclass(frozen=True)
class Tiles:
    """Sizes of a weight and its tiles, see the module."""

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    strip: int

    def __post_init__(self) -> None:
        if self.tile_rows < 1 or self.tile_columns < 1:
            raise FormatError(f"tiles of BM = {self.tile_rows} and BK = {self.tile_columns}: expected positive sizes")
        if self.rows % self.tile_rows or self.tile_rows % self.strip:
            raise FormatError(
                f"{self.rows} rows in tiles of BM = {self.tile_rows} and strips of bm = {self.strip}: each has to be a "
                "multiple of the next"
            )


@dataclass(frozen=True, eq=False)
class _Digits(Codes):
    """Trits + 1 as digits of numbers to the base 3, the first the most significant."""

    numbers: tuple[Codes, ...]
    count: int
    bits: int = 2

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        rows, columns = self.numbers[0].shape
        return rows, columns * self.count

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        numbers = self._numbers(rows)
        if numbers.size and numbers.max() >= 3**self.count:
            raise FormatError(f"a stored code is out of the range of {self.count} trits")
        digits = [numbers // np.uint8(3**at) % np.uint8(3) for at in reversed(range(self.count))]
        return np.stack(digits, axis=-1).reshape(len(numbers), self.shape[1])

    def _numbers(self, rows: slice) -> CodeArray:
        if len(self.numbers) == 1:
            return self.numbers[0].unpack(rows)
        magnitudes, signs = (codes.unpack(rows) for codes in self.numbers)
        if magnitudes.size and magnitudes.max() > 13:
            raise FormatError("a stored magnitude is out of the range of three trits")
        return np.where(signs != 0, np.uint8(13) - magnitudes, np.uint8(13) + magnitudes)


@dataclass(frozen=True, eq=False)
class _Beside(Codes):
    """Codes of matrices beside each other."""

    parts: tuple[Codes, ...]
    shape: tuple[int, int]
    bits: int = 2

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        return np.concatenate([part.unpack(rows) for part in self.parts], axis=1)


def _numbers(digits: CodeArray, count: int) -> CodeArray:
    """Digits of each ``count`` columns as one number to the base 3."""
    cut = digits.reshape(len(digits), -1, count)
    weights = np.array([3**at for at in reversed(range(count))], np.uint8)
    return np.asarray((cut * weights).sum(axis=2, dtype=np.uint8))


class _Tl(Format):
    """What both formats share."""

    strips: tuple[int, ...]

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        packed = _planes.get(planes, "packed", "U8").data
        if packed.ndim > 2:
            raise FormatError(
                f"plane 'packed' has shape {list(packed.shape)}: expected rows of 16 bytes, or a single row"
            )
        scale = _planes.optional(planes, "scale", "F32", (1,)) or Plane(np.ones(1, np.float32), "F32")
        tiles = self._tiles(params, setting_shape(params))
        shape = (tiles.rows, tiles.columns)
        return Ternary(
            shape, self._codes(packed.reshape(-1), tiles), Plane(scale.data.reshape(1, 1), "F32"), tiles.columns
        )

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        values = matrix(array)
        scale = np.abs(values).max()
        trits = np.rint(values / scale) if scale else values
        codes = ByteCodes((trits + np.float32(1)).astype(np.uint8), 2)
        form = Ternary(values.shape, codes, Plane(scale.reshape(1, 1), "F32"), values.shape[1])
        return encoded(self.id, self.write(form, params), values.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        found, scale = only_scale(form, self.id)
        tiles = self._tiles(params, (found.rows, found.columns))
        planes = {"packed": Plane(self._pack(found.digits(), tiles), "U8")}
        value = scale.float32().reshape(1)
        if value[0] != 1:
            planes["scale"] = Plane(value, "F32")
        return planes

    def _tiles(self, params: Mapping[str, Any], shape: tuple[int, int]) -> Tiles:
        strip = setting_int(params, "bm", allowed=self.strips)
        return Tiles(*shape, setting_int(params, "BM"), setting_int(params, "BK"), strip)

    @abstractmethod
    def _codes(self, packed: CodeArray, tiles: Tiles) -> Codes: ...

    @abstractmethod
    def _pack(self, digits: CodeArray, tiles: Tiles) -> CodeArray: ...


def _expect(packed: CodeArray, size: int, tiles: Tiles) -> None:
    if packed.size != size:
        raise FormatError(
            f"plane 'packed' has {packed.size} bytes: expected {size} for a weight {[tiles.rows, tiles.columns]}"
        )


class Tl1(_Tl):
    """The format ``bitnet.tl1``."""

    id = "bitnet.tl1"
    strips = (32, 64)

    def _codes(self, packed: CodeArray, tiles: Tiles) -> Codes:
        tiling = _tl1_tiling(tiles)
        _expect(packed, tiles.rows * tiles.columns // 4, tiles)
        return _Digits((TiledCodes(packed, 4, (tiles.rows, tiles.columns // 2), tiling),), 2)

    def _pack(self, digits: CodeArray, tiles: Tiles) -> CodeArray:
        return pack_tiles(_numbers(digits, 2), 4, _tl1_tiling(tiles)).reshape(-1, 16)


def _tl1_tiling(tiles: Tiles) -> Tiling:
    step = 256 // tiles.strip
    if tiles.columns % tiles.tile_columns or tiles.tile_columns % step:
        raise FormatError(
            f"{tiles.columns} columns in tiles of BK = {tiles.tile_columns} and steps of {step}: each has to be a "
            "multiple of the next"
        )
    strips, steps = tiles.tile_rows // tiles.strip, tiles.tile_columns // step
    return Tiling(
        f"R C strip={strips} step={steps} high={tiles.strip // 16} pair={step // 4} row=16 ~half=2",
        rows="strip high row",
        columns="step pair half",
    )


class Tl2(_Tl):
    """The format ``bitnet.tl2``."""

    id = "bitnet.tl2"
    strips = (32,)

    def _codes(self, packed: CodeArray, tiles: Tiles) -> Codes:
        triples, pairs, sizes = _regions(tiles)
        _expect(packed, sum(sizes), tiles)
        magnitudes, signs, rest, _ = np.split(packed, np.cumsum(sizes)[:-1])
        parts: list[Codes] = []
        if triples:
            count = (tiles.rows, triples // 3)
            stored = TiledCodes(magnitudes, 4, count, _nibbles(tiles, tiles.tile_columns // 6))
            parts.append(_Digits((stored, TiledCodes(signs, 1, count, _signs(tiles))), 3))
        if pairs:
            parts.append(_Digits((TiledCodes(rest, 4, (tiles.rows, pairs // 2), _nibbles(tiles, 8)),), 2))
        return _Beside(tuple(parts), (tiles.rows, tiles.columns))

    def _pack(self, digits: CodeArray, tiles: Tiles) -> CodeArray:
        triples, pairs, sizes = _regions(tiles)
        found = []
        if triples:
            numbers = _numbers(digits[:, :triples], 3).astype(np.int8) - np.int8(13)
            found.append(pack_tiles(np.abs(numbers).astype(np.uint8), 4, _nibbles(tiles, tiles.tile_columns // 6)))
            found.append(pack_tiles((numbers < 0).astype(np.uint8), 1, _signs(tiles)))
        if pairs:
            found.append(pack_tiles(_numbers(digits[:, triples:], 2), 4, _nibbles(tiles, 8)))
        return np.concatenate([*found, np.zeros(sizes[-1], np.uint8)])


def _regions(tiles: Tiles) -> tuple[int, int, tuple[int, ...]]:
    """Columns in triples, columns in pairs, and the bytes of the four regions."""
    rows, columns = tiles.rows, tiles.columns
    pairs = columns % tiles.tile_columns
    triples = columns - pairs
    if tiles.tile_columns % 24 or pairs % 32:
        raise FormatError(
            f"{columns} columns in tiles of BK = {tiles.tile_columns}: BK has to be a multiple of 24 and leave a "
            "multiple of 32"
        )
    used = (triples * rows // 6, triples * rows // 24, pairs * rows // 4)
    total = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    if total < sum(used):
        raise FormatError(f"a weight {[rows, columns]} with {pairs} columns in pairs does not fit its {total} bytes")
    return triples, pairs, (*used, total - sum(used))


def _nibbles(tiles: Tiles, steps: int) -> Tiling:
    strips = tiles.tile_rows // tiles.strip
    return Tiling(
        f"R C strip={strips} step={steps} low=2 high=2 row=8 ~half=2", rows="strip high low row", columns="step half"
    )


def _signs(tiles: Tiles) -> Tiling:
    strips, steps = tiles.tile_rows // tiles.strip, tiles.tile_columns // 24
    return Tiling(
        f"R C strip={strips} step={steps} row=16 ~triple=8 ~half=2", rows="strip half row", columns="step triple"
    )


FORMATS = {"bitnet.tl1": Tl1(), "bitnet.tl2": Tl2()}
