"""any4, any3 and any2: a table of values for every row (arXiv 2507.04610, github.com/facebookresearch/any4).

There is no standard file. A weight ``[out, in]`` of ``b`` bits in groups of g columns, G = ceil(in / g), as the
functions and the module of the original hold it:

================  =================  =============================  ====================================================
plane             type               shape                          content
================  =================  =============================  ====================================================
weight            I32                [out, in]                      codes of the module, before any order of a kernel
assign            I8 or U8           [out, in]                      codes of the functions
lut               F16, BF16, F32     [out, 2^b] or [2^b]            values of the codes, in no order
scales_and_zeros  F16, BF16, F32     [G, out, 2]                    scale and zero of a group
================  =================  =============================  ====================================================

* ``weight``: the table is centred, w = lut[code] * scale + zero.
* ``assign``: the table is not, w = (lut[code] - 2^(b-1)) * scale + zero; with the parameter ``scale_only`` zeros are 0
  and w = lut[code] * scale.

Every step is rounded to the type of the planes. Parameters: ``group_size``, ``bits`` (or ``n_bit``) and ``scale_only``,
perhaps inside ``meta``; what they say must agree with the planes, and without them the planes alone count.

Writer: scale = (max - min) / (2^b - 1) and zero = min + 2^(b-1) * scale of a group, or with ``scale_only`` scale =
max|w| / (2^(b-1) - 1), each numerator at least 1e-6, in float32, then rounded to the type of the weight. Tables are the
means of a one-dimensional k-means over the scaled row, each element weighted by the ``importance`` of its column (1
without) times its scale; of two starts, quantiles and even steps, the better result counts. Parameters with ``meta``
give the planes of the module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    optional_settings,
    setting_bool,
    setting_group_size,
    setting_int,
)
from subbyte.forms import ByteCodes, Form, RowTable
from subbyte.forms.affine import spread
from subbyte.planes import FLOATS, Plane
from subbyte.quantize.k_means import k_means_of_row


class Any4(Format):
    """The format ``any4``."""

    id = "any4"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        module = "weight" in planes
        if module:
            stored = _planes.get(planes, "weight", "I32", (None, None))
        else:
            stored = _planes.get(planes, "assign", ("I8", "U8"), (None, None))
        rows, columns = stored.shape
        if not columns:
            raise FormatError(f"plane '{'weight' if module else 'assign'}' has shape {[rows, 0]}: it is empty")
        lut = _planes.get(planes, "lut", FLOATS)
        tables = Plane(lut.data.reshape(1, -1), lut.kind) if len(lut.shape) == 1 else lut
        if tables.shape not in [(count, 1 << b) for count in (1, rows) for b in (2, 3, 4)]:
            raise FormatError(f"plane 'lut' has shape {list(lut.shape)}: expected [{rows}, 16], or 8 or 4 columns")
        bits = tables.shape[1].bit_length() - 1
        both = _planes.get(planes, "scales_and_zeros", (lut.kind,), (None, rows, 2))
        config = _config(params)
        group_size = setting_group_size(config, columns, both.shape[0])
        if setting_int(config, "bits", bits) != bits:
            raise FormatError(f"plane 'lut' has {1 << bits} values for a code, but 'bits' is {config['bits']}")
        codes = _codes(stored.data, bits)
        scales, zeros = (Plane(np.ascontiguousarray(both.data[..., at].T), both.kind) for at in range(2))
        scale_only = setting_bool(config, "scale_only", False)
        if scale_only and np.count_nonzero(zeros.float32()):
            raise FormatError("plane 'scales_and_zeros' has zeros other than 0, but 'scale_only' is true")
        centre = 0 if module or scale_only else 1 << (bits - 1)
        return RowTable((rows, columns), codes, tables, scales, None if scale_only else zeros, group_size, centre)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _config(params)
        bits = setting_int(config, "bits", 4, allowed=(2, 3, 4))
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"any4 stores matrices; the array has shape {list(source.shape)}")
        rows, columns = source.shape
        group_size = setting_group_size(config, columns)
        scale_only, module = setting_bool(config, "scale_only", False), "meta" in params
        values = source.float32()
        scales, zeros = _scales(values, bits, group_size, scale_only)
        shift = 0 if scale_only else 1 << (bits - 1)
        wide = spread(scales, columns, group_size)
        scaled = (values - spread(zeros, columns, group_size)) / wide + np.float32(shift)
        weights = _importance(importance, columns) * wide
        fitted = [k_means_of_row(row, weight, 1 << bits) for row, weight in zip(scaled, weights, strict=True)]
        codes = np.stack([code for code, _ in fitted])
        tables = _planes.rounded(np.stack([table for _, table in fitted]), source.kind)
        planes = {
            "lut": _planes.float_plane(tables - np.float32(shift if module else 0), source.kind),
            "scales_and_zeros": _planes.float_plane(np.stack([scales.T, zeros.T], axis=-1), source.kind),
        }
        if module:
            planes["weight"] = Plane(codes.astype(np.int32), "I32")
        else:
            planes["assign"] = Plane(codes.astype(np.int8), "I8")
        return encoded(self.id, planes, (rows, columns), params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, RowTable) or len(form.shape) != 2 or form.scales is None:
            return super().write(form, params)
        bits = form.codes.bits
        if form.zeros is None and form.centre:
            raise UnsupportedError("tables that are not centred, without zeros, fit no layer of any4")
        module = form.centre == 0 and (form.zeros is not None or "meta" in params)
        zeros = form.zeros.data if form.zeros is not None else np.zeros_like(form.scales.data)
        planes = {
            "lut": form.tables if form.tables.shape[0] == form.rows else Plane(form.tables.data[0], form.tables.kind),
            "scales_and_zeros": Plane(np.stack([form.scales.data.T, zeros.T], axis=-1), form.scales.kind),
        }
        if form.centre not in (0, 1 << (bits - 1)) or form.scales.kind != form.tables.kind:
            raise UnsupportedError("the tables and scales of any4 have one type, and the middle code as centre")
        codes = form.codes.unpack()
        if module:
            planes["weight"] = Plane(codes.astype(np.int32), "I32")
        else:
            planes["assign"] = Plane(codes.view(np.int8), "I8")
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        for module, tensors in folder.modules(("weight", "lut", "scales_and_zeros"), marker="lut").items():
            stored = folder.source[tensors["weight"]]
            if len(stored.shape) != 2:
                raise FormatError(f"has shape {list(stored.shape)}: expected a matrix", tensor=stored.name)
            found.append(Layer(f"{module}.weight", tuple(stored.shape), tensors, {"meta": folder.settings}))
        return found


def _config(params: Mapping[str, Any]) -> Mapping[str, Any]:
    config = dict(optional_settings(params, "meta")) if "meta" in params else dict(params)
    if "n_bit" in config:
        config.setdefault("bits", config["n_bit"])
    return config


def _codes(stored: NDArray[np.int32] | NDArray[np.int8], bits: int) -> ByteCodes:
    if stored.size and (stored.min() < 0 or stored.max() >> bits):
        raise FormatError(f"a code in 'weight' or 'assign' is out of the range of {bits} bits")
    return ByteCodes(stored.astype(np.uint8), bits)


def _scales(
    values: NDArray[np.float32], bits: int, group_size: int, scale_only: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and zeros, (rows, groups), unrounded."""
    starts = np.arange(0, values.shape[1], group_size)
    if scale_only:
        largest: NDArray[np.float32] = np.maximum.reduceat(np.abs(values), starts, axis=1)
        largest = np.maximum(largest, np.float32(1e-6))
        return largest / np.float32((1 << (bits - 1)) - 1), np.zeros_like(largest)
    low: NDArray[np.float32] = np.minimum.reduceat(values, starts, axis=1)
    ranges: NDArray[np.float32] = np.maximum.reduceat(values, starts, axis=1) - low
    ranges = np.maximum(ranges, np.float32(1e-6))
    scales = ranges / np.float32((1 << bits) - 1)
    return scales, low + scales * np.float32(1 << (bits - 1))


def _importance(importance: Any, columns: int) -> NDArray[np.float32]:
    if importance is None:
        return np.ones(columns, np.float32)
    found = _planes.source(importance).float32()
    if found.shape != (columns,) or found.min() < 0:
        raise ArgumentError(f"importance of shape {list(found.shape)}: expected {columns} values, none negative")
    return found


FORMATS = {"any4": Any4()}
