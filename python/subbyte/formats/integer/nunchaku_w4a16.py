"""Nunchaku's layers of modulation (W4A16), see `subbyte.formats.integer.nunchaku`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import setting_group_size, setting_int
from subbyte.formats.integer.awq import zero_words
from subbyte.forms import Biased, ByteCodes, TiledCodes, Tiling
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane

_TILING = Tiling("R C row=4 half=2 k=8 t=4", rows="row", columns="half t k")


def read(qweight: Plane, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Biased:
    """The form of a layer.

    Raises:
        FormatError: planes and parameters do not fit together.
    """
    shape = (4 * qweight.shape[0], qweight.shape[1])
    for key, size in zip(("out_features", "in_features"), shape, strict=True):
        if setting_int(params, key, size) != size:
            raise FormatError(f"setting '{key}' is {params[key]}, but plane 'qweight' holds {size}")
    try:
        codes = TiledCodes(qweight.data, 4, shape, _TILING)
    except FormatError as e:
        raise FormatError(f"plane 'qweight' has shape {list(qweight.shape)}: {e.message}") from e
    group = setting_group_size({"group_size": 64, **params}, shape[1])
    groups = -(-shape[1] // group)
    stored = (8 * zero_words(groups, group), shape[0])
    scales = _planes.get(planes, "wscales", ("F16", "BF16"), stored)
    zeros = _planes.get(planes, "wzeros", scales.kind, stored)
    scales, zeros = (Plane(np.ascontiguousarray(found.data[:groups].T), found.kind) for found in (scales, zeros))
    return Biased(shape, codes, scales, zeros, group)


def write(form: Biased) -> dict[str, Plane]:
    """The planes of a form.

    Raises:
        UnsupportedError: it does not fit.
    """
    if form.codes.bits != 4 or form.scales.kind not in ("F16", "BF16") or form.signed:
        raise UnsupportedError("format 'nunchaku' holds codes of 4 bits with 16-bit scales and zeros")
    try:
        packed = pack_tiles(form.codes.unpack(), 4, _TILING)
    except FormatError as e:
        raise UnsupportedError(f"format 'nunchaku': {e.message}") from e
    groups = form.scales.shape[1]
    planes = {"qweight": Plane(packed.view(np.int16).reshape(form.rows // 4, form.columns), "I16")}
    for name, found in (("wscales", form.scales), ("wzeros", form.biases)):
        stored = np.zeros((8 * zero_words(groups, form.group_size), form.rows), found.data.dtype)
        stored[:groups] = found.data.T
        planes[name] = Plane(stored, found.kind)
    return planes


def quantize(values: NDArray[np.float32], kind: str, params: Mapping[str, Any]) -> Biased:
    """Codes, scales and zeros by the minimum and maximum of each group."""
    rows, columns = values.shape
    group = setting_group_size({"group_size": 64, **params}, columns)
    starts = np.arange(0, columns, group)
    low: NDArray[np.float32] = np.minimum.reduceat(values, starts, axis=1)
    high: NDArray[np.float32] = np.maximum.reduceat(values, starts, axis=1)
    scales = _planes.rounded(np.maximum(high - low, np.float32(1e-5)) / np.float32(15), kind)
    zeros = np.clip(np.rint(-low / scales), 0, 15)
    wide, zero = (np.repeat(found, group, axis=1)[:, :columns] for found in (scales, zeros))
    codes = np.clip(np.rint(values / wide) + zero, 0, 15).astype(np.uint8)
    stored = (_planes.float_plane(scales, kind), _planes.float_plane(-zeros * scales, kind))
    return Biased((rows, columns), ByteCodes(codes, 4), *stored, group)
