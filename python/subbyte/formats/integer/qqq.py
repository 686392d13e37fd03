"""QQQ, 4-bit weights for 8-bit activations, arXiv 2406.09904 (github.com/HandH1998/QQQ).

A weight ``[out, in]``, 64 divides ``out`` and 16 divides ``in``; groups of g columns, G = in / g:

=========  ====  ===============  ===============================================================
plane      type  shape            content
=========  ====  ===============  ===============================================================
B          I32   [in/16, 2*out]   codes of 4 bits in tiles, eight in a word
s_channel  F32   [1, out]         scale of an output, in an order of its own
s_group    F16   [G, out] or [0]  scale of a group, in an order of its own; empty per channel
=========  ====  ===============  ===============================================================

* Per group: w8 = round((code - 8) * s_group), ties to even, wrapped to int8; w = w8 * s_channel.
* Per channel: codes are two's complement, w = 16 * code * s_channel.

The tiles are those of `subbyte.formats.integer.marlin` with two differences: a thread takes the four neighbouring
inputs 4r to 4r + 3, and per channel the halves of outputs alternate in a word, the upper one first. Runs of 64 values
of s_group and of 32 values of s_channel are permuted as there.

Settings: ``wbits`` or ``bits`` (4) and ``group_size`` (-1 for per channel).

Writer, rounding to nearest with ties to even: per channel scale = max|w| / 7, code = clamp(round(w / scale), -7, 7) and
s_channel = scale / 16; per group s_channel = max|w| / 127 of the row, scale = max|w| / 7 of the group, code =
clamp(round(w / scale), -7, 7) + 8 and s_group = f16(scale / s_channel).
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
from subbyte.formats.integer.marlin import CHANNEL_ORDER, GROUP_ORDER, permuted
from subbyte.forms import Affine, ByteCodes, Form, TiledCodes, Tiling, TwoLevel
from subbyte.forms.affine import spread
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane

_GROUP = Tiling("C R lane=8 thread=4 tile=4 low=2 half=2 high=2", rows="tile half lane", columns="thread high low")
_CHANNEL = Tiling("C R lane=8 thread=4 tile=4 column=4 ~half=2", rows="tile half lane", columns="thread column")
_SIGNED = 8
"""What turns two's complement of 4 bits into codes above 0."""


class Qqq(Format):
    """The format ``qqq``."""

    id = "qqq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = _config(params)
        words = _planes.get(planes, "B", ("I32", "U32"), (None, None))
        shape = rows, columns = (words.shape[1] // 2, words.shape[0] * 16)
        channel = _channel(planes, rows)
        s_group = _planes.get(planes, "s_group", "F16")
        grouped = s_group.shape != (0,)
        try:
            codes = TiledCodes(words.data, 4, shape, _GROUP if grouped else _CHANNEL, 0 if grouped else _SIGNED)
        except FormatError as e:
            raise FormatError(f"plane 'B' has shape {list(words.shape)}: {e.message}") from e
        if not grouped:
            setting_group_size(config, columns, 1)
            with np.errstate(all="ignore"):
                scales = channel * np.float32(16)
            if not np.isfinite(scales).all():
                raise FormatError("plane 's_channel' holds a scale that is not finite when multiplied by 16")
            return Affine(shape, codes, Plane(scales.reshape(-1, 1), "F32"), 8, columns)
        groups = _planes.get(planes, "s_group", "F16", (None, rows)).shape[0]
        if not groups or columns % groups or not np.isfinite(s_group.data).all():
            raise FormatError(f"plane 's_group' has shape {list(s_group.shape)}: expected finite scales, whole groups")
        group_size = setting_group_size(config, columns, groups)
        scales = np.ascontiguousarray(permuted(s_group.data, np.argsort(GROUP_ORDER)).T)
        return TwoLevel(shape, codes, Plane(scales, "F16"), None, Plane(channel.reshape(-1, 1), "F32"), group_size)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _config(params)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"QQQ stores matrices; the array has shape {list(source.shape)}")
        values, (rows, columns) = source.float32(), source.shape
        group_size = setting_group_size({"group_size": -1, **config}, columns)
        if columns % group_size:
            raise UnsupportedError(f"groups of {group_size} columns do not divide {columns} columns")
        largest = np.abs(values.reshape(rows, -1, group_size)).max(axis=2)
        scales = largest / np.float32(7)
        divisors = spread(np.where(scales == 0, np.float32(1), scales), columns, group_size)
        codes = ByteCodes((np.clip(np.rint(values / divisors), -7, 7) + np.float32(8)).astype(np.uint8), 4)
        form: Form
        if config.get("group_size", -1) == -1:
            form = Affine((rows, columns), codes, Plane(scales, "F32"), 8, columns)
        else:
            channel = largest.max(axis=1, keepdims=True) / np.float32(127)
            ratios = _planes.float_plane(scales / np.where(channel == 0, np.float32(1), channel), "F16")
            form = TwoLevel((rows, columns), codes, ratios, None, Plane(channel, "F32"), group_size)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Affine | TwoLevel) or len(form.shape) != 2 or form.codes.bits != 4:
            return super().write(form, params)
        codes = form.codes.unpack()
        try:
            if isinstance(form, TwoLevel):
                if form.group_offsets is not None or form.row_scales.kind != "F32":
                    raise UnsupportedError("format 'qqq' has F16 scales of groups and F32 scales of rows")
                packed, channel = pack_tiles(codes, 4, _GROUP), form.row_scales.data
                group = permuted(form.group_scales.data.T, GROUP_ORDER)
            else:
                packed, channel = pack_tiles(codes, 4, _CHANNEL, _SIGNED), _sixteenth(form)
                group = np.zeros(0, np.float16)
        except FormatError as e:
            raise UnsupportedError(f"format 'qqq': {e.message}") from e
        return {
            "B": Plane(packed.view(np.int32).reshape(form.columns // 16, 2 * form.rows), "I32"),
            "s_channel": Plane(permuted(channel.reshape(1, -1), CHANNEL_ORDER), "F32"),
            "s_group": Plane(group, "F16"),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        params = {"quantization_config": folder.settings}
        found = []
        for module, tensors in folder.modules(("B", "s_channel", "s_group"), marker="s_channel").items():
            words = folder.source[tensors["B"]]
            if len(words.shape) != 2:
                raise FormatError(f"has shape {list(words.shape)}: expected a matrix", tensor=words.name)
            shape = (words.shape[1] // 2, words.shape[0] * 16)
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


class QqqInt8(Qqq):
    """The format ``qqq.int8``: what a weight with groups is before its rows are scaled, as numbers."""

    id = "qqq.int8"

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        form = self.read(planes, params)
        if not isinstance(form, TwoLevel):
            raise UnsupportedError("a weight with one scale a row has no first level of 8 bits")
        return _planes.result(form.int8(slice(0, form.rows)).astype(np.float32), dtype)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        raise UnsupportedError("format 'qqq.int8' is for reading: encode to 'qqq'")


class QqqChannel(Format):
    """The format ``qqq.s_channel``: the scales of the outputs in their order."""

    id = "qqq.s_channel"

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        return _planes.result(_channel(planes, None), dtype)

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        raise UnsupportedError("scales alone are no weight: pass all planes to format 'qqq'")


def _config(params: Mapping[str, Any]) -> Mapping[str, Any]:
    config = optional_settings(params)
    setting_int(config, "wbits" if "wbits" in config else "bits", 4, allowed=(4,))
    return config


def _channel(planes: Mapping[str, Any], rows: int | None) -> NDArray[np.float32]:
    """The scales of the outputs in their order."""
    found = _planes.get(planes, "s_channel", "F32", (1, rows))
    if not found.data.size or found.shape[1] % 32:
        raise FormatError(f"plane 's_channel' has shape {list(found.shape)}: expected a multiple of 32 outputs")
    return permuted(found.data, np.argsort(CHANNEL_ORDER)).reshape(-1)


def _sixteenth(form: Affine) -> NDArray[np.float32]:
    """s_channel of a weight with one scale a row.

    Raises:
        UnsupportedError: it does not fit.
    """
    if not form.symmetric or form.group_of is not None:
        raise UnsupportedError("format 'qqq' has no zero points and no order of columns")
    scales = form.regrouped(form.columns).rescaled("F32").scales.float32()
    found = scales / np.float32(16)
    if not np.array_equal(found * np.float32(16), scales):
        raise UnsupportedError("a scale is too small: a sixteenth of it is no float32")
    return found


FORMATS = {"qqq": Qqq(), "qqq.int8": QqqInt8(), "qqq.s_channel": QqqChannel()}
