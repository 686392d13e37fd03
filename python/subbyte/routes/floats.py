"""Targets of small floats: ``fp8``, ``mxfp4`` of gpt-oss, ``modelopt``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from subbyte.forms import BlockScaled, ColumnScaled, Form, Microscaled
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
)
from subbyte.routes.integer import GROUP, as_affine


class Fp8(Target):
    """FP8 with scales per tensor, row or block. Rows are FBGEMM's, everything else is ``fp8``."""

    id = "fp8"
    options: ClassVar[Mapping[str, Option]] = {
        "block": Option(None, "rows and columns of a block as 128x128, channel or tensor", floats="128x128"),
        "scale_plane": Option(
            None,
            "name of the scale: weight_scale_inv for blocks, weight_scale for tensors and rows",
            ("weight_scale_inv", "weight_scale"),
        ),
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if len(form.shape) < 2:
            raise MisfitError("FP8 formats store matrices")
        if isinstance(form, Microscaled) and form.element == "E2M1":
            return self._fp4(form)
        step = small_floats.block_scaled(form)
        found = small_floats.float8(step.form)
        block = parsed_block(options.get("block"), found)
        if block is not None:
            found = small_floats.float8(small_floats.regridded(found, block).form)
        standard = small_floats.standard_block(found)
        by_row = standard is not None and found.block == (1, found.columns)
        scale = found.scales.kind
        if by_row or standard is None:
            found = small_floats.float_scales(found)
        config = self._config(None if by_row else standard, found.element, by_row=by_row)
        if scale == "F8_E8M0" and not by_row and standard is not None:
            config["scale_fmt"] = "ue8m0"
        plane = options.get("scale_plane") or ("weight_scale" if by_row or standard is None else "weight_scale_inv")
        return step.then(found).with_params(quantization_config=config, scale_plane=plane)

    def _fp4(self, form: Microscaled) -> Fit:
        """Experts of DeepSeek-V4."""
        step = small_floats.microscaled(form, "E2M1", "F8_E8M0", 32)
        own = small_floats.tensor_scale(small_floats.block_floats(step.form), None)
        config = {**self._config(None, "F8_E4M3", by_row=False), "expert_dtype": "fp4", "scale_fmt": "ue8m0"}
        return own.with_params(quantization_config=config, scale_plane="scale")

    def _config(self, block: tuple[int, int] | None, element: str, *, by_row: bool) -> dict[str, Any]:
        if by_row:
            return {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
        config: dict[str, Any] = {"quant_method": "fp8", "fmt": element[3:].lower(), "activation_scheme": "dynamic"}
        return config | {"weight_block_size": None if block is None else list(block)}

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        text = for_floats(options, self, "block")
        by_row = text == "channel"
        block = None if text in ("tensor", "channel") else sides(text)
        plane = options.get("scale_plane") or ("weight_scale_inv" if block else "weight_scale")
        return {"quantization_config": self._config(block, "F8_E4M3", by_row=by_row), "scale_plane": plane}

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        last = name.rpartition(".")[2]
        if last in ("k_scale", "v_scale"):
            return Companion(name, value)
        keeps = last == "input_scale" and params is not None and value.kind in FLOATS
        return Companion(name, value) if keeps else None

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        merged: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for name, layer in layers.items():
            config = dict(layer.params["quantization_config"])
            if config.get("weight_block_size") is None and layer.params["scale_plane"] != "weight_scale":
                config.pop("weight_block_size", None)  # one scale is a grid of any blocks
            for key, own in config.items():
                if merged.setdefault(key, own) != own:
                    raise MisfitError(
                        f"setting '{key}' is {own}, but {merged[key]} for '{owner[key]}': the format has one for all",
                        tensor=name,
                    )
                owner.setdefault(key, name)
        if any("input_scale" in layer.beside for layer in layers.values()):
            merged["activation_scheme"] = "static"
        merged["modules_to_not_convert"] = modules(dense) or None
        return Settings({"quantization_config": merged})


class Mxfp4(Target):
    """MXFP4 under the names of gpt-oss: ``x_blocks`` and ``x_scales``."""

    id = "mxfp4"
    options: ClassVar[Mapping[str, Option]] = {"method": METHOD}

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step = small_floats.microscaled(form, "E2M1", "F8_E8M0", 32)
        return small_floats.tensor_scale(small_floats.block_floats(step.form), None)

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return {}

    def tensor(self, weight: str, plane: str) -> str:
        stacked = re.search(r"\.experts\.[a-z_]+\.weight$", weight)
        return f"{weight.removesuffix('.weight') if stacked else weight}_{plane}"

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        config = {"quant_method": "mxfp4", "modules_to_not_convert": modules(dense)}
        return Settings({"quantization_config": config})


class ModelOpt(Target):
    """ModelOpt: NVFP4, MXFP4, MXFP8, FP8, and symmetric integers of 4 bits (W4A16_AWQ)."""

    id = "modelopt"
    options: ClassVar[Mapping[str, Option]] = {
        "algo": Option(
            None,
            "quant_algo; the one that the layer's own codes have",
            ("NVFP4", "MXFP4", "W4A8_MXFP4_FP8", "MXFP8", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "W4A16_AWQ"),
            floats="NVFP4",
        ),
        "group_size": GROUP,
        "method": METHOD,
    }

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        if isinstance(form, ColumnScaled):
            inner = self.fit(form.inner, options)
            return inner.then(ColumnScaled(form.shape, inner.form, form.factors))
        algo = options.get("algo") or _natural(form)
        if algo in ("NVFP4", "MXFP4", "W4A8_MXFP4_FP8", "MXFP8"):
            nvidia = algo == "NVFP4"
            element = "F8_E4M3" if algo == "MXFP8" else "E2M1"
            block = 16 if nvidia else 32
            step = small_floats.microscaled(form, element, "F8_E4M3" if nvidia else "F8_E8M0", block)
            found = small_floats.block_floats(step.form)
            own = small_floats.tensor_scale(found, "multiplier" if nvidia else None)
            return own.with_params(**_algo(algo, block))
        if algo == "W4A16_AWQ":
            return self._integers(form, options)
        step = small_floats.block_scaled(form)
        found_bytes = small_floats.float_scales(small_floats.float8(step.form))
        if found_bytes.element != "F8_E4M3":
            raise MisfitError("ModelOpt has E4M3 alone among the 8-bit floats")
        rows, columns = found_bytes.shape[-2:]
        block_of = {"FP8": (rows, columns), "FP8_PER_CHANNEL_PER_TOKEN": (1, columns)}.get(algo, (128, 128))
        found_bytes = small_floats.float8(small_floats.regridded(found_bytes, block_of).form)
        return step.then(found_bytes).with_params(**_algo(algo))

    def _integers(self, form: Form, options: Mapping[str, Any]) -> Fit:
        step = adapt.affine(form)
        found = as_affine(step.form)
        if found.group_of is not None:
            raise MisfitError("columns are out of order (act-order), which ModelOpt has no place for")
        if "group_size" in options:
            size = options["group_size"]
            found = adapt.in_groups(found, found.columns if size == -1 else size)
        wider = adapt.symmetric(found, 4)
        found = as_affine(wider.form)
        if found.rows % 2 or found.columns % found.group_size:
            raise MisfitError(
                f"a weight {list(form.shape)} in groups of {found.group_size}: W4A16_AWQ needs pairs of rows and whole "
                "groups"
            )
        return step.then(found, wider.kind).with_params(**_algo("W4A16_AWQ", min(found.group_size, found.columns)))

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        algo = for_floats(options, self, "algo")
        size = {"NVFP4": 16, "W4A16_AWQ": for_floats(options, self, "group_size")}.get(algo)
        return _algo(algo, 32 if algo in ("MXFP4", "W4A8_MXFP4_FP8", "MXFP8") else size)

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        module, _, last = name.rpartition(".")
        if last in ("k_scale", "v_scale"):
            projection = f"{last[0]}_proj"
            inside = module.endswith(projection)
            return Companion(name if inside else f"{module}.{projection}.{last}", value)
        if params is None or value.kind not in FLOATS or params["quant_algo"] not in ("NVFP4", "FP8"):
            return None
        if last == "input_global_scale" and params["quant_algo"] == "NVFP4":
            turned, exact = small_floats.reciprocal(value)
            return Companion(f"{module}.input_scale", turned, "exact" if exact else "rounded")
        return Companion(name, value) if last == "input_scale" else None

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        algos = {name.removesuffix(".weight"): dict(layer.params["quantization"]) | {
            "quant_algo": layer.params["quant_algo"]} for name, layer in layers.items()}  # fmt: skip
        first = next(iter(algos.values()))
        settings: dict[str, Any] = dict(first)
        if any(own != first for own in algos.values()):
            settings = {"quant_algo": "MIXED_PRECISION", "quantized_layers": algos}
        cache = "FP8" if any(name.endswith((".k_scale", ".v_scale")) for name in beside) else None
        settings |= {"kv_cache_quant_algo": cache, "exclude_modules": modules(dense)}
        # Programs recognize these files by the name of their producer.
        file = {"producer": {"name": "modelopt"}, "quantization": settings}
        config = {"quant_method": "modelopt", **settings}
        return Settings({"quantization_config": config}, {"hf_quant_config.json": file})


def _algo(name: str, group_size: int | None = None) -> dict[str, Any]:
    """Parameters of a layer."""
    return {"quant_algo": name, "quantization": {} if group_size is None else {"group_size": group_size}}


def _natural(form: Form) -> str:
    """The algorithm whose layout has a form's own codes."""
    if isinstance(form, Microscaled):
        if form.element == "E2M1":
            return "NVFP4" if form.scale_kind == "F8_E4M3" else "MXFP4"
        return "MXFP8"
    if isinstance(form, BlockScaled) and form.element != "I8":
        if form.block[0] >= form.shape[-2] and form.block[1] >= form.columns:
            return "FP8"
        return "FP8_PER_CHANNEL_PER_TOKEN" if form.block == (1, form.columns) else "FP8_PB_WO"
    return "W4A16_AWQ"


def parsed_block(text: str | None, form: BlockScaled) -> tuple[int, int] | None:
    """Rows and columns of a block by the setting ``block``; None without it.

    Raises:
        MisfitError: it is neither ``tensor``, ``channel`` nor two numbers.
    """
    if text is None:
        return None
    return {"tensor": (form.shape[-2], form.columns), "channel": (1, form.columns)}.get(text) or sides(text)


def sides(text: str) -> tuple[int, int]:
    """The two numbers of a block such as ``128x128``.

    Raises:
        MisfitError: they are none.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise MisfitError(f"setting 'block' is {text!r:.40}: expected tensor, channel, or rows and columns as 128x128")
    return int(found[1]), int(found[2])
