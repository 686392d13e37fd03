"""Small checkpoints made for tests: tensors of random values and the fields of config.json, by architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import subbyte
from subbyte.convert.manifest import manifest_path
from subbyte.io.safetensors import write_safetensors

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden" / "gguf"
CONVERT = GOLDEN / "convert"
SMALL_LLAMA = TESTS.parent / "examples" / "small-llama"

Model = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Tensors, and the fields of config.json that differ from CONFIG."""

HIDDEN, INNER, HEADS, KV_HEADS, VOCAB, EXPERTS, MOE = 64, 96, 4, 2, 32, 4, 32
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def tensors(names: dict[str, tuple[int, ...]], layers: int = 2, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random values for names whose N stands for every layer."""
    rng = np.random.default_rng(11)
    out = {}
    for name, shape in names.items():
        for n in range(layers if ".N." in name else 1):
            out[name.replace(".N.", f".{n}.")] = rng.standard_normal(shape).astype(dtype)
    return out


def attention(head: int = 16, *, bias: bool = False, norms: bool = False) -> dict[str, tuple[int, ...]]:
    """Tensors outside the feed-forward part."""
    layer = "model.layers.N.self_attn."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
        "model.layers.N.input_layernorm.weight": (HIDDEN,),
        "model.layers.N.post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}q_proj.weight": (HEADS * head, HIDDEN), f"{layer}k_proj.weight": (KV_HEADS * head, HIDDEN),
        f"{layer}v_proj.weight": (KV_HEADS * head, HIDDEN), f"{layer}o_proj.weight": (HIDDEN, HEADS * head),
    }  # fmt: skip
    if bias:
        shapes |= {f"{layer}{x}_proj.bias": (n * head,) for x, n in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))}
    if norms:
        shapes |= {f"{layer}{x}_norm.weight": (head,) for x in "qk"}
    return shapes


DENSE = {f"model.layers.N.mlp.{x}_proj.weight": (INNER, HIDDEN) for x in ("gate", "up")} | {
    "model.layers.N.mlp.down_proj.weight": (HIDDEN, INNER)
}
EXPERT = {"gate_proj": (MOE, HIDDEN), "up_proj": (MOE, HIDDEN), "down_proj": (HIDDEN, MOE)}


def experts(prefix: str, names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """One matrix per expert."""
    return {f"{prefix}.{e}.{name}.weight": shape for e in range(EXPERTS) for name, shape in names.items()}


def llama_tensors(dtype: Any = np.float32, layers: int = 2) -> dict[str, np.ndarray]:
    """The tensors of a Llama of the shapes of CONFIG."""
    return tensors(attention() | DENSE, layers, dtype)


def mixtral() -> Model:
    """A mixture whose experts are one matrix each."""
    shapes = attention() | {"model.layers.N.block_sparse_moe.gate.weight": (EXPERTS, HIDDEN)}
    matrices = {"w1": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "w3": (INNER, HIDDEN)}
    shapes |= experts("model.layers.N.block_sparse_moe.experts", matrices)
    return tensors(shapes), {"model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 2}


def qwen3(head: int = 16, dtype: Any = np.float32) -> Model:
    """Heads of any size, with norms."""
    return tensors(attention(head, norms=True) | DENSE, dtype=dtype), {"model_type": "qwen3", "head_dim": head}


def qwen3_moe(*, fused: bool = False) -> Model:
    """A mixture whose experts are one matrix each, or ``fused`` into one tensor."""
    prefix = "model.layers.N.mlp.experts"
    shapes = attention(norms=True) | {"model.layers.N.mlp.gate.weight": (EXPERTS, HIDDEN)}
    if fused:
        shapes |= {f"{prefix}.gate_up_proj": (EXPERTS, 2 * MOE, HIDDEN), f"{prefix}.down_proj": (EXPERTS, HIDDEN, MOE)}
    else:
        shapes |= experts(prefix, EXPERT)
    fields = {"model_type": "qwen3_moe", "num_experts": EXPERTS, "num_experts_per_tok": 2,
              "moe_intermediate_size": MOE, "head_dim": 16, "norm_topk_prob": True}  # fmt: skip
    return tensors(shapes), fields


def gemma3(dtype: Any = np.float32) -> Model:
    """Tied embeddings, four norms a layer."""
    norms = {f"model.layers.N.{x}_feedforward_layernorm.weight": (HIDDEN,) for x in ("pre", "post")}
    data = tensors(attention(norms=True) | DENSE | norms, dtype=dtype)
    del data["lm_head.weight"]
    return data, {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 16}


def deepseek_v3(**config: Any) -> Model:
    """Latent attention; the second layer is a mixture with a shared expert. ``config`` overrides fields."""
    fields = CONFIG | {
        "model_type": "deepseek_v3", "kv_lora_rank": 48, "q_lora_rank": 40, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 24, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": MOE,
        "num_key_value_heads": HEADS, "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0,
                                                       "mscale_all_dim": 1.0, "original_max_position_embeddings": 64},
    } | config  # fmt: skip
    layer = "model.layers.N.self_attn."
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN),
        "model.layers.N.input_layernorm.weight": (HIDDEN,),
        "model.layers.N.post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}q_a_proj.weight": (40, HIDDEN), f"{layer}q_a_layernorm.weight": (40,),
        f"{layer}q_b_proj.weight": (HEADS * 24, 40), f"{layer}kv_a_proj_with_mqa.weight": (56, HIDDEN),
        f"{layer}kv_a_layernorm.weight": (48,), f"{layer}kv_b_proj.weight": (HEADS * 40, 48),
        f"{layer}o_proj.weight": (HIDDEN, HEADS * 24),
        **{name.replace(".N.", ".0."): shape for name, shape in DENSE.items()},
        "model.layers.1.mlp.gate.weight": (EXPERTS, HIDDEN),
        "model.layers.1.mlp.gate.e_score_correction_bias": (EXPERTS,),
        **experts("model.layers.1.mlp.experts", EXPERT),
        **{f"model.layers.1.mlp.shared_experts.{x}_proj.weight": (MOE, HIDDEN) for x in ("gate", "up")},
        "model.layers.1.mlp.shared_experts.down_proj.weight": (HIDDEN, MOE),
    }  # fmt: skip
    return tensors(shapes), fields


def checkpoint(
    folder: Path, data: dict[str, np.ndarray] | None = None, files: dict[str, Any] | None = None, **config: Any
) -> Path:
    """Write a checkpoint folder; ``config`` overrides CONFIG, None removes a field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    write_safetensors(folder / "model.safetensors", llama_tensors() if data is None else data)
    for name, body in (files or {}).items():
        (folder / name).write_text(body if isinstance(body, str) else json.dumps(body))
    return folder


def quantized_checkpoint(folder: Path, to: str, source: Path = SMALL_LLAMA, **settings: Any) -> Path:
    """A checkpoint folder quantized from floats, without the manifest of its conversion."""
    subbyte.convert(source, folder, to=to, **settings)
    manifest_path(folder).unlink()
    return folder
