"""Architectures: whole files of the original converter, and small checkpoints against formulas written down here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import subbyte
from checkpoints import (
    CONFIG,
    CONVERT,
    DENSE,
    EXPERTS,
    GOLDEN,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    MOE,
    attention,
    checkpoint,
    deepseek_v3,
    gemma3,
    llama_tensors,
    mixtral,
    qwen3,
    qwen3_moe,
    tensors,
)
from subbyte.io.gguf import GgufFile
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.planning.plan import make_plan


def converted(folder: Path, to: str = "gguf.f32", **options: Any) -> GgufFile:
    """The GGUF file made of it; nothing but the missing tokenizer may be warned about."""
    out = folder.parent / f"{folder.name}.gguf"
    report = subbyte.convert(folder, out, to=to, **options)
    assert all("no tokenizer.model" in warning for warning in report.warnings), report.warnings
    assert make_plan(folder, to, **options).nbytes == out.stat().st_size
    return GgufFile(out)


def same(got: np.ndarray, want: np.ndarray) -> bool:
    return got.shape == want.shape and np.array_equal(got, want.astype(got.dtype))


def facts(file: GgufFile) -> dict[str, Any]:
    """The architecture's keys without its name."""
    arch = file.metadata["general.architecture"]
    return {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items() if k.startswith(f"{arch}.")}


def rotated(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves as neighbours, one row at a time."""
    half = len(matrix) // heads // 2
    rows = [h * 2 * half + part * half + i for h in range(heads) for i in range(half) for part in (0, 1)]
    return matrix[rows]


# What the files beside the originals' checkpoints say otherwise: names of folders that were other ones when the
# originals ran, and the pre-tokenizer, which was put in by hand.
DIFFERENT = {
    "tiny-bert": {"tokenizer.ggml.pre"},
    "tiny-qwen2": {"tokenizer.ggml.pre"},
    "tiny-gemma2": set(),
    "tiny-gptoss": {"general.name"},
    "tiny-phi3": {"general.name"},
    "tiny-deepseek2": {"general.name"},
    "tiny-qwen2moe": {"general.name"},
}


@pytest.mark.parametrize(
    ("model", "want", "to"),
    [
        ("tiny-bert", "tiny-bert-f16.gguf", "gguf.f16"),
        ("tiny-qwen2", "tiny-qwen2-f16.gguf", "gguf.f16"),
        ("tiny-gemma2", "tiny-gemma2-f16.gguf", "gguf.f16"),
        ("tiny-gptoss", "tiny-gptoss.gguf", "gguf"),
        ("tiny-gptoss", "tiny-gptoss.gguf", "gguf.f32"),
        ("tiny-phi3", "tiny-phi3.gguf", "gguf.f32"),
        ("tiny-deepseek2", "tiny-deepseek2.gguf", "gguf.f32"),
        ("tiny-qwen2moe", "tiny-qwen2moe.gguf", "gguf.f32"),
    ],
)
def test_metadata_and_tensors_equal_those_of_the_original_converter(
    tmp_path: Path, model: str, want: str, to: str
) -> None:
    report = subbyte.convert(CONVERT / model, tmp_path / "out.gguf", to=to)
    assert report.warnings == ()
    got, theirs = GgufFile(tmp_path / "out.gguf"), GgufFile(CONVERT / want)
    assert list(got) == list(theirs)
    for name, tensor in theirs.items():
        assert (got[name].type, got[name].shape) == (tensor.type, tensor.shape)
        assert got.raw(name).tobytes() == theirs.raw(name).tobytes(), name
    if model != "tiny-phi3":  # there the original writes one key earlier, while it makes the rotary tensors
        assert list(got.metadata) == list(theirs.metadata)
    assert got.metadata.keys() == theirs.metadata.keys()
    assert got.metadata_types == theirs.metadata_types
    differing = {k for k, v in theirs.metadata.items() if not np.array_equal(np.array(got.metadata[k]), np.array(v))}
    assert differing == DIFFERENT[model]
    assert got.metadata["tokenizer.ggml.pre"] in ("default", "gpt-2")


def test_mixtral_stacks_its_experts(tmp_path: Path) -> None:
    data, config = mixtral()
    file = converted(checkpoint(tmp_path / "m", data, **config))
    for n in range(2):
        for w, part in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            stack = [data[f"model.layers.{n}.block_sparse_moe.experts.{e}.{w}.weight"] for e in range(EXPERTS)]
            assert same(file.array(f"blk.{n}.ffn_{part}_exps.weight"), np.stack(stack))
        gate = data[f"model.layers.{n}.block_sparse_moe.gate.weight"]
        assert same(file.array(f"blk.{n}.ffn_gate_inp.weight"), gate)
        q = data[f"model.layers.{n}.self_attn.q_proj.weight"]
        assert same(file.array(f"blk.{n}.attn_q.weight"), rotated(q, HEADS))
    assert file.metadata["general.architecture"] == "llama"
    assert facts(file) | {"expert_count": 4, "expert_used_count": 2} == facts(file)
    assert file.metadata["general.size_label"].startswith("4x")
    assert converted(checkpoint(tmp_path / "q", data, **config), "gguf.q8_0")["blk.0.ffn_up_exps.weight"].type == "Q8_0"
    mixed = converted(checkpoint(tmp_path / "k", data, **config), "gguf.q4_0")
    assert mixed["blk.0.ffn_gate_inp.weight"].type == "F32"
    assert mixed["blk.1.ffn_down_exps.weight"].type == "Q4_0"


def test_mistral_is_a_llama_with_its_own_defaults(tmp_path: Path) -> None:
    data = tensors(attention() | DENSE)
    file = converted(
        checkpoint(tmp_path / "m", data, model_type="mistral", max_position_embeddings=None, rms_norm_eps=None)
    )
    assert file.metadata["general.architecture"] == "llama"
    assert facts(file)["context_length"] == 131072
    k = data["model.layers.1.self_attn.k_proj.weight"]
    assert same(file.array("blk.1.attn_k.weight"), rotated(k, KV_HEADS))
    assert same(file.array("blk.1.attn_v.weight"), data["model.layers.1.self_attn.v_proj.weight"])


def test_qwen3_keeps_rotary_halves_and_has_norms_of_heads(tmp_path: Path) -> None:
    data, config = qwen3(32, ml_dtypes.bfloat16)
    file = converted(checkpoint(tmp_path / "m", data, **config), "gguf.bf16")
    for n in range(2):
        for x in "qkv":
            raw = file.raw(f"blk.{n}.attn_{x}.weight")
            assert raw.tobytes() == data[f"model.layers.{n}.self_attn.{x}_proj.weight"].tobytes()
        for x in "qk":
            norm = data[f"model.layers.{n}.self_attn.{x}_norm.weight"].astype(np.float32)
            assert same(file.array(f"blk.{n}.attn_{x}_norm.weight"), norm)
    assert facts(file) | {"attention.key_length": 32, "attention.value_length": 32} == facts(file)
    assert not {"vocab_size", "rope.dimension_count"} & facts(file).keys()


@pytest.mark.parametrize("fused", [False, True])
def test_qwen3_mixture(tmp_path: Path, fused: bool) -> None:
    data, config = qwen3_moe(fused=fused)
    file = converted(checkpoint(tmp_path / "m", data, **config))
    for part in ("gate", "up", "down"):
        if not fused:
            names = [f"model.layers.1.mlp.experts.{e}.{part}_proj.weight" for e in range(EXPERTS)]
            want = np.stack([data[name] for name in names])
        elif part == "down":
            want = data["model.layers.1.mlp.experts.down_proj"]
        else:
            halves = data["model.layers.1.mlp.experts.gate_up_proj"]
            want = halves[:, :MOE] if part == "gate" else halves[:, MOE:]
        assert same(file.array(f"blk.1.ffn_{part}_exps.weight"), want)
    assert facts(file) | {"expert_feed_forward_length": MOE, "expert_count": EXPERTS} == facts(file)
    assert "expert_shared_feed_forward_length" not in facts(file)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("multimodal", [False, True])
def test_gemma3_adds_one_to_its_norms(tmp_path: Path, dtype: Any, multimodal: bool) -> None:
    data, config = gemma3(dtype)
    config |= {"tie_word_embeddings": None, "rope_theta": None}
    stored = data
    if multimodal:
        text = {key: value for key, value in (CONFIG | config).items() if value is not None}
        config = dict.fromkeys(CONFIG) | {"model_type": "gemma3", "text_config": text}
        stored = {f"language_model.{name}": value for name, value in data.items()}
        stored |= {"vision_tower.layers.0.weight": np.ones((4, 4), np.float32),
                   "multi_modal_projector.mm_soft_emb_norm.weight": np.ones(4, np.float32)}  # fmt: skip
    file = converted(checkpoint(tmp_path / "m", stored, **config))
    step = np.float16 if dtype == np.float16 else np.float32
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    }  # fmt: skip
    for source, target in names.items():
        want = data[f"model.layers.1.{source}.weight"].astype(step) + step(1)
        assert same(file.array(f"blk.1.{target}.weight"), want.astype(np.float32))
    q = data["model.layers.0.self_attn.q_proj.weight"].astype(np.float32)
    assert same(file.array("blk.0.attn_q.weight"), q)
    assert len(file) == len(data)
    want_keys = {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.sliding_window": 16,
                 "attention.key_length": 16}  # fmt: skip
    assert facts(file) | want_keys == facts(file)


def test_gemma3_embedding_ends_with_the_vocabulary(tmp_path: Path) -> None:
    data, config = gemma3()
    data["model.embed_tokens.weight"] = np.ones((400, HIDDEN), np.float32)
    folder = checkpoint(tmp_path / "m", data, **config, vocab_size=300, tie_word_embeddings=None)
    shutil.copy(CONVERT / "tiny-gemma2" / "tokenizer.model", folder)
    report = subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.f32")
    file = GgufFile(tmp_path / "out.gguf")
    assert file["token_embd.weight"].shape == (300, HIDDEN)
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 300
    assert file.metadata["tokenizer.ggml.add_space_prefix"] is False
    assert report.warnings == ()


def test_unquantized_gpt_oss_experts_change_axes(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-gptoss"
    folder.mkdir()
    config = json.loads((CONVERT / "tiny-gptoss" / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(3)
    source = SafetensorsFile(CONVERT / "tiny-gptoss")
    data = {name: source.array(name) for name in source if not name.endswith(("_blocks", "_scales"))}
    for n in range(2):
        data[f"model.layers.{n}.mlp.experts.gate_up_proj"] = rng.standard_normal((4, 64, 192)).astype(np.float32)
        data[f"model.layers.{n}.mlp.experts.down_proj"] = rng.standard_normal((4, 96, 64)).astype(np.float32)
    write_safetensors(folder / "model.safetensors", data)
    file = converted(folder)
    for n in range(2):
        gate_up = data[f"model.layers.{n}.mlp.experts.gate_up_proj"]
        assert same(file.array(f"blk.{n}.ffn_gate_exps.weight"), gate_up[:, :, 0::2].transpose(0, 2, 1))
        assert same(file.array(f"blk.{n}.ffn_up_exps.weight"), gate_up[:, :, 1::2].transpose(0, 2, 1))
        down = data[f"model.layers.{n}.mlp.experts.down_proj"]
        assert same(file.array(f"blk.{n}.ffn_down_exps.weight"), down.transpose(0, 2, 1))
    assert file.metadata["general.file_type"] == 0


def test_mxfp4_experts_keep_their_codes_whatever_the_floats_become(tmp_path: Path) -> None:
    theirs = GgufFile(CONVERT / "tiny-gptoss.gguf")
    for to, dense in (("gguf.bf16", "BF16"), ("gguf.f16", "F16"), ("gguf.q8_0", "Q8_0"), ("gguf.mxfp4_moe", "Q8_0")):
        subbyte.convert(CONVERT / "tiny-gptoss", tmp_path / "out.gguf", to=to, overwrite=True)
        file = GgufFile(tmp_path / "out.gguf")
        assert file["blk.0.attn_q.weight"].type == dense
        for part in ("gate", "up", "down"):
            name = f"blk.1.ffn_{part}_exps.weight"
            assert file[name].type == "MXFP4"
            assert file.raw(name).tobytes() == theirs.raw(name).tobytes()
    with pytest.raises(subbyte.ArgumentError, match="MXFP4 to"):
        subbyte.convert(CONVERT / "tiny-gptoss", tmp_path / "k.gguf", to="gguf.q4_k_m")


def test_the_own_type_is_kept_tensor_by_tensor(tmp_path: Path) -> None:
    data = llama_tensors(ml_dtypes.bfloat16)
    data["lm_head.weight"] = data["lm_head.weight"].astype(np.float32)
    file = converted(checkpoint(tmp_path / "m", data, model_type="qwen2"), "gguf")
    assert file["output.weight"].type == "F32"
    assert file["blk.0.attn_q.weight"].type == "BF16"
    assert file["blk.0.attn_norm.weight"].type == "F32"


def test_deepseek_v3(tmp_path: Path) -> None:
    data, config = deepseek_v3()
    data["model.layers.2.eh_proj.weight"] = np.ones((4, 4), np.float32)
    folder = checkpoint(tmp_path / "m", data, **config)
    file = converted(folder)
    for n in range(2):
        kv_b = data[f"model.layers.{n}.self_attn.kv_b_proj.weight"]
        for h in range(HEADS):
            own = kv_b[h * 40 : (h + 1) * 40]
            assert same(file.array(f"blk.{n}.attn_k_b.weight")[h], own[:16].T)
            assert same(file.array(f"blk.{n}.attn_v_b.weight")[h], own[16:])
    bias = data["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert same(file.array("blk.1.exp_probs_b.bias"), bias)
    assert "blk.1.ffn_up.weight" not in file
    assert facts(file) | {
        "expert_gating_func": 2, "leading_dense_block_count": 1, "attention.q_lora_rank": 40,
        "attention.head_count_kv": 1, "attention.key_length": 56, "attention.key_length_mla": 24,
        "expert_weights_norm": True, "expert_group_count": 8, "expert_weights_scale": 2.5, "expert_shared_count": 1,
    } == facts(file)  # fmt: skip
    assert facts(file)["rope.scaling.yarn_log_multiplier"] == np.float32(0.1)
    left = subbyte.convert(folder, tmp_path / "again.gguf", to="gguf.f32").left_out
    assert [name for name, _ in left] == ["model.layers.2.eh_proj.weight"]


def test_bert_of_older_checkpoints(tmp_path: Path) -> None:
    source = SafetensorsFile(CONVERT / "tiny-bert")
    data = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
        source.array(name) for name in source
    }  # fmt: skip
    data["cls.predictions.bias"] = np.ones(300, np.float32)
    shutil.copytree(CONVERT / "tiny-bert", tmp_path / "tiny-bert")
    (tmp_path / "tiny-bert" / "model.safetensors").unlink()
    write_safetensors(tmp_path / "tiny-bert" / "model.safetensors", data)
    report = subbyte.convert(tmp_path / "tiny-bert", tmp_path / "old.gguf", to="gguf.f32")
    subbyte.convert(CONVERT / "tiny-bert", tmp_path / "new.gguf", to="gguf.f32")
    old, new = GgufFile(tmp_path / "old.gguf"), GgufFile(tmp_path / "new.gguf")
    assert set(old) == set(new)
    assert all(old.raw(name).tobytes() == new.raw(name).tobytes() for name in new)
    assert {name for name, _ in report.left_out} == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.predictions.bias"
    }  # fmt: skip


def test_phi3_without_scaling(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in attention().items() if "_proj" not in name or "o_proj" in name}
    shapes |= {
        "model.layers.N.self_attn.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * 16, HIDDEN),
        "model.layers.N.mlp.gate_up_proj.weight": (2 * INNER, HIDDEN),
        "model.layers.N.mlp.down_proj.weight": (HIDDEN, INNER),
    }
    data = tensors(shapes)
    file = converted(checkpoint(tmp_path / "m", data, model_type="phi3", partial_rotary_factor=0.5))
    assert same(file.array("blk.0.ffn_up.weight"), data["model.layers.0.mlp.gate_up_proj.weight"])
    assert facts(file) | {"rope.dimension_count": 8, "attention.sliding_window": 0} == facts(file)
    assert not any(name.startswith("rope_factors") for name in file)
    broken = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    with pytest.raises(subbyte.FormatError, match="long_factor: expected 8"):
        subbyte.convert(checkpoint(tmp_path / "b", data, model_type="phi3", rope_scaling=broken), tmp_path / "b.gguf",
                        to="gguf.f32")  # fmt: skip


def test_any_chunk_of_rows_is_the_same_part_of_the_whole(tmp_path: Path) -> None:
    data, config = deepseek_v3()
    sources = [CONVERT / "tiny-gptoss", CONVERT / "tiny-gemma2", checkpoint(tmp_path / "m", data, **config)]
    for source in sources:
        for tensor in make_plan(source, "gguf.f32").tensors:
            recipe = tensor.recipe
            whole = recipe.read(0, recipe.rows)
            for step in (1, 7, 50):
                if recipe.rows > 5 * step or step == 50:
                    stops = range(0, recipe.rows, step)
                    parts = [recipe.read(start, min(start + step, recipe.rows)) for start in stops]
                    assert np.array_equal(np.concatenate(parts), whole), tensor.name


def test_every_element_is_found_in_the_source(tmp_path: Path) -> None:
    data, config = deepseek_v3()
    rng = np.random.default_rng(5)
    for source in (CONVERT / "tiny-llama", CONVERT / "tiny-gptoss", checkpoint(tmp_path / "m", data, **config)):
        for tensor in make_plan(source, "gguf.f32").tensors:
            recipe = tensor.recipe
            size = recipe.content.row_bytes // recipe.columns  # less than one for blocks, whose place is their scale's
            for row, column in zip(
                rng.integers(recipe.rows, size=9), rng.integers(recipe.columns, size=9), strict=True
            ):
                stored, at_row, at_column = recipe.content.place(int(row), int(column))
                found = stored.read(at_row, at_row + 1)[0]
                if size:
                    want = recipe.read(row, row + 1)[0, column * size :][:size]
                    assert np.array_equal(found[at_column * size :][:size], want), (tensor.name, row, column)
                else:
                    assert found[at_column] == recipe.read(row, row + 1)[0, column // 32 * 17], (tensor.name, row)


def test_incomplete_and_contradictory_mixtures_are_refused(tmp_path: Path) -> None:
    data, config = qwen3_moe()
    lacking = dict(data)
    del lacking["model.layers.0.mlp.experts.2.up_proj.weight"]
    other = dict(data)
    other["model.layers.0.mlp.experts.2.up_proj.weight"] = np.ones((MOE + 1, HIDDEN), np.float32)
    further = data | {"model.layers.0.mlp.experts.4.up_proj.weight": np.ones((MOE, HIDDEN), np.float32)}
    fused = {name: value for name, value in data.items() if ".experts." not in name}
    fused["model.layers.0.mlp.experts.gate_up_proj"] = np.ones((EXPERTS, MOE, HIDDEN), np.float32)
    cases = ((lacking, "expert 2 of 4 is missing"), (other, "differ"), (further, "has 4 experts"), (fused, "implies"))
    for at, (broken, match) in enumerate(cases):
        with pytest.raises(subbyte.FormatError, match=match):
            subbyte.convert(checkpoint(tmp_path / str(at), broken, **config), tmp_path / "out.gguf", to="gguf.f32")


def test_the_pre_tokenizer_can_be_named(tmp_path: Path) -> None:
    report = subbyte.convert(CONVERT / "tiny-qwen2", tmp_path / "out.gguf", to="gguf.f16", pre="qwen2")
    assert report.warnings == ()
    assert GgufFile(tmp_path / "out.gguf").metadata["tokenizer.ggml.pre"] == "qwen2"
    assert (tmp_path / "out.gguf").read_bytes() == (CONVERT / "tiny-qwen2-f16.gguf").read_bytes()
    report = subbyte.convert(CONVERT / "tiny-qwen2", tmp_path / "o.gguf", to="gguf.f16", pre="no-such-rule")
    assert any("no-such-rule" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "file",
    ["convert/tiny-llama-q8_0.gguf", "convert/tiny-gptoss.gguf", "convert/tiny-bert-f16.gguf",
     "quantized/tiny-llama.Q4_K_M.gguf", "quantized/tiny-llama.IQ4_NL-imdat.gguf"],
)  # fmt: skip
def test_a_gguf_file_without_another_type_is_copied(tmp_path: Path, file: str) -> None:
    report = subbyte.convert(GOLDEN / file, tmp_path / "out.gguf", to="gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (GOLDEN / file).read_bytes()
    assert {row.kind for row in report.tensors} == {"exact"}


def test_shifted_norms_are_reported_as_rounded() -> None:
    kinds = {tensor.name: tensor.kind for tensor in make_plan(CONVERT / "tiny-gemma2", "gguf.bf16").tensors}
    assert kinds["blk.0.attn_norm.weight"] == "rounded"
    assert kinds["blk.0.attn_q.weight"] == "exact"


def test_roberta_positions_begin_with_the_first_that_is_used(tmp_path: Path) -> None:
    plain = SafetensorsFile(CONVERT / "tiny-bert")
    data = {name: plain.array(name) for name in plain}
    name = next(name for name in data if name.endswith("position_embeddings.weight"))
    config = json.loads((CONVERT / "tiny-bert" / "config.json").read_text())
    unused = np.full((2, data[name].shape[1]), 7, data[name].dtype)
    padded = data | {name: np.concatenate([unused, data[name]])}
    padded = {f"roberta.{name}": array for name, array in padded.items()} | {"lm_head.bias": np.ones(3, np.float32)}
    positions = len(data[name]) + 2
    roberta = {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": positions}
    subbyte.convert(checkpoint(tmp_path / "m", data, **config), tmp_path / "bert.gguf", to="gguf.f32")
    subbyte.convert(checkpoint(tmp_path / "n", padded, **config | roberta), tmp_path / "roberta.gguf", to="gguf.f32")
    want, got = GgufFile(tmp_path / "bert.gguf"), GgufFile(tmp_path / "roberta.gguf")
    assert {name: got.raw(name).tobytes() for name in got} == {name: want.raw(name).tobytes() for name in want}
    assert got.metadata["bert.context_length"] == positions - 2 == want.metadata["bert.context_length"]
    with pytest.raises(subbyte.FormatError, match="pad_token_id"):
        subbyte.plan(checkpoint(tmp_path / "bad", padded, **config | roberta | {"pad_token_id": -1}), to="gguf")
