"""QServe (QoQ), 4-bit weights for 8-bit activations, arXiv 2405.04532 (github.com/mit-han-lab/omniserve).

A weight ``[out, in]``, 32 divides both; groups of g columns, G = in / g:

=========  ====  ============  ==================================================================
plane      type  shape         content
=========  ====  ============  ==================================================================
qweight    I8    [out, in/2]   codes, two in a byte, in tiles
s1_scales  F16   [out]         scale of a row
s1_szeros  F16   [out]         zero * scale of a row; only per channel
s2_scales  I8    [G, out]      integer scale of a group, in an order of its own; only per group
s2_zeros   I8    [G, out]      low byte of -zero * s2_scale, in the same order; only per group
=========  ====  ============  ==================================================================

* Per channel: w = code * s1_scale - s1_szero.
* Per group: w8 = low byte of code * s2_scale + s2_zero, as int8; w = w8 * s1_scale.

Tiles of 32 x 32 follow each other along the rows. A tile is nested, the outermost first: row % 8, column / 4 % 4,
column / 16, row / 8 % 2, column % 4, and row / 16, which is the half of the byte. Every 32 outputs of the s2 planes
are a matrix [4, 8] of outputs stored [8, 4].

The original saves a pickle; these are its tensors in safetensors. There is no standard configuration: which of the two
and the group size follow from the planes; ``group_size`` in the parameter ``config`` must not contradict them.

Writer (``config`` with ``group_size``, -1 for per channel; 128 by default), rounding to nearest with ties to even. Per
channel, s1 = f16((max - min) / 15), zero = clamp(round(-min / s1), 0, 15), code = clamp(round(w / s1) + zero, 0, 15)
and szero = f16(zero * s1). Per group, s1 = f16(max|w| / 119), w8 = clamp(round(w / s1), -119, 119), then in a group s2
= max(1, ceil((max - min) / 15)), and zero and code as before. max counts as at least, min as at most 0, so that every
value of a group is in range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, optional_settings, setting_group_size, setting_int
from subbyte.forms import Biased, ByteCodes, Form, TiledCodes, Tiling, TwoLevel
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane

_TILING = Tiling("R C row=8 quad=4 right=2 low=2 column=4 high=2", rows="high low row", columns="right quad column")


class QServe(Format):
    """The format ``qserve``."""

    id = "qserve"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        qweight = _planes.get(planes, "qweight", "I8", (None, None))
        shape = (qweight.shape[0], 2 * qweight.shape[1])
        config = optional_settings(params, "config")
        setting_int(config, "w_bit", 4, allowed=(4,))
        try:
            codes = TiledCodes(qweight.data, 4, shape, _TILING)
        except FormatError as e:
            raise FormatError(f"plane 'qweight' has shape {list(qweight.shape)}: {e.message}") from e
        rows, columns = shape
        scales = _planes.get(planes, "s1_scales", "F16", (rows,))
        row_scales = Plane(scales.data.reshape(-1, 1), "F16")
        if "s1_szeros" in planes:
            if "s2_scales" in planes or "s2_zeros" in planes:
                raise FormatError("plane 's1_szeros' is that of one group a row, 's2_scales' of several: expected one")
            setting_group_size(config, columns, 1)
            negative = -_planes.get(planes, "s1_szeros", "F16", (rows,)).data
            return Biased(shape, codes, row_scales, Plane(negative.reshape(-1, 1), "F16"), columns, compute="F32")
        s2_scales = _planes.get(planes, "s2_scales", "I8", (None, rows))
        groups = s2_scales.shape[0]
        if not groups or columns % groups:
            raise FormatError(f"plane 's2_scales' has {groups} groups, which do not divide {columns} columns")
        group_size = setting_group_size(config, columns, groups)
        zeros = _ordered(_planes.get(planes, "s2_zeros", "I8", (groups, rows)).data)
        return TwoLevel(shape, codes, Plane(_ordered(s2_scales.data), "I8"), zeros, row_scales, group_size)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"QServe stores matrices; the array has shape {list(source.shape)}")
        values, (rows, columns) = source.float32(), source.shape
        _TILING.check(rows, columns)
        config = {"group_size": 128, **optional_settings(params, "config")}
        group_size = setting_group_size(config, columns)
        form = _per_channel(values) if config["group_size"] == -1 else _per_group(values, group_size)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Biased | TwoLevel) or len(form.shape) != 2 or form.codes.bits != 4:
            return super().write(form, params)
        try:
            packed = pack_tiles(form.codes.unpack(), 4, _TILING).view(np.int8).reshape(form.rows, -1)
        except FormatError as e:
            raise UnsupportedError(f"format 'qserve': {e.message}") from e
        planes = {"qweight": Plane(packed, "I8")}
        if isinstance(form, TwoLevel):
            if form.group_offsets is None or form.row_scales.kind != "F16":
                raise UnsupportedError("format 'qserve' has integer scales of groups and F16 scales of rows")
            return planes | {
                "s1_scales": Plane(form.row_scales.data.reshape(-1), "F16"),
                "s2_scales": Plane(_stored(form.group_scales.data), "I8"),
                "s2_zeros": Plane(_stored(form.group_offsets), "I8"),
            }
        if form.scales.kind != "F16" or form.scales.shape[1] != 1 or form.signed:
            raise UnsupportedError("format 'qserve' has one F16 scale and bias a row for weights without two levels")
        return planes | {
            "s1_scales": Plane(form.scales.data.reshape(-1), "F16"),
            "s1_szeros": Plane(-form.biases.data.reshape(-1), "F16"),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        optional = ("s1_szeros", "s2_scales", "s2_zeros")
        for module, tensors in folder.modules(("qweight", "s1_scales"), optional, marker="s1_scales").items():
            qweight = folder.source[tensors["qweight"]]
            if len(qweight.shape) != 2:
                raise FormatError(f"has shape {list(qweight.shape)}: expected a matrix", tensor=qweight.name)
            shape = (qweight.shape[0], 2 * qweight.shape[1])
            found.append(Layer(f"{module}.weight", shape, tensors, {"config": folder.settings}))
        return found


class QServeInt8(QServe):
    """The format ``qserve.int8``: what a weight with groups is before its rows are scaled, as numbers."""

    id = "qserve.int8"

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        form = self.read(planes, params)
        if not isinstance(form, TwoLevel):
            raise UnsupportedError("a weight with one scale a row has no first level of 8 bits")
        return _planes.result(form.int8(slice(0, form.rows)).astype(np.float32), dtype)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        raise UnsupportedError("format 'qserve.int8' is for reading: encode to 'qserve'")


def _ordered(stored: NDArray[np.int8]) -> NDArray[np.int8]:
    """An s2 plane as (rows, groups)."""
    return np.ascontiguousarray(stored.reshape(len(stored), -1, 8, 4).swapaxes(2, 3).reshape(stored.shape).T)


def _stored(ordered: NDArray[np.int8]) -> NDArray[np.int8]:
    """The reverse of `_ordered`."""
    turned = ordered.T.reshape(ordered.shape[1], -1, 4, 8)
    return np.ascontiguousarray(turned.swapaxes(2, 3)).reshape(ordered.shape[::-1])


def _per_channel(values: NDArray[np.float32]) -> Biased:
    low = np.minimum(values.min(axis=1, keepdims=True), 0)
    high = np.maximum(values.max(axis=1, keepdims=True), 0)
    scales = _planes.rounded((high - low) / np.float32(15), "F16")
    divisors = np.where(scales == 0, np.float32(1), scales)
    zeros = np.clip(np.rint(-low / divisors), 0, 15)
    codes = np.clip(np.rint(values / divisors) + zeros, 0, 15).astype(np.uint8)
    planes = (_planes.float_plane(scales, "F16"), _planes.float_plane(-(zeros * scales), "F16"))
    return Biased(values.shape, ByteCodes(codes, 4), *planes, values.shape[1])


def _per_group(values: NDArray[np.float32], group_size: int) -> TwoLevel:
    rows, columns = values.shape
    if columns % group_size:
        raise UnsupportedError(f"groups of {group_size} columns do not divide {columns} columns")
    scales = _planes.rounded(np.abs(values).max(axis=1, keepdims=True) / np.float32(119), "F16")
    divisors = np.where(scales == 0, np.float32(1), scales)
    wide = np.clip(np.rint(values / divisors), -119, 119).astype(np.int64).reshape(rows, -1, group_size)
    low, high = np.minimum(wide.min(axis=2), 0), np.maximum(wide.max(axis=2), 0)
    steps = np.maximum(1, -((low - high) // 15))
    zeros = np.clip(np.rint(-low / steps), 0, 15).astype(np.int64)
    codes = np.clip(np.rint(wide / steps[..., None]).astype(np.int64) + zeros[..., None], 0, 15)
    offsets = (-zeros * steps).astype(np.int8)
    packed = ByteCodes(codes.reshape(rows, columns).astype(np.uint8), 4)
    row_scales = _planes.float_plane(scales, "F16")
    return TwoLevel((rows, columns), packed, Plane(steps.astype(np.int8), "I8"), offsets, row_scales, group_size)


FORMATS = {"qserve": QServe(), "qserve.int8": QServeInt8()}
