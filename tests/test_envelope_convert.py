"""Conversions to and from subbyte's own checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import subbyte
from checkpoints import CONVERT, SMALL_LLAMA
from subbyte.io.gguf import GgufFile
from subbyte.io.safetensors import SafetensorsFile
from subbyte.routes.envelope import BLOCK_TYPES


def settings(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())["quantization_config"]


def assert_same_values(a: Path, b: Path) -> None:
    first, second = subbyte.open(a), subbyte.open(b)
    assert set(first) == set(second)
    for name, weight in first.items():
        assert np.array_equal(weight.decode(), second[name].decode(), equal_nan=True), name


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K", "IQ4_NL", "Q8_0", "NVFP4"])
def test_floats_become_blocks(tmp_path, type):
    to = f"subbyte.gguf.{type.lower()}"
    report = subbyte.convert(SMALL_LLAMA, tmp_path / "out", to=to)
    assert {row.kind for row in report.tensors} == {"quantized", "exact"}
    source, found = subbyte.open(SMALL_LLAMA), subbyte.open(tmp_path / "out")
    assert found.format == "subbyte"
    made = [weight for weight in found.values() if weight.format == f"gguf.{type.lower()}"]
    assert len(made) == 42
    for weight in made[:4]:
        encoded = subbyte.encode(weight.format, source[weight.name].decode())
        assert np.array_equal(weight.decode(), subbyte.decode(weight.format, encoded))
    own = settings(tmp_path / "out")
    assert own["default"] == {"format": f"gguf.{type.lower()}", "planes": ["blocks"]}
    assert own["layers"][made[0].name] == {"shape": list(made[0].shape)}
    assert "model.embed_tokens.weight" in own["dense"]


def test_a_gguf_file_keeps_its_blocks(tmp_path):
    subbyte.convert(SMALL_LLAMA, tmp_path / "m.gguf", to="gguf.q4_k_m")
    report = subbyte.convert(tmp_path / "m.gguf", tmp_path / "kept", to="subbyte")
    assert {row.kind for row in report.tensors} == {"exact"}
    assert {weight.format for weight in subbyte.open(tmp_path / "kept").values()} == {"gguf.q4_k", "gguf.q6_k", "f32"}
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "dense", to="hf.f32")
    assert_same_values(tmp_path / "kept", tmp_path / "dense")
    subbyte.convert(tmp_path / "kept", tmp_path / "back.gguf", to="gguf")
    before, after = GgufFile(tmp_path / "m.gguf"), GgufFile(tmp_path / "back.gguf")
    for name, tensor in before.items():
        assert after[name].type == tensor.type
        assert np.array_equal(after.raw(name), before.raw(name)), name


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors", "mlx"])
def test_a_checkpoint_keeps_its_planes(tmp_path, format):
    subbyte.convert(SMALL_LLAMA, tmp_path / "a", to=format)
    report = subbyte.convert(tmp_path / "a", tmp_path / "kept", to="subbyte")
    assert {row.kind for row in report.tensors} == {"exact"}
    assert {weight.format for weight in subbyte.open(tmp_path / "kept").values()} - {format} <= {"f32", "bf16", "f16"}
    assert_same_values(tmp_path / "a", tmp_path / "kept")
    subbyte.convert(tmp_path / "kept", tmp_path / "back", to="gptq.v2" if format == "gptq" else format)
    before, after = SafetensorsFile(tmp_path / "a"), SafetensorsFile(tmp_path / "back")
    assert set(before) == set(after)
    assert all(np.array_equal(before.raw(name), after.raw(name)) for name in before)
    subbyte.convert(SMALL_LLAMA, tmp_path / "direct", to=f"subbyte.{format}")
    assert_same_values(tmp_path / "kept", tmp_path / "direct")


def test_blocks_of_a_gguf_file_move_to_other_formats(tmp_path):
    subbyte.convert(SMALL_LLAMA, tmp_path / "m.gguf", to="gguf.q4_0", pure=True)
    report = subbyte.convert(tmp_path / "m.gguf", tmp_path / "gptq", to="gptq", lossy=True)
    assert {row.kind for row in report.tensors if ".mlp." in row.name} == {"exact"}
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "dense", to="hf.f32")
    assert_same_values(tmp_path / "gptq", tmp_path / "dense")
    subbyte.convert(SMALL_LLAMA, tmp_path / "k.gguf", to="gguf.q4_k_m")
    with pytest.raises(subbyte.ArgumentError, match="quantized already"):
        subbyte.convert(tmp_path / "k.gguf", tmp_path / "again", to="gptq")


def test_experts_whose_axes_are_exchanged(tmp_path):
    source = CONVERT / "tiny-gptoss"
    subbyte.convert(source, tmp_path / "kept", to="subbyte")
    assert_same_values(source, tmp_path / "kept")
    assert settings(tmp_path / "kept")["layers"]["model.layers.0.mlp.experts.down_proj"]["transposed"]
    subbyte.convert(source, tmp_path / "blocks", to="subbyte.gguf.mxfp4")
    assert_same_values(source, tmp_path / "blocks")
    subbyte.convert(tmp_path / "kept", tmp_path / "back", to="subbyte")
    assert settings(tmp_path / "back") == settings(tmp_path / "kept")


def test_targets_that_do_not_exist(tmp_path):
    for to in (
        "subbyte.gguf.iq2_xs",
        "subbyte.gguf.f16",
        "subbyte.subbyte",
        "subbyte.q4_k",
        "subbyte.",
        "subbyte.gguf",
    ):
        with pytest.raises(subbyte.UnsupportedError, match=f"'{to}'"):
            subbyte.convert(SMALL_LLAMA, tmp_path / "out", to=to)
    listed = {row["id"] for row in subbyte.list_formats() if row["use"] == "convert"}
    assert {"subbyte", *(f"subbyte.gguf.{type.lower()}" for type in BLOCK_TYPES)} <= listed
