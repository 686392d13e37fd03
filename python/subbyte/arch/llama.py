"""Llama and its relatives (Llama 1 to 3, Mistral, SmolLM, TinyLlama, CodeLlama …): architecture ``llama``.

Query and key rows are interleaved (:func:`~.base.interleave_heads`); Llama-3 rotary scaling becomes the tensor
``rope_freqs.weight``; everything else keeps its values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.arch.base import Architecture, Config, Keys, integer, llama3_frequency_factors
from subbyte.io.gguf import GgufValue

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "vocab_size": 32000, "rope_theta": 10000.0,
}  # fmt: skip


def head_dim(config: Config) -> int:
    """Length of one attention head."""
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    return integer(config, "hidden_size") // integer(config, "num_attention_heads")


def _keys(config: Config) -> Keys:
    return {
        "llama.vocab_size": GgufValue("u32", integer(config, "vocab_size")),
        "llama.rope.dimension_count": GgufValue("u32", head_dim(config)),
    }


def _sizes(config: Config) -> dict[str, int]:
    return {
        "vocabulary": integer(config, "vocab_size"),
        "hidden": integer(config, "hidden_size"),
        "inner": integer(config, "intermediate_size"),
        "queries": integer(config, "num_attention_heads") * head_dim(config),
        "keys": integer(config, "num_key_value_heads") * head_dim(config),
    }


def _generated(config: Config) -> dict[str, NDArray[np.float32]]:
    factors = llama3_frequency_factors(config, head_dim(config))
    return {} if factors is None else {"rope_freqs.weight": factors}


def _vocabulary(config: Config, keys: Keys) -> None:
    """Two families whose files say less than their users expect, recognized by the size of the vocabulary."""
    size = config.get("vocab_size")
    if size == 49152:  # SmolLM, Granite: the template has no BOS, readers would add one
        keys["tokenizer.ggml.add_bos_token"] = GgufValue("bool", False)
    elif size == 32016:  # CodeLlama: infill tokens
        for role, token in (("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)):
            keys[f"tokenizer.ggml.{role}_token_id"] = GgufValue("u32", token)


LLAMA = Architecture(
    name="llama",
    model_types={
        "llama": _DEFAULTS,
        "mistral": _DEFAULTS
        | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    },
    tensors={
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.{N}.input_layernorm": "blk.{N}.attn_norm",
        "model.layers.{N}.self_attn.q_proj": "blk.{N}.attn_q",
        "model.layers.{N}.self_attn.k_proj": "blk.{N}.attn_k",
        "model.layers.{N}.self_attn.v_proj": "blk.{N}.attn_v",
        "model.layers.{N}.self_attn.o_proj": "blk.{N}.attn_output",
        "model.layers.{N}.post_attention_layernorm": "blk.{N}.ffn_norm",
        "model.layers.{N}.mlp.gate_proj": "blk.{N}.ffn_gate",
        "model.layers.{N}.mlp.up_proj": "blk.{N}.ffn_up",
        "model.layers.{N}.mlp.down_proj": "blk.{N}.ffn_down",
    },
    optional=frozenset({"output"}),
    shapes={
        "token_embd": ("vocabulary", "hidden"),
        "output": ("vocabulary", "hidden"),
        "output_norm": ("hidden",),
        "attn_norm": ("hidden",),
        "attn_q": ("queries", "hidden"),
        "attn_k": ("keys", "hidden"),
        "attn_v": ("keys", "hidden"),
        "attn_output": ("hidden", "queries"),
        "ffn_norm": ("hidden",),
        "ffn_gate": ("inner", "hidden"),
        "ffn_up": ("inner", "hidden"),
        "ffn_down": ("hidden", "inner"),
    },
    sizes=_sizes,
    heads={"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"},
    dropped=(".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"),
    keys=_keys,
    generated=_generated,
    vocabulary=_vocabulary,
)
