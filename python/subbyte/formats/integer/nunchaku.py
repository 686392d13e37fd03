"""SVDQuant as Nunchaku loads it, arXiv 2411.05007 (layout: github.com/mit-han-lab/deepcompressor, Apache-2.0).

A weight ``[out, in]`` is padded to ``[N, K]``, both multiples of 128, and is a quantized residual and a low-rank term:
w = residual / smooth of its column + lora_up @ lora_down. The names in brackets are those of newer files.

========================  ==============  ===========  =============================================================
plane                     type            shape        content
========================  ==============  ===========  =============================================================
qweight                   I8              [N, K/2]     codes of 4 bits: two's complement, or E2M1
wscales                   F16, BF16       [K/g, N]     for integers, g = 64: residual = code * scale
wscales                   F8_E4M3 (U8)    [K/16, N]    for E2M1: residual = element * scale * wtscale (* wcscales)
wtscale                   F16, BF16, F32  [1]          scale of the tensor, only with E2M1
wcscales                  F16, BF16, F32  [N]          scales of rows, only with E2M1
smooth (smooth_factor)    F16, BF16       [K]
lora_down (proj_down)     F16, BF16       [K, r]       r is a multiple of 16
lora_up (proj_up)         F16, BF16       [N, r]
bias                      F16, BF16       [N]          a weight of its own, ``<module>.bias``
========================  ==============  ===========  =============================================================

Everything lies in the order of tensor-core fragments; shapes are nominal. See the tilings below: the axes in memory,
slowest first, and those which make up the row and the column within a tile. Padding is 0, and 1 in wscales, bias and
smooth. The parameters ``out_features`` and ``in_features`` give the sizes without padding. wcscales are padded like
bias, in the same order.

Layers of modulation (W4A16) have ``qweight`` I16 ``[out/4, in]``, and ``wscales`` and ``wzeros`` F16 or BF16
``[8 * z, out]``, with z as in AWQ's GEMV: residual = code * scale + zero. Rows past the in / g groups are 0, so the
parameter ``group_size`` (64) is needed. They have no padding, and their bias is stored in order.

Parameters ``element`` (``int4`` or ``fp4_e2m1``) and ``group_size`` must not contradict the planes.
`nunchaku.bias`, `nunchaku.smooth`, `nunchaku.lora_down` and `nunchaku.lora_up` are the tensors beside the weight alone.

Writer, ties to even: integers scale = max|w| / 7, rounded to the 16-bit type of the weight (BF16 for float32), code =
clamp(round(w / scale), -7, 7). E2M1: wtscale = max|w| / 2688 in that type, scale = e4m3(group max|w| / 6 / wtscale).
With a ``layout`` that begins with W4A16: scale = (max - min) / 15, zero = clamp(round(-min / scale), 0, 15), code =
clamp(round(w / scale) + zero, 0, 15), wzeros = -zero * scale. The low-rank term has to be computed before; what is
encoded is the residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_text
from subbyte.formats.integer import nunchaku_w4a16 as w4a16
from subbyte.forms import (
    Affine,
    Biased,
    ByteCodes,
    CroppedCodes,
    Form,
    LowRank,
    Microscaled,
    TiledCodes,
    Tiling,
)
from subbyte.forms.dense import Dense
from subbyte.forms.microfloat import divide_blocks, encode_e2m1, encode_e4m3
from subbyte.forms.tiled import pack_tiles
from subbyte.planes import Plane, float8_values

PAD = 128
"""What both sizes of a weight are padded to a multiple of."""

_WEIGHT = Tiling("R C a=8 n=8 k=4 m=2 h=2 t=8", rows="a m n", columns="h k t")
_SCALES = Tiling("R C a=8 c=4 b=2 d=2", rows="a b c d", columns="")
_MICRO = Tiling("R C r=8 q=4 p=4 j=4", rows="p q r", columns="j")
_DOWN = Tiling("C R n=8 k=4 m=2 h=2 t=2", rows="m n", columns="h k t")
_UP = Tiling("R C n=8 k=4 m=2 h=2 t=2", rows="m n", columns="h k t")

_HALVES = ("F16", "BF16")
_FLOATS = ("F16", "BF16", "F32")
#: Names of the tensors beside the weight: of older and of newer files.
_NAMES = {"smooth": "smooth_factor", "lora_down": "proj_down", "lora_up": "proj_up"}
_UNUSED = ("smooth_orig", "smooth_factor_orig")
_MIDDLE = 8


class Nunchaku(Format):
    """The format ``nunchaku``."""

    id = "nunchaku"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        if "bias" in planes and "qweight" not in planes:
            return _dense(_vector(planes, "bias", params))
        qweight = _planes.get(planes, "qweight", ("I8", "I16"), (None, None))
        if qweight.kind == "I16":
            return w4a16.read(qweight, planes, params)
        padded = (qweight.shape[0], 2 * qweight.shape[1])
        if padded[0] % PAD or padded[1] % PAD or not qweight.data.size:
            raise FormatError(f"plane 'qweight' has shape {list(qweight.shape)}: expected multiples of [128, 64]")
        shape = (_size(params, "out_features", padded[0]), _size(params, "in_features", padded[1]))
        scales = _planes.get(planes, "wscales", (*_HALVES, "F8_E4M3", "U8"), (None, padded[0]))
        element = "int4" if scales.kind in _HALVES else "fp4_e2m1"
        if setting_text(params, "element", element) != element:
            raise FormatError(f"plane 'wscales' holds {scales.kind}, which scales {element}, not {params['element']}")
        group = padded[1] // max(scales.shape[0], 1)
        if group * scales.shape[0] != padded[1] or setting_int(params, "group_size", group) != group:
            raise FormatError(
                f"plane 'wscales' has {scales.shape[0]} groups for {padded[1]} columns, but 'group_size' is "
                f"{params.get('group_size', 'unknown')}"
            )
        tiles = TiledCodes(qweight.data, 4, padded, _WEIGHT, _MIDDLE if element == "int4" else 0)
        codes = CroppedCodes(tiles, shape)
        groups = -(-shape[1] // group)
        if element == "int4":
            ordered = _SCALES.arrange(scales.data, padded[0], scales.shape[0])[: shape[0], :groups]
            inner: Form = Affine(shape, codes, Plane(np.ascontiguousarray(ordered), scales.kind), _MIDDLE, group)
            return _corrected(inner, planes, params, None)
        if group != 16:
            raise FormatError(f"plane 'wscales' makes groups of {group} columns: expected 16 for E2M1")
        ordered = _MICRO.arrange(scales.data, padded[0], scales.shape[0])[: shape[0], :groups]
        tensor = _planes.optional(planes, "wtscale", _FLOATS, (1,))
        multiplier = None if tensor is None else tensor.float32()[0]
        micro = Plane(np.ascontiguousarray(ordered), scales.kind)
        inner = Microscaled(shape, codes, "E2M1", micro, "F8_E4M3", 16, multiplier)
        rows = _vector(planes, "wcscales", {"out_features": shape[0]}) if "wcscales" in planes else None
        return _corrected(inner, planes, params, rows)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"Nunchaku stores matrices; the array has shape {list(source.shape)}")
        kind = source.kind if source.kind in _HALVES else "BF16"
        values = source.float32()
        if setting_text(params, "layout", "W4A4").startswith("W4A16"):
            form: Form = w4a16.quantize(values, kind, params)
        elif setting_text(params, "element", "int4", ("int4", "fp4_e2m1")) == "int4":
            form = _quantize_int4(values, kind, setting_int(params, "group_size", 64))
        else:
            form = _quantize_fp4(values, kind)
        return encoded(self.id, self.write(form, {**params, "dtype": kind}), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if isinstance(form, Dense) and len(form.shape) == 1:
            return {"bias": _packed_vector(_plane(form))}
        if len(form.shape) != 2:
            return super().write(form, params)
        if isinstance(form, LowRank):
            return self.write(form.inner, params) | _written_beside(form, params)
        if isinstance(form, Biased):
            return w4a16.write(form)
        if isinstance(form, Affine):
            if form.codes.bits != 4 or not form.symmetric or form.group_of is not None:
                raise UnsupportedError("format 'nunchaku' holds symmetric codes of 4 bits in order")
            if form.scales.kind not in _HALVES or _padded(form.columns) % form.group_size:
                raise UnsupportedError(f"format 'nunchaku' cannot hold {form.scales.kind} scales of this group size")
            codes, scales = _pad(form.codes.unpack(), PAD, _MIDDLE), form.scales
            stored = _SCALES.collect(_pad_scales(scales, form.columns, form.group_size))
            packed = pack_tiles(codes, 4, _WEIGHT, _MIDDLE)
        elif isinstance(form, Microscaled) and (form.element, form.scale_kind, form.block) == ("E2M1", "F8_E4M3", 16):
            if form.divisor is not None or form.maximum is not None:
                raise UnsupportedError("format 'nunchaku' has a scale of the tensor that multiplies")
            codes, scales = _pad(form.codes.unpack(), PAD, 0), form.scales
            stored = _MICRO.collect(_pad_scales(scales, form.columns, 16))
            packed = pack_tiles(codes, 4, _WEIGHT)
        else:
            return super().write(form, params)
        rows = _padded(form.rows)
        planes = {
            "qweight": Plane(packed.view(np.int8).reshape(rows, -1), "I8"),
            "wscales": Plane(stored.reshape(-1, rows), scales.kind),
        }
        if isinstance(form, Microscaled) and form.multiplier is not None:
            planes["wtscale"] = _tensor_scale(form.multiplier, setting_text(params, "dtype", "BF16", _FLOATS))
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        beside = ("wzeros", "wtscale", "wcscales", "bias", *_NAMES, *_NAMES.values(), *_UNUSED)
        for module, tensors in folder.modules(("qweight", "wscales"), beside, marker="wscales").items():
            qweight = folder.source[tensors["qweight"]]
            if qweight.dtype not in ("I8", "I16") or len(qweight.shape) != 2:
                raise FormatError(
                    f"is {qweight.dtype} {list(qweight.shape)} beside 'wscales': expected a matrix of I8 or I16",
                    tensor=qweight.name,
                )
            rows, packed = qweight.shape
            shape = (4 * rows, packed) if qweight.dtype == "I16" else (rows, 2 * packed)
            bias = tensors.pop("bias", None)
            if bias is not None and qweight.dtype == "I8":
                found.append(Layer(f"{module}.bias", folder.source[bias].shape, {"bias": bias}, {}))
            newer = any(name in tensors for name in _NAMES.values())
            found.append(Layer(f"{module}.weight", shape, tensors, {"naming": "proj" if newer else "lora"}))
        return found


class Beside(Format):
    """The formats ``nunchaku.<plane>``: a tensor beside the weight, in its own order.

    Args:
        plane: ``bias``, ``smooth``, ``lora_down`` or ``lora_up``.
    """

    def __init__(self, plane: str) -> None:
        self.id = f"nunchaku.{plane}"
        self.plane = plane

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        if self.plane in ("lora_down", "lora_up"):
            found = _projection(planes, self.plane, params)
        else:
            found = _vector(planes, self.plane, params)
        return _dense(found)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        stored = _planes.float_plane(source.float32(), source.kind if source.kind in _HALVES else "BF16")
        planes = self.write(_dense(stored), params)
        return encoded(self.id, planes, source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        dimensions = 2 if self.plane.startswith("lora") else 1
        if not isinstance(form, Dense) or len(form.shape) != dimensions:
            return super().write(form, params)
        plane = _plane(form)
        packed = _packed_vector(plane) if dimensions == 1 else _packed_projection(plane, self.plane)
        return {self.plane: packed}


def _dense(plane: Plane) -> Dense:
    """A vector or matrix as a form."""
    return Dense(plane.shape, Plane(plane.data.reshape(-1, plane.shape[-1]), plane.kind))


def _plane(form: Dense) -> Plane:
    """The reverse of `_dense`."""
    return Plane(form.data.data.reshape(form.shape), form.data.kind)


def _size(params: Mapping[str, Any], key: str, padded: int) -> int:
    found = setting_int(params, key, padded)
    if found < 1 or _padded(found) != padded:
        raise FormatError(f"setting '{key}' is {found}, but planes such as 'qweight' hold {padded}")
    return found


def _padded(size: int) -> int:
    return -(-size // PAD) * PAD


def _pad(matrix: NDArray[Any], height: int, fill: int) -> NDArray[Any]:
    """A matrix with both sizes padded; ``height`` is what the rows are a multiple of."""
    rows, columns = matrix.shape
    out = np.full((-(-rows // height) * height, _padded(columns)), fill, matrix.dtype)
    out[:rows, :columns] = matrix
    return out


def _one(kind: str) -> int:
    """The bits of 1."""
    return {"F16": 0x3C00, "BF16": 0x3F80, "F8_E4M3": 0x38, "U8": 0x38}[kind]


def _pad_scales(scales: Plane, columns: int, group: int) -> NDArray[Any]:
    """Scales, (rows, groups), of a padded weight, as bits."""
    bits = scales.data.view(np.uint8 if scales.data.itemsize == 1 else np.uint16)
    rows, groups = bits.shape
    out = np.full((_padded(rows), _padded(columns) // group), _one(scales.kind), bits.dtype)
    out[:rows, :groups] = bits
    return out.view(scales.data.dtype)


def _length(planes: Mapping[str, Any], name: str) -> int:
    found = _planes.get(planes, name, _FLOATS if name == "wcscales" else _HALVES, (None,))
    if not found.data.size or found.shape[0] % PAD:
        raise FormatError(f"plane '{name}' has shape {list(found.shape)}: expected a multiple of {PAD}")
    return found.shape[0]


def _vector(planes: Mapping[str, Any], name: str, params: Mapping[str, Any]) -> Plane:
    """A vector of outputs, or of inputs for ``smooth``, in its order and without padding."""
    length = _length(planes, name)
    stored = _planes.get(planes, name)
    size = _size(params, "in_features" if name.startswith("smooth") else "out_features", length)
    return Plane(_SCALES.arrange(stored.data, length, 1).reshape(-1)[:size], stored.kind)


def _packed_vector(vector: Plane) -> Plane:
    if vector.kind == "F32":
        padded = np.ones((_padded(vector.shape[0]), 1), np.float32)
        padded[: vector.shape[0], 0] = vector.data
    else:
        padded = _pad_scales(Plane(vector.data.reshape(-1, 1), vector.kind), 1, PAD)
    return Plane(_SCALES.collect(padded), vector.kind)


def _projection(planes: Mapping[str, Any], name: str, params: Mapping[str, Any], old: str = "") -> Plane:
    """lora_down as (rank, in), or lora_up as (out, rank)."""
    stored = _planes.get(planes, name, _HALVES, (None, None))
    length, rank = stored.shape
    if length % PAD or rank % 16 or not stored.data.size or setting_int(params, "rank", rank) != rank:
        raise FormatError(
            f"plane '{name}' has shape {list(stored.shape)}: expected multiples of [{PAD}, 16] and the 'rank'"
        )
    if (old or name) == "lora_down":
        size = _size(params, "in_features", length)
        return Plane(np.ascontiguousarray(_DOWN.arrange(stored.data, rank, length)[:, :size]), stored.kind)
    size = _size(params, "out_features", length)
    return Plane(_UP.arrange(stored.data, length, rank)[:size], stored.kind)


def _packed_projection(projection: Plane, name: str) -> Plane:
    """The reverse of `_projection`."""
    rank = projection.shape[0 if name == "lora_down" else 1]
    if rank % 16 or not rank:
        raise UnsupportedError(f"a projection of rank {rank}: expected a multiple of 16")
    if name == "lora_down":
        return Plane(_DOWN.collect(_pad(projection.data, 1, 0)).reshape(-1, rank), projection.kind)
    padded = np.ascontiguousarray(_pad(projection.data.T, 1, 0).T)
    return Plane(_UP.collect(padded).reshape(-1, rank), projection.kind)


def _corrected(inner: Form, planes: Mapping[str, Any], params: Mapping[str, Any], row_scales: Plane | None) -> Form:
    """The weight with everything that the planes hold beside its residual."""
    sizes = {"out_features": inner.rows, "in_features": inner.columns}
    chosen = {}
    for older, newer in _NAMES.items():
        if older in planes and newer in planes:
            raise FormatError(
                f"planes '{older}' and '{newer}' are the same tensor of older and newer files: expected one"
            )
        chosen[older] = next((name for name in (older, newer) if name in planes), None)
    if (chosen["lora_down"] is None) != (chosen["lora_up"] is None):
        present = chosen["lora_down"] or chosen["lora_up"]
        raise ArgumentError(f"plane '{present}' is half of a low-rank term: the other half is missing")
    if row_scales is None and not any(chosen.values()):
        return inner
    smoothing = None if chosen["smooth"] is None else _vector(planes, chosen["smooth"], sizes)
    up = down = None
    if chosen["lora_up"] and chosen["lora_down"]:
        up = _projection(planes, chosen["lora_up"], sizes, "lora_up")
        down = _projection(planes, chosen["lora_down"], sizes, "lora_down")
        if up.shape[1] != down.shape[0]:
            raise FormatError(
                f"plane '{chosen['lora_up']}' has rank {up.shape[1]}, plane '{chosen['lora_down']}' {down.shape[0]}"
            )
    return LowRank(inner.shape, inner, row_scales, smoothing, up, down)


def _written_beside(form: LowRank, params: Mapping[str, Any]) -> dict[str, Plane]:
    newer = setting_text(params, "naming", "lora", ("lora", "proj")) == "proj"
    planes = {}
    if form.row_scales is not None:
        planes["wcscales"] = _packed_vector(form.row_scales)
    if form.smoothing is not None:
        planes["smooth"] = _packed_vector(form.smoothing)
    if form.up is not None and form.down is not None:
        planes["lora_down"] = _packed_projection(form.down, "lora_down")
        planes["lora_up"] = _packed_projection(form.up, "lora_up")
    return {_NAMES.get(name, name) if newer else name: plane for name, plane in planes.items()}


def _tensor_scale(multiplier: np.float32, kind: str) -> Plane:
    value = np.array([multiplier], np.float32)
    found = _planes.float_plane(value, kind)
    return found if np.array_equal(found.float32(), value, equal_nan=True) else Plane(value, "F32")


def _quantize_int4(values: NDArray[np.float32], kind: str, group: int) -> Affine:
    rows, columns = values.shape
    if group < 1 or _padded(columns) % group:
        raise FormatError(
            f"setting 'group_size' is {group}: expected a divisor of the padded {_padded(columns)} columns"
        )
    largest: NDArray[np.float32] = np.maximum.reduceat(np.abs(values), np.arange(0, columns, group), axis=1)
    scales = _planes.float_plane(largest / np.float32(7), kind)
    wide = np.repeat(scales.float32(), group, axis=1)[:, :columns]
    codes = np.clip(np.rint(values / np.where(wide == 0, np.float32(1), wide)), -7, 7) + np.float32(_MIDDLE)
    return Affine((rows, columns), ByteCodes(codes.astype(np.uint8), 4), scales, _MIDDLE, group)


def _quantize_fp4(values: NDArray[np.float32], kind: str) -> Microscaled:
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // 16) * 16), np.float32)
    padded[:, :columns] = values
    largest = np.abs(padded).reshape(rows, -1, 16).max(axis=2)
    tensor = _planes.rounded(np.array([largest.max() / np.float32(2688)], np.float32), kind)[0]
    divisor = tensor if tensor else np.float32(1)
    scales = encode_e4m3(largest / np.float32(6) / divisor)
    codes = encode_e2m1(divide_blocks(padded, float8_values("F8_E4M3")[scales] * divisor))[:, :columns]
    micro = Plane(scales, "F8_E4M3")
    return Microscaled((rows, columns), ByteCodes(codes, 4), "E2M1", micro, "F8_E4M3", 16, divisor)


FORMATS = {
    "nunchaku": Nunchaku(),
    **{f"nunchaku.{plane}": Beside(plane) for plane in ("bias", "smooth", "lora_down", "lora_up")},
}
