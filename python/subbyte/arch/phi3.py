"""Phi-3 and Phi-4 (dense): architecture ``phi3``.

Queries, keys and values are one matrix and so are gate and up projection, on both sides; the divisors of the rotary
frequencies for long and short contexts become two tensors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.arch import decoder
from subbyte.arch.base import (
    FILE_TYPE,
    Architecture,
    Config,
    GgufFacts,
    Keys,
    integer,
    number,
    own_keys,
    rope_parameters,
    rope_type,
    with_rope,
)
from subbyte.arch.decoder import BLOCK, LAYER
from subbyte.errors import FormatError
from subbyte.io.gguf import GgufValue

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "vocab_size": 32064, "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
}  # fmt: skip
_FIRST = [
    ("context_length", "u32", "max_position_embeddings"),
    ("rope.scaling.original_context_length", "u32", "original_max_position_embeddings"),
    ("embedding_length", "u32", "hidden_size"),
    ("feed_forward_length", "u32", "intermediate_size"),
    ("block_count", "u32", "num_hidden_layers"),
    ("attention.head_count", "u32", "num_attention_heads"),
    ("attention.head_count_kv", "u32", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps"),
]


def _complete(config: dict[str, Any]) -> None:
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))


def _rope_dims(config: Config) -> int:
    partial = number({"partial_rotary_factor": 1.0, **config, **rope_parameters(config)}, "partial_rotary_factor")
    return int(partial * integer(config, "hidden_size")) // integer(config, "num_attention_heads")


def _keys(config: Config) -> Keys:
    keys = _attention_factor(config) | own_keys(config, "phi3", _FIRST)
    keys["phi3.rope.dimension_count"] = GgufValue("u32", _rope_dims(config))
    keys |= own_keys(with_rope(config), "phi3", [("rope.freq_base", "f32", "rope_theta")]) | FILE_TYPE
    window = config.get("sliding_window") or 0
    keys["phi3.attention.sliding_window"] = GgufValue("u32", window and integer(config, "sliding_window"))
    return keys


def _factors(config: Config) -> dict[str, NDArray[np.float32]]:
    """``long`` and ``short`` divisors, float32, shape (rotary dimensions / 2,); empty without scaling."""
    parameters = rope_parameters(config)
    found = {}
    for kind in ("long", "short"):
        values = parameters.get(f"{kind}_factor")
        if values is None:
            return {}
        if not isinstance(values, list) or len(values) != _rope_dims(config) // 2:
            raise FormatError(f"config.json: {kind}_factor: expected {_rope_dims(config) // 2} numbers")
        found[kind] = np.array([number({"factor": value}, "factor") for value in values], np.float32)
    return found


def _attention_factor(config: Config) -> Keys:
    if not _factors(config):
        return {}
    original = integer(config, "original_max_position_embeddings")
    scale = integer(config, "max_position_embeddings") / original
    kind = rope_type(rope_parameters(config))
    if kind not in ("su", "longrope", "yarn"):
        raise FormatError(f"config.json: rope scaling '{kind}' with long_factor: expected longrope, su or yarn")
    factor = 1.0
    if scale > 1:
        factor = 0.1 * math.log(scale) + 1 if kind == "yarn" else math.sqrt(1 + math.log(scale) / math.log(original))
    return {"phi3.rope.scaling.attn_factor": GgufValue("f32", factor)}


def _generated(config: Config) -> dict[str, NDArray[np.float32]]:
    return {f"rope_factors_{kind}.weight": values for kind, values in _factors(config).items()}


def _restored(facts: GgufFacts) -> dict[str, Any]:
    heads, hidden = facts.get("attention.head_count"), facts.get("embedding_length")
    fields: dict[str, Any] = {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "hidden_act": "silu",
        "original_max_position_embeddings": facts.get("rope.scaling.original_context_length"),
        "sliding_window": facts.get("attention.sliding_window") or None,
    }
    dimensions = facts.get("rope.dimension_count")
    if dimensions and dimensions * heads != hidden:
        fields["partial_rotary_factor"] = dimensions * heads / hidden
    if "rope_factors_long.weight" in facts.shapes:
        fields["rope_scaling"] = {"type": "longrope"} | {
            f"{kind}_factor": [float(str(value)) for value in facts.values(f"rope_factors_{kind}.weight")]
            for kind in ("long", "short")
        }
    return fields


PHI3 = Architecture(
    name="phi3",
    model_types={"phi3": _DEFAULTS},
    tensors={
        **decoder.EMBEDDING,
        **decoder.NORMS,
        f"{LAYER}self_attn.qkv_proj": f"{BLOCK}attn_qkv",
        **decoder.OUTPUT,
        f"{LAYER}mlp.gate_up_proj": f"{BLOCK}ffn_up",
        f"{LAYER}mlp.down_proj": f"{BLOCK}ffn_down",
    },
    optional=decoder.OPTIONAL,
    shapes={name: axes for name, axes in decoder.SHAPES.items() if name != "ffn_up"},
    sizes=decoder.sizes,
    complete=_complete,
    keys=_keys,
    generated=_generated,
    restored=_restored,
    assumed=("hidden_act",),
)
