"""ModelOpt (TensorRT Model Optimizer) checkpoints: NVFP4, MXFP4, MXFP8, FP8, and 4-bit integers of AWQ.

The settings are ``quantization_config`` of config.json or ``quantization`` of ``hf_quant_config.json``; both may be
there. What a layer holds is told by its planes, and ``quant_algo`` has to agree. A weight ``[out, in]``:

===================  =======================  ===================================  ================================
quant_algo           weight                   weight_scale                         w
===================  =======================  ===================================  ================================
NVFP4, NVFP4_AWQ     U8 [out, in / 2], E2M1   F8_E4M3 [out, in / 16]               element * (weight_scale *
                                                                                   weight_scale_2), F32 []
MXFP4                U8 [out, in / 2], E2M1   U8 [out * in / 32, 1], E8M0          element * weight_scale
W4A8_MXFP4_FP8       U8 [out, in / 2], E2M1   U8 [out, in / 32], E8M0              element * weight_scale
MXFP8                F8_E4M3 [out, in]        U8 [out, in / 32], E8M0              element * weight_scale
FP8                  F8_E4M3 [out, in]        F32 []                               element * weight_scale
FP8_PER_CHANNEL_     F8_E4M3 [out, in]        F32 [out]                            element * weight_scale
PER_TOKEN
FP8_PB_WO            F8_E4M3 [out, in]        F32 [out / 128, in / 128], perhaps   element * scale of the block
                                              with an axis of 1 after each
W4A16_AWQ            U8 [out / 2, in]         F32, F16, BF16 [out, in / group]     integer * weight_scale
===================  =======================  ===================================  ================================

* Two E2M1 codes share a byte, that of the even column in the low bits. Bytes of W4A16_AWQ hold the integers -8 to 7
  (two's complement) of two rows, the even row in the low bits.
* W4A16_NVFP4 and W4A8_NVFP4_FP8 are stored as NVFP4, and either shape of MXFP4's scales is read for both.
* 16-bit results are rounded once, but FP8 rounds its scale to the 16-bit type first.
* ``pre_quant_scale`` [in] multiplies the activations, and so the columns of the effective weight, which is what
  decoding gives. ``input_scale`` belongs to the activations and is not used.

Writers, in float32: NVFP4 stores amax / 2688, E4M3 of (amax of the block / (6 * that)) between 2^-9 and 448 (1 for a
block of zeros), and elements x / (block scale * tensor scale) with ties to even. MXFP4 takes the exponent
ceil(log2(amax / 6)), ties go to zero, and zeros are stored as code 8. W4A16_AWQ takes the scale amax / 7. For FP8 see
the format ``fp8``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    largest_magnitude,
    setting_int,
    setting_names,
    setting_text,
)
from subbyte.formats.float.fp8 import block_of, block_scaled, per_tensor
from subbyte.formats.float.mxfp4 import mxfp4_bytes
from subbyte.forms import Affine, BlockScaled, ByteCodes, ColumnScaled, Form, Microscaled
from subbyte.forms.codes import CodeArray, Codes, as_packed_bytes, packed_bytes
from subbyte.forms.microfloat import block_maxima, divide_blocks, e8m0_scales, encode_e2m1, encode_element
from subbyte.planes import FLOATS, Plane, float8_values
from subbyte.quantize.grid import writer_only
from subbyte.quantize.microscaled import refined

#: What a layer holds, by quant_algo.
KINDS = {
    "NVFP4": "NVFP4", "NVFP4_AWQ": "NVFP4", "W4A16_NVFP4": "NVFP4", "W4A8_NVFP4_FP8": "NVFP4", "MXFP4": "MXFP4",
    "W4A8_MXFP4_FP8": "MXFP4",
    "MXFP8": "MXFP8", "FP8": "FP8", "FP8_PER_CHANNEL_PER_TOKEN": "FP8", "FP8_PB_WO": "FP8", "FP8_PB_REAL": "FP8",
    "W4A16_AWQ": "INT4",
}  # fmt: skip
_OPTIONAL = ("weight_scale_2", "pre_quant_scale", "input_scale")
_UNREADABLE = ("svdquant_lora_a", "svdquant_lora_b")


@dataclass(frozen=True, eq=False)
class RowPairCodes(Codes):
    """4-bit codes of two rows in a byte, the even row in the low bits, in two's complement.

    Attributes:
        data: uint8, (rows / 2, columns). The code of an integer i is i + 8.
    """

    data: NDArray[np.uint8]
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        pairs, columns = self.data.shape
        return 2 * pairs, columns

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        pairs = self.data[start // 2 : -(-stop // 2)]
        both = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(2 * len(pairs), self.data.shape[1])
        return both[start % 2 :][: stop - start] ^ np.uint8(8)


class ModelOpt(Format):
    """The format ``modelopt``."""

    id = "modelopt"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        algo, config = _algo(params)
        weight = _planes.get(planes, "weight", ("U8", "F8_E4M3"))
        if len(weight.shape) < 2:
            raise FormatError(f"plane 'weight' has shape {list(weight.shape)}: expected a matrix")
        kind = _kind(weight, planes, algo)
        unreadable = next((name for name in _UNREADABLE if name in planes), None)
        if unreadable is not None or algo in ("NVFP4_SVD", "W4A8_AWQ"):
            raise UnsupportedError(f"ModelOpt layers of {algo or unreadable} cannot be read yet")
        _planes.optional(planes, "input_scale", FLOATS)
        form = {"NVFP4": _nvfp4, "MXFP4": _mxfp4, "MXFP8": _mxfp8, "FP8": _fp8, "INT4": _int4}[kind](
            planes, weight, config
        )
        factors = _planes.optional(planes, "pre_quant_scale", FLOATS, (form.columns,))
        return form if factors is None else ColumnScaled(form.shape, form, factors)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        algo, config = _algo(params)
        source = _planes.source(array)
        if source.data.ndim < 2 or not source.data.size:
            raise UnsupportedError(f"ModelOpt formats store matrices; the array has shape {list(source.shape)}")
        if algo == "FP8":
            writer_only(params, "elements of FP8")
            return encoded(self.id, per_tensor(source, params), source.shape, params)
        kind = KINDS.get(algo or "")
        encoder = {"NVFP4": _encode_nvfp4, "MXFP4": _encode_mxfp4, "MXFP8": _encode_mxfp8, "INT4": _encode_int4}
        if kind not in encoder:
            raise UnsupportedError(f"ModelOpt layers of {algo} cannot be made from floats yet")
        form = refined(encoder[kind](source, config, params), source, params, importance)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        algo, _ = _algo(params)
        kind = KINDS.get(algo or "")
        of_matrices = algo == "FP8" or kind in ("NVFP4", "INT4")
        return 32 if kind in ("MXFP4", "MXFP8") or (of_matrices and len(shape) == 2) else 0

    def shares_maximum(self, params: Mapping[str, Any], shape: Sequence[int]) -> bool:
        algo, _ = _algo(params)
        return algo == "FP8" or KINDS.get(algo or "") == "NVFP4"

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        algo, config = _algo(params)
        if isinstance(form, ColumnScaled):
            return self.write(form.inner, params) | {"pre_quant_scale": form.factors}
        kind = KINDS.get(algo or "")
        if isinstance(form, BlockScaled) and kind == "MXFP8":
            form = form.microscaled()
        leading = form.shape[:-1]
        if isinstance(form, Microscaled) and kind == "MXFP4":
            codes, scales = mxfp4_bytes(form)
            return {
                "weight": Plane(codes.reshape(*leading, codes.shape[1]), "U8"),
                "weight_scale": Plane(
                    scales.reshape((scales.size, 1) if algo == "MXFP4" else (*leading, scales.shape[1])), "U8"
                ),
            }
        if isinstance(form, Microscaled) and kind == "MXFP8" and _plain(form, "F8_E4M3", "F8_E8M0", 32):
            return {
                "weight": Plane(form.codes.unpack().reshape(form.shape), "F8_E4M3"),
                "weight_scale": Plane(form.scales.data.view(np.uint8).reshape(*leading, form.columns // 32), "U8"),
            }
        if isinstance(form, Microscaled) and kind == "NVFP4":
            return _write_nvfp4(form)
        if isinstance(form, BlockScaled) and form.factor is None and kind == "FP8":
            return _write_fp8(form, algo or "")
        if isinstance(form, Affine) and kind == "INT4":
            return _write_int4(form, config)
        raise UnsupportedError(f"ModelOpt's {algo} cannot hold a {type(form).__name__.lower()} form of this kind")

    def layers(self, folder: Folder) -> Sequence[Layer]:
        algo, config = _folder_settings(folder)
        of_layer = config.get("quantized_layers")
        own = of_layer if isinstance(of_layer, Mapping) else {}
        excluded = setting_names(config, "exclude_modules", "ignore")
        found = []
        modules = folder.modules(("weight", "weight_scale"), (*_OPTIONAL, *_UNREADABLE), marker="weight_scale")
        for name, tensor in folder.source.items():
            module = name.removesuffix(".weight")
            if tensor.dtype in ("U8", "F8_E4M3") and module != name and module not in modules:
                raise FormatError(f"tensor '{module}.weight_scale', which belongs to it, is missing", tensor=name)
        for module, tensors in modules.items():
            weight = folder.source[tensors["weight"]]
            if weight.dtype in FLOATS:
                raise FormatError(
                    f"stored as {weight.dtype} beside a weight_scale: which one counts?", tensor=weight.name
                )
            settings = own[module] if isinstance(own.get(module), Mapping) else config
            algo_here = settings.get("quant_algo", None if own or algo == "MIXED_PRECISION" else algo)
            params = {"quant_algo": algo_here, "quantization": {"group_size": settings.get("group_size")}}
            scale = folder.source[tensors["weight_scale"]]
            layout = _layout(weight.dtype, scale.dtype, "weight_scale_2" in tensors)
            shape = weight.shape
            if len(shape) < 2:
                raise FormatError(f"weight has shape {list(shape)}: expected a matrix", tensor=weight.name)
            if layout == "INT4":
                shape = (*shape[:-2], 2 * shape[-2], shape[-1])
            elif weight.dtype == "U8":
                shape = (*shape[:-1], 2 * shape[-1])
            found.append(Layer(f"{module}.weight", shape, tensors, params))
            if any(fnmatchcase(module, pattern) for pattern in excluded):
                folder.notes.append(f"{module}: excluded from quantization by the settings, but quantized")
        return found


def _folder_settings(folder: Folder) -> tuple[str | None, Mapping[str, Any]]:
    """quant_algo and settings of a checkpoint.

    Raises:
        FormatError: config.json and hf_quant_config.json name different ones.
    """
    config = folder.settings
    beside = folder.side_file("hf_quant_config.json")
    inner = beside.get("quantization") if isinstance(beside, Mapping) else None
    other = inner if isinstance(inner, Mapping) else {}
    for key in ("quant_algo", "group_size"):
        if config.get(key) is not None and other.get(key) is not None and config[key] != other[key]:
            raise FormatError(
                f"config.json says {key} {config[key]!r:.40}, hf_quant_config.json {other[key]!r:.40}: which counts?"
            )
    merged = {**other, **{key: value for key, value in config.items() if value is not None}}
    algo = merged.get("quant_algo")
    return (None if algo is None else setting_text(merged, "quant_algo")), merged


def _algo(params: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """quant_algo and settings among the parameters of a layer; None where they name no algorithm.

    Raises:
        UnsupportedError: the algorithm is not known.
    """
    outer = params.get("hf_quant_config")
    places = (
        params,
        params.get("quantization"),
        outer.get("quantization") if isinstance(outer, Mapping) else None,
        params.get("quantization_config"),
    )
    config: dict[str, Any] = {}
    for place in places:
        if isinstance(place, Mapping):
            config = {**{key: value for key, value in place.items() if value is not None}, **config}
    if "quant_algo" not in config:
        return None, config
    algo = setting_text(config, "quant_algo").upper()
    if algo not in KINDS and algo not in ("MIXED_PRECISION", "NVFP4_SVD", "W4A8_AWQ"):
        raise UnsupportedError(f"ModelOpt layers of quant_algo '{algo}' are not known")
    return (None if algo == "MIXED_PRECISION" else algo), config


def _layout(weight: str, scale: str, has_second: bool) -> str:
    """What a layer holds, by the element types of its planes."""
    if weight == "F8_E4M3":
        return "MXFP8" if scale in ("U8", "F8_E8M0") else "FP8"
    if has_second or scale == "F8_E4M3":
        return "NVFP4"
    return "MXFP4" if scale in ("U8", "F8_E8M0") else "INT4"


def _kind(weight: Plane, planes: Mapping[str, Any], algo: str | None) -> str:
    scale = _planes.get(planes, "weight_scale", (*FLOATS, "F8_E4M3", "F8_E8M0", "U8"))
    found = _layout(weight.kind, scale.kind, "weight_scale_2" in planes)
    wanted = KINDS.get(algo or "", found)
    if found != wanted:
        raise FormatError(
            f"quant_algo is {algo}, but a weight of {weight.kind} with a weight_scale of {scale.kind} "
            f"{'and' if 'weight_scale_2' in planes else 'without'} weight_scale_2 is {found}"
        )
    return found


def _group(config: Mapping[str, Any], found: int) -> int:
    """The columns of a group, ``found`` by the shapes, checked against the settings."""
    if config.get("group_size") is not None and setting_int(config, "group_size") not in (found, 0, -1):
        raise FormatError(f"group_size is {config['group_size']}, but plane 'weight_scale' is for groups of {found}")
    return found


def _blocks(
    weight: Plane, scale: Plane, block: int, packed: int, folded: bool = False
) -> tuple[tuple[int, ...], Array]:
    """Dense shape, and bits of the scales in rows.

    Args:
        weight, scale: the planes.
        block: columns of a block.
        packed: elements in a byte of the weight.
        folded: the scales of all blocks may run down one column.
    """
    *leading, width = weight.shape
    columns = width * packed
    shape = (*leading, columns)
    count = columns // block
    fits = scale.shape == (*leading, count) or (folded and scale.shape == (prod(leading) * count, 1))
    if columns % block or not fits:
        raise FormatError(
            f"plane 'weight_scale' has shape {list(scale.shape)}: expected {[*leading, count]} for a weight "
            f"{list(shape)} in blocks of {block}"
        )
    return shape, scale.data.view(np.uint8).reshape(prod(leading), count)


def _nvfp4(planes: Mapping[str, Any], weight: Plane, config: Mapping[str, Any]) -> Form:
    scale = _planes.get(planes, "weight_scale", "F8_E4M3")
    second = _planes.get(planes, "weight_scale_2", "F32")
    if second.data.size != 1:
        raise UnsupportedError(
            f"plane 'weight_scale_2' has shape {list(second.shape)}: only one number can be read yet"
        )
    shape, scales = _blocks(weight, scale, _group(config, 16), 2)
    codes = packed_bytes(weight.data, 4)
    return Microscaled(
        shape,
        codes,
        "E2M1",
        Plane(scales, "F8_E4M3"),
        "F8_E4M3",
        16,
        multiplier=np.float32(second.data.reshape(())[()]),
    )


def _mxfp4(planes: Mapping[str, Any], weight: Plane, config: Mapping[str, Any]) -> Form:
    scale = _planes.get(planes, "weight_scale", ("U8", "F8_E8M0"))
    shape, scales = _blocks(weight, scale, _group(config, 32), 2, folded=True)
    return Microscaled(shape, packed_bytes(weight.data, 4), "E2M1", Plane(scales, "F8_E8M0"), "F8_E8M0", 32)


def _mxfp8(planes: Mapping[str, Any], weight: Plane, config: Mapping[str, Any]) -> Form:
    scale = _planes.get(planes, "weight_scale", ("U8", "F8_E8M0"))
    shape, scales = _blocks(weight, scale, _group(config, 32), 1)
    codes = ByteCodes(_planes.folded(weight.data))
    return Microscaled(shape, codes, "F8_E4M3", Plane(scales, "F8_E8M0"), "F8_E8M0", 32)


def _fp8(planes: Mapping[str, Any], weight: Plane, config: Mapping[str, Any]) -> Form:
    scale = _planes.get(planes, "weight_scale", FLOATS)
    if len(scale.shape) == 4 and scale.shape[1] == scale.shape[3] == 1 and len(weight.shape) == 2:
        scale = Plane(scale.data.reshape(scale.shape[0], scale.shape[2]), scale.kind)
    block = block_of(weight.shape, scale.shape, None, "weight_scale")
    return block_scaled(weight, scale, block, rounds_scale=True)


def _int4(planes: Mapping[str, Any], weight: Plane, config: Mapping[str, Any]) -> Form:
    *leading, pairs, columns = weight.shape
    rows = 2 * pairs
    scale = _planes.get(planes, "weight_scale", FLOATS, (*leading, rows, None))
    groups = scale.shape[-1]
    if not groups or columns % groups:
        raise FormatError(f"plane 'weight_scale' has {groups} groups, which do not divide {columns} columns")
    size = _group(config, columns // groups)
    codes = RowPairCodes(_planes.folded(weight.data))
    scales = Plane(_planes.folded(scale.data), scale.kind)
    return Affine((*leading, rows, columns), codes, scales, 8, size)


def _plain(form: Microscaled, element: str, scale: str, block: int) -> bool:
    whole = form.plain and form.columns % block == 0
    return whole and (form.element, form.scale_kind, form.block) == (element, scale, block)


def _write_nvfp4(form: Microscaled) -> dict[str, Plane]:
    if (form.element, form.scale_kind, form.block, form.columns % 16) != ("E2M1", "F8_E4M3", 16, 0):
        raise UnsupportedError(f"{form.element} in blocks of {form.block} with {form.scale_kind} scales is no NVFP4")
    if form.divisor is not None or form.maximum is not None:
        raise UnsupportedError("the scale of the tensor divides or is its largest magnitude: turning it over rounds it")
    second = np.float32(1) if form.multiplier is None else form.multiplier
    return {
        "weight": Plane(as_packed_bytes(form.codes).reshape(*form.shape[:-1], form.columns // 2), "U8"),
        "weight_scale": Plane(form.scales.data.view(np.uint8).reshape(*form.shape[:-1], form.columns // 16), "F8_E4M3"),
        "weight_scale_2": Plane(np.array(second, np.float32), "F32"),
    }


def _write_fp8(form: BlockScaled, algo: str) -> dict[str, Plane]:
    rows, columns = form.shape[-2:]
    block = {"FP8": (rows, columns), "FP8_PER_CHANNEL_PER_TOKEN": (1, columns)}.get(algo, (128, 128))
    block = (min(block[0], rows), min(block[1], columns))
    scales = form.regrid(block)
    if form.element != "F8_E4M3" or form.inverse or form.scales.kind not in FLOATS or scales is None:
        raise UnsupportedError(
            f"{form.element} elements in blocks of {list(form.block)} with {form.scales.kind} scales"
            f"{' that divide' if form.inverse else ''} cannot be stored as {algo} without rounding"
        )
    grid = form.grid(block)
    shape: tuple[int, ...] = (*form.shape[:-2], *grid)
    if algo == "FP8":
        shape = form.shape[:-2]
    elif algo == "FP8_PER_CHANNEL_PER_TOKEN":
        shape = shape[:-1]
    return {
        "weight": Plane(form.data.view(np.uint8).reshape(form.shape), form.element),
        "weight_scale": Plane(scales.data.reshape(shape), scales.kind),
    }


def _write_int4(form: Affine, config: Mapping[str, Any]) -> dict[str, Plane]:
    size = setting_int(config, "group_size", form.group_size)
    size = form.columns if size in (0, -1) else size
    if form.codes.bits != 4 or np.any(form.zeros != np.int16(8)) or form.group_of is not None:
        raise UnsupportedError("W4A16_AWQ holds 4-bit codes with a zero point of 8, groups in the order of the columns")
    if form.rows % 2 or size < 1 or form.columns % size or form.group_size % size:
        raise UnsupportedError(
            f"W4A16_AWQ holds pairs of rows in whole groups: not {list(form.shape)} in groups of {form.group_size} "
            f"stored as groups of {size}"
        )
    signed = form.codes.unpack() ^ np.uint8(8)
    scales = np.repeat(form.scales.data, form.group_size // size, axis=1)[:, : form.columns // size]
    leading, (rows, columns) = form.shape[:-2], form.shape[-2:]
    return {
        "weight": Plane((signed[::2] | signed[1::2] << 4).reshape(*leading, rows // 2, columns), "U8"),
        "weight_scale": Plane(np.ascontiguousarray(scales).reshape(*leading, rows, scales.shape[1]), form.scales.kind),
    }


def _rows(source: Plane, block: int) -> NDArray[np.float32]:
    if source.shape[-1] % block:
        raise UnsupportedError(f"rows of {source.shape[-1]} columns: expected whole blocks of {block}")
    return _planes.folded(source.float32())


def _encode_nvfp4(source: Plane, config: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
    values = _rows(source, _group(config, 16))
    maxima = block_maxima(values, 16)
    second = largest_magnitude(maxima, params) / np.float32(2688)
    with np.errstate(all="ignore"):
        wanted = maxima / (np.float32(6) * second)
    wanted = np.where(wanted > 0, np.clip(wanted, np.float32(2**-9), np.float32(448)), np.float32(1))
    scales = encode_element(wanted, "F8_E4M3")
    quotients = divide_blocks(values, float8_values("F8_E4M3")[scales] * second)
    codes = encode_e2m1(quotients + np.float32(0))  # zeros are stored without a sign
    return Microscaled(
        source.shape, ByteCodes(codes, 4), "E2M1", Plane(scales, "F8_E4M3"), "F8_E4M3", 16, multiplier=second
    )


def _encode_mxfp4(source: Plane, config: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
    values = _rows(source, _group(config, 32))
    scales = e8m0_scales(block_maxima(values, 32), "E2M1", "ceil", "F32")
    codes = encode_e2m1(divide_blocks(values, float8_values("F8_E8M0")[scales]), "toward-zero")
    codes[values == 0] = 8
    return Microscaled(source.shape, ByteCodes(codes, 4), "E2M1", Plane(scales, "F8_E8M0"), "F8_E8M0", 32)


def _encode_mxfp8(source: Plane, config: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
    values = _rows(source, _group(config, 32))
    scales = e8m0_scales(block_maxima(values, 32), "F8_E4M3", "ceil", "F32")
    codes = ByteCodes(encode_element(divide_blocks(values, float8_values("F8_E8M0")[scales]), "F8_E4M3"))
    return Microscaled(source.shape, codes, "F8_E4M3", Plane(scales, "F8_E8M0"), "F8_E8M0", 32)


def _encode_int4(source: Plane, config: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
    size = setting_int(config, "group_size", 128)
    if size < 1 or source.shape[-2] % 2:
        raise UnsupportedError(
            f"W4A16_AWQ needs a positive group_size and an even number of rows, not {source.shape[-2]}"
        )
    values = _rows(source, size)
    scales = block_maxima(values, size) / np.float32(7)
    integers = np.clip(np.rint(divide_blocks(values, scales)), -8, 7)
    codes = ByteCodes((integers + 8).astype(np.uint8), 4)
    return Affine(source.shape, codes, Plane(scales, "F32"), 8, size)


FORMATS = {"modelopt": ModelOpt()}
