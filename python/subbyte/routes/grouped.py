"""Targets with parameters of groups: ``torchao``, ``hqq``, ``sinq``, ``quanto``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from subbyte.formats.integer.sinq import PACKINGS_OF
from subbyte.formats.integer.slabs import DTYPE_NAMES, PACKINGS
from subbyte.forms import Affine, Biased, BlockScaled, DualScaled, FloatZero, Form, Microscaled
from subbyte.planes import Plane, float_plane
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
)
from subbyte.routes.integer import GROUP, GROUP_OF_64, as_affine, prepared

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TorchAo(Target):
    """torchao's tensors flattened to safetensors; their attributes are in the header of the file."""

    id = "torchao"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of an integer", tuple(range(1, 9)), floats=8),
        "group_size": GROUP,
        "type": Option(
            None,
            "type of the tensors; the one that the layer's own codes have, by the bits",
            ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "Float8Tensor", "MXTensor", "NVFP4Tensor"),
        ),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        kind = options.get("type") or self._natural(form, options)
        if kind in ("MXTensor", "NVFP4Tensor"):
            return self._blocks(form, kind)
        if kind == "Float8Tensor":
            return self._float8(form)
        if kind == "Int4Tensor":
            return self._int4(form, options)
        step, found = prepared(form, options, self)
        if found.group_of is not None:
            raise MisfitError("columns are out of order (act-order), which torchao has no place for")
        size = min(found.group_size, found.columns)
        if found.columns % size or (kind == "Int8Tensor" and found.codes.bits != 8):
            raise MisfitError(
                f"{found.codes.bits} bits in groups of {size} of {found.columns} columns cannot be {kind}"
            )
        if kind == "Int8Tensor":
            last = adapt.with_scales(found, "F32")
            step, found = step.then(last.form, last.kind, last.bound, last.why), as_affine(last.form)
        low, high = adapt.zero_range(found)
        middle = 1 << (found.codes.bits - 1)
        if low - middle < -128 or high - middle > 127:
            raise MisfitError("a zero point does not fit 8 bits")
        block = [1] * (len(form.shape) - 1) + [size]
        return step.then(found).with_params(**_entry(kind, block, found.scales.kind, bits=found.codes.bits))

    def _natural(self, form: Form, options: Mapping[str, Any]) -> str:
        if isinstance(form, Microscaled):
            return "NVFP4Tensor" if form.scale_kind == "F8_E4M3" else "MXTensor"
        if isinstance(form, BlockScaled) and form.element != "I8":
            return "Float8Tensor"
        if isinstance(form, Biased) and form.codes.bits == 4:
            return "Int4Tensor" if _fractional(form) else "IntxUnpackedToInt8Tensor"
        affine_bits = form.codes.bits if isinstance(form, Affine) else 8 if isinstance(form, BlockScaled) else 4
        return "Int8Tensor" if options.get("bits", affine_bits) == 8 else "IntxUnpackedToInt8Tensor"

    def _blocks(self, form: Form, kind: str) -> Fit:
        nvidia = kind == "NVFP4Tensor"
        element = "E2M1" if nvidia or getattr(form, "element", "E2M1") == "E2M1" else getattr(form, "element", "")
        step = small_floats.microscaled(form, element, "F8_E4M3" if nvidia else "F8_E8M0", 16 if nvidia else 32)
        found = small_floats.block_floats(step.form)
        if not found.plain or not nvidia:
            own = small_floats.tensor_scale(found, "multiplier" if nvidia else None)
            step = step.then(own.form, own.kind, own.bound, own.why)
            found = small_floats.block_floats(own.form)
        fields = None if found.plain else ["per_tensor_scale", "qdata", "scale"]
        return step.with_params(**_entry(kind, found.block, "BF16", element=element, fields=fields))

    def _float8(self, form: Form) -> Fit:
        step = small_floats.block_scaled(form)
        found = small_floats.float_scales(small_floats.float8(step.form))
        if any(side % step_ for side, step_ in zip(found.shape[-2:], found.block, strict=True)):
            raise MisfitError(f"blocks of {list(found.block)} do not divide a weight {list(found.shape)}")
        block = [1] * (len(form.shape) - 2) + list(found.block)
        return step.then(found).with_params(**_entry("Float8Tensor", block, "BF16"))

    def _int4(self, form: Form, options: Mapping[str, Any]) -> Fit:
        """Signed codes * scale + zero."""
        if isinstance(form, Biased) and form.signed == 8:
            step = Fit(form)
        else:
            base = adapt.affine(form) if not isinstance(form, Biased) else None
            if base is None:
                raise MisfitError("biases of codes without a sign: torchao's are signed, and making them so rounds")
            wider = adapt.symmetric(as_affine(base.form), 4)
            step = base.then(wider.form, wider.kind)
        found = step.form
        size = found.group_size if isinstance(found, Affine | Biased) else 0
        if found.columns % size or found.columns % 8 or len(found.shape) != 2:
            raise MisfitError(
                f"a weight {list(found.shape)} in groups of {size}: Int4Tensor needs whole words and groups"
            )
        kind = found.scales.kind if isinstance(found, Affine | Biased) else "BF16"
        return step.with_params(**_entry("Int4Tensor", [1, size], kind))

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        kind = options.get("type") or ("Int8Tensor" if options.get("bits", 8) == 8 else "IntxUnpackedToInt8Tensor")
        by_row = kind in ("Int8Tensor", "Float8Tensor") and "group_size" not in options
        size = -1 if by_row else for_floats(options, self, "group_size")
        block: Any = [1] * (len(shape) - 1) + [shape[-1] if size == -1 else size]
        if kind in ("MXTensor", "NVFP4Tensor"):
            block = 32 if kind == "MXTensor" else 16
        return _entry(kind, block, "BF16", bits=for_floats(options, self, "bits"), element="E2M1")

    def tensor(self, weight: str, plane: str) -> str:
        module, _, parameter = weight.rpartition(".")
        prefix = f"{module}._{parameter}" if module else f"_{parameter}"
        return f"{prefix}_{plane.removeprefix('_weight_')}"

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        entries = {name: next(iter(layer.params.values())) for name, layer in layers.items()}
        kinds = [_config_type(entry) for entry in entries.values()]
        common = max(kinds, key=kinds.count)
        config = {
            "quant_method": self.id, "quant_type": {"default": common},
            "modules_to_not_convert": modules(dense) or None, "include_input_output_embeddings": False,
        }  # fmt: skip
        metadata = {"format": "pt", "tensor_names": json.dumps(list(entries))}
        metadata |= {name: json.dumps(entry) for name, entry in entries.items()}
        return Settings({"quantization_config": config}, metadata=metadata)


def _fractional(form: Biased) -> bool:
    """Whether a bias is no whole multiple of its scale."""
    try:
        adapt.affine(form)
    except MisfitError:
        return True
    return False


def _entry(
    kind: str, block: Any, dtype: str, *, bits: int = 8, element: str = "", fields: list[str] | None = None
) -> dict[str, Any]:
    """What the header says of a tensor, as a parameter of the format."""

    def torch(name: str) -> dict[str, str]:
        return {"_type": "torch.dtype", "_data": name}

    names = fields or ["qdata", "scale"]
    data: dict[str, Any] = {"block_size": block}
    if kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor"):
        names = ["qdata", "scale", "zero_point"]
    if kind == "Int8Tensor":
        data |= {"act_quant_kwargs": None, "reduce_range": False, "dtype": torch("bfloat16")}
    elif kind == "IntxUnpackedToInt8Tensor":
        data |= {"target_dtype": torch(f"int{bits}"), "dtype": torch(_DTYPES[dtype]), "activation_quantization": None}
    elif kind == "Float8Tensor":
        preference = {"_type": "KernelPreference", "_data": "AUTO"}
        data |= {"mm_config": None, "act_quant_kwargs": None, "kernel_preference": preference}
        data["dtype"] = torch("bfloat16")
    elif kind != "Int4Tensor":
        data |= {"is_swizzled_scales": False, "act_quant_kwargs": None, "orig_dtype": torch("bfloat16")}
        if kind == "MXTensor":
            elements = {"E2M1": "float4_e2m1fn_x2", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
            if element not in elements:
                raise MisfitError(f"MXTensor has no elements of {element}")
            data |= {"elem_dtype": torch(elements[element]),
                     "kernel_preference": {"_type": "KernelPreference", "_data": "EMULATED"}}  # fmt: skip
        else:
            data |= {"use_triton_kernel": False}
    return {"weight": {"_type": kind, "_data": data, "_tensor_data_names": names}}


def _config_type(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The class of torchao's settings that makes such a tensor."""
    name = {
        "Int8Tensor": "Int8WeightOnlyConfig", "IntxUnpackedToInt8Tensor": "IntxWeightOnlyConfig",
        "Int4Tensor": "Int4WeightOnlyConfig", "Float8Tensor": "Float8WeightOnlyConfig",
        "MXTensor": "MXDynamicActivationMXWeightConfig", "NVFP4Tensor": "NVFP4WeightOnlyConfig",
    }[entry["_type"]]  # fmt: skip
    return {"_type": name, "_data": {}, "_version": 2}


class Hqq(Target):
    """HQQ: zeros that are floats, groups along the rows."""

    id = "hqq"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of a code", (1, 2, 3, 4, 5, 6, 8), floats=4),
        "group_size": GROUP_OF_64,
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step, found = _with_float_zeros(form, options, self)
        fields = {1: 8, 2: 4, 4: 2}.get(found.codes.bits, 1)
        groups = found.scales.data.size
        if found.codes.bits == 7 or len(found.shape) != 2 or (not found.strided and groups % fields):
            raise MisfitError(
                f"a weight {list(found.shape)} of {found.codes.bits} bits in {groups} groups does not fill bytes"
            )
        config = _hqq_config(found.codes.bits, found.group_size, 0 if found.strided else 1)
        return step.with_params(quantization_config=config)

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        size = for_floats(options, self, "group_size")
        bits = for_floats(options, self, "bits")
        return {"quantization_config": _hqq_config(bits, shape[-1] if size == -1 else size, 1)}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        configs = {name: layer.params["quantization_config"] for name, layer in layers.items()}
        first = next(iter(configs.values()))
        found = dict(first)
        if any(own != first for own in configs.values()):
            # Settings by tag: the name of the module inside its block.
            own = {name.removesuffix(".weight"): config["quant_config"] for name, config in configs.items()}
            found["quant_config"] = own
        return Settings({"quantization_config": found | {"skip_modules": modules(dense)}})


def _hqq_config(bits: int, group_size: int, axis: int) -> dict[str, Any]:
    weights = {
        "nbits": bits, "group_size": group_size, "axis": axis, "channel_wise": True, "optimize": True,
        "round_zero": bits == 4, "view_as_float": False,
    }  # fmt: skip
    quant = {
        "weight_quant_params": weights,
        "scale_quant_params": None,
        "zero_quant_params": None,
        "offload_meta": False,
    }
    return {"quant_method": "hqq", "quant_config": quant}


def _with_float_zeros(form: Form, options: Mapping[str, Any], target: Target) -> tuple[Fit, FloatZero]:
    """The weight with zeros that are floats, in the bits and groups that are asked for."""
    if isinstance(form, FloatZero | DualScaled | Biased) and not options.keys() - {"method"}:
        step = adapt.float_zeros(form)
    else:
        base, found = prepared(form, options, target)
        if found.codes.bits == 7:
            wider = adapt.symmetric(found, 8)
            base, found = base.then(wider.form, wider.kind), as_affine(wider.form)
        last = adapt.float_zeros(found)
        step = base.then(last.form, last.kind, last.bound, last.why)
    if not isinstance(step.form, FloatZero):
        raise TypeError(f"expected float zeros, found {step.form!r}")
    found_zero = step.form
    if found_zero.scales.data.ndim == 2 and found_zero.columns % found_zero.group_size:
        raise MisfitError(f"{found_zero.columns} columns are no whole groups of {found_zero.group_size}")
    return step, found_zero


class Sinq(Target):
    """SINQ: float zeros, and a second scale for each column, which is 1 for weights of other formats."""

    id = "sinq"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of a code", (1, 2, 3, 4, 5, 6, 8), floats=4),
        "group_size": GROUP_OF_64,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if isinstance(form, DualScaled) and not options:
            return Fit(form).with_params(meta=_sinq_meta(form))
        step, found = _with_float_zeros(form, options, self)
        if found.strided or found.scales.data.ndim != 2 or len(found.shape) != 2:
            raise MisfitError("SINQ has groups along the rows of matrices")
        fields = {1: 8, 2: 4, 4: 2}.get(found.codes.bits, 1)
        if found.codes.bits == 7 or found.scales.data.size % fields:
            raise MisfitError(f"{found.scales.data.size} groups of {found.codes.bits} bits do not fill bytes")
        ones = float_plane(np.ones((1, found.columns), np.float32), found.scales.kind)
        whole = DualScaled(
            found.shape, found.codes, found.scales, found.zeros, ones, found.group_size, found.rows, found.compute
        )
        return step.then(whole).with_params(meta=_sinq_meta(whole))

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        size = for_floats(options, self, "group_size")
        size = shape[-1] if size == -1 else size
        groups = [[shape[0] * shape[1] // max(size, 1), 1]] * 2
        return {"meta": _meta(for_floats(options, self, "bits"), size, shape, "sinq_hf", "BF16", groups)}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        metas = {name.removesuffix(".weight"): layer.params.get("meta") for name, layer in layers.items()}
        first = next(iter(metas.values())) or {}
        config = {
            "quant_method": self.id, "tiling_mode": "2D" if "2d" in str(first.get("method")).lower() else "1D",
            "method": first.get("method"), "modules_to_not_convert": modules(dense),
        }  # fmt: skip
        for key in ("nbits", "group_size"):
            found = {meta[key] for meta in metas.values() if meta}
            config |= {key: found.pop()} if len(found) == 1 else {}
        side = {module: {"meta": meta} for module, meta in metas.items()}
        return Settings({"quantization_config": config}, {"model.safetensors.index.json.meta.json": side})


def _sinq_meta(form: DualScaled) -> dict[str, Any]:
    """What the side file says of a layer."""
    method = "sinq" if form.table is None else {16: "sinq_nf4", 8: "sinq_nf3"}.get(len(form.table), "")
    if not method:
        raise MisfitError("SINQ has the tables NF4 and NF3 alone")
    tiled = form.tile != form.rows
    method += ("_2d" if tiled else "") + ("_quantAux" if form.stored else "")
    groups = form.rows * form.columns // form.group_size
    shape = [groups // form.group_size, form.group_size, 1] if tiled else [groups, 1]
    return _meta(form.codes.bits, form.group_size, form.shape, method, form.compute, [shape, shape])


def _meta(
    bits: int, group_size: int, shape: Sequence[int], method: str, compute: str, groups: Sequence[Sequence[int]]
) -> dict[str, Any]:
    packing = PACKINGS_OF[bits]
    view = "torch.uint8" if PACKINGS[packing].kind == "U8" else "torch.int32"
    return {
        "nbits": bits, "group_size": group_size, "shape": list(shape), "scale.shape": list(groups[0]),
        "zero.shape": list(groups[1]), "awq_scale": None, "axis": 1, "packing": packing, "method": method,
        "compute_dtype": DTYPE_NAMES[compute], "unpack_view_dtype": view, "view_as_float": False,
    }  # fmt: skip


class Quanto(Target):
    """quanto: int8 and FP8 by row, int4 and int2 in groups with a shift; types are in ``quanto_qmap.json``."""

    id = "quanto"
    options: ClassVar[Mapping[str, Option]] = {
        "type": Option(
            None,
            "type of the weights; the one that the layer's own codes have",
            ("qint8", "qint4", "qint2", "qfloat8_e4m3fn", "qfloat8_e5m2"),
            floats="qint8",
        ),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) != 2:
            raise MisfitError(f"quanto stores matrices; this weight has shape {list(form.shape)}")
        if isinstance(form, BlockScaled) and form.element != "I8":
            step = small_floats.block_scaled(form)
            found = small_floats.float_scales(small_floats.float8(step.form))
            by_row = small_floats.regridded(found, (1, found.columns)).form
            name = "qfloat8_e4m3fn" if found.element == "F8_E4M3" else "qfloat8_e5m2"
            return self._typed(step.then(by_row), name, options)
        bits = form.codes.bits if isinstance(form, Affine | Biased | FloatZero | DualScaled) else 8
        wanted = {"qint8": 8, "qint4": 4, "qint2": 2}.get(str(options.get("type")))
        if wanted == 8 or (wanted is None and bits > 4):
            return self._typed(adapt.bytes_by_row(form), "qint8", options)
        if isinstance(form, Biased) and bits in (2, 4) and not form.signed:
            return self._typed(self._compatible(adapt.biased(form, form.scales.kind)), f"qint{bits}", options)
        return self._integers(form, wanted, options)

    def _integers(self, form: Form, wanted: int | None, options: Mapping[str, Any]) -> Fit:
        """Integer zero points, or shifts where zeros are fractions."""
        try:
            step = adapt.affine(form)
        except MisfitError:
            if not isinstance(form, FloatZero | DualScaled) or form.codes.bits not in (2, 4):
                raise
            return self._typed(self._compatible(adapt.biased(form, "F32")), f"qint{form.codes.bits}", options)
        found = as_affine(step.form)
        if found.group_of is not None:
            raise MisfitError("columns are out of order (act-order), which quanto has no place for")
        bits = wanted or (found.codes.bits if found.codes.bits in (2, 4) else 4)
        wider = adapt.with_bits(found, bits)
        found = as_affine(wider.form)
        size = min(found.group_size, found.columns)
        if found.columns % size:
            raise MisfitError(f"{found.columns} columns are no whole groups of {size}")
        return self._typed(step.then(found, wider.kind), f"qint{bits}", options)

    def _compatible(self, step: Fit) -> Fit:
        form = step.form
        if not isinstance(form, Biased):
            raise TypeError(f"expected biases, found {form!r}")
        if form.columns % form.group_size:
            raise MisfitError(f"{form.columns} columns are no whole groups of {form.group_size}")
        return step.then(replace(form, compute=None))

    def _typed(self, step: Fit, name: str, options: Mapping[str, Any]) -> Fit:
        if options.get("type") not in (None, name):
            raise MisfitError(f"the codes are those of {name}, not {options['type']}")
        return step.with_params(quantization_map={"weight": {"weights": name, "activations": "none"}},
                                shape=list(step.form.shape))  # fmt: skip

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        name = for_floats(options, self, "type")
        return {"quantization_map": {"weight": {"weights": name, "activations": "none"}}, "shape": list(shape)}

    def tensor(self, weight: str, plane: str) -> str:
        module, _, parameter = weight.rpartition(".")
        named = plane.removeprefix("weight")
        return f"{weight}{named}" if parameter == "weight" or not module else f"{weight}.{plane}"

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        keeps = params is not None and name.endswith((".input_scale", ".output_scale")) and not value.shape
        return Companion(name, value) if keeps else None

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        types = {name: layer.params["quantization_map"]["weight"] for name, layer in layers.items()}
        names = [one["weights"] for one in types.values()]
        common = max(names, key=names.count).removeprefix("q")
        config = {
            "quant_method": self.id, "weights": "float8" if common.startswith("float8") else common,
            "activations": None, "modules_to_not_convert": modules(dense) or None,
        }  # fmt: skip
        side = {name.removesuffix(".weight"): one for name, one in types.items()}
        return Settings({"quantization_config": config}, {"quanto_qmap.json": side})
