"""Every file type on small-llama: bytes equal those of llama.cpp's quantizer, which runs both files alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model, differing, quantize

import subbyte
from checkpoints import SMALL_LLAMA
from subbyte.ggml import TYPES
from subbyte.imatrix import Entry, ImportanceMatrix, load_imatrix, save_imatrix
from subbyte.io.gguf import GgufFile
from subbyte.planning.mix import FILE_TYPES

TEXT = "Once upon a time"
#: Written by the converter alone; MXFP4_MOE is for mixtures of experts.
QUANTIZED = [name for name in FILE_TYPES if name not in ("F32", "F16", "BF16")]


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small-llama as an F16 file of ours."""
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    subbyte.convert(SMALL_LLAMA, path, to="gguf.f16")
    return path


@pytest.fixture(scope="module")
def importance(f16: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Made-up importance of every matrix but the embedding: a file, and the vectors in it."""
    random = np.random.default_rng(3)
    entries = {}
    with GgufFile(f16) as file:
        for name, tensor in file.items():
            if len(tensor.shape) == 2 and name != "token_embd.weight":
                sums = random.exponential(8.0, (1, tensor.shape[1])).astype(np.float32)
                entries[name] = Entry(sums, np.full(1, 8, np.float32))
    path = f16.parent / "importance.gguf"
    save_imatrix(path, ImportanceMatrix.of(entries, datasets=("made up",), chunk_count=1, chunk_size=8))
    data = load_imatrix(path)
    return path, {name: data.importance(name, 1, entries[name].sums.shape[1]) for name in entries}


def _same_run(ours: Path, theirs: Path) -> None:
    runs = []
    for path in (ours, theirs):
        with Model(path) as model:
            runs.append(model.greedy(model.tokenize(TEXT), 16))
    assert runs[0][0] == runs[1][0]
    assert np.isfinite(runs[0][1]).all()
    assert np.array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_bytes_tokens_and_logits_equal_those_of_llama_quantize(
    tmp_path: Path,
    f16: Path,
    importance: tuple[Path, dict[str, np.ndarray]],
    name: str,
    weighted: bool,
    note: Callable[[str, Any], None],
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    file, vectors = importance
    try:
        subbyte.convert(f16, ours, to=f"gguf.{name.lower()}", imatrix=file if weighted else None)
    except subbyte.ArgumentError:
        assert not weighted
        with pytest.raises(AssertionError):
            quantize(f16, theirs, FILE_TYPES[name].number)
        note(f"type {name} plain", "both refuse without importance data")
        return
    count = len(GgufFile(ours))
    if TYPES[FILE_TYPES[name].base].number in iter(gguf.GGMLQuantizationType):  # older releases lack the newest types
        assert len(gguf.GGUFReader(ours).tensors) == count
    if name == "NVFP4":  # llama.cpp runs it, its quantizer does not make it
        with Model(ours) as model:
            assert np.isfinite(model.greedy(model.tokenize(TEXT), 16)[1]).all()
        note(f"type {name}", "loads and runs; llama_model_quantize does not make it")
        return
    quantize(f16, theirs, FILE_TYPES[name].number, vectors if weighted else None)
    assert not differing(ours, theirs)
    assert list(GgufFile(ours)) == list(GgufFile(theirs))
    _same_run(ours, theirs)
    note(f"type {name} {'imatrix' if weighted else 'plain'}", f"{count} tensors equal, logits equal")


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_what_the_converter_writes_says_what_the_floats_say(tmp_path: Path, name: str) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "f32.gguf", to="gguf.f32")
    subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", to=f"gguf.{name.lower()}")
    with Model(tmp_path / "f32.gguf") as exact, Model(tmp_path / "out.gguf") as model:
        want = exact.greedy(exact.tokenize(TEXT), 16)
        got = model.greedy(model.tokenize(TEXT), 16)
        print(model.text(got[0]))
    assert got[0] == want[0]
    assert abs(got[1] - want[1]).max() < 0.02 * abs(want[1]).max()
