"""What the conversion has to know about one model architecture, as data.

An architecture is a table (:class:`Architecture`): the names of its tensors on both sides, which of them change on the
way, and which fields of config.json become which metadata keys. One file per architecture holds its table; the code
that reads the tables is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.io.gguf import GgufValue


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF file says about its model, for the way back.

    Attributes:
        arch: value of ``general.architecture``.
        metadata: all keys.
        shapes: tensor name → shape, NumPy order.
        values: the float32 values of a small tensor by name.
    """

    arch: str
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], NDArray[np.float32]]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of the architecture's key ``name``."""
        return self.metadata.get(f"{self.arch}.{name}", default)


MAX_LAYERS = 4096
MAX_EXPERTS = 1 << 16
"""More than any real model has; loops over layers and experts are bounded by them."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)

Config = Mapping[str, Any]
"""config.json, with the defaults of the model type filled in."""

Keys = dict[str, GgufValue]

BUFFERS = r"\.attention\.masked_bias$|\.attention\.bias$|\.rotary_emb\.inv_freq$"
"""Names of buffers that are computed when a model is loaded."""


_DENSE = ("blk.{N}.ffn_gate", "blk.{N}.ffn_up", "blk.{N}.ffn_down")


@dataclass(frozen=True, slots=True)
class Piece:
    """A GGUF tensor that is a part of a checkpoint's tensor.

    Attributes:
        name: its GGUF name, ``{N}`` for the layer.
        rows: its rows of each matrix of the checkpoint's tensor.
        columns: its columns of each matrix.
        swapped: rows and columns change places in GGUF.
    """

    name: str
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """A tensor of a checkpoint that becomes several GGUF tensors, which hold all of its elements between them.

    Attributes:
        view: its elements as (matrices, rows, columns).
        pieces: the GGUF tensors.
        shape: its shape in the checkpoint; ``None``: that of ``view``.
        stacked: whether the GGUF tensors have the axis of the matrices.
    """

    view: tuple[int, int, int]
    pieces: tuple[Piece, ...]
    shape: tuple[int, ...] | None = None
    stacked: bool = True


@dataclass(frozen=True, slots=True)
class Match:
    """What a checkpoint's tensor becomes: one tensor, an expert's share of one, or several.

    Attributes:
        name: the GGUF name; empty for a split tensor.
        expert: the number of the expert; ``None`` where the tensor is whole.
        split: the pieces of a split tensor, their names complete.
    """

    name: str
    expert: int | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model architecture.

    Attributes:
        name: value of ``general.architecture`` and prefix of its keys.
        model_types: values of ``model_type`` in config.json with the defaults of their fields.
        tensors: Hugging Face name → GGUF name, both without ``.weight``/``.bias`` or both complete; ``{N}`` is the
            layer, ``{E}`` the expert whose matrix is stacked with those of the others.
        aliases: further Hugging Face names, that other files use for the same tensors.
        splits: Hugging Face name of a tensor that becomes several → how, from config.json.
        split_aliases: further names of that kind.
        optional: GGUF names a complete checkpoint may lack.
        shapes: GGUF name (its last part) → names of the axes of its weight, NumPy order.
        sizes: length of each of these axes.
        heads: GGUF name → config field with the number of heads whose rows are interleaved
            (:func:`interleave_heads`).
        norm_shift: what is added to the weights of norms.
        cuts_embedding: the embedding ends with the vocabulary, rows after it are left out.
        unused_positions: rows of the position embedding, from the first on, that the model never looks up.
        prefixes: beginnings of names that some checkpoints have and others lack.
        renamed: endings that old checkpoints use → endings of the table.
        drops_further_layers: layers after ``num_hidden_layers`` are left out, they predict further tokens.
        dropped: expression that finds the names of tensors that are not stored.
        complete: fills in config fields that follow from others.
        keys: architecture's metadata, in the order the original converter writes them.
        generated: tensors computed from config.json.
        vocabulary: the tokenizer's keys with the architecture's corrections.
        restored: config.json fields that only this architecture has, from a GGUF file's metadata; fields that are
            ``None`` are left out, but for those in ``nulls``.
        nulls: those of the restored fields that are written as null where they are ``None``, because readers would
            otherwise take another default.
        assumed: those of the restored fields that GGUF does not store.
    """

    name: str
    model_types: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Callable[[Config], Split]] = field(default_factory=dict)
    split_aliases: Mapping[str, Callable[[Config], Split]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Callable[[Config], Mapping[str, int]] = lambda config: {}
    heads: Mapping[str, str] = field(default_factory=dict)
    norm_shift: float = 0.0
    cuts_embedding: bool = False
    unused_positions: Callable[[Config], int] = lambda config: 0
    prefixes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    drops_further_layers: bool = False
    dropped: str = BUFFERS
    complete: Callable[[dict[str, Any]], None] = lambda config: None
    keys: Callable[[Config], Keys] = lambda config: {}
    generated: Callable[[Config], dict[str, NDArray[np.float32]]] = lambda config: {}
    vocabulary: Callable[[Config, Keys], Keys] = lambda config, keys: keys
    restored: Callable[[GgufFacts], dict[str, Any]] = lambda facts: {}
    nulls: frozenset[str] = frozenset()
    assumed: tuple[str, ...] = ()

    def match(self, name: str, config: Config) -> Match | None:
        """What becomes of a checkpoint's tensor; ``None`` where the architecture has no such tensor.

        ``name`` is as :meth:`plain_name` gives it.
        """
        layers = layer_count(config)
        numbers: list[int] = []

        def placeholder(found: re.Match[str]) -> str:
            numbers.append(int(found[1]))
            return ("{N}", "{E}")[len(numbers) - 1] if len(numbers) <= 2 else found[1]

        pattern = re.sub(r"(?<=\.)(0|[1-9]\d*)(?=\.)", placeholder, name)
        if numbers and numbers[0] >= layers:
            return None
        layer = str(numbers[0]) if numbers else ""
        split = self.splits.get(pattern) or self.split_aliases.get(pattern)
        if split is not None:
            found = split(config)
            pieces = tuple(replace(piece, name=piece.name.replace("{N}", layer)) for piece in found.pieces)
            return Match("", None, replace(found, pieces=pieces))
        target = self.tensors.get(pattern) or self.aliases.get(pattern)
        if target is None:
            stem, dot, suffix = pattern.rpartition(".")
            target = self.tensors.get(stem) or self.aliases.get(stem)
            if not dot or suffix not in ("weight", "bias") or target is None:
                return None
            target = f"{target}.{suffix}"
        return Match(target.replace("{N}", layer), numbers[1] if len(numbers) > 1 else None)

    def hugging_face_name(self, name: str) -> str | None:
        """The checkpoint's name of a GGUF tensor, ``{E}`` for the expert; ``None`` where it has none of its own."""
        layer = re.match(r"blk\.(0|[1-9]\d*)\.", name)
        pattern = f"blk.{{N}}.{name[layer.end() :]}" if layer else name
        stem, _, suffix = pattern.rpartition(".")
        for source, target in self.tensors.items():
            if target == pattern:
                return source.replace("{N}", layer[1]) if layer else source
            if target == stem:
                return f"{source.replace('{N}', layer[1]) if layer else source}.{suffix}"
        return None

    def plain_name(self, name: str) -> str:
        """The name without what only some checkpoints have: prefixes, and old endings."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for old, new in self.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    def is_dropped(self, name: str) -> bool:
        """Whether the tensor is one that files do not store."""
        return re.search(self.dropped, name) is not None

    def missing(self, layers: int, present: Collection[str]) -> list[str]:
        """The GGUF names of the weights that a complete model has and ``present`` lacks.

        A layer that has stacked experts needs no dense feed-forward matrices, one without needs nothing of a mixture.
        """
        mixture = {name.split(".")[1] for name in present if "_exps." in name}
        both = any("_exps" in stem for stem in self.tensors.values()) and "blk.{N}.ffn_gate" in self.tensors.values()
        names = []
        for stem in dict.fromkeys(self.tensors.values()):
            if stem in self.optional or stem.endswith(".bias"):
                continue
            dense, routed = stem in _DENSE, re.search(r"_exps|_shexp|ffn_gate_inp|exp_probs", stem) is not None
            for layer in map(str, range(layers if "{N}" in stem else 1)):
                if both and (dense if layer in mixture else routed):
                    continue
                names.append(stem.removesuffix(".weight").replace("{N}", layer) + ".weight")
        return [name for name in names if name not in present]

    def heads_of(self, name: str, config: Config) -> int:
        """The number of heads whose rows are interleaved in the GGUF tensor ``name``; 0: rows stay as they are."""
        part = name.rpartition(".")[0].rpartition(".")[2]
        return integer(config, self.heads[part]) if part in self.heads else 0

    def shift_of(self, name: str) -> float:
        """What is added to the values of the GGUF tensor ``name``."""
        return self.norm_shift if name.endswith("_norm.weight") else 0.0


def integer(config: Config, *names: str) -> int:
    """The first of the fields that exists, as a positive number.

    Raises:
        FormatError: none exists, or it is no positive integer.
    """
    for name in names:
        value = config.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
                raise FormatError(f"config.json: {name}: expected a positive number, found {value!r}")
            return value
    raise FormatError(f"config.json: {names[0]} is missing")


def number(config: Config, name: str, default: float | None = None) -> float:
    """The field as a float; ``default`` where it does not exist.

    Raises:
        FormatError: it is missing without a default, or no number that fits float32.
    """
    value = config.get(name, default)
    if value is None and default is not None:
        value = default
    # NaN compares false, and an integer is compared before it is made a float that might not hold it
    if not isinstance(value, int | float) or isinstance(value, bool) or not -MAX_FLOAT32 <= value <= MAX_FLOAT32:
        raise FormatError(f"config.json: {name}: expected a number, found {value!r}")
    return float(value)


def layer_count(config: Config) -> int:
    """Number of layers.

    Raises:
        FormatError: missing, or more than any real model has.
    """
    layers = integer(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers")
    if layers > MAX_LAYERS:
        raise FormatError(f"config.json: {layers:,} layers: at most {MAX_LAYERS:,} are expected")
    return layers


def rope_parameters(config: Config) -> Mapping[str, Any]:
    """The rotary settings: ``rope_parameters`` (transformers 5) or ``rope_scaling`` (before)."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise FormatError(f"config.json: rope_parameters: expected an object, found {type(found).__name__}")
    full = found.get("full_attention")
    return full if isinstance(full, Mapping) else found


def rope_type(parameters: Mapping[str, Any]) -> str:
    """Kind of rotary scaling, ``"default"`` where none is named."""
    return str(parameters.get("rope_type") or parameters.get("type") or "default").lower()


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
"""Functions that turn a router's outputs into weights, as GGUF numbers them."""

_COMMON: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("block_count", "u32", ("num_hidden_layers", "n_layers", "n_layer", "num_layers")),
    ("context_length", "u32", ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length",
                               "model_max_length")),
    ("embedding_length", "u32", ("hidden_size", "n_embd", "dim")),
    ("feed_forward_length", "u32", ("prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size",
                                    "n_inner", "hidden_dim")),
    ("attention.head_count", "u32", ("num_attention_heads", "n_head", "n_heads")),
    ("attention.head_count_kv", "u32", ("num_key_value_heads", "n_kv_heads")),
    ("rope.freq_base", "f32", ("rope_theta", "rotary_emb_base", "global_rope_theta")),
    ("rope.freq_base_swa", "f32", ("rope_local_base_freq", "local_rope_theta")),
    ("attention.layer_norm_rms_epsilon", "f32", ("rms_norm_eps", "norm_eps")),
    ("attention.layer_norm_epsilon", "f32", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    ("expert_count", "u32", EXPERTS),
    ("expert_used_count", "u32", ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")),
    ("expert_group_count", "u32", ("n_group",)),
    ("expert_group_used_count", "u32", ("topk_group",)),
    ("expert_gating_func", "gating", ("scoring_func", "score_function")),
    ("attention.key_length", "u32", ("head_dim",)),
    ("attention.value_length", "u32", ("head_dim",)),
)  # fmt: skip
"""Key below the architecture's name, type, and the fields it comes from: the first that exists."""

_YARN = (
    ("original_context_length", "u32", ("original_max_position_embeddings",)),
    ("yarn_ext_factor", "f32", ("extrapolation_factor",)),
    ("yarn_attn_factor", "f32", ("attention_factor", "attn_factor")),
    ("yarn_beta_fast", "f32", ("beta_fast",)),
    ("yarn_beta_slow", "f32", ("beta_slow",)),
)


def key(config: Config, kind: str, *fields: str) -> GgufValue | None:
    """The first of the fields that exists as a metadata value of type ``kind``; ``None`` where none does.

    Raises:
        FormatError: the field is no number of the kind.
    """
    source = next((name for name in fields if config.get(name) is not None), None)
    if source is None:
        return None
    if kind == "gating":
        if config[source] not in GATING:
            raise FormatError(f"config.json: {source}: expected one of {', '.join(GATING)}, found {config[source]!r}")
        return GgufValue("u32", GATING[config[source]])
    return GgufValue(kind, integer(config, source) if kind == "u32" else number(config, source))


def own_keys(config: Config, arch: str, table: Sequence[tuple[str, str, str]]) -> Keys:
    """Keys of one architecture from (key, type, field): fields that config.json lacks are left out."""
    found = ((name, key(config, kind, source)) for name, kind, source in table)
    return {f"{arch}.{name}": value for name, value in found if value is not None}


FILE_TYPE = {"general.file_type": GgufValue("u32", 0)}
"""Stands where the original converter writes the file type; the plan puts the number in."""


def common_keys(config: Config, arch: str) -> Keys:
    """The hyper-parameters that every decoder family has, in the order the original converter writes them."""
    keys: Keys = {}
    merged = with_rope(config)
    for name, kind, fields in _COMMON:
        if name == "rope.freq_base":
            if config.get("is_causal") is False:
                keys[f"{arch}.attention.causal"] = GgufValue("bool", False)
            keys.update(_rope_scaling(rope_parameters(config), arch))
        value = key(merged, kind, *fields)
        if value is not None:
            keys[f"{arch}.{name}"] = value
    return keys | FILE_TYPE


def pooling_keys(config: Config, arch: str) -> Keys:
    """How a sentence encoder makes one vector of many; ``pooling_type`` is not a field of config.json itself."""
    kind = config.get("pooling_type")
    return {} if kind is None else {f"{arch}.pooling_type": GgufValue("u32", kind)}


def with_rope(config: Config) -> Config:
    """config.json with the rotary bases that its ``rope_parameters`` hold as plain fields."""
    parameters = rope_parameters(config)
    merged = dict(config)
    if "rope_theta" in parameters:
        merged["rope_theta"] = parameters["rope_theta"]
    sliding = (config.get("rope_parameters") or {}).get("sliding_attention")
    if isinstance(sliding, Mapping) and "rope_theta" in sliding:
        merged["rope_local_base_freq"] = sliding["rope_theta"]
    return merged


def _rope_scaling(parameters: Mapping[str, Any], arch: str) -> Keys:
    kind, prefix = rope_type(parameters), f"{arch}.rope.scaling"
    if kind == "linear":
        return {
            f"{prefix}.type": GgufValue("str", "linear"),
            f"{prefix}.factor": GgufValue("f32", number(parameters, "factor")),
        }
    if kind == "yarn":
        keys = {
            f"{prefix}.type": GgufValue("str", "yarn"),
            f"{prefix}.factor": GgufValue("f32", number(parameters, "factor")),
        }
        for key, value_type, fields in _YARN:
            source = next((name for name in fields if parameters.get(name) is not None), None)
            if source is not None:
                value = integer(parameters, source) if value_type == "u32" else number(parameters, source)
                keys[f"{prefix}.{key}"] = GgufValue(value_type, value)
        return keys
    if kind in ("su", "longrope"):
        return {f"{prefix}.type": GgufValue("str", "longrope")}
    return {}  # llama3 becomes a tensor, see llama3_frequency_factors


def llama3_frequency_factors(config: Config, head_dim: int) -> NDArray[np.float32] | None:
    """Divisors of the rotary frequencies for Llama-3 scaling (``rope_freqs.weight``), shape (head_dim / 2,), float32.

    ``None`` where config.json asks for no such scaling. Wavelengths below ``original / high`` keep their frequency,
    those above ``original / low`` are divided by ``factor``, and between the two the divisor is interpolated.
    """
    parameters = rope_parameters(config)
    if rope_type(parameters) != "llama3":
        return None
    base = number({"rope_theta": config.get("rope_theta"), **parameters}, "rope_theta", 10000.0)
    one, factor = np.float32(1), np.float32(number(parameters, "factor", 8.0))
    low, high = number(parameters, "low_freq_factor", 1.0), number(parameters, "high_freq_factor", 4.0)
    original = number(parameters, "original_max_position_embeddings", 8192.0)
    if not (factor > 0 and low > 0 and high > low and base >= 1 and original > 0):
        raise FormatError("config.json: llama3 rope scaling: expected positive factors with low below high")
    if head_dim % 2 or head_dim > 1 << 16:
        raise FormatError(f"config.json: llama3 rope scaling: expected an even head_dim up to 65,536, found {head_dim}")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = one / (np.float64(base) ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = np.float32(2 * np.pi) / frequencies
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    with np.errstate(divide="ignore"):  # a pole outside the interpolated range
        between = one / ((one - smooth) / factor + smooth)
    result = np.where(wavelengths < original / high, one, np.where(wavelengths > original / low, factor, between))
    return result.astype(np.float32)


def llama3_parameters(factors: NDArray[np.float32], base: float, head_dim: int) -> dict[str, Any] | None:
    """The ``rope_scaling`` of config.json that gives the divisors; ``None`` where none of the usual settings does.

    The factor is the largest divisor. The divisors tell the other three apart only roughly: tried are the values 1 and
    4 of every published model, and powers of two for the original length of the context, 8,192 first.
    """
    for original in (8192, *(1 << n for n in range(17, 5, -1))):
        fields = {
            "rope_type": "llama3",
            "factor": shortest(float(factors.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        found = llama3_frequency_factors({"rope_scaling": fields, "rope_theta": base}, head_dim)
        if found is not None and np.array_equal(found, factors):
            return fields
    return None


def shortest(value: float) -> float:
    """The float with the shortest decimal that rounds to the same float32 (1e-05 for 9.999999747378752e-06)."""
    return float(str(np.float32(value)))


def interleave_heads(rows: int, heads: int) -> NDArray[np.int64]:
    """Source row of every row of a query or key matrix whose rotary pairs become neighbours.

    Hugging Face stores the two halves of each head one after the other, GGUF's "llama" layout stores the pair
    (i, i + half) in rows 2i and 2i + 1: rows viewed as [heads, 2, half], the last two axes swapped.

    Raises:
        FormatError: the rows are not an even number per head.
    """
    if heads <= 0 or rows % (2 * heads):
        raise FormatError(
            f"{rows} rows do not divide into {heads} heads of two halves: config.json and tensor disagree"
        )
    return np.arange(rows, dtype=np.int64).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
