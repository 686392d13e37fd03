"""Qwen2, Qwen3 and their mixtures of experts: architectures ``qwen2``, ``qwen3``, ``qwen2moe``, ``qwen3moe``.

Rotary halves stay as they are; all values stay the same; experts are stacked.
"""

from __future__ import annotations

from typing import Any

from subbyte.arch import decoder
from subbyte.arch.base import Architecture, GgufFacts, common_keys, own_keys, pooling_keys
from subbyte.arch.decoder import BLOCK, LAYER

_QWEN2: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 22016, "num_attention_heads": 32, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "vocab_size": 151936, "rope_theta": 10000.0,
}  # fmt: skip
_QWEN2_MOE = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4,
}  # fmt: skip
_QWEN3_MOE = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 6144, "num_key_value_heads": 4, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip
_DENSE = {**decoder.EMBEDDING, **decoder.NORMS, **decoder.QKV, **decoder.OUTPUT, **decoder.FEED_FORWARD}
_SHARED = {
    f"{LAYER}mlp.shared_expert.gate_proj": f"{BLOCK}ffn_gate_shexp",
    f"{LAYER}mlp.shared_expert.up_proj": f"{BLOCK}ffn_up_shexp",
    f"{LAYER}mlp.shared_expert.down_proj": f"{BLOCK}ffn_down_shexp",
    f"{LAYER}mlp.shared_expert_gate": f"{BLOCK}ffn_gate_inp_shexp",
}


def _complete(config: dict[str, Any]) -> None:
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))


def _moe_keys(arch: str) -> Any:
    table = [("expert_feed_forward_length", "u32", "moe_intermediate_size")]
    if arch == "qwen2moe":
        table.append(("expert_shared_feed_forward_length", "u32", "shared_expert_intermediate_size"))
    return lambda config: common_keys(config, arch) | own_keys(config, arch, table)


def _restored(model_type: str, kind: str) -> Any:
    def fields(facts: GgufFacts) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model_type": model_type,
            "architectures": [f"{kind}ForCausalLM"],
            "hidden_act": "silu",
        }
        if kind.startswith("Qwen3"):
            found |= {
                "head_dim": facts.get("attention.key_length"),
                "attention_bias": "blk.0.attn_q.bias" in facts.shapes,
            }
        if kind.endswith("Moe"):
            found |= {
                "num_experts": facts.get("expert_count"),
                "num_experts_per_tok": facts.get("expert_used_count"),
                "moe_intermediate_size": facts.get("expert_feed_forward_length"),
                "norm_topk_prob": kind == "Qwen3Moe",
            }
        if kind == "Qwen2Moe":
            found["shared_expert_intermediate_size"] = facts.get("expert_shared_feed_forward_length")
        return found

    return fields


QWEN2 = Architecture(
    name="qwen2",
    model_types={"qwen2": _QWEN2},
    tensors=_DENSE,
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    complete=_complete,
    keys=lambda config: common_keys(config, "qwen2") | pooling_keys(config, "qwen2"),
    restored=_restored("qwen2", "Qwen2"),
    assumed=("hidden_act",),
)
QWEN3 = Architecture(
    name="qwen3",
    model_types={"qwen3": _QWEN2 | {"head_dim": 128}},
    tensors={**_DENSE, **decoder.HEAD_NORMS},
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    complete=_complete,
    keys=lambda config: common_keys(config, "qwen3") | pooling_keys(config, "qwen3"),
    restored=_restored("qwen3", "Qwen3"),
    assumed=("hidden_act",),
)
QWEN2_MOE = Architecture(
    name="qwen2moe",
    model_types={"qwen2_moe": _QWEN2_MOE},
    tensors={**_DENSE, **decoder.EXPERTS, **_SHARED},
    aliases=decoder.FUSED_DOWN,
    split_aliases=decoder.FUSED_EXPERTS,
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    complete=_complete,
    keys=_moe_keys("qwen2moe"),
    restored=_restored("qwen2_moe", "Qwen2Moe"),
    assumed=("hidden_act", "norm_topk_prob"),
)
QWEN3_MOE = Architecture(
    name="qwen3moe",
    model_types={"qwen3_moe": _QWEN3_MOE},
    tensors={**_DENSE, **decoder.HEAD_NORMS, **decoder.EXPERTS},
    aliases=decoder.FUSED_DOWN,
    split_aliases=decoder.FUSED_EXPERTS,
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    complete=_complete,
    keys=_moe_keys("qwen3moe"),
    restored=_restored("qwen3_moe", "Qwen3Moe"),
    assumed=("hidden_act", "norm_topk_prob"),
)
