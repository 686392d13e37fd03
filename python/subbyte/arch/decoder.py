"""What decoder families share: names, shapes and sizes of the common tensors."""

from __future__ import annotations

from subbyte.arch.base import EXPERTS as EXPERT_COUNT
from subbyte.arch.base import Config, Piece, Split, integer

LAYER = "model.layers.{N}."
BLOCK = "blk.{N}."

EMBEDDING = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
QKV = {
    f"{LAYER}self_attn.q_proj": f"{BLOCK}attn_q",
    f"{LAYER}self_attn.k_proj": f"{BLOCK}attn_k",
    f"{LAYER}self_attn.v_proj": f"{BLOCK}attn_v",
}
NORMS = {
    f"{LAYER}input_layernorm": f"{BLOCK}attn_norm",
    f"{LAYER}post_attention_layernorm": f"{BLOCK}ffn_norm",
}
OUTPUT = {f"{LAYER}self_attn.o_proj": f"{BLOCK}attn_output"}
HEAD_NORMS = {f"{LAYER}self_attn.q_norm": f"{BLOCK}attn_q_norm", f"{LAYER}self_attn.k_norm": f"{BLOCK}attn_k_norm"}
FEED_FORWARD = {
    f"{LAYER}mlp.gate_proj": f"{BLOCK}ffn_gate",
    f"{LAYER}mlp.up_proj": f"{BLOCK}ffn_up",
    f"{LAYER}mlp.down_proj": f"{BLOCK}ffn_down",
}
EXPERTS = {
    f"{LAYER}mlp.gate": f"{BLOCK}ffn_gate_inp",
    f"{LAYER}mlp.experts.{{E}}.gate_proj": f"{BLOCK}ffn_gate_exps",
    f"{LAYER}mlp.experts.{{E}}.up_proj": f"{BLOCK}ffn_up_exps",
    f"{LAYER}mlp.experts.{{E}}.down_proj": f"{BLOCK}ffn_down_exps",
}
OPTIONAL = frozenset({"output"})
"""A tied model has no output."""

SHAPES: dict[str, tuple[str, ...]] = {
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
}


def head_dim(config: Config) -> int:
    """Length of one attention head."""
    if config.get("head_dim") is not None:
        return integer(config, "head_dim")
    return integer(config, "hidden_size") // integer(config, "num_attention_heads")


def sizes(config: Config) -> dict[str, int]:
    """Lengths of the axes that :data:`SHAPES` names."""
    return {
        "vocabulary": integer(config, "vocab_size"),
        "hidden": integer(config, "hidden_size"),
        "inner": integer(config, "intermediate_size"),
        "queries": integer(config, "num_attention_heads") * head_dim(config),
        "keys": integer(config, "num_key_value_heads") * head_dim(config),
    }


def fused_experts(config: Config) -> Split:
    """Gate and up projections of all experts in one tensor [experts, 2 · inner, hidden]: gate rows come first."""
    inner = integer(config, "moe_intermediate_size", "intermediate_size")
    return Split(
        (integer(config, *EXPERT_COUNT), 2 * inner, integer(config, "hidden_size")),
        (
            Piece(f"{BLOCK}ffn_gate_exps.weight", rows=slice(0, inner)),
            Piece(f"{BLOCK}ffn_up_exps.weight", rows=slice(inner, 2 * inner)),
        ),
    )


FUSED_EXPERTS = {f"{LAYER}mlp.experts.gate_up_proj": fused_experts}
FUSED_DOWN = {f"{LAYER}mlp.experts.down_proj": f"{BLOCK}ffn_down_exps.weight"}
