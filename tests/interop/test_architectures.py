"""llama.cpp loads and runs what every architecture's checkpoint becomes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model

import subbyte
from checkpoints import CONVERT, HIDDEN, checkpoint, deepseek_v3, gemma3, llama_tensors, mixtral, qwen3, qwen3_moe
from checkpoints import Model as CheckpointModel
from subbyte.arch import ARCHITECTURES
from subbyte.io.safetensors import write_safetensors
from subbyte.jsonfile import read_object, read_object_if_there

STORED = ("llama", "qwen2", "qwen2moe", "gemma2", "phi3", "gptoss", "deepseek2", "bert")


def _gemma3() -> CheckpointModel:
    data, config = gemma3()
    return data, config | {"tie_word_embeddings": None, "query_pre_attn_scalar": 16}


MADE: dict[str, tuple[str, Callable[[], CheckpointModel]]] = {
    "mistral": ("llama", lambda: (llama_tensors(), {"model_type": "mistral"})),
    "mixtral": ("llama", mixtral),
    "qwen3": ("qwen2", qwen3),
    "qwen3_moe": ("qwen2", qwen3_moe),
    "gemma3": ("gemma2", _gemma3),
    "deepseek_v3": ("qwen2", lambda: deepseek_v3(n_group=2, topk_group=1)),
}


def _loadable(stored: Path, folder: Path) -> Path:
    """The checkpoint, with what llama.cpp asks of every real one of its kind, and what a tiny one may lack.

    That is a merge in a BPE vocabulary, special tokens within the vocabulary, and 27 layers where DeepSeek-V2 has no
    ``q_lora_rank``: the number by which the Lite models are known.
    """
    shutil.copytree(stored, folder)
    config = read_object(folder / "config.json")
    if config["model_type"] == "phi3":
        config |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if config["model_type"] == "deepseek_v2":
        config["num_hidden_layers"] = 27
        data = {name: weight.decode() for name, weight in subbyte.open(stored).items()}
        layer = {name: value for name, value in data.items() if ".layers.0." in name}
        for n in range(1, 27):
            data |= {name.replace(".0.", f".{n}.", 1): value for name, value in layer.items()}
        write_safetensors(folder / "model.safetensors", data)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = read_object_if_there(folder / "tokenizer.json")
    if tokenizer.get("model", {}).get("merges") == []:
        tokenizer["model"]["merges"] = ["t h"]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _checkpoint(tmp_path: Path, name: str) -> Path:
    """A small checkpoint with a tokenizer: a stored one, or one that borrows a stored one's vocabulary."""
    if name in STORED:
        return _loadable(CONVERT / f"tiny-{name}", tmp_path / "model")
    lender, make = MADE[name]
    data, config = make()
    stored = CONVERT / f"tiny-{lender}"
    size = subbyte.open(stored)["model.embed_tokens.weight"].shape[0]
    random = np.random.default_rng(5)
    for part in ("model.embed_tokens.weight", "lm_head.weight"):
        if part in data:
            data[part] = random.standard_normal((size, HIDDEN)).astype(np.float32)
    folder = checkpoint(tmp_path / name, data, **{**config, "vocab_size": size})
    for file in stored.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


TEXT = "the cat sat on the mat"


def test_every_architecture_is_here(tmp_path: Path) -> None:
    known = {name for arch in ARCHITECTURES for name in arch.model_types}
    here = {read_object(_checkpoint(tmp_path / name, name) / "config.json")["model_type"] for name in (*STORED, *MADE)}
    assert known - here == {"gemma3"}  # the multimodal one, whose language model is a gemma3_text


@pytest.mark.parametrize("to", ["gguf", "gguf.f32", "gguf.f16", "gguf.bf16", "gguf.q8_0"])
@pytest.mark.parametrize("name", [*STORED, *MADE])
def test_llama_cpp_runs_it(tmp_path: Path, name: str, to: str, note: Callable[[str, Any], None]) -> None:
    path = tmp_path / "model.gguf"
    report = subbyte.convert(_checkpoint(tmp_path, name), path, to=to)
    assert len(gguf.GGUFReader(path).tensors) == len(report.tensors)
    with Model(path, embeddings=name == "bert") as model:
        tokens = model.tokenize(TEXT)
        assert tokens
        assert max(tokens) < model.vocabulary_size
        if name == "bert":
            assert np.isfinite(model.embedding(tokens)).all()
        else:
            _, logits = model.greedy(tokens, 8)
            assert np.isfinite(logits).all()
            assert logits.std() > 0
    note(f"architecture {name} {to}", {"tensors": len(report.tensors), "warnings": list(report.warnings)})


@pytest.mark.filterwarnings("default", "ignore::subbyte.SubbyteWarning")  # those of other packages
@pytest.mark.parametrize("name", [*STORED, *MADE])
def test_transformers_computes_the_same(tmp_path: Path, name: str, note: Callable[[str, Any], None]) -> None:
    """From the checkpoint, and from the one made of its GGUF file, as llama.cpp from a file of the latter."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    source, back, path = _checkpoint(tmp_path, name), tmp_path / "back", tmp_path / "model.gguf"
    subbyte.convert(source, path, to="gguf.f32")
    subbyte.convert(path, back, to="hf.f32")
    subbyte.convert(back, path, to="gguf.f32", overwrite=True)
    with Model(path, embeddings=name == "bert") as model:
        tokens = model.tokenize(TEXT)
        want = model.embedding(tokens) if name == "bert" else model.greedy(tokens, 1)[1][0]
    if name == "gptoss":  # llama.cpp rounds the bounds of YaRN's ramp, which is not for a file to say
        config = read_object(back / "config.json")
        config["rope_scaling"]["truncate"] = True
        (back / "config.json").write_text(json.dumps(config))
    kind = transformers.AutoModel if name == "bert" else transformers.AutoModelForCausalLM
    figures = {}
    for folder in (back,) if name == "gptoss" else (source, back):  # MXFP4 would need another package
        with torch.no_grad():
            found = kind.from_pretrained(folder, dtype=torch.float32)(torch.tensor([tokens]))
        got = found.last_hidden_state[0].mean(0) if name == "bert" else found.logits[0, -1]
        got = (got / got.norm() if name == "bert" else got).numpy()
        figures[folder.name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    note(f"transformers {name}", figures)
    # Sums of float32 in another order; where there is a GELU, llama.cpp looks it up in a table of float16.
    most = 1e-3 if name in ("bert", "gemma2", "gemma3") else 1e-4
    assert all(figure < most for figure in figures.values()), figures
