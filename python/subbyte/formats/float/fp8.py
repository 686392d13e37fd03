"""FP8 checkpoints: DeepSeek-style blocks, per tensor, per row, and gptqmodel's reciprocal scales.

A weight ``[out, in]``, with leading axes for stacked experts, in blocks of ``weight_block_size`` rows and columns:

================  ==========================  ==========================================================
plane             type                        shape
================  ==========================  ==========================================================
weight            F8_E4M3, F8_E5M2, F8_*FNUZ  [out, in]
weight_scale_inv  F32, F16, BF16; E8M0 as     of blocks [ceil(out / rows), ceil(in / columns)],
                  F8_E8M0 or U8               of the tensor [], [1], [1, 1], of rows [out], [out, 1]
input_scale       F32                         [], [1]; of the activations, not used here
================  ==========================  ==========================================================

Despite its name the scale multiplies: w = element * scale in float32. Its other names are ``weight_scale`` (static
per-tensor files, FBGEMM), ``scale`` (DeepSeek-V4) and ``qscale_weight`` (Mistral).

* The block size is that of the settings and never derived from the shapes: the last blocks may be smaller, and blocks
  begin anew in every stored tensor and expert. Without the setting scales are per tensor, per row, or of 128 x 128.
* gptqmodel stores the reciprocal under the same name (``weight_scale_semantics: "inverse"``, or ``meta.quantizer``):
  w = element / scale. Where a file does not say it, scales do: 448 / amax is far above 1, amax / 448 far below.
* DeepSeek-V4 stores routed experts as FP4: ``weight`` I8 [out, in / 2] holds two E2M1 codes in a byte, the low bits
  first, and ``scale`` F8_E8M0 [out, in / 32].
* ModelOpt (``hf_quant_config``) rounds the scale to the type of a 16-bit result before it multiplies.

Writers: transformers' takes f = 448 * (1 / amax) for each block, stores 1 / f and rounds x * f; with
``scale_fmt: "ue8m0"`` it stores the next power of two above 1 / f and rounds x * its reciprocal. A block of zeros has
scale 1. ModelOpt's stores amax / 448 and rounds the quotient first to the type of the source. Elements are rounded to
nearest, ties to even, and clamped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm, prod
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    largest_magnitude,
    setting_names,
    setting_text,
    settings,
)
from subbyte.formats.float.mxfp4 import mxfp4_bytes
from subbyte.forms import BlockScaled, Form, Microscaled
from subbyte.forms.codes import packed_bytes
from subbyte.forms.microfloat import ceil_log2, encode_element
from subbyte.planes import FLOATS, Plane, float8_values

ELEMENTS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
SCALES = (*FLOATS, "F8_E8M0", "U8")
SCALE_NAMES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")

#: Scales per tensor beyond which (or below whose reciprocal) weights would reach into the thousands.
_UNLIKELY = 16.0


class Fp8(Format):
    """The format ``fp8``."""

    id = "fp8"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = _config(params)
        weight = _planes.get(planes, "weight", (*ELEMENTS, "I8"))
        if len(weight.shape) < 2:
            raise FormatError(f"plane 'weight' has shape {list(weight.shape)}: expected a matrix")
        _planes.optional(planes, "input_scale", FLOATS)
        name = scale_name(planes)
        if weight.kind == "I8":
            return _fp4_experts(weight, _planes.get(planes, name, ("F8_E8M0", "U8")), config)
        _check_element(weight, config)
        scale = as_scale(_planes.get(planes, name, SCALES))
        block = block_of(weight.shape, scale.shape, block_size(config), name)
        inverse = _inverse(config, scale, name)
        return block_scaled(weight, scale, block, inverse=inverse, rounds_scale=_is_modelopt(params))

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _config(params)
        source = _planes.source(array)
        if source.data.ndim < 2 or not source.data.size:
            raise UnsupportedError(f"FP8 formats store matrices; the array has shape {list(source.shape)}")
        if _is_modelopt(params):
            return encoded(self.id, per_tensor(source, params), source.shape, params)
        rows, columns = source.shape[-2:]
        per_row = (1, columns) if _per_row(config) else (rows, columns)
        block = _clamped(block_size(config), source.shape) or per_row
        form = _round_blocks(source, _element(config), block, config, params)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        config = _config(params)
        if len(shape) != 2:
            return 0
        block = None if _is_modelopt(params) else _clamped(block_size(config), shape)
        return 32 if block is None else lcm(block[0], 32)

    def shares_maximum(self, params: Mapping[str, Any], shape: Sequence[int]) -> bool:
        config = _config(params)
        return _is_modelopt(params) or (block_size(config) is None and not _per_row(config))

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        config = _config(params)
        if isinstance(form, Microscaled):
            if form.element == "E2M1":
                return _write_fp4(form, config)
            form = form.block_scaled()
        if not isinstance(form, BlockScaled) or form.element not in ELEMENTS or form.factor is not None:
            return super().write(form, params)
        _check_element(Plane(form.data, form.element), config)
        if form.inverse != _marked_inverse(config):
            have, want = ("divide", "multiply") if form.inverse else ("multiply", "divide")
            raise UnsupportedError(f"scales that {have} cannot be stored as scales that {want} without rounding")
        modelopt = _is_modelopt(params)
        name = "weight_scale" if modelopt or config.get("quant_method") == "fbgemm_fp8" else "weight_scale_inv"
        name = setting_text(params, "scale_plane", name, SCALE_NAMES)
        block = _target(form, config)
        scales = form.regrid(block)
        if scales is None:
            raise UnsupportedError(
                f"scales of blocks of {list(form.block)} cannot be stored for blocks of {list(block)} without rounding"
            )
        shape: tuple[int, ...] = (*form.shape[:-2], *form.grid(block))
        if prod(shape) == 1 and name != "weight_scale_inv":
            shape = ()
        elif _gptqmodel(config) and block == (1, form.columns):
            shape = shape[:-1]
        return {
            "weight": Plane(form.data.reshape(form.shape), form.element),
            name: Plane(scales.data.reshape(shape), scales.kind),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        block_size(folder.settings)
        dense = set(setting_names(folder.settings, "modules_to_not_convert", "ignored_layers"))
        found = []
        for name, tensor in folder.source.items():
            planes = {plane: full for plane, full in scales_of(name) if full in folder.source}
            kinds = [folder.source[full].dtype for full in planes.values()]
            if tensor.dtype in ELEMENTS and name.endswith(".weight") and not planes:
                expected = ", ".join(full for _, full in scales_of(name))
                raise FormatError(f"{tensor.dtype} elements without a scale: expected one of {expected}", tensor=name)
            if tensor.dtype in FLOATS and planes and set(planes) <= {"weight_scale_inv", "weight_scale"}:
                scale = next(iter(planes.values()))
                raise FormatError(f"stored as {tensor.dtype} beside a scale '{scale}': which one counts?", tensor=name)
            if name.endswith(".weight_scale_inv") and f"{name.removesuffix('_scale_inv')}" not in folder.source:
                raise FormatError("the scale of a weight that is missing", tensor=name)
            shape = tensor.shape
            if tensor.dtype == "I8" and len(shape) > 1 and kinds and kinds[0] in ("F8_E8M0", "U8"):
                shape = (*shape[:-1], 2 * shape[-1])
            elif tensor.dtype not in ELEMENTS or not planes:
                continue
            params = {"quantization_config": folder.settings, "scale_plane": next(iter(planes))}
            found.append(Layer(name, shape, {"weight": name, **planes}, params))
            if name.removesuffix(".weight") in dense:
                folder.notes.append(f"{name}: the settings say that it is not quantized, but it is")
        return found


def scales_of(name: str) -> list[tuple[str, str]]:
    """Plane and full name of the tensors that may hold the scale of the weight ``name``."""
    module, _, last = name.rpartition(".")
    if last != "weight":
        return [("weight_scale_inv", f"{name}_scale_inv"), ("weight_scale", f"{name}_scale")]
    return [(plane, f"{module}.{plane}") for plane in SCALE_NAMES]


def scale_name(planes: Mapping[str, Any]) -> str:
    """The plane among ``planes`` that holds the scale.

    Raises:
        ArgumentError: there is none.
        FormatError: there are several.
    """
    found = [name for name in SCALE_NAMES if name in planes]
    if not found:
        raise ArgumentError(f"the plane of the scale is missing: expected one of {', '.join(SCALE_NAMES)}")
    if len(found) > 1:
        raise FormatError(f"planes '{found[0]}' and '{found[1]}' are both scales: which one counts?")
    return found[0]


def as_scale(scale: Plane) -> Plane:
    """The scale with U8 taken for what it stands for, E8M0."""
    return Plane(scale.data, "F8_E8M0") if scale.kind == "U8" else scale


def block_size(config: Mapping[str, Any], key: str = "weight_block_size") -> tuple[int, int] | None:
    """Rows and columns of a block by the settings; None for no blocks.

    Raises:
        FormatError: they are not two positive integers.
    """
    found = config.get(key)
    if found is None:
        return (1, 32) if config.get("quant_method") == "mxfp8" else None
    if (
        not isinstance(found, list | tuple)
        or len(found) != 2
        or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in found)
    ):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected two positive integers")
    return found[0], found[1]


def _clamped(block: tuple[int, int] | None, shape: Sequence[int]) -> tuple[int, int] | None:
    """The block cut to the matrix, which has the same grid."""
    return None if block is None else (min(block[0], shape[-2]), min(block[1], shape[-1]))


def block_of(
    shape: Sequence[int], scale: Sequence[int], block: tuple[int, int] | None, name: str, default: int = 128
) -> tuple[int, int]:
    """Rows and columns that share a scale.

    Args:
        shape: of the weight.
        scale: shape of the scale.
        block: by the settings; None for scales per tensor, row or column, or blocks of the default size.
        name: of the scale, for the message.
        default: rows and columns of blocks where the settings name none.

    Raises:
        FormatError: the shapes do not fit.
    """
    *leading, rows, columns = shape
    if not prod(shape):
        raise FormatError(f"plane '{name}' is the scale of a weight without elements, {list(shape)}")
    given = _clamped(block, shape)
    if given is not None:
        wanted = (*leading, -(-rows // given[0]), -(-columns // given[1]))
        if tuple(scale) == wanted or prod(scale) == prod(wanted) == 1:
            return given
        raise FormatError(
            f"plane '{name}' has shape {list(scale)}: expected {list(wanted)} for a weight {list(shape)} in blocks of "
            f"{list(block or ())} (weight_block_size)"
        )
    one = (rows, columns)
    if tuple(scale) in ((*leading, 1, 1), (*leading, 1), tuple(leading)) or prod(scale) == 1:
        return one
    if tuple(scale) in ((*leading, rows), (*leading, rows, 1)):
        return 1, one[1]
    if leading and tuple(scale) == (*leading, 1, columns):
        return one[0], 1
    if tuple(scale) == (*leading, -(-rows // default), -(-columns // default)):
        return min(default, one[0]), min(default, one[1])
    raise FormatError(
        f"plane '{name}' has shape {list(scale)}: expected one scale, one for each of {rows} rows, or one for each "
        f"block of {default} x {default} of a weight {list(shape)}; the settings name no weight_block_size"
    )


def block_scaled(
    weight: Plane, scale: Plane, block: tuple[int, int], *, inverse: bool = False, rounds_scale: bool = False
) -> BlockScaled:
    """The form of a stored weight whose scale has been checked."""
    shape = weight.shape
    matrices, across = prod(shape[:-2]), -(-shape[-1] // block[1])
    down = matrices * -(-shape[-2] // block[0])
    data = weight.data.view(np.uint8).reshape(matrices * shape[-2], shape[-1])
    one = scale.data.size == 1  # of all matrices
    scales = Plane(np.broadcast_to(scale.data.reshape(-1), (down, across)) if one else scale.data.reshape(down, across),
                   scale.kind)  # fmt: skip
    return BlockScaled(shape, data, weight.kind, scales, block, inverse=inverse, rounds_scale=rounds_scale)


def per_tensor(source: Plane, params: Mapping[str, Any]) -> dict[str, Plane]:
    """ModelOpt's FP8: one float32 scale, amax / 448, elements from the quotient in the type of the source."""
    values = source.float32()
    scale = largest_magnitude(values, params) / np.float32(448)
    with np.errstate(all="ignore"):
        quotient = _planes.rounded(values / scale, source.kind) if scale > 0 else np.zeros_like(values)
    codes = encode_element(quotient, "F8_E4M3")
    return {"weight": Plane(codes, "F8_E4M3"), "weight_scale": Plane(np.array(scale, np.float32), "F32")}


def _round_blocks(
    source: Plane, element: str, block: tuple[int, int], config: Mapping[str, Any], params: Mapping[str, Any]
) -> BlockScaled:
    """The elements nearest to a source, with the scales that transformers gives its blocks."""
    rows, columns = source.shape[-2:]
    values = source.float32().reshape(prod(source.shape[:-2]), rows, columns)
    largest = np.float32(np.nanmax(np.where(np.isinf(float8_values(element)), 0, float8_values(element))))
    maxima = np.abs(values)
    for axis in (1, 2):
        if maxima.size:
            maxima = np.maximum.reduceat(maxima, np.arange(0, maxima.shape[axis], block[axis - 1]), axis=axis)
    if "maximum" in params:
        maxima = np.full((1, 1, 1), largest_magnitude(values, params))
    with np.errstate(all="ignore"):
        forward = np.where(maxima > 0, largest * (np.float32(1) / maxima), np.float32(1))
        stored = np.float32(1) / forward
        scales = Plane(forward if _marked_inverse(config) else stored, "F32")
        if setting_text(config, "scale_fmt", "float") == "ue8m0":
            exponent = ceil_log2(np.maximum(stored, np.finfo(np.float32).tiny), "F32")
            scales = Plane((np.clip(exponent, -127, 127) + 127).astype(np.uint8), "F8_E8M0")
            forward = np.float32(1) / scales.float32()
        wide = np.repeat(np.repeat(forward, block[0], axis=1)[:, :rows], block[1], axis=2)[:, :, :columns]
        products = values * wide
    products[np.isnan(products)] = 0
    weight = Plane(encode_element(products, element).reshape(source.shape), element)
    return block_scaled(weight, scales, block, inverse=_marked_inverse(config))


def _config(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings without those that are null; none are needed."""
    found = settings(params) if "quantization_config" in params else {}
    return {key: value for key, value in found.items() if value is not None}


def _is_modelopt(params: Mapping[str, Any]) -> bool:
    return "hf_quant_config" in params or _config(params).get("quant_method") == "modelopt"


def _element(config: Mapping[str, Any]) -> str:
    return {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}[setting_text(config, "fmt", "e4m3", ("e4m3", "e5m2"))]


def _check_element(weight: Plane, config: Mapping[str, Any]) -> None:
    if "fmt" in config and not weight.kind.startswith(_element(config)):
        raise FormatError(f"plane 'weight' holds {weight.kind}, but setting 'fmt' is '{config['fmt']}'")


def _gptqmodel(config: Mapping[str, Any]) -> bool:
    meta = config.get("meta")
    return isinstance(meta, Mapping) and "gptqmodel" in str(meta.get("quantizer"))


def _per_row(config: Mapping[str, Any]) -> bool:
    return config.get("weight_scale_method") == "row" or config.get("quant_method") == "fbgemm_fp8"


def _marked_inverse(config: Mapping[str, Any]) -> bool:
    """Whether the settings say that scales divide."""
    if "weight_scale_semantics" in config:
        return setting_text(config, "weight_scale_semantics") == "inverse"
    return _gptqmodel(config)


def _inverse(config: Mapping[str, Any], scale: Plane, name: str) -> bool:
    """Whether scales divide, by the settings or without them by the scales.

    Raises:
        FormatError: settings and scales contradict each other.
    """
    marked = _marked_inverse(config)
    if name != "weight_scale_inv" or scale.kind not in FLOATS or not scale.data.size:
        return marked
    middle = float(np.median(np.abs(scale.float32())))
    if marked and 0 < middle < 1 / _UNLIKELY:
        raise FormatError(
            f"the settings say that scales divide, but plane '{name}' holds scales around {middle:.3g}, with which "
            "weights would reach into the thousands"
        )
    return marked or ("weight_scale_semantics" not in config and middle > _UNLIKELY)


def _fp4_experts(weight: Plane, scale: Plane, config: Mapping[str, Any]) -> Microscaled:
    if setting_text(config, "expert_dtype", "fp4") != "fp4":
        raise FormatError(
            f"plane 'weight' holds I8, two FP4 codes a byte, but expert_dtype is {config['expert_dtype']}"
        )
    *leading, half = weight.shape
    if half % 16 or scale.shape != (*leading, half // 16):
        raise FormatError(
            f"plane 'weight' has shape {list(weight.shape)} and its scale {list(scale.shape)}: expected one scale for "
            "16 bytes of two FP4 codes"
        )
    flat = Plane(_planes.folded(scale.data.view(np.uint8)), "F8_E8M0")
    return Microscaled((*leading, 2 * half), packed_bytes(weight.data, 4), "E2M1", flat, "F8_E8M0", 32)


def _write_fp4(form: Microscaled, config: Mapping[str, Any]) -> dict[str, Plane]:
    if config.get("expert_dtype") != "fp4":
        raise UnsupportedError("FP8 checkpoints hold FP4 only where setting 'expert_dtype' is 'fp4'")
    codes, scales = mxfp4_bytes(form)
    leading = form.shape[:-1]
    return {
        "weight": Plane(codes.view(np.int8).reshape(*leading, form.columns // 2), "I8"),
        "scale": Plane(scales.reshape(*leading, form.columns // 32), "F8_E8M0"),
    }


def _target(form: BlockScaled, config: Mapping[str, Any]) -> tuple[int, int]:
    """The block that the settings ask for; without one that of the form, where files can say it."""
    one = (form.shape[-2], form.columns)
    block = _clamped(block_size(config), form.shape)
    if block is not None:
        return block
    if _per_row(config):
        return 1, one[1]
    default = _clamped((128, 128), form.shape)
    if form.block in (one, (1, one[1])) or ("weight_block_size" not in config and form.block == default):
        return form.block
    raise UnsupportedError(f"blocks of {list(form.block)} need the setting weight_block_size")


FORMATS = {"fp8": Fp8()}
