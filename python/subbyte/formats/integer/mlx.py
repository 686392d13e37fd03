"""MLX checkpoints, and those of transformers' ``metal`` method.

A weight ``[out, in]``, with leading axes for stacked experts, of ``b`` bits in groups of ``g`` columns:

===============  ===========================  ========================  ==============================================
plane            type                         shape                     content
===============  ===========================  ========================  ==============================================
weight           U32                          [out, in * b / 32]        one stream of bits per row, low bits first
scales           affine: F16, BF16, F32;      [out, in / g]
                 else U8
biases, qbiases  as the scales                [out, in / g]             affine only; ``qbiases`` where made by ``metal``
global_scale     F32                          [1]                       nvfp4 only, and there optional: amax
===============  ===========================  ========================  ==============================================

======  ===================  ============  ========================================================================
mode    b                    g             w
======  ===================  ============  ========================================================================
affine  1, 2, 3, 4, 5, 6, 8  32, 64, 128   code * scale + bias; scales may be negative
mxfp4   4                    32            E2M1 element * 2^(scale - 127)
mxfp8   8                    32            E4M3 element * 2^(scale - 127)
nvfp4   4                    16            E2M1 element * (E4M3 scale, times global_scale / 2688 where it is there)
======  ===================  ============  ========================================================================

* 16-bit results of ``affine`` are rounded after the product and after the sum, in the type of the scales (MLX on the
  processor); those of ``metal`` once.
* Settings are ``quantization`` of config.json (``quantization_config`` is a copy): ``group_size``, ``bits``, ``mode``,
  and by the path of a module other settings for it, or ``false`` for a dense one. ``metal`` has
  ``quantization_config`` with ``quant_method: "metal"`` and 2, 4 or 8 bits.

Writers, in float32. ``affine``: s = max((max - min) / (2^b - 1), 1e-7), negative where abs(min) <= abs(max); the edge
is the larger of the two in magnitude; where q0 = rint(edge / s) is not 0, s = edge / q0 and the bias is the edge, else
it is 0; codes are rint((w - bias) / s) with unrounded parameters. One bit: s = max(max - min, 1e-7), bias = min.
``metal``: s = max((max - min) / (2^b - 1), 1e-8), bias = min. Powers of two: exponent ceil(log2(q)) with q = amax /
largest element in the type of the source, 0 where q is 0. ``nvfp4``: E4M3 of amax / 6; with the parameter
``global_scale`` that times f = 2688 / global_scale, and elements x / scale, in the type of the source, times f. Ties of
E2M1 go to zero, and zeros have no sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_text
from subbyte.forms import Affine, Biased, BlockScaled, ByteCodes, Codes, Form, Microscaled, PackedCodes
from subbyte.forms.microfloat import LARGEST, block_maxima, ceil_log2, divide_blocks, encode_e2m1, encode_element
from subbyte.planes import FLOATS, Plane, float8_values, rounded
from subbyte.quantize import Grid, quantized
from subbyte.quantize.microscaled import refined

BITS = (1, 2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
#: Element, type of scales, bits and columns of a block, by mode.
MODES = {
    "mxfp4": ("E2M1", "F8_E8M0", 4, 32),
    "mxfp8": ("F8_E4M3", "F8_E8M0", 8, 32),
    "nvfp4": ("E2M1", "F8_E4M3", 4, 16),
}


class Mlx(Format):
    """The format ``mlx``."""

    id = "mlx"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = _config(params)
        mode, bits, group = _layout(config)
        weight = _planes.get(planes, "weight", "U32")
        if len(weight.shape) < 2:
            raise FormatError(f"plane 'weight' has shape {list(weight.shape)}: expected a matrix of words")
        scales = _planes.get(planes, "scales", FLOATS if mode == "affine" else "U8")
        shape = _dense_shape(weight.shape, scales.shape, bits, group)
        rows, columns = prod(shape[:-1]), shape[-1]
        codes = PackedCodes(weight.data.reshape(rows, weight.shape[-1]), bits, (rows, columns))
        flat = Plane(scales.data.reshape(rows, columns // group), scales.kind)
        if mode == "affine":
            name = _bias_name(planes, config)
            biases = _planes.get(planes, name, scales.kind, scales.shape)
            turned = Plane(biases.data.reshape(flat.shape), biases.kind)
            return Biased(shape, codes, flat, turned, group, compute="F32" if name == "qbiases" else None)
        element, scale_kind, _, _ = MODES[mode]
        largest = _planes.optional(planes, "global_scale", "F32")
        if largest is not None and (largest.data.size != 1 or mode != "nvfp4"):
            raise FormatError(f"plane 'global_scale' has shape {list(largest.shape)}: expected one number, with nvfp4")
        maximum = None if largest is None else np.float32(largest.data.reshape(())[()])
        return Microscaled(shape, codes, element, Plane(flat.data, scale_kind), scale_kind, group, maximum=maximum)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _config(params)
        mode, bits, group = _layout(config)
        source = _planes.source(array)
        if source.data.ndim < 2 or not source.data.size or source.shape[-1] % group or source.shape[-1] * bits % 32:
            raise UnsupportedError(f"MLX stores matrices of whole groups of {group}; the array is {list(source.shape)}")
        form: Form | None
        if mode == "affine":
            form = quantized(source, params, Grid(bits, group, zeros="bias", kind=source.kind), importance)
            if form is None:
                form = _encode_affine(source, bits, group, _round_metal if _is_metal(config) else _round_affine)
        else:
            form = refined(_round_small_floats(source, mode, params.get("global_scale")), source, params, importance)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        return 32

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        config = _config(params)
        mode, bits, group = _layout(config)
        if isinstance(form, Affine):
            form = form.biased()
        if isinstance(form, BlockScaled) and mode == "mxfp8":
            form = form.microscaled()
        if not isinstance(form, Biased if mode == "affine" else Microscaled):
            return super().write(form, params)
        leading, columns = form.shape[:-1], form.columns
        if columns % group or columns * bits % 32:
            raise UnsupportedError(f"rows of {columns} columns are no whole groups of {group}")
        planes = {"weight": Plane(_words(form.codes, bits).reshape(*leading, columns * bits // 32), "U32")}
        if isinstance(form, Biased):
            if form.signed or form.group_size % group or columns % form.group_size:
                raise UnsupportedError(
                    f"codes with a sign or in groups of {form.group_size} cannot be stored in groups of {group}"
                )
            for name, found in (("scales", form.scales), ("qbiases" if _is_metal(config) else "biases", form.biases)):
                wide = np.repeat(found.data, form.group_size // group, axis=1)
                planes[name] = Plane(np.ascontiguousarray(wide).reshape(*leading, columns // group), found.kind)
            return planes
        if isinstance(form, Microscaled):
            planes |= _small_float_planes(form, mode)
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        modules = folder.modules(("weight", "scales"), ("biases", "qbiases", "global_scale"), marker="scales")
        for name, tensor in folder.source.items():
            module = name.removesuffix(".weight")
            if tensor.dtype == "U32" and module != name and module not in modules:
                raise FormatError(f"tensor '{module}.scales', which belongs to it, is missing", tensor=name)
        for module, tensors in modules.items():
            weight, scales = (folder.source[tensors[plane]] for plane in ("weight", "scales"))
            if weight.dtype != "U32":
                raise FormatError(f"holds {weight.dtype} beside scales: expected U32", tensor=weight.name)
            try:
                settings = _module_settings(folder.settings, module) or _guess(weight.shape, scales.shape, scales.dtype)
                mode, bits, group = _layout(settings)
                if mode == "affine" and not {"biases", "qbiases"} & set(tensors):
                    raise FormatError(f"tensor '{module}.biases', which belongs to it, is missing")
                shape = _dense_shape(weight.shape, scales.shape, bits, group)
            except FormatError as e:
                e.tensor = weight.name
                raise
            key = "quantization_config" if _is_metal(settings) else "quantization"
            found.append(Layer(f"{module}.weight", shape, tensors, {key: settings}))
        for module, own in folder.settings.items():
            if isinstance(own, Mapping) and f"{module}.weight" in folder.source and module not in modules:
                folder.notes.append(f"{module}: the settings say that it is quantized, but it is not")
        return found


def _module_settings(settings: Mapping[str, Any], module: str) -> dict[str, Any]:
    """The settings of a quantized module: its own or those of the checkpoint; empty where there are none.

    Raises:
        FormatError: they say that it is dense, or are no JSON object.
    """
    own = settings.get(module, True)
    if own is False:
        raise FormatError(f"the settings say that '{module}' is not quantized, but it is stored as words and scales")
    if own is not True and not isinstance(own, Mapping):
        raise FormatError(f"the settings of '{module}' are {own!r:.60}: expected a JSON object, true or false")
    chosen: Mapping[str, Any] = settings
    if own is not True:  # what a module's own settings leave out is MLX's default
        chosen = ({} if own.get("mode", "affine") != "affine" else {"bits": 4, "group_size": 64}) | dict(own)
        chosen["quant_method"] = settings.get("quant_method")
    return {key: chosen[key] for key in ("mode", "bits", "group_size", "quant_method") if chosen.get(key) is not None}


def _guess(weight: Sequence[int], scales: Sequence[int], kind: str) -> dict[str, Any]:
    """The settings that the shapes allow, for checkpoints that say nothing.

    Raises:
        FormatError: none or several.
    """
    product, rest = divmod(weight[-1] * 32, scales[-1]) if weight and scales and scales[-1] else (0, 0)
    fitting: list[dict[str, Any]]
    if kind == "U8":
        fitting = [{"mode": mode} for mode, (_, _, bits, group) in MODES.items() if bits * group == product]
    else:
        fitting = [{"bits": bits, "group_size": group} for bits in BITS for group in GROUPS if bits * group == product]
    if rest or len(fitting) != 1:
        raise FormatError(
            f"config.json has no settings of MLX, and words of shape {list(weight)} with scales of shape "
            f"{list(scales)} fit {fitting or 'none'}"
        )
    return fitting[0]


def _config(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a layer.

    Raises:
        FormatError: they are no JSON object.
        ArgumentError: there are none.
    """
    for key in ("quantization", "quantization_config"):
        if key in params:
            found = params[key]
            if not isinstance(found, Mapping):
                raise FormatError(f"{key} is {found!r:.60}: expected a JSON object")
            return found
    raise ArgumentError("params lacks 'quantization', the settings of the format")


def _is_metal(config: Mapping[str, Any]) -> bool:
    return config.get("quant_method") == "metal"


def _layout(config: Mapping[str, Any]) -> tuple[str, int, int]:
    """Mode, bits of a code, columns of a group."""
    mode = setting_text(config, "mode", "affine", ("affine", *MODES))
    if mode == "affine":
        bits = setting_int(config, "bits", allowed=(2, 4, 8) if _is_metal(config) else BITS)
        return mode, bits, setting_int(config, "group_size", allowed=GROUPS)
    _, _, bits, group = MODES[mode]
    return mode, setting_int(config, "bits", bits, (bits,)), setting_int(config, "group_size", group, (group,))


def _dense_shape(weight: Sequence[int], scales: Sequence[int], bits: int, group: int) -> tuple[int, ...]:
    """The shape that words and scales of these shapes decode to.

    Raises:
        FormatError: they do not fit together.
    """
    columns, rest = divmod(weight[-1] * 32, bits) if weight else (0, 1)
    if rest or columns % group or tuple(scales) != (*weight[:-1], columns // group):
        raise FormatError(
            f"plane 'weight' has shape {list(weight)} and plane 'scales' {list(scales)}: they do not fit codes of "
            f"{bits} bits in groups of {group} (settings bits, group_size)"
        )
    return (*weight[:-1], columns)


def _bias_name(planes: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if "biases" in planes and "qbiases" in planes:
        raise FormatError("planes 'biases' and 'qbiases' are both there: which one counts?")
    return "qbiases" if "qbiases" in planes or (_is_metal(config) and "biases" not in planes) else "biases"


def _words(codes: Codes, bits: int) -> NDArray[np.uint32]:
    if codes.bits > bits:
        raise UnsupportedError(f"codes of {codes.bits} bits cannot be stored as {bits} bits")
    if codes.bits == bits:
        return codes.stream().view(np.uint32)
    return ByteCodes(codes.unpack(), bits).stream()


def _small_float_planes(form: Microscaled, mode: str) -> dict[str, Plane]:
    element, scale_kind, _, block = MODES[mode]
    if (form.element, form.scale_kind, form.block) != (element, scale_kind, block):
        raise UnsupportedError(
            f"{form.element} elements in blocks of {form.block} with {form.scale_kind} scales are not {mode}"
        )
    if form.multiplier is not None or form.divisor is not None:
        raise UnsupportedError("the scale of the tensor is not its largest magnitude: making it that rounds")
    planes = {"scales": Plane(form.scales.data.view(np.uint8).reshape(*form.shape[:-1], form.columns // block), "U8")}
    if form.maximum is not None:
        planes["global_scale"] = Plane(np.array([form.maximum], np.float32), "F32")
    return planes


def _edges(values: NDArray[np.float32], group: int) -> tuple[NDArray[np.float32], ...]:
    grouped = values.reshape(len(values), values.shape[1] // group, group)
    return grouped, grouped.min(axis=2), grouped.max(axis=2)


def _codes(
    grouped: NDArray[np.float32], scales: NDArray[np.float32], biases: NDArray[np.float32], bits: int
) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):
        codes = np.rint((grouped - biases[:, :, None]) / scales[:, :, None])
    clipped: NDArray[np.float32] = np.clip(np.nan_to_num(codes, nan=0.0), 0, (1 << bits) - 1)
    return clipped.reshape(len(grouped), grouped.shape[1] * grouped.shape[2]).astype(np.uint8)


def _encode_affine(source: Plane, bits: int, group: int, rule: Callable[..., Any]) -> Biased:
    codes, scales, biases = rule(_planes.folded(source.float32()), bits, group)
    stored_scales, stored_biases = (_planes.float_plane(found, source.kind) for found in (scales, biases))
    return Biased(source.shape, ByteCodes(codes, bits), stored_scales, stored_biases, group)


def _round_affine(
    values: NDArray[np.float32], bits: int, group: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes, scales and biases as MLX makes them."""
    grouped, low, high = _edges(values, group)
    if bits == 1:
        scales, biases = np.maximum(high - low, np.float32(1e-7)), low
    else:
        scales = np.maximum((high - low) / np.float32((1 << bits) - 1), np.float32(1e-7))
        from_low = np.abs(low) > np.abs(high)
        edges = np.where(from_low, low, high)
        scales = np.where(from_low, scales, -scales)
        steps = np.rint(edges / scales)
        with np.errstate(all="ignore"):
            scales = np.where(steps != 0, edges / steps, scales)
        biases = np.where(steps != 0, edges, np.float32(0))
    return _codes(grouped, scales, biases, bits), scales, biases


def _round_metal(
    values: NDArray[np.float32], bits: int, group: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes, scales and biases as the ``metal`` method of transformers makes them."""
    grouped, low, high = _edges(values, group)
    scales = np.maximum((high - low) / np.float32((1 << bits) - 1), np.float32(1e-8))
    return _codes(grouped, scales, low, bits), scales, low


def _round_small_floats(source: Plane, mode: str, global_scale: Any) -> Microscaled:
    """The elements and scales that MLX gives a source; ``global_scale`` is amax or None."""
    element, scale_kind, _, block = MODES[mode]
    values = _planes.folded(source.float32())
    maxima = block_maxima(values, block)
    maximum = None if global_scale is None else _maximum(global_scale, mode)
    if scale_kind == "F8_E8M0":
        wanted = rounded(maxima / np.float32(LARGEST[element]), source.kind)
        exponents = np.where(wanted > 0, ceil_log2(wanted), np.float32(0))
        scales = (np.clip(exponents, -127, 127) + 127).astype(np.uint8)
        quotients = divide_blocks(values, float8_values(scale_kind)[scales])
    else:
        with np.errstate(over="ignore"):
            forward = np.float32(1) if maximum is None else np.float32(2688) / maximum
            scales = encode_element(rounded(maxima / np.float32(6), source.kind) * forward, scale_kind)
            quotients = divide_blocks(values, float8_values(scale_kind)[scales])
            if maximum is not None:
                quotients = rounded(quotients, source.kind) * forward
    if element == "E2M1":
        codes = ByteCodes(encode_e2m1(quotients, "toward-zero", keep_negative_zero=False), 4)
    else:
        codes = ByteCodes(encode_element(quotients, element))
    return Microscaled(source.shape, codes, element, Plane(scales, scale_kind), scale_kind, block, maximum=maximum)


def _maximum(value: Any, mode: str) -> np.float32:
    """The parameter ``global_scale``, checked."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if mode != "nvfp4" or not number or not 2.0**-126 <= value < 2.0**128:
        raise ArgumentError(f"global_scale is {value!r:.60}: expected a positive float32, with nvfp4")
    return np.float32(min(float(value), float(np.finfo(np.float32).max)))


FORMATS = {"mlx": Mlx()}
