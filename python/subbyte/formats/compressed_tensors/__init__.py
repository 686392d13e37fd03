"""compressed-tensors checkpoints (llm-compressor, vLLM): one name for a dozen layouts.

Weight ``[out, in]``, or ``[experts, out, in]`` with the same leading axis on every plane; b bits, groups of g columns,
G = in / g:

=========================  =================  ==========================================  ===========================
format                     plane              type and shape                              content
=========================  =================  ==========================================  ===========================
``pack-quantized``         weight_packed      I32 [out, W]                                codes + 2^(b-1), packed
                           weight_shape       I64 [2]                                     (out, in)
                           weight_zero_point  I32 [words of out, G]; I8 [out, G] before   asymmetric only; packed down
                                              version 0.10                                the outputs
                           weight_g_idx       I32 [in]                                    group of each column; -1: none
``int-quantized``          weight             I8 [out, in]                                codes
                           weight_zero_point  I8, as weight_scale                         asymmetric only
``float-quantized``        weight             F8_E4M3 [out, in]
``naive-quantized``        weight             I8 or F8_E4M3 [out, in]                     as the two before
``nvfp4-pack-quantized``   weight_packed      U8 [out, in / 2]                            E2M1, low nibble first
                           weight_scale       F8_E4M3 [out, in / 16]
                           weight_global_     F32 [1] or []; [experts]                    divides the scales
                           scale
``mxfp4-pack-quantized``   weight_packed      U8 [out, in / 2]                            E2M1, low nibble first
``mxfp6-pack-quantized``   weight_packed      U8 [out, 3 in / 4]                          E2M3, a stream of 6 bits
``mxfp8-quantized``        weight             F8_E4M3 [out, in]
=========================  =================  ==========================================  ===========================

``weight_scale`` is F32, F16 or BF16 by strategy: [1] or [] ``tensor``, [out, 1] ``channel``, [out, G] ``group``,
[ceil(out / r), ceil(in / c)] ``block``; U8 (E8M0) [out, in / 32] for the MX formats. w = (code - zero) * scale, NVFP4:
e2m1 * (scale / global scale): differences are exact, products are rounded once.

* Codes of 1, 2, 4, 8 bits fill words; those of 3, 5, 6, 7 bits cross words since version 0.18 (W = ceil(in b / 32)),
  and leave the upper bits of a word empty before (W = ceil(in / floor(32 / b))). The width tells, and where both are
  the same the width of the zero points, and then ``version``. Padding is zero.
* Settings: ``config_groups`` (by name, or by the name of a preset), each with ``targets``, ``weights`` and perhaps a
  ``format`` of its own; a module takes the group that names it, else one whose pattern (``re:``) matches, else one that
  names its class. ``ignore`` excepts modules. Tensors decide what is quantized. ``transform_config`` is refused.
* With the parameter ``scalar_global_scale`` the global scale is written as [], as the library's converter of ModelOpt
  checkpoints does.
* Sparse layouts of older versions: see `subbyte.formats.compressed_tensors.sparse`.
* The writer rounds every step in the type of the matrix. Integers: scale = max / ((2^b - 1) / 2), or with zero points
  (max - min) / (2^b - 1) and zero = clamp(round(lowest - min / scale)). FP8: max / 448. A scale of 0 becomes the
  epsilon of the type. NVFP4: global scale 2688 / max (1 where that overflows), scales E4M3(global * (max of the block
  / 6)), 0.125 for 0. MX: the power of two of `subbyte.forms.microfloat.e8m0_scales`, ``nearest``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, settings
from subbyte.formats.compressed_tensors import floats, integers, sparse
from subbyte.formats.compressed_tensors.scheme import (
    BLOCK_FORMATS,
    Scheme,
    check_settings,
    choose,
    format_of,
    group_of,
    ignored,
    schemes,
    sparse_format,
)
from subbyte.forms import Form
from subbyte.forms.dense import Dense
from subbyte.planes import Plane
from subbyte.quantize.microscaled import refined

_OPTIONAL = ("weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale")
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask")


class CompressedTensors(Format):
    """The format ``compressed-tensors``."""

    id = "compressed-tensors"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = _settings(params)
        check_settings(config)
        before = sparse.prefix(planes)
        if before is not None:
            matrix = sparse.read(planes, before)
            if "weight_scale" not in planes:
                if matrix.kind not in _planes.FLOATS:
                    raise FormatError(f"plane '{before}compressed' holds {matrix.kind}, but there is no 'weight_scale'")
                return Dense(matrix.shape, matrix)
            planes = {**planes, "weight": matrix}
        kinds = {name: _planes.get(planes, name).kind for name in planes if name.startswith("weight")}
        scheme = choose(config, params.get("group"), kinds)
        format = scheme.named(kinds) or scheme.default
        read = integers.read if scheme.integer else floats.read
        return read(planes, scheme, format)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _settings(params)
        source = _planes.source(array)
        form: Form
        if sparse_format(config) in _SPARSE and not schemes(config):
            return encoded(self.id, self.write(Dense(source.shape, source), params), source.shape, params)
        scheme = choose(config, params.get("group"), {})
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"matrices can be encoded; the array has shape {list(source.shape)}")
        if scheme.integer:
            form = integers.encode(source, scheme, params, importance)
        else:
            form = refined(floats.encode(source, scheme, params), source, params, importance)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        config = _settings(params)
        if len(shape) != 2 or not schemes(config):
            return 0
        scheme = choose(config, params.get("group"), {})
        height, _ = scheme.step(shape[0], shape[1])
        if scheme.strategy == "tensor":
            return 0 if scheme.integer else 32
        return lcm(height, 32)

    def shares_maximum(self, params: Mapping[str, Any], shape: Sequence[int]) -> bool:
        scheme = choose(_settings(params), params.get("group"), {})
        return scheme.default == "nvfp4-pack-quantized" or scheme.strategy == "tensor"

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        config = _settings(params)
        check_settings(config)
        if isinstance(form, Dense):
            format = sparse_format(config)
            if format not in _SPARSE:
                raise UnsupportedError("a dense weight cannot be stored: the settings name no sparse format")
            return sparse.write(form.data, format)
        scheme = choose(config, params.get("group"), {})
        write = integers.write if scheme.integer else floats.write
        planes = write(form, scheme, scheme.default)
        if setting_bool(params, "scalar_global_scale", False) and "weight_global_scale" in planes:
            data = planes["weight_global_scale"].data
            planes["weight_global_scale"] = Plane(data.reshape(()) if data.size == 1 else data, "F32")
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        config = folder.settings
        groups = schemes(config)
        found = {}
        excepted = []
        for module, tensors in _modules(folder).items():
            params: dict[str, Any] = {"quantization_config": config}
            scheme = None
            if "weight_scale" in tensors:
                name = group_of(module, groups) or (next(iter(groups)) if len(groups) == 1 else None)
                if name is None and not groups:
                    guessed = _guess(folder, tensors)
                    groups_here = schemes(guessed)
                    params, name = {"quantization_config": guessed}, next(iter(groups_here))
                    scheme = groups_here[name][0]
                elif name is None:
                    raise FormatError(f"'{module}' is quantized, but no group of the settings targets it")
                else:
                    scheme = groups[name][0]
                params["group"] = name
                excepted += [module] if ignored(config, module) else []
            shape = _dense_shape(folder, tensors, scheme)
            found[module] = Layer(f"{module}.weight", shape, tensors, params)
        if excepted:
            folder.notes.append(f"{len(excepted)} modules are quantized although 'ignore' names them: {excepted[0]} …")
        _note_dense(folder, groups, found)
        return list(found.values())


def _settings(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a layer; those of a sparse one may stand alone."""
    if "quantization_config" not in params and "sparsity_config" in params:
        return {"sparsity_config": settings(params, "sparsity_config")}
    return settings(params)


def _modules(folder: Folder) -> dict[str, dict[str, str]]:
    """Tensors of every quantized or sparse module by plane.

    Raises:
        FormatError: a plane is missing.
    """
    found = folder.modules(("weight_packed", "weight_scale"), _OPTIONAL, marker="weight_packed")
    for module, tensors in folder.modules(("weight", "weight_scale"), _OPTIONAL).items():
        found.setdefault(module, tensors)
    for names in (("bitmask", "compressed", "shape"), ("weight.bitmask", "weight.compressed", "weight.shape")):
        optional = ("weight_scale", "weight_zero_point", "weight.row_offsets")
        for module, tensors in folder.modules(names, optional, marker=names[0]).items():
            if not module.endswith(".weight"):  # the planes "weight.bitmask" … of the module before
                found[module] = tensors
    for name, tensor in folder.source.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and tensor.dtype == "F8_E4M3" and module not in found:
            raise FormatError(f"tensor '{module}.weight_scale', which belongs to it, is missing", tensor=name)
    return found


def _sides(folder: Folder, name: str) -> list[int]:
    """The elements of a tensor that holds a shape."""
    tensor = folder.source[name]
    if tensor.dtype not in ("I64", "I32") or not 0 < tensor.nbytes <= 24:
        raise FormatError(f"holds {tensor.dtype} {list(tensor.shape)}: expected the sides of a weight", tensor=name)
    return [int(side) for side in folder.source.array(name).reshape(-1)]


def _dense_shape(folder: Folder, tensors: Mapping[str, str], scheme: Scheme | None) -> tuple[int, ...]:
    """The shape of the weight, from headers where they tell it."""
    if "weight" in tensors:
        return folder.source[tensors["weight"]].shape
    if "weight_packed" not in tensors:
        return tuple(_sides(folder, tensors["shape" if "shape" in tensors else "weight.shape"]))
    packed, scale = (folder.source[tensors[plane]] for plane in ("weight_packed", "weight_scale"))
    if not packed.shape:
        raise FormatError("has no dimensions: expected packed codes", tensor=packed.name)
    if scheme is not None and scheme.group_size and scale.shape:
        return (*packed.shape[:-1], scale.shape[-1] * scheme.group_size)
    return (*packed.shape[:-1], _packed_columns(folder, tensors))


def _packed_columns(folder: Folder, tensors: Mapping[str, str]) -> int:
    if "weight_shape" not in tensors:
        absent = tensors["weight_packed"].removesuffix("packed") + "shape"
        raise FormatError(f"tensor '{absent}', which belongs to it, is missing", tensor=tensors["weight_packed"])
    return _sides(folder, tensors["weight_shape"])[-1]


def _guess(folder: Folder, tensors: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a module whose checkpoint has none, by its planes."""
    header = {plane: folder.source[name] for plane, name in tensors.items()}
    main, scale = header.get("weight_packed") or header.get("weight"), header["weight_scale"]
    format = format_of({plane: tensor.dtype for plane, tensor in header.items()})
    if main is None or format is None or not main.shape:
        raise FormatError("there are no settings, and its planes tell no format", tensor=scale.name)
    weights: dict[str, Any] = {"type": "float", "num_bits": 8, "strategy": "tensor"}
    columns = main.shape[-1]
    if format in ("pack-quantized", "int-quantized"):
        weights |= {"type": "int", "symmetric": "weight_zero_point" not in tensors}
    if format == "pack-quantized":
        columns = max(_packed_columns(folder, tensors), 1)
        weights["num_bits"] = main.shape[-1] * 32 // columns
    if format in BLOCK_FORMATS:
        if scale.shape and main.shape[-1] == scale.shape[-1] * 24:
            format = "mxfp6-pack-quantized"  # 24 bytes for 32 elements
        _, bits, block = BLOCK_FORMATS[format]
        weights |= {"num_bits": bits, "group_size": block, "strategy": "group"}
    elif len(scale.shape) > 1 and scale.shape[-1] == 1:
        weights["strategy"] = "channel"
    elif len(scale.shape) > 1:
        weights |= {"strategy": "group", "group_size": max(columns // max(scale.shape[-1], 1), 1)}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": format}}}


def _note_dense(folder: Folder, groups: Mapping[str, tuple[Scheme, Sequence[str]]], found: Mapping[str, Layer]) -> None:
    stale = [
        name
        for name, tensor in folder.source.items()
        if name.endswith(".weight")
        and len(tensor.shape) == 2
        and name.removesuffix(".weight") not in found
        and not any(part in name for part in ("embed", "lm_head", "norm"))
        and group_of(name.removesuffix(".weight"), groups) is not None
        and not ignored(folder.settings, name.removesuffix(".weight"))
    ]
    if stale:
        folder.notes.append(f"{len(stale)} modules are listed as quantized but stored dense: {stale[0]} …")


FORMATS = {"compressed-tensors": CompressedTensors()}
