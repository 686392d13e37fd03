"""Targets of integer codes: GPTQ, AWQ, MLX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from subbyte.forms import Affine, Biased, BlockScaled, DualScaled, FloatZero, Form, Microscaled, Ternary
from subbyte.planes import FLOATS
from subbyte.routes import adapt, small_floats
from subbyte.routes.fit import METHOD, Fit, MisfitError, Option, Settings, Stored, Target, for_floats, value

GROUP = Option(None, "columns of a group; -1 for whole rows", floats=128)
GROUP_OF_64 = Option(None, GROUP.about, floats=64)


MLX_GROUPS = (32, 64, 128)
MLX_BITS = (1, 2, 3, 4, 5, 6, 8)


def as_affine(form: Form) -> Affine:
    """The form, which is known to be affine."""
    if not isinstance(form, Affine):
        raise TypeError(f"expected an affine form, found {form!r}")
    return form


def prepared(form: Form, options: Mapping[str, Any], target: Target) -> tuple[Fit, Affine]:
    """The weight with integer zeros, in the bits and groups that are asked for."""
    step = adapt.affine(form)
    found = as_affine(step.form)
    size = options.get("group_size")
    if size is not None:
        found = adapt.in_groups(found, found.columns if size == -1 else size)
    bits = value(options, target, "bits", found.codes.bits)
    centred = options.get("sym") or (isinstance(form, Ternary) and options.get("sym") is None)
    wider = adapt.symmetric(found, bits) if centred else adapt.with_bits(found, bits)
    step = step.then(wider.form, wider.kind, wider.bound, wider.why)
    return step, as_affine(step.form)


def group_setting(form: Affine) -> int:
    return -1 if form.group_size >= form.columns else form.group_size


def _matrix(form: Form, id: str) -> None:
    if len(form.shape) != 2:
        raise MisfitError(f"{id} stores matrices; this weight has shape {list(form.shape)}")


class Gptq(Target):
    """GPTQ: zeros as integers, scales in F16. ``gptq`` is v1, ``gptq.v2`` stores zeros as they are."""

    id = "gptq"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of a code", (2, 3, 4, 5, 6, 7, 8), floats=4),
        "group_size": GROUP,
        "sym": Option(None, "zeros in the middle of the range", (True, False), floats=True),
        "version": Option(None, "gptq, gptq_v2 or gptq_p; gptq_v2 where a zero is 0, else gptq", floats="gptq_v2"),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        _matrix(form, self.id)
        step, found = prepared(form, options, self)
        last = adapt.with_scales(found, "F16")
        step = step.then(last.form, last.kind, last.bound, last.why)
        found = as_affine(step.form)
        bits = found.codes.bits
        multiple = 32 // bits if bits in (2, 4, 8) else 32
        if bits == 1 or found.rows % multiple or found.columns % multiple:
            raise MisfitError(f"a weight {list(form.shape)}: {bits} bits need sides that {multiple} divides")
        label = options.get("version") or self._label(found)
        return step.with_params(quantization_config=self._config(found, label))

    def _label(self, form: Affine) -> str:
        if form.codes.bits in (5, 6, 7):
            return "gptq_p"
        lowest = form.zeros if isinstance(form.zeros, int) else int(form.zeros.min(initial=1))
        return "gptq_v2" if lowest == 0 else "gptq"

    def _config(self, form: Affine, label: str) -> dict[str, Any]:
        return {
            "quant_method": "gptq", "bits": form.codes.bits, "group_size": group_setting(form),
            "desc_act": form.group_of is not None, "sym": form.symmetric, "checkpoint_format": label,
        }  # fmt: skip

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        bits = for_floats(options, self, "bits")
        label = options.get("version") or ("gptq_p" if bits in (5, 6, 7) else "gptq_v2")
        config = {
            "quant_method": "gptq", "bits": bits, "group_size": for_floats(options, self, "group_size"),
            "desc_act": False, "sym": for_floats(options, self, "sym"), "checkpoint_format": label,
        }  # fmt: skip
        return {"quantization_config": config}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return Settings({"quantization_config": _merged(layers, "dynamic")})


class Awq(Target):
    """AWQ, layout ``gemm`` unless asked otherwise: 4 bits, zeros as integers, scales in F16."""

    id = "awq"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(4, "bits of a code", (4,)),
        "group_size": GROUP,
        "version": Option("gemm", "layout", ("gemm", "gemv", "gemv_fast")),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        _matrix(form, self.id)
        step, found = prepared(form, {**options, "bits": 4}, self)
        if found.group_of is not None:
            raise MisfitError("columns are out of order (act-order), which AWQ has no place for")
        last = adapt.with_scales(found, "F16")
        step = step.then(last.form, last.kind, last.bound, last.why)
        found = as_affine(step.form)
        if found.columns % found.group_size or found.rows % 32:
            raise MisfitError(f"a weight {list(form.shape)} in groups of {found.group_size}: AWQ needs whole groups "
                              "and a multiple of 32 outputs")  # fmt: skip
        return step.with_params(quantization_config=self._config(group_setting(found), options))

    def _config(self, group_size: int, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True,
            "version": value(options, self, "version"), "modules_to_not_convert": None,
        }  # fmt: skip

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return {"quantization_config": self._config(for_floats(options, self, "group_size"), options)}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = dict(one_config(layers))
        config["modules_to_not_convert"] = [name.removesuffix(".weight") for name in dense] or None
        return Settings({"quantization_config": config})


class Mlx(Target):
    """MLX ``affine``: code * scale + bias in groups of 32, 64 or 128."""

    id = "mlx"
    options: ClassVar[Mapping[str, Option]] = {
        "bits": Option(None, "bits of a code", (2, 3, 4, 5, 6, 8), floats=4),
        "group_size": GROUP_OF_64,
        "scale_type": Option(None, "type of scales; F32 where the source's would round", FLOATS),
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if isinstance(form, BlockScaled) and form.element != "I8":
            form = small_floats.microscaled(form, "F8_E4M3", "F8_E8M0", 32).form
        if isinstance(form, Microscaled):
            return self._small_floats(form)
        wanted = options.get("scale_type")
        if isinstance(form, Biased) and options.get("bits") in (None, form.codes.bits):
            kinds = [wanted] if wanted else [form.scales.kind, "F32"]
            return self._with(_best(form, kinds), options)
        if isinstance(form, FloatZero | DualScaled) and options.get("bits") in (None, form.codes.bits):
            try:
                adapt.affine(form)
            except MisfitError:
                return self._with(adapt.biased(form, wanted or "F32"), options)
        step, found = prepared(form, {**options, "sym": False}, self)
        if found.codes.bits == 7:
            wider = adapt.symmetric(found, 8)
            step = step.then(wider.form, wider.kind)
            found = as_affine(step.form)
        size = self._size(found.group_size, found.columns)
        found = adapt.in_groups(found, size)
        last = _best(found, [wanted] if wanted else [found.scales.kind, "F32"])
        return self._with(step.then(last.form, last.kind, last.bound, last.why), options)

    def _size(self, size: int, columns: int) -> int:
        """Columns of a group of MLX that holds groups of ``size``, the largest of them."""
        found = next((g for g in MLX_GROUPS[::-1] if min(size, columns) % g == 0 and columns % g == 0), None)
        if found is None:
            raise MisfitError(f"groups of {size} of {columns} columns: MLX has 32, 64 and 128 that divide both")
        return found

    def _small_floats(self, form: Microscaled) -> Fit:
        """The modes ``mxfp4``, ``mxfp8`` and ``nvfp4``."""
        kinds = {
            ("E2M1", "F8_E8M0", 32): "mxfp4",
            ("F8_E4M3", "F8_E8M0", 32): "mxfp8",
            ("E2M1", "F8_E4M3", 16): "nvfp4",
        }
        mode = kinds.get((form.element, form.scale_kind, form.block))
        if mode is None or form.columns % form.block:
            raise MisfitError(f"MLX has no mode for {form.element} in blocks of {form.block} with {form.scale_kind}")
        quantization = {"group_size": form.block, "bits": form.codes.bits, "mode": mode}
        own = small_floats.tensor_scale(form, "maximum" if mode == "nvfp4" else None)
        return own.with_params(quantization=quantization)

    def _with(self, step: Fit, options: Mapping[str, Any]) -> Fit:
        form = as_biased(step.form)
        if form.codes.bits not in MLX_BITS:
            raise MisfitError(f"MLX has no codes of {form.codes.bits} bits")
        size = self._size(options.get("group_size", form.group_size), form.columns)
        if form.columns * form.codes.bits % 32:
            raise MisfitError(f"rows of {form.columns} codes of {form.codes.bits} bits are no whole words")
        found = adapt.rebased(form, size) if size != form.group_size else form
        quantization = {"group_size": size, "bits": found.codes.bits, "mode": "affine"}
        return step.then(found).with_params(quantization=quantization)

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        size = for_floats(options, self, "group_size")
        return {"quantization": {"group_size": size, "bits": for_floats(options, self, "bits"), "mode": "affine"}}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = _by_path(layers, "quantization")
        return Settings({"quantization": config, "quantization_config": config}, metadata={"format": "mlx"})


def _best(form: Form, kinds: Sequence[str]) -> Fit:
    """The weight with biases of the first of these types that holds them exactly, else of the last one."""
    fits = [adapt.biased(form, kind) for kind in kinds[:-1]] if len(kinds) > 1 else []
    exact = next((fit for fit in fits if fit.kind == "exact"), None)
    return exact or adapt.biased(form, kinds[-1])


def as_biased(form: Form) -> Biased:
    """The form, which is known to have biases."""
    if not isinstance(form, Biased):
        raise TypeError(f"expected biases, found {form!r}")
    return form


def one_config(layers: Mapping[str, Stored], key: str = "quantization_config") -> Mapping[str, Any]:
    """The settings that all layers share; one group of all columns is one of their number where others have that.

    Raises:
        MisfitError: they differ, and the format has one place for them.
    """
    configs = [layer.params[key] for layer in layers.values()]
    sizes = {config.get("group_size", -1) for config in configs} - {-1}
    if len(sizes) == 1:
        (size,) = sizes
        configs = [
            {**config, "group_size": size} if config["group_size"] == -1 and layer.shape[-1] == size else config
            for config, layer in zip(configs, layers.values(), strict=True)
        ]
    first = next(iter(layers), "")
    for name, config in zip(layers, configs, strict=True):
        if config != configs[0]:
            raise MisfitError(
                f"its settings differ from those of '{first}', and the format has one for all", tensor=name
            )
    found: Mapping[str, Any] = configs[0]
    return found


def _common(layers: Mapping[str, Stored], key: str) -> Mapping[str, Any]:
    """The settings that most layers have."""
    configs = [layer.params[key] for layer in layers.values()]
    found: Mapping[str, Any] = max(configs, key=configs.count)
    return found


def _merged(layers: Mapping[str, Stored], exceptions: str) -> dict[str, Any]:
    """Settings with those of single modules under ``exceptions``, by a pattern of the whole name."""
    common = _common(layers, "quantization_config")
    others = {}
    for name, layer in layers.items():
        own = layer.params["quantization_config"]
        if own != common:
            pattern = name.removesuffix(".weight").replace(".", r"\.") + "$"
            others[pattern] = {key: found for key, found in own.items() if common.get(key) != found}
    return {**common, exceptions: others} if others else dict(common)


def _by_path(layers: Mapping[str, Stored], key: str) -> dict[str, Any]:
    """Settings with those of single modules under their paths, as MLX keeps them."""
    common = _common(layers, key)
    others = {
        name.removesuffix(".weight"): layer.params[key] for name, layer in layers.items() if layer.params[key] != common
    }
    return {**common, **others}
