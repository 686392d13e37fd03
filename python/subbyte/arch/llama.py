"""Llama and its relatives (Llama 1 to 3, Mistral, Mixtral, SmolLM, TinyLlama, CodeLlama …): architecture ``llama``.

Query and key rows are interleaved (:func:`~.base.interleave_heads`); Llama-3 rotary scaling becomes the tensor
``rope_freqs.weight``; Mixtral's experts are stacked; everything else keeps its values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.arch import decoder
from subbyte.arch.base import (
    Architecture,
    Config,
    GgufFacts,
    Keys,
    common_keys,
    integer,
    llama3_frequency_factors,
    llama3_parameters,
)
from subbyte.arch.decoder import BLOCK, LAYER, head_dim
from subbyte.io.gguf import GgufValue

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "vocab_size": 32000, "rope_theta": 10000.0,
}  # fmt: skip
_MISTRAL = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_MIXTRAL = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2}


def _complete(config: dict[str, Any]) -> None:
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    config.setdefault("head_dim", head_dim(config))


def _keys(config: Config) -> Keys:
    return common_keys(config, "llama") | {
        "llama.vocab_size": GgufValue("u32", integer(config, "vocab_size")),
        "llama.rope.dimension_count": GgufValue("u32", head_dim(config)),
    }


def _generated(config: Config) -> dict[str, NDArray[np.float32]]:
    factors = llama3_frequency_factors(config, head_dim(config))
    return {} if factors is None else {"rope_freqs.weight": factors}


def _vocabulary(config: Config, keys: Keys) -> Keys:
    """Two families whose files say less than their users expect, recognized by the size of the vocabulary."""
    size = config.get("vocab_size")
    if size == 49152:  # SmolLM, Granite: the template has no BOS, readers would add one
        keys["tokenizer.ggml.add_bos_token"] = GgufValue("bool", False)
    elif size == 32016:  # CodeLlama: infill tokens
        for role, token in (("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)):
            keys[f"tokenizer.ggml.{role}_token_id"] = GgufValue("u32", token)
    return keys


def _restored(facts: GgufFacts) -> dict[str, Any]:
    experts = facts.get("expert_count")
    fields: dict[str, Any] = {
        "model_type": "mixtral" if experts else "llama",
        "architectures": ["MixtralForCausalLM" if experts else "LlamaForCausalLM"],
        "head_dim": facts.get("attention.key_length") or facts.get("rope.dimension_count"),
        "hidden_act": "silu",
    }
    if experts:
        return fields | {"num_local_experts": experts, "num_experts_per_tok": facts.get("expert_used_count")}
    fields["attention_bias"] = "blk.0.attn_q.bias" in facts.shapes
    fields["mlp_bias"] = "blk.0.ffn_up.bias" in facts.shapes
    if "rope_freqs.weight" in facts.shapes:
        fields["rope_scaling"] = llama3_parameters(
            facts.values("rope_freqs.weight"), facts.get("rope.freq_base", 10000.0), fields["head_dim"]
        )
    return fields


LLAMA = Architecture(
    name="llama",
    model_types={"llama": _DEFAULTS, "mistral": _DEFAULTS | _MISTRAL, "mixtral": _DEFAULTS | _MISTRAL | _MIXTRAL},
    tensors={
        **decoder.EMBEDDING,
        **decoder.NORMS,
        **decoder.QKV,
        **decoder.OUTPUT,
        **decoder.FEED_FORWARD,
        f"{LAYER}block_sparse_moe.gate": f"{BLOCK}ffn_gate_inp",
        f"{LAYER}block_sparse_moe.experts.{{E}}.w1": f"{BLOCK}ffn_gate_exps",
        f"{LAYER}block_sparse_moe.experts.{{E}}.w2": f"{BLOCK}ffn_down_exps",
        f"{LAYER}block_sparse_moe.experts.{{E}}.w3": f"{BLOCK}ffn_up_exps",
    },
    aliases={f"{LAYER}mlp.gate": f"{BLOCK}ffn_gate_inp", **decoder.FUSED_DOWN},
    split_aliases=decoder.FUSED_EXPERTS,
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    heads={"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"},
    complete=_complete,
    keys=_keys,
    generated=_generated,
    vocabulary=_vocabulary,
    restored=_restored,
    assumed=("hidden_act",),
)
