"""GGUF to Hugging Face: equal tensors after a round trip, restored settings, tokenizers that encode the same."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import subbyte
from checkpoints import (
    CONVERT,
    DENSE,
    GOLDEN,
    SMALL_LLAMA,
    attention,
    checkpoint,
    deepseek_v3,
    gemma3,
    mixtral,
    qwen3,
    qwen3_moe,
    tensors,
)
from subbyte.arch.base import llama3_frequency_factors, llama3_parameters
from subbyte.io.gguf import GgufFile, write_gguf
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planning import folder as folders
from subbyte.tokenizer.restore import restore_tokenizer

TINY = ["tiny-llama", "tiny-qwen2", "tiny-gemma2", "tiny-bert", "tiny-phi3", "tiny-deepseek2", "tiny-qwen2moe"]
LOST = {"pooler.dense.weight", "pooler.dense.bias"}
TEXTS = [
    "Hello world", "the quick brown fox jumps over the lazy dog", "  two  blanks\n\nand lines\t",
    "I've 1234 3.14 tests!", "na\u00efve caf\u00e9 \u4e2d\u6587 \U0001f680", "a", "",
    "def f(x):\n    return x**2  # comment", "<s> <|im_end|> [SEP]",
]  # fmt: skip


def _gemma3() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    data, config = gemma3(ml_dtypes.bfloat16)
    return data, config | {"tie_word_embeddings": True, "rope_local_base_freq": 10000.0}


SYNTHETIC = {
    "mixtral": mixtral,
    "qwen3": lambda: qwen3(32),
    "qwen3_moe": qwen3_moe,
    "gemma3": _gemma3,
    "deepseek_v3": deepseek_v3,
    "llama_biases": lambda: (tensors(attention(bias=True) | DENSE), {"model_type": "llama", "attention_bias": True}),
}  # fmt: skip


def there_and_back(source: Path, to: str = "hf.f32") -> tuple[Path, Any]:
    """The checkpoint made of the f32 GGUF file made of ``source``, and the report."""
    file = source.parent / f"{source.name}.back.gguf"
    subbyte.convert(source, file, to="gguf.f32")
    folder = source.parent / "back" / source.name
    return folder, subbyte.convert(file, folder, to=to)


def check_values(source: Path, back: Path, lost: set[str] = frozenset()) -> None:
    before, after = SafetensorsFile(source), SafetensorsFile(back)
    assert set(after) == set(before) - lost
    for name in after:
        want = np.asarray(before.array(name)).astype(np.float32)
        got = np.asarray(after.array(name)).astype(np.float32)
        assert got.shape == want.shape, name
        assert np.array_equal(got, want), name


@pytest.mark.parametrize("model", TINY)
def test_golden_checkpoints_come_back(tmp_path: Path, model: str) -> None:
    source = tmp_path / model
    shutil.copytree(CONVERT / model, source)
    back, report = there_and_back(source)
    check_values(source, back, LOST if model == "tiny-bert" else set())
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    same = [key for key in before if key in after and not (before[key] is None or key.endswith("_token_id"))]
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert model != "tiny-deepseek2" or (before["q_lora_rank"], after["q_lora_rank"]) == (None, None)
    needed = {
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "intermediate_size",
    }
    assert needed <= set(same)
    assert any("config.json: not in the file" in warning for warning in report.warnings)
    again = tmp_path / "again.gguf"
    subbyte.convert(back, again, to="gguf.f32")
    first, second = GgufFile(tmp_path / f"{model}.back.gguf"), GgufFile(again)
    assert {name: first.raw(name).tobytes() for name in first} == {name: second.raw(name).tobytes() for name in second}
    changes = {
        key for key in {*first.metadata, *second.metadata}
        if not key.startswith("tokenizer.") and first.metadata.get(key) != second.metadata.get(key)
    }  # fmt: skip
    assert changes == set()


@pytest.mark.parametrize("model", SYNTHETIC)
def test_other_architectures_come_back(tmp_path: Path, model: str) -> None:
    data, config = SYNTHETIC[model]()
    source = checkpoint(tmp_path / "m", data, **config)
    back, _ = there_and_back(source)
    check_values(source, back)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    own = {key: value for key, value in config.items() if key != "rope_scaling"}
    assert {key: after[key] for key in own} == own
    assert {key: after.get(key) for key in ("hidden_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings")} == {
        key: before[key] for key in ("hidden_size", "rms_norm_eps", "rope_theta", "tie_word_embeddings")
    }
    if "rope_scaling" in config:
        given = {key: value for key, value in config["rope_scaling"].items() if key != "type"}
        assert after["rope_scaling"] | given == after["rope_scaling"]


def test_gpt_oss_experts_become_floats_again(tmp_path: Path) -> None:
    source = tmp_path / "tiny-gptoss"
    shutil.copytree(CONVERT / "tiny-gptoss", source)
    back, report = there_and_back(source, "hf.bf16")
    before, after = SafetensorsFile(source), SafetensorsFile(back)
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    for name in ("gate_up_proj", "down_proj"):
        prefix = f"model.layers.1.mlp.experts.{name}"
        codes, scales = before.array(f"{prefix}_blocks"), before.array(f"{prefix}_scales")
        pairs = np.stack([levels[codes & 15], levels[codes >> 4]], -1).reshape(*codes.shape[:-1], 32)
        dense = (pairs * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(*codes.shape[:2], -1)
        assert np.array_equal(after.array(prefix).astype(np.float32), dense.transpose(0, 2, 1))
    bias = "model.layers.0.mlp.experts.gate_up_proj_bias"
    assert np.array_equal(after.array(bias), before.array(bias).astype(ml_dtypes.bfloat16))
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert any("quantized tensors" in warning for warning in report.warnings)


@pytest.mark.parametrize("file", ["tiny-llama.Q4_K_M.gguf", "tiny-llama.IQ4_NL-imdat.gguf"])
def test_quantized_files_give_what_their_codes_stand_for(tmp_path: Path, file: str) -> None:
    path = GOLDEN / "quantized" / file
    subbyte.convert(path, tmp_path / "hf", to="hf.f32")
    got = SafetensorsFile(tmp_path / "hf")
    weights = subbyte.open(path)
    q = weights["blk.1.attn_q.weight"].decode().reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    assert np.array_equal(got.array("model.layers.1.self_attn.q_proj.weight"), q)
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        values = weights[f"blk.0.{theirs}.weight"].decode()
        assert np.array_equal(got.array(f"model.layers.0.{ours}.weight"), values)
    subbyte.convert(path, tmp_path / "own", to="hf")
    assert SafetensorsFile(tmp_path / "own")["lm_head.weight"].dtype == "BF16"


def test_large_checkpoints_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SHARD", 40_000)
    source = CONVERT / "tiny-llama-bf16.gguf"
    seen = []
    report = subbyte.convert(source, tmp_path / "m", to="hf.bf16", progress=lambda *step: seen.append(step))
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(row.nbytes for row in report.tensors) == seen[-1][0] == seen[-1][1]
    check_values(CONVERT / "tiny-llama", tmp_path / "m")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "m").iterdir()}
    assert sizes.pop("manifest.subbyte.json")
    assert report.files == sizes
    assert report.nbytes == sum(sizes.values())


def test_nothing_is_left_behind_and_nothing_replaced(tmp_path: Path) -> None:
    source = CONVERT / "tiny-llama-bf16.gguf"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(subbyte.ArgumentError, match="exists"):
        subbyte.convert(source, tmp_path / "full", to="hf.bf16")
    big = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 4,
           "llama.attention.head_count": 1}  # fmt: skip
    write_gguf(tmp_path / "big.gguf", big, {"token_embd.weight": np.full((2, 4), 1e6, np.float32)})
    with pytest.raises(subbyte.NonFiniteError, match=r"model\.embed_tokens"):
        subbyte.convert(tmp_path / "big.gguf", tmp_path / "half", to="hf.f16")

    def stop(*_: Any) -> None:
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        subbyte.convert(source, tmp_path / "stopped", to="hf.bf16", progress=stop)
    left = ["stopped.subbyte-journal", "stopped.subbyte-part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.gguf", "full", *left]
    subbyte.convert(source, tmp_path / "stopped", to="hf.bf16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.gguf", "full", "stopped"]


def test_refusals(tmp_path: Path) -> None:
    source = CONVERT / "tiny-llama-bf16.gguf"
    with pytest.raises(subbyte.ArgumentError, match=r"hf\.q4_0"):
        subbyte.convert(source, tmp_path / "o", to="hf.q4_0")
    with pytest.raises(subbyte.ArgumentError, match="options for GGUF"):
        subbyte.convert(source, tmp_path / "o", to="hf.bf16", pure=True)
    with pytest.raises(subbyte.Error, match="strict"):
        subbyte.convert(source, tmp_path / "o", to="hf.bf16", strict=True)
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "mamba"}, {"a": np.ones(4, np.float32)})
    with pytest.raises(subbyte.UnsupportedError, match=r"'mamba'.*known: llama"):
        subbyte.convert(tmp_path / "a.gguf", tmp_path / "o", to="hf.bf16")
    write_gguf(tmp_path / "b.gguf", {"general.architecture": "llama"}, {"a": np.ones(4, np.float32)})
    with pytest.raises(subbyte.FormatError, match="block_count"):
        subbyte.convert(tmp_path / "b.gguf", tmp_path / "o", to="hf.bf16")


@pytest.mark.parametrize("original", [8192, 64, 4096])
def test_llama3_scaling_is_found_again(original: int) -> None:
    fields = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": original}  # fmt: skip
    factors = llama3_frequency_factors({"rope_scaling": fields, "rope_theta": 500000.0}, 128)
    assert factors is not None
    assert llama3_parameters(factors, 500000.0, 128) == fields
    assert llama3_parameters(np.linspace(1, 9, 64, dtype=np.float32), 500000.0, 128) is None


@pytest.mark.parametrize("source", [CONVERT / "tiny-bert", CONVERT / "tiny-qwen2", SMALL_LLAMA], ids=lambda p: p.name)
def test_tokenizers_encode_as_before(tmp_path: Path, source: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    subbyte.convert(source, tmp_path / "m.gguf", to="gguf.f32")
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "m", to="hf.f32")
    before = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    after = tokenizers.Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    for text in TEXTS:
        assert after.encode(text).ids == before.encode(text).ids, text
        ids = before.encode(text, add_special_tokens=False).ids
        assert after.decode(ids) == before.decode(ids)


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE: the neighbours with the best score become one, the leftmost first."""
    parts = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            return parts
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_merges_in_the_order_of_its_scores(prefix: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    metadata = dict(GgufFile(CONVERT / "tiny-llama-bf16.gguf").metadata)
    metadata["tokenizer.ggml.add_space_prefix"] = prefix
    restored = restore_tokenizer(metadata)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(restored.tokenizer))
    texts = list(metadata["tokenizer.ggml.tokens"])
    scores = np.asarray(metadata["tokenizer.ggml.scores"]).tolist()
    kinds = np.asarray(metadata["tokenizer.ggml.token_type"]).tolist()
    known = {text: score for text, score, kind in zip(texts, scores, kinds, strict=True) if kind == 1}
    assert sum(len(text) > 1 for text in known) > 10
    rng = np.random.default_rng(1)
    words = [text.replace("\u2581", " ") for text in known]
    for _ in range(200):
        text = "".join(rng.choice(words, 12))
        blank = ("\u2581" if prefix else "") + text.replace(" ", "\u2581")
        want = [texts.index(part) for part in merged(blank, known)]
        assert tokenizer.encode(text).ids == [1, *want]
    assert tokenizer.encode("\u4e2d").ids[-3:] == [texts.index(f"<0x{byte:02X}>") for byte in "\u4e2d".encode()]


def test_equal_scores_are_warned_about() -> None:
    metadata = dict(GgufFile(CONVERT / "tiny-llama-bf16.gguf").metadata)
    metadata["tokenizer.ggml.scores"] = np.full(300, -1000, np.float32)
    restored = restore_tokenizer(metadata)
    assert any("order of merges is lost" in warning for warning in restored.warnings)
    assert restored.tokenizer is not None
    assert restored.tokenizer["model"]["merges"]
    assert restored.settings["bos_token"] == "<s>"
    assert "chat_template" in restored.settings


def test_vocabularies_that_cannot_be_restored_are_warned_about() -> None:
    for metadata, match in (
        ({}, "no vocabulary"),
        ({"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a"]}, "'t5'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.pre": "new"}, "'new'"),
    ):
        restored = restore_tokenizer(metadata)
        assert restored.tokenizer is None
        assert any(match in warning for warning in restored.warnings)
    with pytest.raises(subbyte.FormatError, match="token_type"):
        restore_tokenizer({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"],
                           "tokenizer.ggml.token_type": np.array([], np.int32)})  # fmt: skip
    with pytest.raises(subbyte.FormatError, match="merges"):
        restore_tokenizer({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"],
                           "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["ab"]})  # fmt: skip
