"""Gemma 2 and 3 (the text part of multimodal checkpoints too): architectures ``gemma2`` and ``gemma3``.

One is added to the weights of every norm, which the original models do when they apply it; nothing is permuted.
"""

from __future__ import annotations

from typing import Any

from subbyte.arch import decoder
from subbyte.arch.base import FILE_TYPE, Architecture, Config, GgufFacts, Keys, common_keys, own_keys, shortest
from subbyte.arch.decoder import BLOCK, LAYER
from subbyte.io.gguf import GgufValue

_GEMMA2: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "vocab_size": 256000, "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA3: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "vocab_size": 262208, "sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
_TENSORS = {
    **decoder.EMBEDDING,
    f"{LAYER}input_layernorm": f"{BLOCK}attn_norm",
    f"{LAYER}post_attention_layernorm": f"{BLOCK}post_attention_norm",
    f"{LAYER}pre_feedforward_layernorm": f"{BLOCK}ffn_norm",
    f"{LAYER}post_feedforward_layernorm": f"{BLOCK}post_ffw_norm",
    **decoder.QKV,
    **decoder.OUTPUT,
    **decoder.FEED_FORWARD,
}
_GEMMA2_FIRST = [
    ("context_length", "u32", "max_position_embeddings"),
    ("embedding_length", "u32", "hidden_size"),
    ("block_count", "u32", "num_hidden_layers"),
    ("feed_forward_length", "u32", "intermediate_size"),
    ("attention.head_count", "u32", "num_attention_heads"),
    ("attention.head_count_kv", "u32", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps"),
    ("attention.key_length", "u32", "head_dim"),
    ("attention.value_length", "u32", "head_dim"),
]
_SOFTCAPS = [
    ("attn_logit_softcapping", "f32", "attn_logit_softcapping"),
    ("final_logit_softcapping", "f32", "final_logit_softcapping"),
]
_WINDOW = [("attention.sliding_window", "u32", "sliding_window")]


def _gemma2_keys(config: Config) -> Keys:
    return own_keys(config, "gemma2", _GEMMA2_FIRST) | FILE_TYPE | own_keys(config, "gemma2", _SOFTCAPS + _WINDOW)


def _gemma3_keys(config: Config) -> Keys:
    window = [] if config.get("sliding_window_pattern") == 1 else _WINDOW
    return common_keys(config, "gemma3") | own_keys(config, "gemma3", [_SOFTCAPS[1], *window])


def _vocabulary(config: Config, keys: Keys) -> Keys:
    """SentencePiece would put a blank in front of every text; Gemma does not."""
    if keys["tokenizer.ggml.model"].value == "llama":
        keys["tokenizer.ggml.add_space_prefix"] = GgufValue("bool", False)
    return keys


def _restored(facts: GgufFacts) -> dict[str, Any]:
    layers, hidden = facts.get("block_count"), facts.get("embedding_length")
    third = facts.arch == "gemma3"
    largest = layers == (62 if third else 46)  # only these scale queries by the hidden size per head
    head_dim = facts.get("attention.key_length", 256)
    every = 6 if third else 2
    fields: dict[str, Any] = {
        "model_type": "gemma3_text" if third else "gemma2",
        "architectures": ["Gemma3ForCausalLM" if third else "Gemma2ForCausalLM"],
        "head_dim": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": hidden // facts.get("attention.head_count") if largest else head_dim,
        "sliding_window": facts.get("attention.sliding_window", 4096),
        "layer_types": ["full_attention" if n % every == every - 1 else "sliding_attention" for n in range(layers)],
    }
    if third:
        fields["rope_local_base_freq"] = shortest(facts.get("rope.freq_base_swa", 10000.0))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        value = facts.get(name)
        fields[name] = None if value is None else shortest(value)
    return fields


GEMMA2 = Architecture(
    name="gemma2",
    model_types={"gemma2": _GEMMA2},
    tensors=_TENSORS,
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    norm_shift=1.0,
    keys=_gemma2_keys,
    vocabulary=_vocabulary,
    restored=_restored,
    assumed=("hidden_activation", "query_pre_attn_scalar", "layer_types"),
)
GEMMA3 = Architecture(
    name="gemma3",
    model_types={"gemma3_text": _GEMMA3, "gemma3": _GEMMA3},
    tensors={**_TENSORS, **decoder.HEAD_NORMS},
    optional=decoder.OPTIONAL,
    shapes=decoder.SHAPES,
    sizes=decoder.sizes,
    norm_shift=1.0,
    cuts_embedding=True,
    keys=_gemma3_keys,
    vocabulary=_vocabulary,
    restored=_restored,
    assumed=("hidden_activation", "query_pre_attn_scalar", "layer_types"),
)
