"""The front matter of a model card (README.md) as ``general.*`` keys of GGUF, and back; cards of quantized models.

Front matter is YAML between two lines of three hyphens. Model cards use little of it, and that little is read: texts,
plain or quoted, folded blocks, and lists of texts; anything nested further (results of evaluations) is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subbyte.errors import Error
from subbyte.io.gguf import GgufValue
from subbyte.jsonfile import read_text
from subbyte.sidefiles import SmallFile

Card = dict[str, str | list[str]]

_TEXTS: Mapping[str, Sequence[str]] = {
    "general.author": ("author", "model_author", "model_creator"),
    "general.version": ("version", "model_version"),
    "general.organization": ("organization", "model_organization"),
    "general.finetune": ("finetune",),
    "general.basename": ("basename",),
    "general.description": ("description", "model_description"),
    "general.license": ("license",),
    "general.license.name": ("license_name",),
    "general.license.link": ("license_link",),
}
"""Keys by the fields of a card that they come from, the first that is there; in the order they are written."""

LISTS = {"general.tags": ("tags", "pipeline_tag"), "general.languages": ("language", "languages"),
         "general.datasets": ("datasets", "dataset")}  # fmt: skip
"""Likewise for lists, of which all that are there count."""

_HUB = "https://huggingface.co/"
_NAME = "README.md"
_BASE, _RELATION = "base_model", "base_model_relation"


def read_card(folder: Path, warnings: list[str]) -> Card:
    """The front matter of the card in ``folder``; empty without one. A card that cannot be read is a warning."""
    path = folder / _NAME
    if not path.is_file():
        return {}
    try:
        return parse_front_matter(read_text(path))
    except Error as error:
        warnings.append(f"{_NAME}: {error.message}: the model card is left out")
        return {}


def parse_front_matter(text: str) -> Card:
    """Texts and lists of texts by field."""
    fields: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in _split(text)[0]:
        found = _FIELD.match(line)
        if found:
            name = found[1]
            fields[name] = (_uncommented(found[2] or ""), [])
        elif name and line.strip() and not line.lstrip().startswith("#"):
            fields[name][1].append(line)
    card: Card = {}
    for name, (value, below) in fields.items():
        parsed = _value(value, below)
        if parsed:
            card[name] = parsed
    return card


_FIELD = re.compile(r"([A-Za-z_][\w.-]*)\s*:(?:\s+(.*))?$")


def _split(text: str) -> tuple[list[str], str]:
    """The lines of the front matter, and what follows it."""
    lines = text.removeprefix("\ufeff").splitlines(keepends=True)
    if lines and lines[0].rstrip() == "---":
        for at, line in enumerate(lines[1:], start=1):
            if line.rstrip() in ("---", "..."):
                return [line.splitlines()[0] for line in lines[1:at]], "".join(lines[at + 1 :])
    return [], "".join(lines)


def _uncommented(value: str) -> str:
    return re.sub(r"(^|\s)#.*", "", value).strip() if value[:1] not in "\"'" else value.strip()


def _value(value: str, below: list[str]) -> str | list[str]:
    if value[:1] in ("|", ">"):
        joint = "\n" if value[0] == "|" else " "
        return joint.join(line.strip() for line in below)
    if value.startswith("[") and value.endswith("]"):
        items = re.findall(r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\'|[^,\[\]]+', value)
        return [text for text in map(_text, items) if text]
    if value:
        return _text(value)
    items = [line.strip()[1:].strip() for line in below if re.match(r"\s*-\s+\S", line)]
    plain = len(items) == len(below) and not any(re.match(r"[\w.-]+:(\s|$)", item) for item in items)
    return [_text(_uncommented(item)) for item in items] if plain else ""


def _text(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1].replace("''", "'")
    return value


def general_keys(card: Card) -> dict[str, GgufValue]:
    """The ``general.*`` keys that a card gives."""
    keys: dict[str, GgufValue] = {}
    for key, names in _TEXTS.items():
        value = next((card[name] for name in names if name in card), "")
        if value:
            keys[key] = GgufValue("str", value if isinstance(value, str) else ", ".join(value))
    bases = _listed(card, ("base_model", "base_models"))
    if bases:
        keys["general.base_model.count"] = GgufValue("u32", len(bases))
    for number, base in enumerate(bases):
        prefix = f"general.base_model.{number}"
        owner, _, name = base.removeprefix(_HUB).rpartition("/")
        keys[f"{prefix}.name"] = GgufValue("str", titled(name))
        version = re.search(r"(?:^|-)(v\d+(?:\.\d+)*)(?:-|$)", name)
        if version:
            keys[f"{prefix}.version"] = GgufValue("str", version[1])
        if owner:
            keys[f"{prefix}.organization"] = GgufValue("str", titled(owner))
            keys[f"{prefix}.repo_url"] = GgufValue("str", f"{_HUB}{owner}/{name}")
    for key, sources in LISTS.items():
        values = _listed(card, sources)
        if values:
            keys[key] = GgufValue("arr[str]", values)
    return keys


def _listed(card: Card, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        value = card.get(name, [])
        found += [value] if isinstance(value, str) else value
    return list(dict.fromkeys(found))


def titled(name: str) -> str:
    """A model's name from that of its folder: hyphens become spaces, lower-case words get a capital, versions stay."""
    words = name.replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not re.match(r"v\d+(\.\d+)*$|\d", word) else word for word in words
    )


def quantized_card(files: Sequence[SmallFile], base: str, library: str, warnings: list[str]) -> SmallFile:
    """The card of a quantized form of a model: that of ``files`` as it is, but for the fields that name the base.

    Args:
        files: those of the model's folder.
        base: id or name of the model; a card that is of a quantized form already keeps the one that it names.
        library: the library that loads the result; empty for that of the card, or transformers.
        warnings: gets one where the card is no text and is left as it is.
    """
    given = next((file for file in files if file.name == _NAME), SmallFile(_NAME, b""))
    try:
        text = given.data.decode()
    except UnicodeDecodeError:
        warnings.append(f"{_NAME}: not UTF-8: the model card is copied as it is")
        return given
    card = parse_front_matter(text)
    named = card.get(_BASE) if card.get(_RELATION) == "quantized" else None
    fields = {
        _BASE: named or base,
        _RELATION: "quantized",
        "library_name": library or card.get("library_name") or "transformers",
    }
    front, body = _split(text)
    kept, name = [], ""
    for line in front:
        found = _FIELD.match(line)
        name = found[1] if found else name
        if name not in fields:
            kept.append(line)
    body = body or f"\n# {base.rpartition('/')[2]}\n"
    return SmallFile(_NAME, ("\n".join(["---", *kept, *_yaml(fields), "---"]) + "\n" + body).encode())


def model_id(name: object) -> str:
    """The Hub's id of a model, given that or an address on the Hub; empty where it is neither."""
    text = name.removeprefix(_HUB) if isinstance(name, str) else ""
    return text if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) else ""


def named_model(metadata: Mapping[str, Any]) -> str:
    """The Hub's id of the model that a GGUF file is of, or that it was made from; empty where no key tells."""
    keys = ("general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url")
    return next(filter(None, (model_id(metadata.get(key)) for key in keys)), "")


def written_card(metadata: Mapping[str, Any]) -> str:
    """README.md with the front matter that a GGUF file's ``general.*`` keys give; empty where they give none."""
    front: dict[str, Any] = {
        name: metadata[key]
        for key, name in (
            ("general.license", "license"), ("general.license.name", "license_name"),
            ("general.license.link", "license_link"),
        )
        if isinstance(metadata.get(key), str)
    }  # fmt: skip
    bases = []
    count = metadata.get("general.base_model.count", 0)
    for number in range(min(count, 64) if isinstance(count, int) else 0):
        url = metadata.get(f"general.base_model.{number}.repo_url")
        if isinstance(url, str):
            bases.append(url.removeprefix(_HUB))
    lists = {"base_model": bases} | {name[0]: metadata.get(key) for key, name in LISTS.items()}
    front |= {name: list(map(str, values)) for name, values in lists.items() if values is not None and len(values)}
    if not front:
        return ""
    title, text = metadata.get("general.name"), metadata.get("general.description")
    body = [f"\n# {title}"] if isinstance(title, str) else []
    body += [f"\n{text}"] if isinstance(text, str) else []
    return "\n".join(["---", *_yaml(front), "---", *body]) + "\n"


def _yaml(fields: Mapping[str, Any]) -> list[str]:
    """The lines of texts and lists of texts."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {json.dumps(item, ensure_ascii=False)}" for item in value)]
        else:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    return lines
