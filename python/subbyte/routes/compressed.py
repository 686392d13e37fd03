"""The target ``compressed-tensors``: every layout, chosen by what a layer is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from subbyte.formats.compressed_tensors.scheme import BLOCK_FORMATS, INTEGER_FORMATS
from subbyte.forms import Affine, BlockScaled, ByteCodes, Form, Microscaled, TwoLevel
from subbyte.planes import FLOATS, Plane
from subbyte.routes import adapt, small_floats
from subbyte.routes.fit import (
    METHOD,
    Companion,
    Fit,
    MisfitError,
    Option,
    Settings,
    Stored,
    Target,
    for_floats,
    modules,
    value,
)
from subbyte.routes.floats import parsed_block, sides
from subbyte.routes.integer import GROUP, as_affine, prepared

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", *BLOCK_FORMATS)
#: The first version that has no columns out of order.
_ORDERED_SINCE = (0, 20)
_FP8_INPUTS = {"num_bits": 8, "type": "float", "symmetric": True}


class CompressedTensors(Target):
    """compressed-tensors: integers are packed, small floats keep their codes and scales."""

    id = "compressed-tensors"
    options: ClassVar[Mapping[str, Option]] = {
        "format": Option(None, "layout; the one that the layer's own codes have", _FORMATS, floats="pack-quantized"),
        "bits": Option(None, "bits of an integer", tuple(range(1, 9)), floats=4),
        "group_size": GROUP,
        "sym": Option(None, "no zero points", (True, False), floats=True),
        "scale_type": Option(None, "type of the scales of integers", FLOATS),
        "block": Option(None, "rows and columns of a block of FP8, as 128x128, channel or tensor", floats="channel"),
        "version": Option("0.20.0", "version of the library that reads it; columns out of order only below 0.20"),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) not in (2, 3):
            raise MisfitError(f"a weight {list(form.shape)}: compressed-tensors stores one matrix or several")
        format = options.get("format") or _natural(form, options)
        if format in INTEGER_FORMATS:
            return self._integers(form, format, options)
        if format == "float-quantized":
            return self._float8(form, options)
        element, bits, block = BLOCK_FORMATS[format]
        nvidia = format == "nvfp4-pack-quantized"
        step = small_floats.microscaled(form, element, "F8_E4M3" if nvidia else "F8_E8M0", block)
        found = small_floats.block_floats(step.form)
        own = small_floats.tensor_scale(found, "divisor" if nvidia else None)
        strategy = "tensor_group" if nvidia else "group"
        weights = _weights("float", bits, strategy, group_size=block)
        params = self._params(format, weights, options)
        if found.multiplier is not None:
            params["scalar_global_scale"] = True
        return step.then(own.form, own.kind, own.bound, own.why).with_params(**params)

    def _integers(self, form: Form, format: str, options: Mapping[str, Any]) -> Fit:
        step, found = prepared(form, options, self)
        top = (1 << found.codes.bits) - 1
        zeros = found.zeros
        if (zeros if isinstance(zeros, int) else int(zeros.max(initial=0))) > top:
            wider = adapt.symmetric(found, found.codes.bits + 1)
            step, found = step.then(wider.form, wider.kind), as_affine(wider.form)
        if found.codes.bits > 8:
            raise MisfitError("a zero point has no room in 8 bits")
        if "scale_type" in options:
            last = adapt.with_scales(found, options["scale_type"])
            step, found = step.then(last.form, last.kind, last.bound, last.why), as_affine(last.form)
        ordered = found.group_of is None
        if not ordered and (format != "pack-quantized" or _version(options, self) >= _ORDERED_SINCE):
            raise MisfitError(
                "columns are out of order (act-order), which compressed-tensors reads below version 0.20 alone "
                "(setting version=0.19.0)"
            )
        whole = found.group_size >= found.columns and ordered
        if not whole and ordered and found.columns % found.group_size:
            raise MisfitError(f"{found.columns} columns are no whole groups of {found.group_size}")
        symmetric = found.symmetric and options.get("sym") is not False
        weights = _weights(
            "int",
            found.codes.bits,
            "channel" if whole else "group",
            group_size=None if whole else found.group_size,
            symmetric=symmetric,
            actorder=None if ordered else "group",
        )
        return step.then(found).with_params(**self._params(format, weights, options))

    def _float8(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step = small_floats.block_scaled(form)
        found = small_floats.float8(step.form)
        if found.element != "F8_E4M3":
            raise MisfitError("compressed-tensors has E4M3 alone among the 8-bit floats")
        block = parsed_block(options.get("block"), found)
        if block is not None:
            found = small_floats.float8(small_floats.regridded(found, block).form)
        found = small_floats.float_scales(found)
        standard = small_floats.standard_block(found)
        if standard is None:
            weights = _weights("float", 8, "tensor")
        elif found.block == (1, found.columns):
            weights = _weights("float", 8, "channel")
        elif found.block[0] == 1 and found.columns % found.block[1] == 0:
            weights = _weights("float", 8, "group", group_size=found.block[1])
        else:
            weights = _weights("float", 8, "block", block_structure=list(standard))
        return step.then(found).with_params(**self._params("float-quantized", weights, options))

    def _params(self, format: str, weights: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        group = {
            "targets": ["Linear"], "weights": dict(weights), "input_activations": None, "output_activations": None,
            "format": format,
        }  # fmt: skip
        config = {
            "quant_method": self.id, "format": format, "quantization_status": "compressed",
            "version": value(options, self, "version"), "ignore": [], "config_groups": {"group_0": group},
        }  # fmt: skip
        return {"quantization_config": config}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        format = for_floats(options, self, "format")
        if format in INTEGER_FORMATS:
            packed = format == "pack-quantized"
            bits = for_floats(options, self, "bits") if packed or "bits" in options else 8
            size = for_floats(options, self, "group_size") if packed or "group_size" in options else -1
            whole = size == -1 or size >= shape[-1]
            weights = _weights(
                "int", bits, "channel" if whole else "group", group_size=None if whole else size,
                symmetric=for_floats(options, self, "sym"),
            )  # fmt: skip
        elif format == "float-quantized":
            block = for_floats(options, self, "block")
            weights = _weights("float", 8, block) if block in ("channel", "tensor") else _weights(
                "float", 8, "block", block_structure=list(sides(block))
            )  # fmt: skip
        else:
            _, bits, size = BLOCK_FORMATS[format]
            strategy = "tensor_group" if format == "nvfp4-pack-quantized" else "group"
            weights = _weights("float", bits, strategy, group_size=size)
        return self._params(format, weights, options)

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        module, _, last = name.rpartition(".")
        attention, _, projection = module.rpartition(".")
        if last in ("k_scale", "v_scale"):
            return Companion(f"{attention}.{last}" if projection == f"{last[0]}_proj" else name, value)
        if params is None or value.kind not in FLOATS:
            return None
        format = params["quantization_config"]["format"]
        if format == "nvfp4-pack-quantized" and last in ("input_scale", "input_global_scale"):
            if last == "input_global_scale":
                return Companion(name, value)
            turned, exact = small_floats.reciprocal(value)
            return Companion(f"{module}.input_global_scale", turned, "exact" if exact else "rounded")
        keeps = format in ("float-quantized", "int-quantized") and last == "input_scale"
        return Companion(name, value) if keeps else None

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        groups: list[dict[str, Any]] = []
        members: list[list[str]] = []
        for name, layer in layers.items():
            group = _with_inputs(layer)
            if group not in groups:
                groups.append(group)
                members.append([])
            members[groups.index(group)].append(name.removesuffix(".weight"))
        if len(groups) > 1:
            groups = [{**group, "targets": names} for group, names in zip(groups, members, strict=True)]
        formats = {group["format"] for group in groups}
        config = dict(next(iter(layers.values())).params["quantization_config"])
        config |= {
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "ignore": modules(dense),
            "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        }
        if any(name.endswith((".k_scale", ".v_scale")) for name in beside):
            config["kv_cache_scheme"] = {**_FP8_INPUTS, "strategy": "tensor", "dynamic": False}
        return Settings({"quantization_config": config})


def _natural(form: Form, options: Mapping[str, Any]) -> str:
    """The layout that has a form's own codes."""
    if isinstance(form, Microscaled):
        for format, (element, _, block) in BLOCK_FORMATS.items():
            scale = "F8_E4M3" if format == "nvfp4-pack-quantized" else "F8_E8M0"
            if (form.element, form.scale_kind, form.block) == (element, scale, block):
                return format
        return "float-quantized"
    if isinstance(form, BlockScaled) and form.element != "I8":
        return "float-quantized"
    if options.get("bits", 8) != 8:
        return "pack-quantized"
    bytes_of_8 = isinstance(form, Affine) and isinstance(form.codes, ByteCodes) and form.codes.bits == 8
    return "int-quantized" if bytes_of_8 or isinstance(form, BlockScaled | TwoLevel) else "pack-quantized"


def _weights(
    type: str,
    bits: int,
    strategy: str,
    *,
    group_size: int | None = None,
    block_structure: list[int] | None = None,
    symmetric: bool = True,
    actorder: str | None = None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_bits": bits, "type": type, "symmetric": symmetric, "strategy": strategy, "group_size": group_size,
        "block_structure": block_structure, "actorder": actorder, "dynamic": False,
    }  # fmt: skip
    return {key: one for key, one in found.items() if one is not None}


def _with_inputs(layer: Stored) -> dict[str, Any]:
    """The settings of a layer, with those of its activations where scales for them are beside it.

    Blocks of FP8 are for models that scale activations as they come.
    """
    group: dict[str, Any] = dict(layer.params["quantization_config"]["config_groups"]["group_0"])
    inputs: dict[str, Any] | None = None
    if "input_global_scale" in layer.beside:
        inputs = {**_FP8_INPUTS, "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}
    elif "input_scale" in layer.beside:
        kind = group["weights"]["type"]
        inputs = {**_FP8_INPUTS, "type": kind, "strategy": "tensor", "dynamic": False}
    elif group["format"] == "float-quantized" and group["weights"]["strategy"] == "block":
        size = group["weights"]["block_structure"][1]
        inputs = {**_FP8_INPUTS, "strategy": "group", "group_size": size, "dynamic": True}
    return group | {"input_activations": inputs}


def _version(options: Mapping[str, Any], target: Target) -> tuple[int, int]:
    text = str(value(options, target, "version"))
    found = re.match(r"(\d{1,6})\.(\d{1,6})", text)
    if found is None:
        raise MisfitError(f"setting 'version' is {text!r:.40}: expected a version such as 0.20.0")
    return int(found[1]), int(found[2])
