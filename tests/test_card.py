"""Model cards: front matter as ``general.*`` keys and back, and what is not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import subbyte
from checkpoints import checkpoint
from subbyte.io.gguf import GgufFile
from subbyte.sidefiles.card import parse_front_matter, written_card

CARD = """---
license: other   # see the link
license_name: own-licence
license_link: 'https://example.org/it''s-free'
base_model:
- upstream/Some-Model-v0.2
- "other/base"
language: [en, "de"]
tags:
  - chat
  - small
pipeline_tag: text-generation
datasets:
- a/b
description: >
  two
  lines
author: "Ada \\u00e9"
model-index:
- name: x
  results:
  - task:
      type: y
---
# Title
license: not this
"""


def test_front_matter_is_read() -> None:
    assert parse_front_matter(CARD) == {
        "license": "other", "license_name": "own-licence", "license_link": "https://example.org/it's-free",
        "base_model": ["upstream/Some-Model-v0.2", "other/base"], "language": ["en", "de"], "tags": ["chat", "small"],
        "pipeline_tag": "text-generation", "datasets": ["a/b"], "description": "two lines", "author": "Ada \u00e9",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "# Title", "---\n", "---\nlicense: mit", "---\n---\n", "--- \n: x\n- y\n---"])
def test_no_front_matter_is_none(text: str) -> None:
    assert parse_front_matter(text) == {}


def test_yaml_agrees_on_what_is_read() -> None:
    yaml = pytest.importorskip("yaml")
    want = yaml.safe_load(CARD.split("---")[1])
    got = parse_front_matter(CARD)
    assert got | {"description": got["description"] + "\n"} == {name: want[name] for name in got}


def general(path: Path) -> dict[str, Any]:
    return {key: value for key, value in GgufFile(path).metadata.items() if key.startswith("general.")}


def test_there_and_back(tmp_path: Path) -> None:
    source = checkpoint(
        tmp_path / "my-model", files={"README.md": CARD, "LICENSE": "free", "generation_config.json": {}}
    )
    report = subbyte.convert(source, tmp_path / "m.gguf", to="gguf.f32")
    assert dict(report.not_copied) == {
        "LICENSE": "GGUF has no place for it", "README.md": "only its front matter is stored",
        "generation_config.json": "GGUF has no place for it",
    }  # fmt: skip
    found = general(tmp_path / "m.gguf")
    expected = {
        "general.name": "My Model", "general.author": "Ada \u00e9", "general.description": "two lines",
        "general.license": "other", "general.license.name": "own-licence",
        "general.license.link": "https://example.org/it's-free", "general.base_model.count": 2,
        "general.base_model.0.name": "Some Model v0.2", "general.base_model.0.version": "v0.2",
        "general.base_model.0.organization": "Upstream",
        "general.base_model.0.repo_url": "https://huggingface.co/upstream/Some-Model-v0.2",
        "general.base_model.1.repo_url": "https://huggingface.co/other/base",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert list(found["general.tags"]) == ["chat", "small", "text-generation"]
    assert list(found["general.languages"]) == ["en", "de"]
    assert list(found["general.datasets"]) == ["a/b"]
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "back", to="hf.f32")
    card = (tmp_path / "back" / "README.md").read_text()
    back = parse_front_matter(card)
    before = parse_front_matter(CARD)
    same = ("license", "license_name", "license_link", "base_model", "language", "datasets")
    assert {name: back[name] for name in same} == {name: before[name] for name in same}
    assert "# My Model" in card
    assert written_card({"general.name": "x"}) == ""


def test_a_card_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m")
    (source / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    plan = subbyte.plan(source, to="gguf.f32")
    assert any("README.md: not UTF-8" in warning for warning in plan.plan.warnings)


@pytest.mark.parametrize(
    ("scaling", "model_type"),
    [
        ({"rope_type": "longrope"}, "phi3"),
        ({"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}, "llama"),
        ({"rope_type": "dynamic", "factor": 2.0}, "llama"),
    ],
)
def test_scaling_that_is_dropped_is_warned_about(tmp_path: Path, scaling: dict[str, Any], model_type: str) -> None:
    source = checkpoint(tmp_path / "m", rope_scaling=scaling, model_type=model_type)
    plan = subbyte.plan(source, to="gguf.f32")
    assert any("rotary scaling" in warning for warning in plan.plan.warnings)
