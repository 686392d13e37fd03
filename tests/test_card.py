"""Model cards: front matter as ``general.*`` keys and back, and what is not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import RemotePath
from subbyte.io.stores import FolderStore
from subbyte.planning.dense import folder_source
from subbyte.sidefiles.card import named_model, parse_front_matter, written_card

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


def card_of(folder: Path) -> dict[str, str | list[str]]:
    return parse_front_matter((folder / "README.md").read_text())


def test_quantized_folders_name_their_base_and_keep_the_rest_of_the_card(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "my model", files={"README.md": CARD + "More\u2028text\r\n"})
    subbyte.convert(source, tmp_path / "out", to="mlx", bits=4, group_size=32)
    new = {"base_model": "my_model", "base_model_relation": "quantized", "library_name": "mlx"}
    assert card_of(tmp_path / "out") == parse_front_matter(CARD) | new
    text = (tmp_path / "out" / "README.md").read_bytes().decode()
    assert text.endswith("---\n# Title\nlicense: not this\nMore\u2028text\r\n")
    assert "- name: x\n  results:\n  - task:\n      type: y\n" in text
    subbyte.convert(tmp_path / "out", tmp_path / "back", to="hf.f32")
    again = card_of(tmp_path / "back")
    assert (again["base_model"], again["base_model_relation"]) == ("my_model", "quantized")


def test_a_card_is_made_where_the_source_has_none(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "plain", _name_or_path="org/Plain-1B")
    subbyte.convert(source, tmp_path / "out", to="mlx", bits=4, group_size=32)
    text = (tmp_path / "out" / "README.md").read_text()
    assert parse_front_matter(text) == {
        "base_model": "org/Plain-1B", "base_model_relation": "quantized", "library_name": "mlx",
    }  # fmt: skip
    assert text.endswith("---\n\n# Plain-1B\n")


def test_floats_of_a_quantized_file_say_so_and_floats_of_floats_do_not(tmp_path: Path) -> None:
    for name in ("q8_0", "bf16"):
        subbyte.convert(GOLDEN / "convert" / f"tiny-llama-{name}.gguf", tmp_path / name, to="hf.f32")
    found = card_of(tmp_path / "q8_0")
    assert found["base_model"] == "tiny-llama-q8_0"
    assert found["base_model_relation"] == "quantized"
    assert found["library_name"] == "transformers"
    assert not (tmp_path / "bf16" / "README.md").exists()
    subbyte.convert(SMALL_LLAMA, tmp_path / "half", to="hf.f16")
    assert (tmp_path / "half" / "README.md").read_bytes() == (SMALL_LLAMA / "README.md").read_bytes()


def test_a_card_that_is_no_text_stays_as_it_is(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m")
    (source / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    report = subbyte.convert(source, tmp_path / "out", to="mlx", bits=4, group_size=32)
    assert (tmp_path / "out" / "README.md").read_bytes() == (source / "README.md").read_bytes()
    assert any("README.md: not UTF-8" in warning for warning in report.warnings)


def test_the_ids_that_gguf_files_name(tmp_path: Path) -> None:
    hub = "https://huggingface.co/"
    assert named_model({"general.repo_url": f"{hub}org/a", "general.base_model.0.repo_url": f"{hub}org/b"}) == "org/a"
    assert named_model({"general.base_model.0.repo_url": f"{hub}org/b"}) == "org/b"
    assert named_model({"general.repo_url": "https://example.org/a", "general.source.repo_url": 3}) == ""


def test_a_repository_of_the_hub_is_named_by_its_id(tmp_path: Path) -> None:
    store = FolderStore(checkpoint(tmp_path / "m", _name_or_path="org/Other"), "m")
    store.repository = "org/m"
    assert folder_source(RemotePath(store))[0].base == "org/m"
