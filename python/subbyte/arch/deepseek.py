"""DeepSeek-V2, V3 and R1: architecture ``deepseek2``.

Attention on a latent vector: the matrix that expands it becomes two, for keys (transposed, so that queries can be moved
into the latent space) and for values. Rotary pairs are neighbours on both sides. Layers after the last one, which
predict further tokens, are left out.
"""

from __future__ import annotations

from typing import Any

from subbyte.arch import decoder
from subbyte.arch.base import (
    Architecture,
    Config,
    GgufFacts,
    Keys,
    Piece,
    Split,
    common_keys,
    integer,
    number,
    own_keys,
    rope_parameters,
    shortest,
)
from subbyte.arch.decoder import BLOCK, LAYER
from subbyte.io.gguf import GgufValue

_V2: dict[str, Any] = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_V3 = _V2 | {
    "max_position_embeddings": 4096, "scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 8, "topk_group": 4,
    "routed_scaling_factor": 2.5,
}  # fmt: skip


def _complete(config: dict[str, Any]) -> None:
    config.setdefault("n_shared_experts", 0)
    config.setdefault("head_dim", config.get("qk_rope_head_dim"))


def _kv_b(config: Config) -> Split:
    heads, key, value = (integer(config, name) for name in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    rank = integer(config, "kv_lora_rank")
    return Split(
        (heads, key + value, rank),
        (
            Piece(f"{BLOCK}attn_k_b.weight", rows=slice(0, key), swapped=True),
            Piece(f"{BLOCK}attn_v_b.weight", rows=slice(key, key + value)),
        ),
        (heads * (key + value), rank),
    )


def _keys(config: Config) -> Keys:
    arch = "deepseek2"
    keys = common_keys(config, arch)
    keys[f"{arch}.attention.head_count_kv"] = GgufValue("u32", 1)  # all heads share the one latent vector
    rank, rope = integer(config, "kv_lora_rank"), integer(config, "qk_rope_head_dim")
    keys[f"{arch}.attention.key_length"] = GgufValue("u32", rank + rope)
    keys[f"{arch}.attention.value_length"] = GgufValue("u32", rank)
    dense = config.get("first_k_dense_replace")
    if dense is None:
        dense = 0 if config.get("n_routed_experts") else integer(config, "num_hidden_layers")
    own: Keys = {
        "leading_dense_block_count": GgufValue(
            "u32", dense and integer({"first_k_dense_replace": dense}, "first_k_dense_replace")
        ),
        "vocab_size": GgufValue("u32", integer(config, "vocab_size")),
    }
    if config.get("q_lora_rank") is not None:
        own["attention.q_lora_rank"] = GgufValue("u32", integer(config, "q_lora_rank"))
    own |= {
        "attention.kv_lora_rank": GgufValue("u32", rank),
        "attention.key_length_mla": GgufValue("u32", integer(config, "qk_nope_head_dim") + rope),
        "attention.value_length_mla": GgufValue("u32", integer(config, "v_head_dim")),
    }
    keys |= {f"{arch}.{name}": value for name, value in own.items()}
    keys |= own_keys(config, arch, [("expert_feed_forward_length", "u32", "moe_intermediate_size")])
    shared = config.get("n_shared_experts") or 0
    keys[f"{arch}.expert_shared_count"] = GgufValue("u32", shared and integer(config, "n_shared_experts"))
    keys |= own_keys(config, arch, [("expert_weights_scale", "f32", "routed_scaling_factor")])
    if config.get("norm_topk_prob") is True:
        keys[f"{arch}.expert_weights_norm"] = GgufValue("bool", True)
    keys[f"{arch}.rope.dimension_count"] = GgufValue("u32", rope)
    parameters = rope_parameters(config)
    if parameters.get("mscale_all_dim") is not None:
        scale = 0.1 * number(parameters, "mscale_all_dim")
        keys[f"{arch}.rope.scaling.yarn_log_multiplier"] = GgufValue("f32", scale)
    return keys


def _restored(facts: GgufFacts) -> dict[str, Any]:
    third = facts.get("expert_gating_func", 1) == 2
    rope = facts.get("rope.dimension_count")
    return {
        "model_type": "deepseek_v3" if third else "deepseek_v2",
        "architectures": ["DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": facts.get("attention.head_count"),
        "first_k_dense_replace": facts.get("leading_dense_block_count", 0),
        "kv_lora_rank": facts.get("attention.kv_lora_rank"),
        "q_lora_rank": facts.get("attention.q_lora_rank"),
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": facts.get("attention.key_length_mla", 0) - rope,
        "v_head_dim": facts.get("attention.value_length_mla"),
        "n_routed_experts": facts.get("expert_count"),
        "num_experts_per_tok": facts.get("expert_used_count"),
        "n_shared_experts": facts.get("expert_shared_count"),
        "n_group": facts.get("expert_group_count"),
        "topk_group": facts.get("expert_group_used_count"),
        "moe_intermediate_size": facts.get("expert_feed_forward_length"),
        "routed_scaling_factor": shortest(facts.get("expert_weights_scale", 1.0)),
        "norm_topk_prob": bool(facts.get("expert_weights_norm", False)),
        "scoring_func": "sigmoid" if third else "softmax",
        "topk_method": "noaux_tc" if "blk.0.exp_probs_b.bias" in facts.shapes or third else "greedy",
    }


DEEPSEEK2 = Architecture(
    name="deepseek2",
    model_types={"deepseek_v2": _V2, "deepseek_v3": _V3},
    tensors={
        **decoder.EMBEDDING,
        **decoder.NORMS,
        f"{LAYER}self_attn.q_proj": f"{BLOCK}attn_q",
        f"{LAYER}self_attn.q_a_proj": f"{BLOCK}attn_q_a",
        f"{LAYER}self_attn.q_a_layernorm": f"{BLOCK}attn_q_a_norm",
        f"{LAYER}self_attn.q_b_proj": f"{BLOCK}attn_q_b",
        f"{LAYER}self_attn.kv_a_proj_with_mqa": f"{BLOCK}attn_kv_a_mqa",
        f"{LAYER}self_attn.kv_a_layernorm": f"{BLOCK}attn_kv_a_norm",
        **decoder.OUTPUT,
        **decoder.FEED_FORWARD,
        **decoder.EXPERTS,
        f"{LAYER}mlp.gate.e_score_correction_bias": f"{BLOCK}exp_probs_b.bias",
        f"{LAYER}mlp.shared_experts.gate_proj": f"{BLOCK}ffn_gate_shexp",
        f"{LAYER}mlp.shared_experts.up_proj": f"{BLOCK}ffn_up_shexp",
        f"{LAYER}mlp.shared_experts.down_proj": f"{BLOCK}ffn_down_shexp",
    },
    splits={f"{LAYER}self_attn.kv_b_proj.weight": _kv_b},
    optional=frozenset({"output", *(f"{BLOCK}attn_{part}" for part in ("q", "q_a", "q_a_norm", "q_b"))}),
    drops_further_layers=True,
    complete=_complete,
    keys=_keys,
    restored=_restored,
    nulls=frozenset({"q_lora_rank"}),
    assumed=("hidden_act", "topk_method"),
)
