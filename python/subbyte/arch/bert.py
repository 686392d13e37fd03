"""BERT and RoBERTa encoders: architecture ``bert``. All values stay the same; pooler and training heads are left out.

RoBERTa counts positions from ``pad_token_id`` + 1 on; the rows before are never looked up and are cut off, so that
programs that count from 0 find the right ones.
"""

from __future__ import annotations

from typing import Any

from subbyte.arch.base import BUFFERS, Architecture, Config, GgufFacts, Keys, common_keys, integer, pooling_keys
from subbyte.arch.decoder import BLOCK
from subbyte.errors import FormatError
from subbyte.io.gguf import GgufValue

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "vocab_size": 30522,
    "tie_word_embeddings": True,
}  # fmt: skip
_LAYER = "encoder.layer.{N}."


_ROBERTA = _DEFAULTS | {"vocab_size": 50265, "pad_token_id": 1}


def _unused_positions(config: Config) -> int:
    if config.get("model_type") != "roberta":
        return 0
    padding = config["pad_token_id"]
    if not isinstance(padding, int) or padding < 0:
        raise FormatError(f"config.json: pad_token_id: expected a number that is not negative, found {padding!r}")
    return padding + 1


def _keys(config: Config) -> Keys:
    if config.get("max_position_embeddings") is not None:
        positions = integer(config, "max_position_embeddings") - _unused_positions(config)
        config = {**config, "max_position_embeddings": positions}
    causal = {"bert.attention.causal": GgufValue("bool", False)}
    return common_keys(config, "bert") | causal | pooling_keys(config, "bert")


def _vocabulary(config: Config, keys: Keys) -> Keys:
    count = integer({"type_vocab_size": 1, **config}, "type_vocab_size")
    return {"tokenizer.ggml.token_type_count": GgufValue("u32", count), **keys}


def _restored(facts: GgufFacts) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "type_vocab_size": facts.metadata.get("tokenizer.ggml.token_type_count", facts.shapes["token_types.weight"][0]),
        "position_embedding_type": "absolute",
    }


BERT = Architecture(
    name="bert",
    model_types={"bert": _DEFAULTS, "roberta": _ROBERTA},
    tensors={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        f"{_LAYER}attention.self.query": f"{BLOCK}attn_q",
        f"{_LAYER}attention.self.key": f"{BLOCK}attn_k",
        f"{_LAYER}attention.self.value": f"{BLOCK}attn_v",
        f"{_LAYER}attention.output.dense": f"{BLOCK}attn_output",
        f"{_LAYER}attention.output.LayerNorm": f"{BLOCK}attn_output_norm",
        f"{_LAYER}intermediate.dense": f"{BLOCK}ffn_up",
        f"{_LAYER}output.dense": f"{BLOCK}ffn_down",
        f"{_LAYER}output.LayerNorm": f"{BLOCK}layer_output_norm",
    },
    prefixes=("bert.", "roberta."),
    renamed={".gamma": ".weight", ".beta": ".bias"},
    dropped=BUFFERS
    + r"|^(embeddings\.position_ids|pooler\.dense\.|cls\.predictions\.|cls\.seq_relationship\.|lm_head\.)",
    unused_positions=_unused_positions,
    keys=_keys,
    vocabulary=_vocabulary,
    restored=_restored,
    assumed=("hidden_act", "position_embedding_type"),
)
