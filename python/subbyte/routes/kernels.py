"""Targets that are stored as one program reads them.

``bitsandbytes``, ``bitnet``, ``gemma``, ``matquant``, ``qqq``, ``qserve``, ``any4``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from subbyte.formats.table.bitsandbytes import BLOCK_SIZES, TABLES
from subbyte.forms import Affine, Biased, BlockScaled, Form, RowTable, Table, Ternary, TwoLevel
from subbyte.planes import Plane, float_plane
from subbyte.routes import adapt
from subbyte.routes.fit import Companion, Fit, MisfitError, Option, Settings, Stored, Target, for_floats, modules, value
from subbyte.routes.integer import GROUP, as_affine, as_biased, group_setting, one_config, prepared
from subbyte.routes.small_floats import HALF_ULP


class BitsAndBytes(Target):
    """bitsandbytes: tables of 4 bits, or int8 by row."""

    id = "bitsandbytes"
    whole = True  # a plane holds JSON with the shape of the weight
    options: ClassVar[Mapping[str, Option]] = {
        "type": Option(None, "nf4, fp4 or int8", ("nf4", "fp4", "int8"), floats="nf4"),
        "double_quant": Option(None, "quantize the scales as well", (True, False), floats=False),
        "block_size": Option(64, "elements of a block of floats", BLOCK_SIZES),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if isinstance(form, Table):
            kind = next((name for name, table in TABLES.items() if np.array_equal(form.table, table)), None)
            if kind is None or options.get("type", kind) != kind or form.block not in BLOCK_SIZES:
                raise MisfitError(f"a table that is not {options.get('type', 'NF4 or FP4')}, in blocks of {form.block}")
            nested = form.quantized_scales is not None
            if options.get("double_quant", nested) != nested:
                raise MisfitError("its scales are quantized" if nested else "its scales are not quantized")
            return Fit(form).with_params(quantization_config=self._config(kind, nested))
        if options.get("type", "int8") != "int8":
            raise MisfitError("a weight without a table of 4 bits")
        if isinstance(form, BlockScaled) and form.element == "I8" and form.factor is not None:
            step = Fit(form)
        else:
            base = adapt.bytes_by_row(form)
            found = base.form
            if not isinstance(found, BlockScaled):
                raise TypeError(f"expected integers, found {found!r}")
            with np.errstate(over="ignore"):
                maxima = found.scales.float32() * np.float32(127)
            if not np.isfinite(maxima).all():
                raise MisfitError("127 times a scale is out of the range of F32")
            factor = np.float32(1) / np.float32(127)
            step = base.then(
                replace(found, scales=Plane(maxima, "F32"), factor=factor), "rounded", 4 * HALF_ULP,
                "scales round when they are stored as maxima of their rows",
            )  # fmt: skip
        if len(form.shape) != 2:
            raise MisfitError("int8 is for matrices")
        return step.with_params(quantization_config=self._config("int8", False))

    def _config(self, kind: str, nested: bool) -> dict[str, Any]:
        eight = kind == "int8"
        config: dict[str, Any] = {"quant_method": self.id, "load_in_4bit": not eight, "load_in_8bit": eight}
        if eight:
            return config | {"llm_int8_threshold": 6.0}
        return config | {
            "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": "bfloat16",
        }  # fmt: skip

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        config = self._config(for_floats(options, self, "type"), for_floats(options, self, "double_quant"))
        nested = bool(config.get("bnb_4bit_use_double_quant"))
        length = {"state_bytes": 256} if nested else {}  # of JSON with the mean of the scales, which is known last
        return {"quantization_config": config, "blocksize": value(options, self, "block_size")} | length

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = dict(one_config(layers)) | {"llm_int8_skip_modules": modules(dense) or None}
        return Settings({"quantization_config": config})


class BitNet(Target):
    """BitNet's packed trits with one scale a weight."""

    id = "bitnet"
    options: ClassVar[Mapping[str, Option]] = {
        "linear_class": Option(
            None,
            "autobitlinear multiplies by the scale, bitlinear divides",
            ("autobitlinear", "bitlinear"),
            floats="autobitlinear",
        ),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step = adapt.ternary(form)
        found = step.form
        if not isinstance(found, Ternary):
            raise TypeError(f"expected trits, found {found!r}")
        if found.scales.shape != (1, 1) or len(found.shape) != 2 or found.rows % 4:
            raise MisfitError(
                f"a weight {list(found.shape)} with scales {list(found.scales.shape)}: BitNet has one for a matrix "
                "of a multiple of 4 rows"
            )
        kind = options.get("linear_class") or ("bitlinear" if found.inverse else "autobitlinear")
        inverse = kind == "bitlinear"
        if inverse != found.inverse:
            turned = Plane(np.float32(1) / found.scales.float32(), "F32")
            exact = bool(np.frexp(found.scales.float32())[0] == 0.5)
            found = replace(found, scales=turned, inverse=inverse)
            step = step.then(
                found, "exact" if exact else "rounded", 0.0 if exact else 4 * HALF_ULP,
                "" if exact else "the reciprocal of the scale rounds",
            )  # fmt: skip
        return step.with_params(quantization_config=self._config(kind))

    def _config(self, kind: str) -> dict[str, Any]:
        return {"quant_method": self.id, "linear_class": kind, "quantization_mode": "offline", "use_rms_norm": False}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        if shape[-2] % 4:
            raise MisfitError(f"{shape[-2]} rows are no multiple of 4, and BitNet does not store how many there are")
        return {"quantization_config": self._config(for_floats(options, self, "linear_class"))}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = dict(one_config(layers)) | {"modules_to_not_convert": modules(dense) or None}
        return Settings({"quantization_config": config})


def _symmetric_rows(form: Form, bits: int | None, allowed: Sequence[int]) -> tuple[Fit, Affine]:
    """The weight as symmetric integers of the fewest ``allowed`` bits, columns in order, scales by group."""
    step = adapt.affine(form)
    found = as_affine(step.form)
    if found.group_of is not None:
        raise MisfitError("columns are out of order (act-order), which the format has no place for")
    if len(found.shape) != 2:
        raise MisfitError(f"the format stores matrices; this weight has shape {list(found.shape)}")
    own = bits or next((one for one in allowed if one >= found.codes.bits), max(allowed))
    try:
        wider = adapt.symmetric(found, own)
    except MisfitError:
        more = next((one for one in allowed if one > own), None)
        if bits is not None or more is None:
            raise
        wider = adapt.symmetric(found, more)
    return step.then(wider.form, wider.kind), as_affine(wider.form)


class Gemma(Target):
    """Gemma's packed integers: symmetric, one F32 scale a row."""

    id = "gemma"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of a code", (2, 4, 8), floats=4),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step, found = _symmetric_rows(form, options.get("bits"), (2, 4, 8))
        found = adapt.in_groups(found, found.columns)
        last = adapt.with_scales(found, "F32")
        config = self._config(found.codes.bits)
        return step.then(last.form, last.kind, last.bound, last.why).with_params(
            quantization_config=config, shape=list(found.shape), embedding=False
        )

    def _config(self, bits: int) -> dict[str, Any]:
        return {"quant_method": self.id, "num_bits": bits, "quantize_embeddings": False}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        config = self._config(for_floats(options, self, "bits"))
        return {"quantization_config": config, "shape": list(shape), "embedding": False}

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        return Companion(name, value) if name.endswith("_activation_scale") and params is not None else None

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        bits = [layer.params["quantization_config"]["num_bits"] for layer in layers.values()]
        common = max(bits, key=bits.count)
        own = {
            f"^{name.removesuffix('.weight')}$".replace(".", r"\."): {"num_bits": one}
            for name, one in zip(layers, bits, strict=True)
            if one != common
        }
        config = self._config(common) | ({"module_quant_configs": own} if own else {})
        return Settings({"quantization_config": config})


class MatQuant(Target):
    """MatGPTQ's parents of 8 bits, whose upper bits are the codes of fewer."""

    id = "matquant"
    options: ClassVar[Mapping[str, Option]] = {
        "group_size": GROUP,
        "bits": Option(8, "bits that programs are told to use (inference_bitwidth)", tuple(range(1, 9))),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step = adapt.affine(form)
        found = as_affine(step.form)
        if found.group_of is not None or len(found.shape) != 2:
            raise MisfitError("MatGPTQ stores matrices whose columns are in order")
        size = options.get("group_size")
        if size is not None:
            found = adapt.in_groups(found, found.columns if size == -1 else size)
        wider = adapt.symmetric(found, found.codes.bits if found.symmetric else min(found.codes.bits + 1, 8))
        found = as_affine(wider.form)
        # A scale is divided by the power of two that the codes are multiplied with, in F32 where it is too small.
        exact = np.ldexp(found.scales.float32().astype(np.float64), found.codes.bits - 8)
        if np.any(exact.astype(np.float32) != exact):
            raise MisfitError("a scale is too small for a parent of 8 bits")
        kind = found.scales.kind
        widened = "exact-value" if found.codes.bits < 8 else "exact"
        bits = value(options, self, "bits")
        if bits < found.codes.bits:
            raise MisfitError(f"{bits} bits are fewer than the {found.codes.bits} of the source")
        return (
            step.then(found, wider.kind)
            .then(found, widened)
            .with_params(quantization_config=self._config(group_setting(found), bits, kind))
        )

    def _config(self, group_size: int, bits: int, kind: str) -> dict[str, Any]:
        return {
            "quant_method": "matgptq_quant", "group_size": group_size, "master_bitwidth": 8, "inference_bitwidth": bits,
            "quant_dtype": "bfloat16" if kind == "BF16" else "float16",
        }  # fmt: skip

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        size = for_floats(options, self, "group_size")
        return {"quantization_config": self._config(size, value(options, self, "bits"), "BF16")}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = dict(one_config(layers)) | {"modules_to_not_convert": modules(dense)}
        return Settings({"quantization_config": config})


class Qqq(Target):
    """QQQ: 4 bits in tiles for activations of 8 bits."""

    id = "qqq"
    options: ClassVar[Mapping[str, Option]] = {
        "group_size": Option(None, "128 for groups, -1 for one scale a row", (128, -1), floats=128),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) != 2 or form.rows % 64 or form.columns % 16:
            raise MisfitError(f"a weight {list(form.shape)}: QQQ needs multiples of 64 rows and 16 columns")
        if isinstance(form, TwoLevel):
            if form.group_offsets is not None or form.row_scales.kind != "F32":
                raise MisfitError("integer scales of groups, where QQQ has F16")
            return Fit(form).with_params(quantization_config=self._config(form.group_size))
        step, found = _symmetric_rows(form, 4, (4,))
        found = adapt.in_groups(found, found.columns)
        last = adapt.with_scales(found, "F32")
        found = as_affine(last.form)
        scales = found.scales.float32()
        if not np.array_equal(scales / np.float32(16) * np.float32(16), scales):
            raise MisfitError("a scale is too small: a sixteenth of it is no float32")
        return step.then(found).with_params(quantization_config=self._config(-1))

    def _config(self, size: int) -> dict[str, Any]:
        return {"quant_method": self.id, "wbits": 4, "group_size": size, "desc_act": False, "sym": True}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return {"quantization_config": self._config(for_floats(options, self, "group_size"))}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return Settings({"quantization_config": dict(one_config(layers))})


class QServe(Target):
    """QServe: 4 bits in tiles with a scale and a zero a row, or integers of 8 bits in groups."""

    id = "qserve"
    options: ClassVar[Mapping[str, Option]] = {
        "group_size": Option(None, "128 for groups, -1 for one scale a row", (128, -1), floats=128),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) != 2 or form.rows % 32 or form.columns % 32:
            raise MisfitError(f"a weight {list(form.shape)}: QServe needs sides that 32 divides")
        if isinstance(form, TwoLevel):
            if form.group_offsets is None or form.row_scales.kind != "F16":
                raise MisfitError("F16 scales of groups, where QServe has integers")
            return Fit(form).with_params(config={"w_bit": 4, "group_size": form.group_size})
        if not isinstance(form, Biased):
            base, wide = prepared(form, {"bits": 4, "group_size": -1, "sym": False}, self)
            last = adapt.biased(wide, "F16")
            step = base.then(last.form, last.kind, last.bound, last.why)
        else:
            step = adapt.biased(form, "F16")
        found = as_biased(step.form)
        if found.codes.bits != 4 or found.group_size < found.columns:
            raise MisfitError(
                f"{found.codes.bits} bits in groups of {found.group_size}: QServe has 4 bits and whole rows"
            )
        return step.then(replace(found, compute="F32")).with_params(config={"w_bit": 4, "group_size": -1})

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return {"config": {"w_bit": 4, "group_size": for_floats(options, self, "group_size")}}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return Settings({})  # the tensors say everything, and there is no standard for settings


class Any4(Target):
    """any4: a table of 16 values for each row, scales and zeros in groups."""

    id = "any4"
    options: ClassVar[Mapping[str, Option]] = {"group_size": GROUP}

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) != 2:
            raise MisfitError("any4 stores matrices")
        if isinstance(form, RowTable):
            if form.centre or form.codes.bits not in (2, 3, 4):
                raise MisfitError(f"tables of {1 << form.codes.bits} values, that are centred when they are used")
            if form.scales is None:
                ones = float_plane(np.ones((form.rows, 1), np.float32), form.tables.kind)
                form = replace(form, scales=ones, group_size=form.columns)
            return Fit(form).with_params(**self._params(form.group_size, form.columns, form.codes.bits))
        if isinstance(form, Table):
            return self._table(form)
        step, found = prepared(form, {**options, "bits": 4}, self)
        if found.group_of is not None or found.columns % found.group_size:
            raise MisfitError("any4 has whole groups of columns in order")
        exact = found.scales.float32().astype(np.float64) * (8 - np.asarray(found.zeros, np.float64))
        for kind in (found.scales.kind, "F32"):
            zeros = float_plane(exact.astype(np.float32), kind)
            if np.array_equal(zeros.float32(), exact):
                break
        bound = 0.0 if np.array_equal(zeros.float32(), exact) else 2 * HALF_ULP
        scales = float_plane(found.scales.float32(), kind)
        tables = float_plane(np.arange(-8, 8, dtype=np.float32)[None].repeat(found.rows, 0), kind)
        whole = RowTable(found.shape, found.codes, tables, scales, zeros, found.group_size)
        if np.any(zeros.float32()) and adapt.significant_bits(found.scales) > 19:
            bound = 4 * HALF_ULP
        params = self._params(found.group_size, found.columns)
        why = "products round before zeros are added" if bound else ""
        return step.then(whole, "rounded" if bound else "exact-value", bound, why).with_params(**params)

    def _table(self, form: Table) -> Fit:
        if form.columns % form.block or form.codes.bits != 4:
            raise MisfitError(f"blocks of {form.block} elements cross the rows of {form.columns} columns")
        scales = Plane(form.scales.reshape(form.rows, -1), "F32")
        zeros = Plane(np.zeros_like(scales.data), "F32")
        tables = Plane(np.ascontiguousarray(np.broadcast_to(form.table, (form.rows, 16))), "F32")
        whole = RowTable(form.shape, form.codes, tables, scales, zeros, form.block)
        return Fit(whole).with_params(**self._params(form.block, form.columns))

    def _params(self, size: int, columns: int, bits: int = 4) -> dict[str, Any]:
        return {"meta": {"n_bit": bits, "group_size": -1 if size >= columns else size}}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return self._params(for_floats(options, self, "group_size"), shape[-1])

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return Settings({})  # there is no standard for settings; the tensors say everything
