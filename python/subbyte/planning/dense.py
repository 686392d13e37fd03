"""Plans of checkpoint folders of floats: ``hf.bf16``, ``hf.f16``, ``hf.f32``, and ``hf``, the source's own float type.

From a GGUF file names, permutations and settings are restored (:mod:`subbyte.convert.hugging`); of a checkpoint folder
the floats change their type and everything else stays, the files beside the weights included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from subbyte.convert.hugging import restore
from subbyte.convert.layers import Layers, float_rows
from subbyte.convert.recipe import Recipe
from subbyte.convert.source import Source, is_checkpoint, is_gguf, stored_tensor
from subbyte.convert.types import FLOATS, parse_type, quantized
from subbyte.errors import ArgumentError, Error, FormatError, UnsupportedError
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place, RemotePath
from subbyte.io.safetensors import check_whole
from subbyte.jsonfile import read_object
from subbyte.planning.folder import json_file, plan_folder
from subbyte.planning.mix import Model
from subbyte.planning.output import Plan, SmallFile, TensorPlan
from subbyte.sidefiles.card import model_id, named_model, quantized_card, written_card
from subbyte.sidefiles.copied import copied_files, with_side_files

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

DENSE_TARGETS = ("hf.bf16", "hf.f16", "hf.f32")
"""Targets that name a float type."""


FolderSource = tuple[Source, str, dict[str, Any], list[SmallFile]]
"""The model, its own float type, config.json, and further small files."""


def plan_dense(src: Place, to: str, *, strict: bool = False, types: Mapping[str, str] | None = None) -> Plan:
    """Plan the checkpoint folder of floats that ``src`` becomes.

    Args:
        src: GGUF file (the first of a split one), checkpoint folder, or safetensors file.
        to: ``hf.bf16``, ``hf.f16``, ``hf.f32``, or ``hf``: the float type of most of the source's elements, bf16 where
            they are quantized.
        strict: refuse where there are warnings.
        types: type of every tensor by name, decided already; where they are not those of ``to`` (an edited plan), the
            folder is called by the float type of most elements.

    Raises:
        ArgumentError: there is no such target, or ``types`` do not fit.
        UnsupportedError: a source that cannot be converted (yet).
        FormatError: the files are damaged or contradict each other.
        Error: with ``strict``, there are warnings.
    """
    _, _, name = to.partition(".")
    if to != "hf" and to.lower() not in DENSE_TARGETS:
        raise ArgumentError(f"unknown target '{to}': expected {', '.join(DENSE_TARGETS)} or hf")
    source, own, config, small = folder_source(src)
    if strict and source.warnings:
        raise Error(f"strict, and there are {len(source.warnings)} warnings: {'; '.join(source.warnings)}", file=src)
    target = name.upper() or own
    chosen = {recipe.name: dense_type(recipe, target) for recipe in source.recipes}
    if types is not None and (given := _given(chosen, types)) != chosen:
        shapes = {recipe.name: recipe.shape for recipe in source.recipes}
        chosen = given
        target = _own_type((kind, shapes[name]) for name, kind in chosen.items() if kind in FLOATS)
    config["dtype" if "dtype" in config else "torch_dtype"] = _DTYPES[target]
    held = [recipe.held_as(chosen[recipe.name]) for recipe in source.recipes]
    tensors = [TensorPlan(recipe, chosen[recipe.name], recipe.shape, kind, why=why) for recipe, kind, why, _ in held]
    if any(recipe.content.layered or quantized(recipe.content.stored) for recipe in source.recipes):
        small = [quantized_card(small, source.base, "", source.warnings), *small]
    return plan_folder(source, f"hf.{target.lower()}", tensors, [json_file("config.json", config), *small], {"to": to})


def dense_type(recipe: Recipe, target: str) -> str:
    """Floats and quantized layers get the target's type, integers and the like keep theirs."""
    return target if recipe.content.layered or recipe.type in (*FLOATS, "F64") else recipe.type


def _given(chosen: Mapping[str, str], types: Mapping[str, str]) -> dict[str, str]:
    if set(chosen) != set(types):
        name = min(set(chosen) ^ set(types))
        where = "the plan" if name in chosen else "the source"
        raise ArgumentError(f"not in {where}: plan and source do not belong together", tensor=name)
    for name, given in types.items():
        if given.upper() != chosen[name] and (chosen[name] not in FLOATS or parse_type(given) not in FLOATS):
            raise ArgumentError(f"'{given}': a checkpoint of floats has f32, f16 or bf16 here", tensor=name)
    return {name: types[name].upper() for name in chosen}


def folder_source(src: Place) -> FolderSource:
    """A model as a checkpoint folder has it, whatever it is stored in.

    Raises:
        As :func:`plan_dense`.
    """
    if is_checkpoint(src):
        return _of_checkpoint(src)
    if is_gguf(src):
        return _of_gguf(src)
    raise UnsupportedError(
        "expected a GGUF file, a checkpoint folder, or a .safetensors file with its config.json", file=src
    )


def _own_type(stored: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The float type of most elements, given type and shape of each tensor; bf16 where that is none."""
    share: dict[str, int] = {}
    for kind, shape in stored:
        share[kind] = share.get(kind, 0) + prod(shape)
    own = max(share, key=lambda name: share[name], default="BF16")
    return own if own in FLOATS else "BF16"


def dense_source(src: Place) -> Source:
    """The tensors of a checkpoint as a folder of floats names them: of a GGUF file those restored from it.

    Raises:
        As :func:`plan_dense`.
    """
    return folder_source(src)[0]


def _of_gguf(src: Place) -> FolderSource:
    file = GgufFile(src, mmap=False)
    restored = restore(file)
    recipes = list(restored.recipes)
    source = Source(src, "gguf", recipes, {}, Model(restored.config["model_type"], 0))
    source.warnings, source.left_out = list(restored.warnings), list(restored.left_out)
    if isinstance(src, RemotePath):
        source.remote = src.versions
    else:
        source.files = [Path(entry) for entry in file.paths]
    small = [json_file(name, value) for name, value in restored.files.items()]
    source.base = named_model(file.metadata) or _repository(src) or _fit(Path(src.name).stem)
    card = written_card(file.metadata)
    own = _own_type((tensor.type, tensor.shape) for tensor in file.values())
    return source, own, dict(restored.config), small + ([SmallFile("README.md", card.encode())] if card else [])


def _of_checkpoint(src: Place) -> FolderSource:
    check_whole(src)
    with with_side_files(src) as folder:
        path = folder / "config.json"
        config = read_object(path) if path.is_file() else None
        if config is None:
            raise FormatError("no config.json: not a Hugging Face checkpoint", file=folder)
        small, not_copied, files = copied_files(src, folder)
    base = _repository(src) or model_id(config.get("_name_or_path")) or _folder_name(src)
    layers = Layers(src)
    for key in ("quantization_config", "quantization"):
        config.pop(key, None)
    tensors = layers.tensors
    source = Source(src, "safetensors", dense_recipes(layers), {}, Model("", 0), not_copied=not_copied, base=base)
    source.warnings += layers.notes
    if isinstance(src, RemotePath):
        source.remote = src.versions
    else:
        source.files = [*(Path(file) for file in tensors.paths), *files]
    return source, _own_type((tensor.dtype, tensor.shape) for tensor in tensors.values()), config, small


def _repository(src: Place) -> str:
    """The id of the repository on the Hub that a model is in; empty where it is elsewhere."""
    return src.store.repository if isinstance(src, RemotePath) else ""


def _folder_name(src: Place) -> str:
    if isinstance(src, RemotePath):
        return src.title
    folder = src if src.is_dir() else src.parent
    return _fit(folder.absolute().name)


def _fit(name: str) -> str:
    """The name with characters that the names of models may have."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "model"


def dense_recipes(layers: Layers) -> list[Recipe]:
    """The tensors of a checkpoint as they are; quantized layers as the dense weights that they stand for, in F32."""
    recipes = []
    for name in dict.fromkeys(layers.planes.get(name, name) for name in layers.tensors):
        rows = (
            float_rows(layers, name)
            if name in layers
            else stored_tensor(layers.tensors, name, layers.tensors[name].dtype)
        )
        recipes.append(Recipe(name, rows.shape, rows))
    return recipes
