"""What the conversion has to know about one model architecture, as data.

An architecture is a table (:class:`Architecture`): the names of its tensors on both sides, which of them change on the
way, and which fields of config.json become which metadata keys. One file per architecture holds its table; the code
that reads the tables is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.io.gguf import GgufValue

MAX_FLOAT32 = float(np.finfo(np.float32).max)

Config = Mapping[str, Any]
"""config.json, with the defaults of the model type filled in."""

Keys = dict[str, GgufValue]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model architecture.

    Attributes:
        name: value of ``general.architecture`` and prefix of its keys.
        model_types: values of ``model_type`` in config.json with the defaults of their fields.
        tensors: Hugging Face name → GGUF name, without ``.weight``/``.bias``; ``{N}`` is the layer.
        optional: GGUF names a complete checkpoint may lack.
        shapes: GGUF name (its last part) → names of the axes of its weight, NumPy order.
        sizes: length of each of these axes.
        heads: GGUF name → config field with the number of heads whose rows are interleaved
            (:func:`interleave_heads`).
        dropped: endings of names that hold no weights.
        keys: architecture's own metadata, after the common keys.
        generated: tensors computed from config.json.
        vocabulary: corrections to the tokenizer's keys.
    """

    name: str
    model_types: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, str]
    optional: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Callable[[Config], Mapping[str, int]] = lambda config: {}
    heads: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    keys: Callable[[Config], Keys] = lambda config: {}
    generated: Callable[[Config], dict[str, NDArray[np.float32]]] = lambda config: {}
    vocabulary: Callable[[Config, Keys], None] = lambda config, keys: None

    def gguf_name(self, name: str, layers: int) -> str | None:
        """The GGUF name of a checkpoint's tensor; ``None`` where the architecture has no such tensor."""
        stem, dot, suffix = name.rpartition(".")
        if not dot or suffix not in ("weight", "bias"):
            return None
        found = self.tensors.get(stem)
        if found is None:
            match = re.search(r"\.(0|[1-9]\d*)\.", stem)
            if match is None or int(match[1]) >= layers:
                return None
            found = self.tensors.get(f"{stem[: match.start()]}.{{N}}.{stem[match.end() :]}")
            found = found and found.replace("{N}", match[1])
        return f"{found}.{suffix}" if found else None

    def is_dropped(self, name: str) -> bool:
        """Whether the tensor is a buffer that files do not store."""
        return name.endswith(self.dropped) if self.dropped else False

    def expected(self, layers: int) -> list[str]:
        """The GGUF names of the weights of a complete model, optional ones left out."""
        names = []
        for stem in self.tensors.values():
            if stem not in self.optional:
                names += [f"{stem.replace('{N}', str(n))}.weight" for n in range(layers if "{N}" in stem else 1)]
        return names

    def heads_of(self, name: str, config: Config) -> int:
        """The number of heads whose rows are interleaved in the GGUF tensor ``name``; 0: rows stay as they are."""
        part = name.rpartition(".")[0].rpartition(".")[2]
        return integer(config, self.heads[part]) if part in self.heads else 0


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
    if layers > 4096:
        raise FormatError(f"config.json: {layers:,} layers: at most 4,096 are expected")
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
    ("attention.layer_norm_rms_epsilon", "f32", ("rms_norm_eps", "norm_eps")),
    ("attention.layer_norm_epsilon", "f32", ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
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


def common_keys(config: Config, arch: str) -> Keys:
    """The hyper-parameters that every decoder family has, in the order the original converter writes them."""
    keys: Keys = {}
    parameters = rope_parameters(config)
    merged = {**config, **({"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {})}
    for key, kind, fields in _COMMON:
        if key == "rope.freq_base":
            keys.update(_rope_scaling(parameters, arch))
        source = next((name for name in fields if merged.get(name) is not None), None)
        if source is not None:
            value = integer(merged, source) if kind == "u32" else number(merged, source)
            keys[f"{arch}.{key}"] = GgufValue(kind, value)
    return keys


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
