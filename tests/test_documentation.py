"""The documentation site: generated pages are current, and every page and public name is on it."""

from __future__ import annotations

import importlib.util
import re

import pytest

import subbyte
from subbyte.formats import format_ids


@pytest.mark.parametrize("name", ["generate_matrix", "generate_formats"])
def test_generated_pages_are_what_the_registries_and_docstrings_say(name, root):
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed = script.PAGE.read_text(encoding="utf-8")
    assert committed == script.render(), f"run python scripts/{name}.py"


def test_the_readme_lists_every_checkpoint_format(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert [id for id in format_ids() if id.partition(".")[0] not in re.findall(r"`([a-z0-9-]+)", text)] == []


def test_navigation_lists_every_page(root):
    docs = root / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    assert set(re.findall(r": (\S+\.md)$", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)) == pages


def test_every_public_name_is_documented(root):
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (root / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    for module, members in re.findall(r"^::: (\S+)\n    options:\n      members: \[(.+)\]$", pages, re.MULTILINE):
        documented.remove(module)
        documented |= {f"{module}.{name}" for name in members.split(", ")}
    for name in set(subbyte.__all__) - {"__version__"}:
        module = getattr(subbyte, name).__module__
        assert {module, f"{module}.{name}"} & documented, f"docs/api has no entry for subbyte.{name}"
