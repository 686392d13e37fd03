"""Conversion to GGUF: bytes of the original programs, refusals, bounded memory, nothing incomplete."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte.arch.base import interleave_heads
from subbyte.io.gguf import GgufFile, GgufValue, GgufWriter, write_gguf
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.planning.mix import FILE_TYPES
from subbyte.planning.plan import make_plan

TINY = GOLDEN / "convert" / "tiny-llama"
NEED_IMPORTANCE = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ1_S", "IQ1_M", "Q2_K_S"]


@pytest.mark.parametrize(
    ("source", "want", "options"),
    [
        ("convert/tiny-llama", "convert/tiny-llama-bf16.gguf", {"to": "gguf.bf16"}),
        ("convert/tiny-llama", "convert/tiny-llama-bf16.gguf", {"to": "gguf"}),
        ("convert/tiny-llama", "convert/tiny-llama-q8_0.gguf", {"to": "gguf.q8_0"}),
        ("convert/tiny-llama", "quantized/tiny-llama.Q4_K_M.gguf", {"to": "gguf.q4_k_m"}),
        ("convert/tiny-llama-bf16.gguf", "quantized/tiny-llama.Q4_K_M.gguf", {"to": "gguf.q4_k"}),
        (
            "convert/tiny-qwen2-f16.gguf",
            "quantized/tiny-qwen2.Q8_0-pure.gguf",
            {"to": "gguf.q5_0", "pure": True, "token_embedding_type": "q8_0"},
        ),
    ],
)
def test_the_whole_file_equals_that_of_the_original_programs(
    tmp_path: Path, source: str, want: str, options: dict
) -> None:
    report = subbyte.convert(GOLDEN / source, tmp_path / "out.gguf", **options)
    assert (tmp_path / "out.gguf").read_bytes() == (GOLDEN / want).read_bytes()
    assert report.warnings == ()
    assert report.nbytes == (GOLDEN / want).stat().st_size


def test_plan_knows_the_size_from_headers_alone(tmp_path: Path) -> None:
    for target in ("gguf.f32", "gguf.q2_k", "gguf.q8_0"):
        plan = make_plan(SMALL_LLAMA, target)
        assert not (tmp_path / target).exists()
        subbyte.convert(SMALL_LLAMA, tmp_path / target, to=target)
        assert plan.nbytes == (tmp_path / target).stat().st_size


def test_recipes_hold_byte_ranges_of_the_source() -> None:
    plan = make_plan(TINY, "gguf.bf16")
    data = (TINY / "model.safetensors").read_bytes()
    for tensor in plan.tensors:
        if tensor.name == "rope_freqs.weight":
            assert tensor.recipe.ranges == []
            continue
        (place,) = tensor.recipe.ranges
        if "attn_q" not in tensor.name and "attn_k" not in tensor.name:
            assert tensor.recipe.read(0, tensor.recipe.rows).tobytes() == data[place.offset :][: place.nbytes]


def test_any_chunk_size_gives_the_same_rows() -> None:
    (tensor,) = (t for t in make_plan(TINY, "gguf.bf16").tensors if t.name == "blk.0.attn_q.weight")
    whole = tensor.recipe.read(0, 64)
    for step in (1, 3, 16, 63):
        parts = [tensor.recipe.read(i, min(i + step, 64)) for i in range(0, 64, step)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(whole, tensor.recipe.content.source.read(0, 64)[interleave_heads(64, 4)])


def test_interleaving_puts_the_halves_of_a_head_side_by_side() -> None:
    assert interleave_heads(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(subbyte.FormatError, match="heads"):
        interleave_heads(6, 2)


def test_biases_are_interleaved_like_their_weights(tmp_path: Path) -> None:
    bias = np.arange(64, dtype=np.float32)
    tensors = llama_tensors() | {"model.layers.0.self_attn.q_proj.bias": bias}
    subbyte.convert(checkpoint(tmp_path / "m", tensors), tmp_path / "out.gguf", to="gguf.f16")
    got = GgufFile(tmp_path / "out.gguf").array("blk.0.attn_q.bias")
    assert got.dtype == np.float32
    assert np.array_equal(got, bias[interleave_heads(64, 4)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_source_dtypes(tmp_path: Path, dtype: type) -> None:
    tensors = llama_tensors(dtype)
    report = subbyte.convert(checkpoint(tmp_path / "m", tensors), tmp_path / "out.gguf", to="gguf.f32")
    got = GgufFile(tmp_path / "out.gguf").array("blk.1.ffn_down.weight")
    assert np.array_equal(got, tensors["model.layers.1.mlp.down_proj.weight"].astype(np.float32))
    kinds = {row.kind for row in report.tensors}
    assert kinds == {np.float16: {"exact-value"}, np.float32: {"exact"}, np.float64: {"rounded"}}[dtype]


def test_a_mix_keeps_matrices_it_leaves_alone_in_the_checkpoints_type(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", llama_tensors(np.float16))
    subbyte.convert(source, tmp_path / "out.gguf", to="gguf.q6_k", tensor_type=["ffn_gate=f16"])
    got = {name: tensor.type for name, tensor in GgufFile(tmp_path / "out.gguf").items()}
    assert got["blk.0.attn_norm.weight"] == "F32"
    assert got["blk.0.ffn_gate.weight"] == "F16"
    assert got["blk.0.attn_q.weight"] == "Q8_0"  # Q6_K does not divide rows of 64


def test_sharded_checkpoints(tmp_path: Path) -> None:
    tensors = llama_tensors()
    whole = checkpoint(tmp_path / "a" / "m", tensors)
    parts = checkpoint(tmp_path / "b" / "m", tensors)
    (parts / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, chosen in shards.items():
        write_safetensors(parts / file, {name: tensors[name] for name in chosen})
    weight_map = {name: file for file, chosen in shards.items() for name in chosen}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for folder, out in ((whole, "1.gguf"), (parts, "2.gguf")):
        subbyte.convert(folder, tmp_path / out, to="gguf.q4_0")
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_llama3_rope_scaling_of_older_config_files(tmp_path: Path) -> None:
    config = json.loads((TINY / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = scaling
    old = tmp_path / "tiny-llama"
    shutil.copytree(TINY, old)
    (old / "config.json").write_text(json.dumps(config))
    subbyte.convert(old, tmp_path / "out.gguf", to="gguf.bf16")
    assert (tmp_path / "out.gguf").read_bytes() == (GOLDEN / "convert" / "tiny-llama-bf16.gguf").read_bytes()


@pytest.mark.parametrize(
    ("scaling", "want"),
    [
        ({"type": "linear", "factor": 4}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 32},
            {"type": "yarn", "factor": 2.0, "original_context_length": 64, "yarn_beta_fast": 32.0},
        ),
        ({"rope_type": "default"}, {}),
    ],
)
def test_rope_scaling_keys(tmp_path: Path, scaling: dict, want: Mapping) -> None:
    subbyte.convert(checkpoint(tmp_path / "m", rope_scaling=scaling), tmp_path / "out.gguf", to="gguf.f32")
    metadata = GgufFile(tmp_path / "out.gguf").metadata
    prefix = "llama.rope.scaling."
    assert {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)} == want


def test_defaults_of_the_model_type_are_filled_in(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", num_key_value_heads=2, rms_norm_eps=None, max_position_embeddings=None)
    subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.f32")
    metadata = GgufFile(tmp_path / "out.gguf").metadata
    assert metadata["llama.context_length"] == 2048
    assert metadata["llama.attention.key_length"] == 16
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    report = subbyte.convert(
        checkpoint(tmp_path / "m", tie_word_embeddings=True), tmp_path / "out.gguf", to="gguf.q4_k_m"
    )
    assert [name for name, _ in report.left_out] == ["lm_head.weight"]
    assert "output.weight" not in GgufFile(tmp_path / "out.gguf")
    assert not any("output.weight" in warning for warning in report.warnings)


def test_missing_and_unknown_tensors_and_tokenizer_are_warned_about(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.extra.weight"] = np.ones((2, 64), np.float16)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    folder = checkpoint(tmp_path / "m", tensors)
    report = subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.q8_0")
    text = "\n".join(report.warnings)
    assert "'blk.1.ffn_up.weight' is missing" in text
    assert "'model.layers.0.extra.weight': unknown" in text
    assert "no tokenizer.model" in text
    assert [name for name, _ in report.left_out] == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    written = GgufFile(tmp_path / "out.gguf")
    assert written["model.layers.0.extra.weight"].type == "F16"
    assert np.array_equal(written.array("model.layers.0.extra.weight"), tensors["model.layers.0.extra.weight"])
    with pytest.raises(subbyte.Error, match=r"strict.*extra.*blk\.1\.ffn_up\.weight"):
        subbyte.convert(folder, tmp_path / "strict.gguf", to="gguf.q8_0", strict=True)
    assert not (tmp_path / "strict.gguf").exists()


def test_a_shape_that_contradicts_the_config_is_warned_about(tmp_path: Path) -> None:
    report = subbyte.convert(checkpoint(tmp_path / "m", vocab_size=33), tmp_path / "out.gguf", to="gguf.f32")
    assert any("'token_embd.weight': shape (32, 64)" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "unheard_of"}, "unheard_of.*known: llama, mistral"),
        ({"model_type": None}, "model_type is missing"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"num_hidden_layers": "two"}, "expected a positive number"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_attention_heads": 3, "head_dim": 20}, "heads"),
        ({"quantization_config": {"quant_method": "eetq"}}, "eetq"),
        ({"quantization_config": "gptq"}, "gptq"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 0}}, "llama3"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, config: dict, match: str) -> None:
    folder = checkpoint(tmp_path / "m", **config)
    with pytest.raises(subbyte.Error, match=match):
        subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_settings_without_a_quantized_tensor_are_noted(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4})
    report = subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.f32")
    assert any("'gptq', but no tensor is quantized" in warning for warning in report.warnings)


@pytest.mark.parametrize("kind", ["dynamic", "weird", "longrope", 5])
def test_rotary_scaling_that_has_no_place_is_warned_about(tmp_path: Path, kind: object) -> None:
    source = checkpoint(tmp_path / "m", rope_parameters={"rope_type": kind, "factor": 2.0})
    report = subbyte.convert(source, tmp_path / "out.gguf", to="gguf.f32")
    found = [warning for warning in report.warnings if f"rotary scaling '{kind}'" in warning]
    assert len(found) == 1
    with pytest.raises(subbyte.Error, match=r"strict.*rotary scaling"):
        subbyte.convert(source, tmp_path / "strict.gguf", to="gguf.f32", strict=True)


def test_llama3_scaling_of_another_architecture_is_warned_about(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", model_type="qwen2", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    report = subbyte.convert(source, tmp_path / "out.gguf", to="gguf.f32")
    assert any("rotary scaling 'llama3' cannot be stored for qwen2" in warning for warning in report.warnings)


def test_a_rule_that_finds_nothing_is_warned_about(tmp_path: Path) -> None:
    rules = {"attn_q": "q5_0", "attn_norm": "f16", "no_such": "q5_0"}
    report = subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to="gguf.q8_0", tensor_type=rules)
    found = [warning for warning in report.warnings if "tensor_type" in warning]
    assert [warning.split("'")[1] for warning in found] == ["attn_norm=F16", "no_such=Q5_0"]
    with pytest.raises(subbyte.Error, match=r"strict.*no_such"):
        subbyte.convert(SMALL_LLAMA, tmp_path / "b.gguf", to="gguf.q8_0", tensor_type=["no_such=f16"], strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {"src": ""},
        {"src": "a\0b"},
        {"src": 5},
        {"dst": ""},
        {"dst": "a\0b"},
        {"to": None},
        {"to": 5},
        {"output_tensor_type": 5},
        {"output_tensor_type": ""},
        {"token_embedding_type": ["q8_0"]},
        {"tensor_type": 5},
        {"tensor_type": [5]},
        {"tensor_type": {"attn": None}},
        {"tensor_type": {5: "q8_0"}},
        {"imatrix": 5},
        {"imatrix": "a\0b"},
        {"pre": 5},
    ],
)
def test_arguments_of_wrong_types_are_refused(tmp_path: Path, options: dict) -> None:
    arguments = {"src": TINY, "dst": tmp_path / "out.gguf", "to": "gguf.q4_0"} | options
    with pytest.raises(subbyte.ArgumentError):
        subbyte.convert(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", "a\0b", 5])
def test_paths_that_are_none_are_refused(path: Any) -> None:
    good = GOLDEN / "convert" / "tiny-llama-q8_0.gguf"
    for call in (subbyte.open, subbyte.inspect, subbyte.verify, lambda path: subbyte.verify(good, path)):
        with pytest.raises(subbyte.ArgumentError, match="path"):
            call(path)


@pytest.mark.skipif(os.name != "posix", reason="needs names that are not UTF-8")
def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfebad")
    subbyte.convert(checkpoint(folder), tmp_path / "out.gguf", to="gguf.f32")
    assert GgufFile(tmp_path / "out.gguf").metadata["general.name"] == "\ufffd\ufffdbad".title()


def test_refused_targets(tmp_path: Path) -> None:
    for target in ("q4_k_m", "GGUF.Q4_K_M", "gguf.q4km", "ggufq4_k_m"):
        with pytest.raises(subbyte.ArgumentError, match=r"did you mean gguf\.q4_k_m"):
            subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=target)
    for target in ("gguf.", "", "nonsense"):
        with pytest.raises(subbyte.ArgumentError, match=r"expected one of gguf\.f32"):
            subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=target)
    for target, match in (("gguf.q9_k", "q9_k"), ("gguf.q8_1", "q8_1")):
        with pytest.raises(subbyte.ArgumentError, match=match):
            subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=target)
    with pytest.raises(subbyte.UnsupportedError, match="aqlm"):
        subbyte.convert(SMALL_LLAMA, tmp_path / "out", to="aqlm")
    for rule in ("attn_q", "(=q8_0", "attn_q=q8_1"):
        with pytest.raises(subbyte.ArgumentError):
            subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to="gguf.q8_0", tensor_type=[rule])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", NEED_IMPORTANCE)
def test_targets_that_need_importance_name_the_tensors(tmp_path: Path, target: str) -> None:
    with pytest.raises(subbyte.ArgumentError, match=r"importance.*'blk\.\d\.\w+\.weight'"):
        subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=f"gguf.{target.lower()}")


def test_requantizing_has_to_be_allowed(tmp_path: Path) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "a.gguf", to="gguf.q8_0")
    with pytest.raises(subbyte.ArgumentError, match=r"a second time.*Q8_0 to Q4_K"):
        subbyte.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", to="gguf.q4_k_m")
    report = subbyte.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", to="gguf.q4_k_m", lossy=True)
    assert {row.kind for row in report.tensors} == {"requantized", "exact"}
    back = subbyte.convert(tmp_path / "a.gguf", tmp_path / "c.gguf", to="gguf.f32")
    assert {row.kind for row in back.tensors} == {"exact-value", "exact"}
    same = subbyte.convert(tmp_path / "a.gguf", tmp_path / "d.gguf", to="gguf.q8_0")
    assert {row.kind for row in same.tensors} == {"exact"}


def test_metadata_of_a_gguf_source_is_carried_over(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "a.gguf",
        {
            "general.architecture": "llama",
            "general.alignment": np.uint32(128),
            "llama.block_count": 1,
            "llama.attention.head_count": np.array([4], np.int32),
            "note": "kept",
            "numbers": np.array([1, 2], np.int8),
        },
        {"output.weight": np.ones((4, 64), np.float32), "one.weight": np.ones((1, 64), np.float32)},
    )
    subbyte.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", to="gguf.q4_0")
    written = GgufFile(tmp_path / "b.gguf")
    assert list(written.metadata) == [
        "general.architecture", "llama.block_count", "llama.attention.head_count", "note", "numbers",
        "general.quantization_version", "general.file_type",
    ]  # fmt: skip
    assert written.metadata_types["numbers"] == "arr[i8]"
    assert written.alignment == 32
    assert written["one.weight"].shape == (64,)


def test_a_gguf_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subbyte.UnsupportedError, match="imatrix"):
        subbyte.convert(GOLDEN / "imatrix" / "tiny-llama.imatrix.gguf", tmp_path / "out.gguf", to="gguf.q8_0")


def test_non_finite_values_are_refused_by_place(tmp_path: Path) -> None:
    for target in ("gguf.q8_0", "gguf.f32"):
        tensors = llama_tensors()
        tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = np.nan
        with pytest.raises(subbyte.NonFiniteError) as caught:
            subbyte.convert(checkpoint(tmp_path / "m", tensors), tmp_path / "out.gguf", to=target)
        assert (caught.value.row, caught.value.column) == (5, 7)
        assert "down" in str(caught.value.tensor)
        assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_a_refusal_names_tensor_and_row_of_the_source(tmp_path: Path) -> None:
    tensors = llama_tensors(np.float64)
    tensors["model.layers.1.self_attn.q_proj.weight"][5, 40] = 1e30
    folder = checkpoint(tmp_path / "m", tensors)
    with pytest.raises(subbyte.NonFiniteError) as caught:
        subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.q8_0")
    assert caught.value.tensor == "model.layers.1.self_attn.q_proj.weight"
    assert caught.value.file == str(folder / "model.safetensors")
    assert (caught.value.row, caught.value.column) == (5, 32)
    assert "in 'blk.1.attn_q.weight' of the target" in str(caught.value)


def test_the_row_of_a_refusal_counts_from_the_start_of_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["subbyte.convert.units"], "CHUNK", 64 * 10)
    tensors = llama_tensors()
    tensors["model.layers.0.mlp.up_proj.weight"][95, 3] = np.inf
    with pytest.raises(subbyte.NonFiniteError) as caught:
        subbyte.convert(checkpoint(tmp_path / "m", tensors), tmp_path / "out.gguf", to="gguf.q4_0")
    assert (caught.value.row, caught.value.column) == (95, 3)


def test_the_chunk_size_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "a.gguf", to="gguf.q4_k_m")
    monkeypatch.setattr(sys.modules["subbyte.convert.units"], "CHUNK", 256 * 7)
    subbyte.convert(SMALL_LLAMA, tmp_path / "b.gguf", to="gguf.q4_k_m")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_source_is_never_written(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    os.link(folder / "model.safetensors", tmp_path / "alias.gguf")
    (tmp_path / "link.gguf").symlink_to(folder / "model.safetensors")
    for name in ("m/model.safetensors", "m/config.json", "alias.gguf", "link.gguf"):
        with pytest.raises(subbyte.ArgumentError, match="source"):
            subbyte.convert(folder, tmp_path / name, to="gguf.q8_0", overwrite=True)
    subbyte.convert(folder, tmp_path / "a.gguf", to="gguf.f16")
    with pytest.raises(subbyte.ArgumentError, match="source"):
        subbyte.convert(tmp_path / "a.gguf", tmp_path / "a.gguf", to="gguf.q8_0", overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_an_existing_file_is_replaced_only_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"precious")
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0")
    assert (tmp_path / "out.gguf").read_bytes() == b"precious"
    subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0", overwrite=True)
    assert GgufFile(tmp_path / "out.gguf").metadata["general.file_type"] == 7
    with pytest.raises(subbyte.ArgumentError, match="a folder"):
        subbyte.convert(TINY, tmp_path, to="gguf.q8_0", overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    pipe, link, dangling = tmp_path / "pipe", tmp_path / "link", tmp_path / "dangling"
    os.mkfifo(pipe)
    link.symlink_to(other)
    dangling.symlink_to(tmp_path / "nowhere")
    for target, match in ((pipe, "not a regular file"), (link, "symbolic link"), (dangling, "symbolic link")):
        for overwrite in (False, True):
            with pytest.raises(subbyte.ArgumentError, match=match):
                subbyte.convert(TINY, target, to="gguf.f32", overwrite=overwrite)
    assert other.read_text() == "precious"
    assert {entry.name for entry in tmp_path.iterdir()} == {"other", "pipe", "link", "dangling"}


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.gguf").write_text("precious")
    for target in ("file.gguf/a.gguf", "file.gguf/a/b.gguf"):
        with pytest.raises(subbyte.ArgumentError, match=r"file\.gguf' is not a folder"):
            subbyte.convert(TINY, tmp_path / target, to="gguf.f32", overwrite=True)


def test_too_little_space_is_found_before_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))  # type: ignore[attr-defined]
    with pytest.raises(subbyte.Error, match=r"116,384 bytes are needed.*100 are free"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0")
    assert not list(tmp_path.iterdir())


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0", progress=lambda *call: seen.append(call))
    assert seen[-1][0] == seen[-1][1] == sum(row.nbytes for row in report.tensors)
    assert [name for _, _, name in seen] == [row.name for row in report.tensors]


_PEAK = """
import resource, sys, subbyte, numpy
from subbyte.convert import convert
from pathlib import Path
convert(Path(sys.argv[1]) / "small", Path(sys.argv[1]) / "small.gguf", to="gguf.q8_0")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(Path(sys.argv[1]) / "large", Path(sys.argv[1]) / "large.gguf", to="gguf.q8_0")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    rows = 1 << 19  # an embedding of 128 MB
    large = llama_tensors() | {"model.embed_tokens.weight": np.ones((rows, 64), np.float32)}
    checkpoint(tmp_path / "small")
    checkpoint(tmp_path / "large", large, vocab_size=rows)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 48 << 10, f"{done.stdout} KiB more for a model of 128 MB"


def test_report(tmp_path: Path) -> None:
    report = subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to="gguf.q4_k_m")
    data = json.loads(json.dumps(report.to_json()))
    assert data["version"] == 1
    assert data["to"] == "gguf.q4_k_m"
    assert data["nbytes"] == (tmp_path / "out.gguf").stat().st_size
    (row,) = (row for row in data["tensors"] if row["name"] == "output.weight")
    assert (row["source_type"], row["type"], row["kind"]) == ("BF16", "Q6_K", "quantized")
    assert (row["source_nbytes"], row["nbytes"], row["bits_per_weight"]) == (4096 * 256 * 2, 4096 * 210, 6.5625)
    elements = sum(int(np.prod(row["shape"])) for row in data["tensors"])
    assert data["bits_per_weight"] == pytest.approx(8 * sum(row["nbytes"] for row in data["tensors"]) / elements)
    lines = report.table().splitlines()
    assert len(lines) == len(data["tensors"]) + 3
    assert "57 tensors" in lines[-1]


def test_every_tensor_of_the_example_is_written(tmp_path: Path) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to="gguf.bf16")
    assert len(GgufFile(tmp_path / "out.gguf")) == len(SafetensorsFile(SMALL_LLAMA)) == 57


@pytest.mark.parametrize("theta", [float("nan"), 10**400, 1e300, True, "x"])
def test_numbers_that_no_model_has(tmp_path: Path, theta: object) -> None:
    with pytest.raises(subbyte.Error, match=r"rope_theta|JSON"):
        subbyte.convert(checkpoint(tmp_path / "m", rope_theta=theta), tmp_path / "out.gguf", to="gguf.q8_0")


@pytest.mark.parametrize("name", [name for name in FILE_TYPES if name not in NEED_IMPORTANCE])
def test_every_file_type_that_needs_no_importance(tmp_path: Path, name: str) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=f"gguf.{name.lower()}")
    file = GgufFile(tmp_path / "out.gguf")
    assert file.metadata["general.file_type"] == FILE_TYPES[name].number
    assert FILE_TYPES[name].base in {tensor.type for tensor in file.values()} or name == "MXFP4_MOE"
    assert subbyte.verify(tmp_path / "out.gguf", SMALL_LLAMA).failures == ()


@pytest.mark.parametrize(
    "name", ["quantized/tiny-llama.Q4_K_M.gguf", "quantized/tiny-qwen2.Q8_0-pure.gguf", "convert/tiny-gptoss.gguf"]
)
def test_a_gguf_file_whose_target_is_gguf_is_copied_to_the_byte(tmp_path: Path, name: str) -> None:
    report = subbyte.convert(GOLDEN / name, tmp_path / "out.gguf", to="gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (GOLDEN / name).read_bytes()
    assert {row.kind for row in report.tensors} == {"exact"}


def test_a_copy_changes_only_the_tensors_it_is_told_to(tmp_path: Path) -> None:
    source = GOLDEN / "convert" / "tiny-llama-bf16.gguf"
    subbyte.convert(source, tmp_path / "out.gguf", to="gguf", tensor_type=["ffn_down=q8_0"])
    with GgufFile(source) as want, GgufFile(tmp_path / "out.gguf") as got:
        assert list(got) == list(want)
        for name, tensor in got.items():
            assert tensor.type == ("Q8_0" if "ffn_down" in name else want[name].type)
            assert "ffn_down" in name or got.raw(name).tobytes() == want.raw(name).tobytes()


def test_a_copy_keeps_the_alignment(tmp_path: Path) -> None:
    with GgufFile(GOLDEN / "convert" / "tiny-llama-bf16.gguf") as file:
        metadata = {key: GgufValue(file.metadata_types[key], value) for key, value in file.metadata.items()}
        metadata["general.alignment"] = GgufValue("u32", 128)
        layout = [(name, tensor.type, tensor.shape) for name, tensor in file.items()]
        with GgufWriter(tmp_path / "in.gguf", metadata, layout) as writer:
            for name in file:
                writer.write(name, file.raw(name))
    subbyte.convert(tmp_path / "in.gguf", tmp_path / "out.gguf", to="gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "in.gguf").read_bytes()
