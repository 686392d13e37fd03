"""I2_S of bitnet.cpp (github.com/microsoft/BitNet), ggml type 36 of its fork.

The plane ``packed`` (U8, one dimension) holds a weight ``[out, in]`` as out * in / 4 bytes of trit + 1 in two bits, the
float32 scale, and 28 bytes of padding, which writers leave zero. w = trit * scale. The file does not say in which of
three orders the codes are; the parameter ``layout`` does:

* ``x86_block128`` (the default; the Python converter, published files): the weight is one row, cut into blocks of 128;
  byte b of a block holds elements b, 32 + b, 64 + b, 96 + b, the first in the highest bits.
* ``arm_block64``: blocks of 64; byte b holds elements b, 16 + b, 32 + b, 48 + b.
* ``x86_1x4``: four rows a byte; byte c of a row of bytes holds column c of rows 4r to 4r + 3, the first highest.

The parameter ``shape`` is needed: nothing in the bytes says it.

Writer: the scale is max|W|; a trit is the sign of its value, 0 where that is below 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError
from subbyte.formats.base import Format, encoded, setting_shape, setting_text
from subbyte.formats.ternary.source import matrix, only_scale
from subbyte.forms import ByteCodes, Form, ReshapedCodes, Ternary, TiledCodes, Tiling
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane

TAIL = 32
"""Bytes after the codes."""

_LAYOUTS = {
    "x86_block128": Tiling("R C byte=32 ~field=4", rows="", columns="field byte"),
    "arm_block64": Tiling("R C byte=16 ~field=4", rows="", columns="field byte"),
    "x86_1x4": Tiling("R C ~field=4", rows="field", columns=""),
}


class I2S(Format):
    """The format ``bitnet.i2_s``."""

    id = "bitnet.i2_s"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        packed = _planes.get(planes, "packed", "U8", (None,)).data
        shape, inner, tiling = _layout(params, setting_shape(params))
        expected = shape[0] * shape[1] // 4 + TAIL
        if packed.size != expected:
            raise FormatError(f"plane 'packed' has {packed.size} bytes: expected {expected} for a weight {list(shape)}")
        codes = TiledCodes(packed[:-TAIL], 2, inner, tiling)
        scale = np.ascontiguousarray(packed[-TAIL : 4 - TAIL]).view("<f4").reshape(1, 1)
        every = codes if inner == shape else ReshapedCodes(codes, shape)
        return Ternary(shape, every, Plane(scale, "F32"), shape[1])

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        values = matrix(array)
        trits = np.where(np.abs(values) < np.float32(1e-6), np.float32(0), np.sign(values))
        scale = np.abs(values).max().reshape(1, 1)
        codes = ByteCodes((trits + np.float32(1)).astype(np.uint8), 2)
        form = Ternary(values.shape, codes, Plane(scale, "F32"), values.shape[1])
        return encoded(self.id, self.write(form, params), values.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        found, scale = only_scale(form, self.id)
        _, inner, tiling = _layout(params, (found.rows, found.columns))
        tail = np.zeros(TAIL, np.uint8)
        tail[:4] = scale.float32().astype("<f4").reshape(-1).view(np.uint8)
        codes = pack_tiles(found.digits().reshape(inner), 2, tiling)
        return {"packed": Plane(np.concatenate([codes, tail]), "U8")}


def _layout(params: Mapping[str, Any], shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], Tiling]:
    """The shape of the weight, that of the matrix which is tiled, and its tiling."""
    name = setting_text(params, "layout", "x86_block128")
    # Files made by the Python converter describe their layout in a sentence.
    tiling = _LAYOUTS.get("x86_block128" if name.startswith("128-value blocks") else name)
    if tiling is None:
        raise FormatError(f"setting 'layout' is '{name:.60}': expected one of {', '.join(_LAYOUTS)}")
    inner = shape if tiling.height > 1 else (shape[0] * shape[1] // tiling.width, tiling.width)
    if inner[0] * inner[1] != shape[0] * shape[1]:
        raise FormatError(f"a weight {list(shape)} is no whole number of blocks of {tiling.width}")
    tiling.check(*inner)
    return shape, inner, tiling


FORMATS = {"bitnet.i2_s": I2S()}
