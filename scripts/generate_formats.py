"""Writes docs/formats/checkpoints.md: the specifications of all checkpoint formats, their modules' docstrings.

Run `python scripts/generate_formats.py` after a change of a docstring or of the registry; a test compares the page.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from itertools import groupby
from pathlib import Path

from subbyte.formats import checkpoint_format, format_ids

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats" / "checkpoints.md"

#: Formats that have a page of their own.
ELSEWHERE = frozenset({"subbyte"})

#: Headings of the folders of formats, in the order of the page.
FAMILIES = {
    "integer": "Integers with scales",
    "compressed_tensors": "Many layouts under one name",
    "float": "Small floats",
    "table": "Tables of values",
    "ternary": "Ternary weights",
    "vector": "Vector quantization",
    "trellis": "Trellis codes",
}

REFERENCE = re.compile(r"`(subbyte\.formats\.[a-z_0-9.]+)`")


def docstring(module: str) -> str:
    """The docstring of a module."""
    return inspect.getdoc(import_module(module)) or ""


def modules() -> dict[str, list[str]]:
    """The ids of formats by module: modules with formats, and those that their docstrings refer to, by family."""
    found: dict[str, list[str]] = {}
    for id in format_ids():
        if id not in ELSEWHERE:
            found.setdefault(type(checkpoint_format(id)).__module__, []).append(id)
    waiting = list(found)
    while waiting:
        for name in REFERENCE.findall(docstring(waiting.pop())):
            if name not in found:
                found[name] = []
                waiting.append(name)
    order = list(FAMILIES)
    return dict(sorted(found.items(), key=lambda item: (order.index(family(item[0])), not item[1], item)))


def family(module: str) -> str:
    """The folder of a module."""
    return module.split(".")[2]


def heading(module: str, ids: list[str]) -> str:
    """What a module is called: its ids, without those of the parts of a format; else its own name."""
    return ", ".join(id for id in ids if id.rpartition(".")[0] not in ids) or module.rpartition(".")[2]


def anchor(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")


def markdown(text: str, links: dict[str, str]) -> str:
    """A docstring as Markdown: tables keep their layout, and references to modules of the page become links."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("=="):
            parts.append(f"```text\n{paragraph}\n```")
        else:
            parts.append(REFERENCE.sub(lambda found: links.get(found[1], found[0]), paragraph))
    return "\n\n".join(parts)


def render() -> str:
    """The page."""
    found = modules()
    titles = {module: heading(module, ids) for module, ids in found.items()}
    links = {module: f"[{title}](#{anchor(title)})" for module, title in titles.items()}
    sections = []
    for folder, members in groupby(found, family):
        sections.append(f"## {FAMILIES[folder]}")
        for module in members:
            ids = " ".join(f"`{id}`" for id in found[module])
            sections += [f"### {titles[module]}", *([f"Format ids: {ids}"] if ids else [])]
            sections.append(markdown(docstring(module), links))
    body = "\n\n".join(sections)
    return f"""# Checkpoint formats

Generated from the docstrings of `python/subbyte/formats/` by `scripts/generate_formats.py`.

What every checkpoint format stores, bit by bit, and how its writer makes it of floats. Planes are the tensors of one
layer, named as `subbyte.decode` and `subbyte.encode` take and return them; types are those of safetensors, and shapes
are in rows of the dense weight first, as in `[out, in]`. What a format can be converted to is in the
[format matrix](matrix.md); ggml's types are in [GGUF and the ggml tensor types](gguf.md), subbyte's own layout in
[subbyte's own checkpoints](envelope.md).

{body}
"""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
