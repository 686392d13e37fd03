"""Small checkpoints made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.io.safetensors import write_safetensors

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden" / "gguf"
SMALL_LLAMA = TESTS.parent / "examples" / "small-llama"

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip


def llama_tensors(dtype: Any = np.float32, layers: int = 2) -> dict[str, np.ndarray]:
    """The tensors of a Llama of the shapes of CONFIG, with random values."""
    rng = np.random.default_rng(7)
    shapes = {"model.embed_tokens": (32, 64), "model.norm": (64,), "lm_head": (32, 64)}
    for n in range(layers):
        shapes |= {
            f"model.layers.{n}.input_layernorm": (64,), f"model.layers.{n}.post_attention_layernorm": (64,),
            f"model.layers.{n}.self_attn.q_proj": (64, 64), f"model.layers.{n}.self_attn.k_proj": (32, 64),
            f"model.layers.{n}.self_attn.v_proj": (32, 64), f"model.layers.{n}.self_attn.o_proj": (64, 64),
            f"model.layers.{n}.mlp.gate_proj": (96, 64), f"model.layers.{n}.mlp.up_proj": (96, 64),
            f"model.layers.{n}.mlp.down_proj": (64, 96),
        }  # fmt: skip
    return {f"{name}.weight": rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def checkpoint(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, files: dict[str, Any] | None = None, **config: Any
) -> Path:
    """Write a checkpoint folder; ``config`` overrides CONFIG, None removes a field."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    write_safetensors(folder / "model.safetensors", llama_tensors() if tensors is None else tensors)
    for name, body in (files or {}).items():
        (folder / name).write_text(body if isinstance(body, str) else json.dumps(body))
    return folder
