"""Messages of refused conversions: they name what is wrong, where, and what to do instead."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import SMALL_LLAMA, checkpoint, llama_tensors
from subbyte.io.gguf import write_gguf

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "hf.f16", "bits": 4}, "'hf.f16' is a checkpoint folder of floats and has no setting 'bits'"),
        ({"to": "HF.BF16"}, "unknown target 'HF.BF16': did you mean hf.bf16?"),
        ({"to": "HF"}, "unknown target 'HF': did you mean hf?"),
        ({"to": "GPTQ"}, "unknown target 'GPTQ': did you mean gptq?"),
        ({"to": "compressed-tensors.FP8"}, "did you mean compressed-tensors.fp8?"),
        ({"to": "gguf.q8_0", "pre": "x\0"}, "pre: expected the name of a pre-tokenizer, found 'x\\x00'"),
    ],
)
def test_refused_arguments(options: dict[str, Any], says: str) -> None:
    with pytest.raises(subbyte.ArgumentError, match=re.escape(says)):
        subbyte.plan(SMALL_LLAMA, **options)


def test_targets_may_be_written_in_capitals_behind_their_family() -> None:
    assert subbyte.plan(SMALL_LLAMA, to="hf.BF16").plan.to == "hf.bf16"
    assert subbyte.plan(SMALL_LLAMA, to="gguf.Q8_0").plan.to == "gguf.q8_0"


@pytest.mark.parametrize("to", ["gguf.q8_0", "hf"])
def test_a_file_without_an_architecture(tmp_path: Path, to: str) -> None:
    write_gguf(tmp_path / "a.gguf", {}, {"x.weight": np.ones((2, 32), np.float32)})
    with pytest.raises(subbyte.Error, match=r"a\.gguf: .*general\.architecture: expected a string, found None"):
        subbyte.plan(tmp_path / "a.gguf", to=to)


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_scales_that_overflow_name_the_file_and_the_cause(tmp_path: Path, to: str) -> None:
    data = llama_tensors()
    data[QUERY] = data[QUERY].copy()
    data[QUERY][3, 5:7] = 1.7e38, -1.7e38
    source = checkpoint(tmp_path / "big", data)
    with pytest.raises(subbyte.NonFiniteError, match="too large for the format") as caught:
        subbyte.convert(source, tmp_path / "out", to=to, group_size=32)
    assert caught.value.file == str(source / "model.safetensors")
    assert caught.value.tensor == QUERY


def test_layers_of_an_odd_width_are_named(tmp_path: Path) -> None:
    plan = subbyte.plan(checkpoint(tmp_path / "m"), to="mlx", group_size=64)
    odd = [warning for warning in plan.plan.warnings if "stays floats" in warning]
    assert len(odd) == 2
    assert all("down_proj.weight" in warning for warning in odd)


def test_what_changed_since_the_target_was_made_is_named(tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "m"), tmp_path / "m.gguf"
    subbyte.convert(source, target, to="gguf.q8_0")
    os.utime(source / "model.safetensors")
    with pytest.raises(
        subbyte.ArgumentError, match=r"exists already, made with another source file model\.safetensors;"
    ):
        subbyte.convert(source, target, to="gguf.q8_0")
