"""GGUF back to a Hugging Face checkpoint of floats: names, permutations, stacks and shifts undone, config.json and the
tokenizer restored as far as the metadata allows. What the file does not say is a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from subbyte.arch import ARCHITECTURES
from subbyte.arch.base import (
    MAX_EXPERTS,
    MAX_LAYERS,
    Architecture,
    Config,
    GgufFacts,
    Split,
    interleave_heads,
    shortest,
)
from subbyte.convert.recipe import Recipe
from subbyte.convert.rows import Assembled, Decoded, Reordered, Reshaped, Rows, Selected, Shifted, SourceTensor
from subbyte.convert.source import other_shapes, stored_tensor
from subbyte.convert.types import FLOATS, quantized
from subbyte.errors import FormatError, UnsupportedError
from subbyte.io.gguf import GgufFile
from subbyte.tokenizer.restore import restore_tokenizer

_GENERATED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_COMMON = (
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
)
_YARN = (
    ("factor", "factor"),
    ("original_max_position_embeddings", "original_context_length"),
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)


@dataclass(frozen=True, slots=True)
class Restored:
    """A GGUF file as the checkpoint that it may have been made of.

    Attributes:
        recipes: its tensors, in the order of the GGUF file.
        config: config.json.
        files: further files by name, as JSON values.
        warnings: what could not be restored, or was assumed.
        left_out: tensors of the file that became config fields.
    """

    recipes: tuple[Recipe, ...]
    config: dict[str, Any]
    files: dict[str, Any]
    warnings: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def restore(file: GgufFile) -> Restored:
    """The checkpoint that a GGUF file becomes; nothing but headers and a few small tensors is read.

    Raises:
        UnsupportedError: an architecture without a table.
        FormatError: tensors and metadata contradict each other.
    """
    path = file.paths[0]
    arch_name = file.metadata.get("general.architecture")
    arch = next((arch for arch in ARCHITECTURES if arch.name == arch_name), None)
    if not isinstance(arch_name, str):
        raise FormatError(f"metadata key general.architecture: expected a string, found {arch_name!r:.80}", file=path)
    if arch is None:
        known = ", ".join(arch.name for arch in ARCHITECTURES)
        raise UnsupportedError(f"architecture '{arch_name}' cannot be turned back (yet); known: {known}", file=path)
    try:
        return _restore(file, arch)
    except (FormatError, UnsupportedError) as error:
        error.file = error.file or path
        raise


def _restore(file: GgufFile, arch: Architecture) -> Restored:
    facts = _facts(file, arch)
    warnings: list[str] = []
    config = _config(facts, arch, warnings)
    config = _finite(config, "config.json", warnings)
    recipes, left_out = _recipes(file, arch, config, warnings)
    if not recipes:
        raise FormatError("no tensors")
    warnings += [f"tensor '{name}' is missing from the file" for name in arch.missing(facts.get("block_count"), file)]
    warnings += _contradictions(arch, config, facts)
    if any(quantized(tensor.type) for tensor in file.values()):
        warnings.append("quantized tensors give the values that their codes stand for, not those they were made from")
    files: dict[str, Any] = {}
    restored = restore_tokenizer(file.metadata)
    warnings += restored.warnings
    if restored.tokenizer is not None:
        files["tokenizer.json"] = restored.tokenizer
    if restored.settings:
        files["tokenizer_config.json"] = restored.settings
    files |= _pooling(facts)
    return Restored(tuple(recipes), config, files, tuple(warnings), tuple(left_out))


def _finite(fields: dict[str, Any], place: str, warnings: list[str]) -> dict[str, Any]:
    """The fields without numbers that JSON does not have: NaN and infinities."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            warnings.append(f"{place}: {name} is {value} in the file and was left out")
        else:
            kept[name] = _finite(value, f"{place}: {name}", warnings) if isinstance(value, dict) else value
    return kept


def _contradictions(arch: Architecture, config: Config, facts: GgufFacts) -> list[str]:
    """Warnings for tensors whose shape is not what the metadata say."""
    try:
        return other_shapes(arch, config, facts.shapes, "the metadata imply")
    except FormatError as error:
        return [f"shapes were not compared with the metadata: {error.message.removeprefix('config.json: ')}"]


def _facts(file: GgufFile, arch: Architecture) -> GgufFacts:
    def values(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        rows = stored_tensor(file, name, file[name].type)
        return Decoded(rows).read(0, rows.rows).view(np.float32).reshape(-1)

    facts = GgufFacts(arch.name, file.metadata, {name: tuple(file[name].shape) for name in file}, values)
    for key in ("block_count", "embedding_length", "attention.head_count"):
        value = facts.get(key)
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise FormatError(f"metadata key {arch.name}.{key}: expected a positive number below 2^31, found {value!r}")
    if facts.get("block_count") > MAX_LAYERS:
        raise FormatError(
            f"metadata key {arch.name}.block_count: {facts.get('block_count'):,} layers: at most {MAX_LAYERS:,} are "
            "expected"
        )
    if "token_embd.weight" not in facts.shapes:
        raise FormatError("tensor 'token_embd.weight' is missing")
    return facts


def _config(facts: GgufFacts, arch: Architecture, warnings: list[str]) -> dict[str, Any]:
    """config.json. Floats are written as the shortest decimals that round to the same float32."""
    config: dict[str, Any] = {}
    for field, key in _COMMON:
        value = facts.get(key)
        if isinstance(value, float):
            config[field] = shortest(value)
        elif isinstance(value, int):
            config[field] = value
        elif value is not None:
            warnings.append(f"config.json: {field} differs from layer to layer and was left out")
    if "rms_norm_eps" in config:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["vocab_size"] = facts.shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in facts.shapes
    if "rms_norm_eps" in config:
        config["rope_theta"] = shortest(facts.get("rope.freq_base", 10000.0))
        scaling = _rope_scaling(facts)
        if scaling:
            config["rope_scaling"] = scaling
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = facts.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None:
            config[f"{role}_token_id"] = value
    own = arch.restored(facts)
    if "rope_freqs.weight" in facts.shapes and not own.get("rope_scaling"):
        warnings.append(
            "config.json: no usual setting gives the values of 'rope_freqs.weight': rope_scaling is missing"
        )
    for name, value in own.items():
        if isinstance(value, dict):
            config[name] = config.get(name, {}) | value
        elif value is not None or name in arch.nulls:
            config[name] = value
    assumed = [name for name in arch.assumed if name.partition(".")[0] in config]
    if assumed:
        warnings.append(f"config.json: not in the file, set to what is usual: {', '.join(assumed)}")
    return config


def _rope_scaling(facts: GgufFacts) -> dict[str, Any]:
    kind = facts.get("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return {}
    fields: dict[str, Any] = {"rope_type": kind}
    for field, key in _YARN:
        value = facts.get(f"rope.scaling.{key}")
        if value is not None:
            fields[field] = shortest(value) if isinstance(value, float) else value
    multiplier = facts.get("rope.scaling.yarn_log_multiplier")
    if multiplier is not None:  # both factors are the same in every published model
        fields["mscale_all_dim"] = fields["mscale"] = shortest(multiplier / 0.1)
    return fields


def _pooling(facts: GgufFacts) -> dict[str, Any]:
    """The files of sentence-transformers for an encoder that says how it pools."""
    kinds = {1: "pooling_mode_mean_tokens", 2: "pooling_mode_cls_token", 3: "pooling_mode_lasttoken"}
    chosen = kinds.get(facts.get("pooling_type", 0))
    if chosen is None:
        return {}
    modules = "sentence_transformers.models"
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{modules}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{modules}.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": facts.get("embedding_length"),
            **{name: name == chosen for name in kinds.values()},
        },
    }


def _recipes(
    file: GgufFile, arch: Architecture, config: Config, warnings: list[str]
) -> tuple[list[Recipe], list[tuple[str, str]]]:
    """The checkpoint's tensors, and the file's that became something else."""
    splits: dict[str, tuple[str, Split]] = {}  # name of a piece → the checkpoint's tensor
    for pattern, describe in arch.splits.items():
        for layer in map(str, range(config["num_hidden_layers"])):
            split = describe(config)
            for piece in split.pieces:
                splits[piece.name.replace("{N}", layer)] = pattern.replace("{N}", layer), split
    recipes: dict[str, Recipe] = {}
    left_out = []
    for name in file:
        if name in _GENERATED:
            left_out.append((name, "a setting of config.json"))
        elif name in splits:
            target, split = splits[name]
            if target not in recipes:
                recipes[target] = _assembled(file, name, target, split)
        else:
            for target, shape, rows in _whole(file, arch, config, name, warnings):
                if target in recipes:
                    raise FormatError(f"two tensors become '{target}'", tensor=name)
                recipes[target] = Recipe(target, shape, rows)
    return list(recipes.values()), left_out


def _plain(file: GgufFile, name: str) -> Rows:
    """A tensor without blocks: its rows as they are, or decoded."""
    rows: SourceTensor = stored_tensor(file, name, file[name].type)
    return rows if rows.type in FLOATS else Decoded(rows)


def _whole(
    file: GgufFile, arch: Architecture, config: Config, name: str, warnings: list[str]
) -> list[tuple[str, tuple[int, ...], Rows]]:
    """What one tensor of the file becomes: name, shape and rows of one tensor, or of one per expert."""
    target = arch.hugging_face_name(name)
    rows = _plain(file, name)
    if target is None:
        warnings.append(f"tensor '{name}': unknown to architecture {arch.name}, keeps its name")
        return [(name, rows.shape, rows)]
    shift, heads = arch.shift_of(name), arch.heads_of(name, config)
    if shift:
        rows = Shifted(rows if rows.type == "F32" else Decoded(rows), -shift)
    if heads:
        rows = _halves_apart(rows, heads)
    if name.endswith("ffn_gate_inp_shexp.weight") and len(rows.shape) == 1:
        return [(target, (1, rows.columns), rows)]
    if "{E}" not in target:
        return [(target, rows.shape, rows)]
    if len(rows.shape) != 3:
        raise FormatError(f"shape {rows.shape}, expected one matrix per expert", tensor=name)
    experts, height, width = rows.shape
    if experts > MAX_EXPERTS:
        raise FormatError(f"{experts:,} experts: at most {MAX_EXPERTS:,} are expected", tensor=name)
    return [
        (
            target.replace("{E}", str(expert)),
            (height, width),
            Selected(rows, (1, experts * height, width), (slice(expert * height, (expert + 1) * height), slice(None))),
        )
        for expert in range(experts)
    ]


def _halves_apart(rows: Rows, heads: int) -> Rows:
    """The reverse of :func:`~subbyte.arch.base.interleave_heads`."""
    flat = len(rows.shape) == 1
    order = np.argsort(interleave_heads(rows.columns if flat else rows.rows, heads))
    if not flat:
        return Reordered(rows, order)
    return Reshaped(Reordered(Reshaped(rows, (rows.columns, 1)), order), rows.shape)


def _assembled(file: GgufFile, name: str, target: str, split: Split) -> Recipe:
    """A checkpoint's tensor of which the file has the pieces."""
    layer = name.split(".")[1]
    parts: list[Rows] = []
    places = []
    for piece in split.pieces:
        own = piece.name.replace("{N}", layer)
        if own not in file:
            raise FormatError(f"tensor '{own}' is missing beside it", tensor=name)
        rows = _plain(file, own)
        lengths = [len(range(split.view[1])[piece.rows]), len(range(split.view[2])[piece.columns])]
        stored = (split.view[0], *(reversed(lengths) if piece.swapped else lengths))
        expected = stored if split.stacked else stored[1:]
        if rows.shape != expected:
            raise FormatError(f"shape {rows.shape}, the metadata imply {expected}", tensor=own)
        if len({rows.type, *(part.type for part in parts)}) > 1:
            rows, parts = _as_f32(rows), [_as_f32(part) for part in parts]
        parts.append(Selected(rows, stored, (slice(None), slice(None)), swapped=True) if piece.swapped else rows)
        places.append((piece.rows, piece.columns))
    return Recipe(target, split.shape or split.view, Assembled(tuple(parts), tuple(places), split.view))


def _as_f32(rows: Rows) -> Rows:
    return rows if rows.type == "F32" else Decoded(rows)
