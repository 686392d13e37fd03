"""Plans of quantized checkpoint folders: ``gptq``, ``awq``, ``compressed-tensors``, ``mlx`` …

Quantized layers of the source move to the target by the best route there is; a source of floats is quantized, as far
as a layer is a matrix inside a block of the model. Everything else stays as the source has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from subbyte.convert.layers import Kept
from subbyte.convert.recipe import Recipe
from subbyte.convert.rows import Rows
from subbyte.convert.source import Source
from subbyte.convert.targets import (
    PlaneRows,
    TargetLayer,
    companions_of,
    form_of,
    held,
    kept_planes,
    moved_shapes,
    shapes,
    transposed,
)
from subbyte.convert.types import FLOATS, quantized
from subbyte.errors import ArgumentError, Error, FormatError, UnsupportedError
from subbyte.io.remote import Place
from subbyte.planes import Plane, stored
from subbyte.planning.dense import dense_type, folder_source
from subbyte.planning.folder import json_file, plan_folder
from subbyte.planning.output import Part, Plan, SmallFile, TensorPlan
from subbyte.routes.fit import COMPANIONS, Fit, MisfitError, Stored, Target
from subbyte.sidefiles.card import quantized_card

_LARGEST_COMPANION = 1 << 16

_NOT_QUANTIZED = re.compile(
    r"(^|\.)(embed\w*|wte|wpe|lm_head|output|\w*norm\w*|router|gate|shared_expert_gate|position\w*|pooler|classifier"
    r"|vision\w*|visual|audio\w*|multi_modal_projector)(\.|$)"
)
"""Modules that stay floats by default: embeddings and heads, norms, routers, and everything but the language model."""


def plan_checkpoint(
    src: Place,
    to: str,
    target: Target,
    options: Mapping[str, Any],
    *,
    lossy: bool = False,
    strict: bool = False,
) -> Plan:
    """Plan the checkpoint folder of format ``target`` that ``src`` becomes.

    Args:
        src: GGUF file, checkpoint folder, or safetensors file.
        to: what the user called the target.
        target: the format.
        options: its settings.
        lossy: allow layers that are quantized already to be quantized again.
        strict: refuse where there are warnings.

    Raises:
        ArgumentError: layers would have to be quantized again, and ``lossy`` is not set.
        UnsupportedError: a source that cannot be converted (yet).
        FormatError: the files are damaged or contradict each other.
        Error: with ``strict``, there are warnings.
    """
    source, own, config, small = folder_source(src)
    recipes = [recipe.in_blocks() for recipe in source.recipes]
    planned = _Planned(target, options, source, recipes)
    tensors = [tensor for recipe in recipes for tensor in planned.tensors_of(recipe, own)]
    beside = planned.companions()
    tensors += beside
    if planned.again and not lossy:
        listed = "; ".join(f"'{name}': {why}" for name, why in planned.again[:3])
        raise ArgumentError(
            f"{len(planned.again)} layers are quantized already and would lose precision a second time as '{to}' "
            f"({listed}{'; …' if len(planned.again) > 3 else ''}); convert the original, or allow it with lossy",
            file=src,
        )
    if not planned.layers:
        source.warnings.append(f"no tensor can be stored as '{target.id}': all stay floats")
    if strict and source.warnings:
        raise Error(f"strict, and there are {len(source.warnings)} warnings: {'; '.join(source.warnings)}", file=src)
    try:
        names = [tensor.name for tensor in beside]
        found = target.config(planned.layers, planned.dense, names) if planned.layers else None
    except MisfitError as error:
        error.file = error.file or str(src)
        raise
    files: list[SmallFile] = []
    if found is not None:
        config |= found.config
        files = [json_file(name, value) for name, value in found.files.items()]
        files.append(quantized_card(small, source.base, "mlx" if target.id == "mlx" else "", source.warnings))
    files = [json_file("config.json", config), *files, *small]
    metadata = {} if found is None else found.metadata
    return plan_folder(source, to, tensors, files, {"to": to, **options}, metadata=metadata)


class _Planned:
    """What becomes of the tensors of a source, one after the other."""

    def __init__(self, target: Target, options: Mapping[str, Any], source: Source, recipes: Sequence[Recipe]) -> None:
        self.target, self.options = target, options
        self.kept = Kept()
        self.layers: dict[str, Stored] = {}
        self.beside: dict[str, Plane] = {}
        self.left_out, self.warnings = source.left_out, source.warnings
        self.dense: list[str] = []
        self.again: list[tuple[str, str]] = []
        self.from_floats = not any(recipe.content.layered or quantized(recipe.type) for recipe in recipes)

    def tensors_of(self, recipe: Recipe, own: str) -> list[TensorPlan]:
        """The tensors that one tensor of the source becomes."""
        if not self.from_floats and _last(recipe.name) in COMPANIONS and recipe.elements <= _LARGEST_COMPANION:
            raw = np.ascontiguousarray(recipe.read(0, recipe.rows))
            self.beside[recipe.name] = stored(raw.reshape(-1), recipe.type, recipe.shape)
            return []
        if self.target.keeps:
            return self._kept(recipe, own)
        form = form_of(recipe, look=True)
        fit: Fit | None = None
        why, bound = "", 0.0
        if form is not None:
            try:
                fit = self.target.fit(form, self.options)
            except MisfitError as error:
                why = error.message
        elif recipe.content.layered or quantized(recipe.type):
            why = f"{recipe.type} has no exact route"
        elif not (self.from_floats and _is_matrix(recipe)):
            return self._dense(recipe, own)
        scale = recipe.type if recipe.type in FLOATS and not recipe.content.layered else own
        if fit is not None:
            params, kind, why, bound = fit.params, fit.kind, fit.grade.reason, fit.bound
            found = moved_shapes(self.target, params, fit.form)
            stored_as = Stored(params, fit.form.shape, tuple(found), transposed(recipe))
        else:
            try:
                params = self.target.params(self.options, recipe.shape)
                found = shapes(self.target, params, recipe.shape, scale)
            except (ArgumentError, FormatError, UnsupportedError) as error:
                self.warnings.append(f"'{recipe.name}' stays floats: {error.message}")
                return self._dense(recipe, own)
            kind = "quantized" if self.from_floats else "requantized"
            self.again += [] if self.from_floats else [(recipe.name, why)]
            stored_as = Stored(params, recipe.shape, tuple(found))
        self.beside |= companions_of(recipe)
        layer = TargetLayer(self.target, recipe, params, self.options, fit is not None, scale, self.kept)
        self.layers[recipe.name] = stored_as
        planes = {plane: PlaneRows(layer, plane, type, shape) for plane, (type, shape) in found.items()}
        return self._planes(recipe, planes, kind, why, bound)

    def _kept(self, recipe: Recipe, own: str) -> list[TensorPlan]:
        """A layer in the format that the source has it in."""
        found = kept_planes(recipe)
        if found is None:
            return self._dense(recipe, own)
        self.beside |= companions_of(recipe)
        self.layers[recipe.name], planes = found
        return self._planes(recipe, planes, "exact")

    def _planes(
        self, recipe: Recipe, planes: Mapping[str, Rows], kind: str, why: str = "", bound: float = 0.0
    ) -> list[TensorPlan]:
        """The planes of a layer as tensors."""
        planned: list[TensorPlan] = []
        for plane, rows in planes.items():
            made = Recipe(self.target.tensor(recipe.name, plane), rows.shape, rows)
            part = Part(recipe.name, recipe.elements, 0 if planned else recipe.source_nbytes)
            planned.append(TensorPlan(made, rows.type, rows.shape, kind, None, why, bound, part))
        return planned

    def companions(self) -> list[TensorPlan]:
        """The tensors beside quantized layers that the target has a place for; the others are listed."""
        planned = []
        for name, value in self.beside.items():
            module = name.rpartition(".")[0]
            weight = f"{module}.weight"
            layer = self.layers.get(weight)
            found = self.target.companion(name, value, None if layer is None else layer.params)
            if found is None:
                self.left_out.append((name, f"a scale of activations or of the cache, which '{self.target.id}' has no "
                                            "place for"))  # fmt: skip
                continue
            if layer is not None:
                beside = layer.beside | {_last(found.name)}
                self.layers[weight] = replace(layer, beside=beside)
            plane = found.plane
            recipe = Recipe(found.name, plane.shape, held(found.name, plane))
            planned.append(TensorPlan(recipe, plane.kind, plane.shape, found.kind))
        return planned

    def _dense(self, recipe: Recipe, own: str) -> list[TensorPlan]:
        if len(recipe.shape) > 1:
            self.dense.append(recipe.name)
        held, kind, *_ = recipe.held_as(dense_type(recipe, recipe.type if recipe.type in FLOATS else own))
        return [TensorPlan(held, held.type if kind == "exact" else own, recipe.shape, kind)]


def _is_matrix(recipe: Recipe) -> bool:
    """Whether a tensor of floats is a layer that is quantized by default."""
    module = recipe.name.removesuffix(".weight")
    return (
        module != recipe.name
        and recipe.type in FLOATS
        and len(recipe.shape) == 2
        and re.search(r"\.\d+\.", recipe.name) is not None
        and _NOT_QUANTIZED.search(module) is None
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
