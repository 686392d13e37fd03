"""BitNet's weights for the W2A8 kernels of bitnet.cpp's GPU folder (github.com/microsoft/BitNet).

A weight ``[out, in]``, 16 divides ``out`` and 32 divides ``in``:

============  ==========  ============  ==============================================================
plane         type        shape         content
============  ==========  ============  ==============================================================
packed        I8 (or U8)  [out, in/4]   trit + 2 in two bits, in tiles of 16 x 32; 0 is no trit
weight_scale  BF16 (F32)  [4] or [1]    the scale, then zeros; without it the weight is its trits
============  ==========  ============  ==============================================================

Tiles follow each other along the rows, 128 bytes each. Entry t of 32 half rows holds 16 codes: row 8 * (t / 16) +
t % 8, columns 16 * ((t / 8) % 2) to 15 more. Those 16 codes make a word of 32 bits, whose pair of bits p holds column
4 * (p % 4) + p / 4, the lowest first. Fused weights have up to four scales, for rows whose numbers are not stored: they
are refused.

Writer: floats as in `subbyte.formats.ternary.bitnet`, the scale rounded to BF16; trits as they are, without a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Format, encoded, setting_shape
from subbyte.formats.ternary.source import by_mean, matrix, only_scale
from subbyte.forms import ByteCodes, Form, Ternary, TiledCodes, Tiling
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import FLOATS, Plane

_TILING = Tiling("R C upper=2 right=2 row=8 low=4 high=4", rows="upper row", columns="right high low")


class BitNetGpu(Format):
    """The format ``bitnet.gpu_int2``."""

    id = "bitnet.gpu_int2"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        packed = _planes.get(planes, "packed", ("I8", "U8"), (None, None))
        shape = (packed.shape[0], 4 * packed.shape[1])
        if setting_shape(params, shape) != shape:
            raise FormatError(f"plane 'packed' has shape {list(packed.shape)}: a weight {params['shape']} has another")
        scale = _planes.optional(planes, "weight_scale", FLOATS, (None,)) or Plane(np.ones(1, np.float32), "F32")
        if scale.data.size not in (1, 4):
            raise FormatError(f"plane 'weight_scale' has shape {list(scale.shape)}: expected [4]")
        if scale.data[1:].any():
            raise UnsupportedError("plane 'weight_scale' has several scales: split the fused weight into its matrices")
        codes = TiledCodes(packed.data, 2, shape, _TILING, offset=3)
        return Ternary(shape, codes, Plane(scale.data[:1].reshape(1, 1), scale.kind), shape[1])

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        values = matrix(array)
        codes, scale = by_mean(values)
        trits = bool((np.abs(values) <= 1).all() and (values == np.rint(values)).all())
        if trits:
            codes, scale = (values + np.float32(1)).astype(np.uint8), np.float32(1)
        one = _planes.float_plane(np.full((1, 1), scale, np.float32), "F32" if trits else "BF16")
        form = Ternary(values.shape, ByteCodes(codes, 2), one, values.shape[1])
        return encoded(self.id, self.write(form, params), values.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        found, scale = only_scale(form, self.id)
        packed = pack_tiles(found.digits(), 2, _TILING, offset=3).view(np.int8)
        planes = {"packed": Plane(packed.reshape(found.rows, -1), "I8")}
        if scale.float32()[0, 0] != 1:
            scales = np.zeros(4, scale.data.dtype)
            scales[0] = scale.data[0, 0]
            planes["weight_scale"] = Plane(scales, scale.kind)
        return planes


FORMATS = {"bitnet.gpu_int2": BitNetGpu()}
