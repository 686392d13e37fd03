"""HQQ checkpoints (half-quadratic quantization, https://mobiusml.github.io/hqq_blog/).

A weight ``[out, in]`` of ``nbits`` bits in groups of ``g`` elements, n = out * in / g groups, and the grouped matrix M:

* axis 1: M = W.reshape(n, g), scale and zero ``[n, 1]``: a group is g neighbours of the flattened weight;
* axis 0: M = W.reshape(g, n), scale and zero ``[1, n]``: a group is every n-th element of the flattened weight.

=====================  ================  ============================================================================
plane                  type, shape       content
=====================  ================  ============================================================================
W_q                    U8 or I32         codes of M, packed along its first axis (`subbyte.formats.integer.slabs`)
scale, zero            F16, BF16, F32    the zero is a float, not rounded in general
shape                  I64 [2]           out and in
nbits                  I32 []            1, 2, 3, 4, 5, 6, 8; F32 1.58 for ternary codes, stored in 2 bits
group_size, axis       I32 []
packing                U8                ``8bit_u8`` (also for 5 and 6 bits), ``4bit_u8``, ``2bit_u8``, ``1bit_u8``,
                                         ``3bit_32`` (rows padded to a multiple of 10), as characters
compute_dtype          U8                ``torch.float16``, ``torch.bfloat16`` or ``torch.float32``, as characters
unpack_view_dtype      U8                ``torch.uint8`` or ``torch.int32``: the type of the items
view_as_float          U8 []             the bytes of W_q are stored as elements of compute_dtype
=====================  ================  ============================================================================

and, without meaning for the values, U8 ``quant_scale``, ``quant_zero`` (1 where scales are quantized themselves, which
safetensors files cannot hold), ``offload_meta``, ``channel_wise``, ``optimize``, ``round_zero``,
``encoded_state_dict``, ``stores_quant_config``.

w = (code - zero) * scale, both steps rounded in compute_dtype.

Encoding minimizes the l_p norm (p = 0.7) of the error over the zeros, with the scale of the range of each group: the
error is split off as a sparse term by the shrinkage sign(e) * max(|e| - |e|^(p - 1) / beta, 0), which alternates with
zero = mean(code - (w - e) / scale), beta growing by 1 % a step from 10. Each group keeps the zero with the least mean
error, and codes are the nearest ones for the scales and zeros as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import Error, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int
from subbyte.formats.integer.slabs import DTYPE_NAMES, DTYPES, PACKINGS, matrix_shape, pack_slabs, slab_codes
from subbyte.forms import FloatZero, Form
from subbyte.planes import FLOATS, Plane, promoted
from subbyte.quantize import Grid, quantized
from subbyte.quantize.grid import writer_only
from subbyte.quantize.half_quadratic import half_quadratic

#: Packing by bits. Ternary codes (1.58 bits) are packed as those of 2 bits.
_PACKING = {1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 5: "8bit_u8", 6: "8bit_u8", 8: "8bit_u8"}
_TERNARY = 1.58
_VIEWS = {"U8": "torch.uint8", "I32": "torch.int32"}
_REQUIRED = ("W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing", "compute_dtype")
_FLAGS = {
    "view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "offload_meta": 0, "channel_wise": 1, "optimize": 1,
    "round_zero": 0, "encoded_state_dict": 1, "stores_quant_config": 1,
}  # fmt: skip


class Hqq(Format):
    """The format ``hqq``."""

    id = "hqq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        shape = matrix_shape(_planes.get(planes, "shape", "I64", (2,)).data.tolist())
        bits, ternary = _bits(_planes.get(planes, "nbits", ("I32", "F32"), ()))
        axis = _number(planes, "axis")
        if axis not in (0, 1):
            raise FormatError(f"plane 'axis' is {axis}: expected 0 or 1")
        group = _number(planes, "group_size")
        elements = shape[0] * shape[1]
        if group < 1 or elements % group:
            raise FormatError(f"plane 'group_size' is {group}, which does not divide a weight {list(shape)}")
        _check_settings(params, {"nbits": _TERNARY if ternary else bits, "group_size": group, "axis": axis})
        for name in ("quant_scale", "quant_zero"):
            flag = _planes.optional(planes, name, "U8", ())
            if flag is not None and flag.data.item():
                raise UnsupportedError(f"plane '{name}' is set: quantized scales and zeros cannot be read")
        packing = _text(planes, "packing", set(_PACKING.values()))
        compute = DTYPES[_text(planes, "compute_dtype", DTYPES)]
        groups = elements // group
        flat = (groups, 1) if axis == 1 else (1, groups)
        scales = _planes.get(planes, "scale", FLOATS, flat)
        zeros = _planes.get(planes, "zero", FLOATS, flat)
        items = _items(_planes.get(planes, "W_q"), PACKINGS[packing].kind, compute)
        codes = slab_codes(items, packing, bits, shape, group if axis == 1 else groups)
        if axis == 1 and shape[1] % group == 0:
            layout: tuple[int, ...] = (shape[0], shape[1] // group)
        else:
            layout = (groups,)
        scales, zeros = (Plane(found.data.reshape(layout), found.kind) for found in (scales, zeros))
        kind = promoted(compute, scales.kind, zeros.kind)
        return FloatZero(shape, codes, scales, zeros, group, kind, axis == 0)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"HQQ stores matrices; the array has shape {list(source.shape)}")
        settings = _settings(params)
        ternary = settings.get("nbits") == _TERNARY
        bits = 2 if ternary else setting_int(settings, "nbits", 4, _PACKING)
        axis = setting_int(settings, "axis", 1, (0, 1))
        rows, columns = source.shape
        group = columns if axis == 1 else rows
        if settings.get("group_size", 64) is not None:
            group = setting_int(settings, "group_size", 64)
        if group < 1 or source.data.size % group:
            raise UnsupportedError(f"groups of {group} do not divide an array of shape {list(source.shape)}")
        groups = source.data.size // group
        values = source.float32()
        grouped = values.reshape(groups, group) if axis == 1 else np.ascontiguousarray(values.reshape(group, groups).T)
        kind, largest = source.kind, 2 if ternary else (1 << bits) - 1
        if ternary:
            writer_only(params, "ternary codes")
        grid, by_columns = Grid(bits, group, zeros="float", kind=kind), axis == 1 and columns % group == 0
        form = quantized(
            source if by_columns else Plane(grouped, "F32"), params, grid, importance if by_columns else None
        )
        if isinstance(form, FloatZero):
            codes, stored_scales, stored_zeros = form.codes.unpack().reshape(groups, -1), form.scales, form.zeros
        else:
            scales, zeros = half_quadratic(
                grouped,
                largest,
                round_zero=setting_bool(settings, "round_zero", bits == 4),
                optimize=setting_bool(settings, "optimize", True),
            )
            stored_scales, stored_zeros = _planes.finite_plane(scales, kind), _planes.finite_plane(zeros, kind)
            exact = grouped / stored_scales.float32() + stored_zeros.float32()
            codes = np.clip(np.rint(exact), 0, largest).astype(np.uint8)
        layout = (-1, 1) if axis == 1 else (1, -1)
        if axis == 0:
            codes = np.ascontiguousarray(codes.T)
        found = {
            "W_q": pack_slabs(codes, _PACKING[bits], group if axis == 1 else groups),
            "scale": Plane(stored_scales.data.reshape(layout), kind),
            "zero": Plane(stored_zeros.data.reshape(layout), kind),
        }
        nbits = _TERNARY if ternary else bits
        metadata = _metadata((rows, columns), nbits, group, axis, kind, settings)
        return encoded(self.id, _viewed(found, kind, metadata) | metadata, source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        settings = _settings(params)
        group = settings.get("group_size", 64)
        by_rows = settings.get("axis", 1) == 1 and isinstance(group, int) and group > 0 and shape[-1] % group == 0
        return 32 if len(shape) == 2 and by_rows else 0

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, FloatZero):
            return super().write(form, params)
        bits, settings = form.codes.bits, _settings(params)
        if bits not in _PACKING:
            raise UnsupportedError(f"HQQ has no packing for codes of {bits} bits")
        if len(form.shape) != 2:
            raise UnsupportedError(f"HQQ stores matrices; the weight has shape {list(form.shape)}")
        axis, groups = 0 if form.strided else 1, form.rows * form.columns // form.group_size
        if form.scales.data.size != groups:
            raise UnsupportedError(f"groups of {form.group_size} columns do not divide {form.columns} columns")
        width = groups if form.strided else form.group_size
        if not PACKINGS[_PACKING[bits]].padded and form.rows * form.columns // width % PACKINGS[_PACKING[bits]].fields:
            raise UnsupportedError(f"{form.rows * form.columns // width} rows of codes do not fill whole bytes")
        layout = (1, groups) if form.strided else (groups, 1)
        found = {
            "W_q": pack_slabs(form.codes.unpack(), _PACKING[bits], width),
            "scale": Plane(form.scales.data.reshape(layout), form.scales.kind),
            "zero": Plane(form.zeros.data.reshape(layout), form.zeros.kind),
        }
        nbits = _TERNARY if bits == 2 and settings.get("nbits") == _TERNARY else bits
        metadata = _metadata((form.rows, form.columns), nbits, form.group_size, axis, form.compute, settings)
        return _viewed(found, form.compute, metadata) | metadata

    def layers(self, folder: Folder) -> Sequence[Layer]:
        params = {"quantization_config": folder.settings}
        found = []
        optional = ("unpack_view_dtype", *_FLAGS)
        for module, tensors in folder.modules(_REQUIRED, optional, "W_q").items():
            stored = folder.source[tensors["shape"]]
            try:
                if stored.dtype != "I64" or stored.shape != (2,):
                    raise FormatError(f"{stored.dtype} {list(stored.shape)}: expected I64 [2]")
                shape = matrix_shape(folder.source.array(stored.name).tolist())
            except Error as e:
                e.tensor = e.tensor or stored.name
                raise
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


def _settings(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a weight: those of config.json, over them what ``params`` say directly."""
    found: Any = params.get("quantization_config", {})
    for key in ("quant_config", "weight_quant_params"):
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return {**found, **params} if isinstance(found, Mapping) else params


def _check_settings(params: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    settings = _settings(params)
    for name, value in stored.items():
        claimed = settings.get(name)
        if claimed is not None and claimed != value:
            raise FormatError(f"plane '{name}' says {value}, '{name}' of the settings says {claimed!r:.40}")


def _number(planes: Mapping[str, Any], name: str) -> int:
    return int(_planes.get(planes, name, "I32", ()).data.item())


def _bits(nbits: Plane) -> tuple[int, bool]:
    value = nbits.data.item()
    if nbits.kind == "F32" and abs(value - _TERNARY) < 1e-3:
        return 2, True
    if value not in _PACKING:
        raise FormatError(f"plane 'nbits' is {value}: expected {_TERNARY} or one of {', '.join(map(str, _PACKING))}")
    return int(value), False


def _text(planes: Mapping[str, Any], name: str, allowed: Any) -> str:
    raw = _planes.get(planes, name, "U8", (None,)).data
    found = raw[:40].tobytes().decode("latin-1")
    if found not in allowed or raw.size > 40:
        raise FormatError(f"plane '{name}' is '{found}': expected one of {', '.join(sorted(allowed))}")
    return found


def _items(stored: Plane, kind: str, compute: str) -> Plane:
    """W_q, its bytes viewed as items again where they are stored as floats."""
    if stored.kind != compute or stored.data.ndim != 2:
        return stored
    dtype = np.dtype(np.uint8 if kind == "U8" else np.int32)
    if stored.shape[1] * stored.data.itemsize % dtype.itemsize:
        raise FormatError(f"plane 'W_q' {list(stored.shape)} of {stored.kind} holds no whole number of words in a row")
    return Plane(np.ascontiguousarray(stored.data).view(dtype), kind)


def _viewed(planes: dict[str, Plane], kind: str, metadata: Mapping[str, Plane]) -> dict[str, Plane]:
    """The planes, W_q stored as floats where ``view_as_float`` says so."""
    items = planes["W_q"].data
    if not metadata["view_as_float"].data.item():
        return planes
    dtype = np.dtype({"F16": np.float16, "BF16": np.uint16, "F32": np.float32}[kind])
    if items.shape[1] * items.itemsize % dtype.itemsize:
        raise UnsupportedError(f"rows of {items.shape[1]} items cannot be viewed as {kind}")
    return planes | {"W_q": Plane(items.view(dtype), kind)}


def _metadata(
    shape: tuple[int, int], nbits: float, group: int, axis: int, compute: str, settings: Mapping[str, Any]
) -> dict[str, Plane]:
    packing = _PACKING[2 if nbits == _TERNARY else int(nbits)]
    texts = {
        "packing": packing,
        "compute_dtype": DTYPE_NAMES[compute],
        "unpack_view_dtype": _VIEWS[PACKINGS[packing].kind],
    }
    flags = {**_FLAGS, "round_zero": int(nbits == 4)}
    flags |= {name: int(setting_bool(settings, name, bool(value))) for name, value in flags.items()}
    kind, dtype = ("F32", np.float32) if nbits == _TERNARY else ("I32", np.int32)
    return {
        "shape": Plane(np.array(shape, np.int64), "I64"),
        "nbits": Plane(np.array(nbits, dtype), kind),
        "group_size": Plane(np.array(group, np.int32), "I32"),
        "axis": Plane(np.array(axis, np.int32), "I32"),
        **{name: Plane(np.frombuffer(text.encode(), np.uint8), "U8") for name, text in texts.items()},
        **{name: Plane(np.array(value, np.uint8), "U8") for name, value in flags.items()},
    }


FORMATS = {"hqq": Hqq()}
