"""gpt-oss: architecture ``gpt-oss``.

The experts' gate and up projections alternate row by row in the checkpoint and are two tensors in GGUF. Published
checkpoints store the experts as MXFP4, whose codes and scales GGUF keeps; unquantized ones have their axes exchanged.
"""

from __future__ import annotations

from typing import Any

from subbyte.arch import decoder
from subbyte.arch.base import (
    EXPERTS,
    Architecture,
    Config,
    GgufFacts,
    Keys,
    Piece,
    Split,
    common_keys,
    integer,
    own_keys,
)
from subbyte.arch.decoder import BLOCK, LAYER

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "vocab_size": 201088, "rope_theta": 150000.0, "sliding_window": 128, "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
    },
}  # fmt: skip
_EVEN, _ODD = slice(0, None, 2), slice(1, None, 2)
_GATE, _UP, _DOWN = (f"{BLOCK}ffn_{part}_exps" for part in ("gate", "up", "down"))
_OWN = [
    ("attention.sliding_window", "u32", "sliding_window"),
    ("expert_feed_forward_length", "u32", "intermediate_size"),
]


def _sizes(config: Config) -> tuple[int, int, int]:
    """Experts, hidden size, inner size."""
    return integer(config, *EXPERTS), integer(config, "hidden_size"), integer(config, "intermediate_size")


def _gate_up(config: Config) -> Split:
    experts, hidden, inner = _sizes(config)
    pieces = (Piece(f"{_GATE}.weight", columns=_EVEN, swapped=True), Piece(f"{_UP}.weight", columns=_ODD, swapped=True))
    return Split((experts, hidden, 2 * inner), pieces)


def _gate_up_codes(config: Config) -> Split:
    experts, hidden, inner = _sizes(config)
    return Split(
        (experts, 2 * inner, hidden), (Piece(f"{_GATE}.weight", rows=_EVEN), Piece(f"{_UP}.weight", rows=_ODD))
    )


def _gate_up_bias(config: Config) -> Split:
    experts, _, inner = _sizes(config)
    pieces = (Piece(f"{_GATE}.bias", columns=_EVEN), Piece(f"{_UP}.bias", columns=_ODD))
    return Split((1, experts, 2 * inner), pieces, (experts, 2 * inner), stacked=False)


def _down(config: Config) -> Split:
    experts, hidden, inner = _sizes(config)
    return Split((experts, inner, hidden), (Piece(f"{_DOWN}.weight", swapped=True),))


def _restored(facts: GgufFacts) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "head_dim": facts.get("attention.key_length"),
        "intermediate_size": facts.get("expert_feed_forward_length"),
        "hidden_act": "silu",
        "rope_scaling": {"truncate": False} if facts.get("rope.scaling.type") else None,
        "attention_bias": "blk.0.attn_q.bias" in facts.shapes,
        "sliding_window": facts.get("attention.sliding_window"),
        "num_local_experts": facts.get("expert_count"),
        "num_experts_per_tok": facts.get("expert_used_count"),
        "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(facts.get("block_count"))],
    }


def _keys(config: Config) -> Keys:
    return common_keys(config, "gpt-oss") | own_keys(config, "gpt-oss", _OWN)


GPT_OSS = Architecture(
    name="gpt-oss",
    model_types={"gpt_oss": _DEFAULTS},
    tensors={
        **decoder.EMBEDDING,
        f"{LAYER}input_layernorm": f"{BLOCK}attn_norm",
        f"{LAYER}post_attention_layernorm": f"{BLOCK}post_attention_norm",
        **decoder.QKV,
        **decoder.OUTPUT,
        f"{LAYER}self_attn.sinks": f"{BLOCK}attn_sinks.weight",
        f"{LAYER}mlp.router": f"{BLOCK}ffn_gate_inp",
        f"{LAYER}mlp.experts.down_proj_bias": f"{_DOWN}.bias",
    },
    aliases={f"{LAYER}mlp.experts.down_proj_blocks": f"{_DOWN}.weight"},
    splits={
        f"{LAYER}mlp.experts.gate_up_proj": _gate_up,
        f"{LAYER}mlp.experts.gate_up_proj_bias": _gate_up_bias,
        f"{LAYER}mlp.experts.down_proj": _down,
    },
    split_aliases={f"{LAYER}mlp.experts.gate_up_proj_blocks": _gate_up_codes},
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    keys=_keys,
    restored=_restored,
    assumed=("hidden_act", "layer_types", "rope_scaling.truncate"),
)
