"""Special tokens, the flags that add them, and chat templates: the keys that every kind of vocabulary shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subbyte.io.gguf import GgufValue
from subbyte.jsonfile import read_object_if_there, read_text

ID_KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id",
    "pad": "padding_token_id", "mask": "mask_token_id", "eot": "eot_token_id", "eom": "eom_token_id",
}  # fmt: skip
"""Role in Hugging Face's files → key of the id below ``tokenizer.ggml.`` ("seperator" is GGUF's spelling)."""


def special_keys(
    folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any], config: dict[str, Any], n_vocab: int
) -> tuple[dict[str, GgufValue], list[str]]:
    """The keys for special tokens and chat templates, in the order the original converter writes them, and warnings.

    Args:
        folder: the checkpoint, for chat templates.
        tokenizer: tokenizer.json, or empty.
        settings: tokenizer_config.json, or empty.
        config: config.json.
        n_vocab: number of tokens; ids outside are left out.
    """
    warnings: list[str] = []
    names = {role: _content(settings.get(f"{role}_token")) for role in ID_KEYS}
    if tokenizer:
        names["bos"] = names["bos"] or _content(settings.get("cls_token"))
        names["eos"] = names["eos"] or names["sep"]
    adds = _template_flags(tokenizer.get("post_processor"), names)
    for role in ("bos", "eos", "sep"):
        flag = settings.get(f"add_{role}_token")
        if isinstance(flag, bool):
            adds.setdefault(role, flag)

    added = {token["content"]: token["id"] for token in added_tokens(tokenizer)}
    found = {role: added[name] for role, name in names.items() if name in added}
    for role in ID_KEYS:
        value = config.get(f"{role}_token_id")
        if isinstance(value, int) and not isinstance(value, bool):
            found.setdefault(role, value)
    keys: dict[str, GgufValue] = {}
    for role, value in found.items():
        if 0 <= value < n_vocab:
            keys[f"tokenizer.ggml.{ID_KEYS[role]}"] = GgufValue("u32", value)
        else:
            warnings.append(f"{role}_token_id {value} is not below the {n_vocab} tokens of the vocabulary: left out")
    for role in ("bos", "eos", "sep"):
        if role in adds:
            keys[f"tokenizer.ggml.add_{role}_token"] = GgufValue("bool", adds[role])
    keys.update(_chat_templates(folder, settings))
    return keys, warnings


def added_tokens(tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``added_tokens`` in tokenizer.json that have a text and an id."""
    entries = tokenizer.get("added_tokens")
    return [
        token
        for token in (entries if isinstance(entries, list) else ())
        if isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)
    ]


def _content(entry: Any) -> str | None:
    """The text of a token as tokenizer_config.json writes it: a string, or an object with ``content``."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _template_flags(processor: Any, names: dict[str, str | None]) -> dict[str, bool]:
    """Which special tokens the post-processor adds; corrects ``names`` where its last token is another than EOS."""
    flags: dict[str, bool] = {}
    if not isinstance(processor, dict):
        return flags
    members = processor.get("processors")
    for member in members if isinstance(members, list) else [processor]:
        if not isinstance(member, dict):
            continue
        if member.get("type") == "RobertaProcessing":
            flags.update(bos=True, eos=True, sep=True)
        single = member.get("single")
        if member.get("type") != "TemplateProcessing" or not isinstance(single, list) or len(single) < 2:
            continue
        first, last = _special(single[0]), _special(single[-1])
        if first:
            names["bos"] = names["bos"] or first
            flags["bos"] = first == names["bos"]
        if last:
            if names["eos"] and names["eos"] != last:
                names["eot"] = names["eos"]
            names["eos"] = last
            flags["eos"] = True
        between = _between(member.get("pair"))
        if between is not None:  # a separator of its own counts, the end of the first text does not
            flags["sep"] = between in (names["sep"], names["eos"]) and not last
    return flags


def _between(pair: Any) -> str | None:
    """The special token between the two texts of a pair's template; ``None`` where there is none."""
    parts = pair if isinstance(pair, list) else []
    texts = [at for at, part in enumerate(parts) if isinstance(part, dict) and "Sequence" in part]
    return _special(parts[texts[0] + 1]) if len(texts) == 2 else None


def _special(part: Any) -> str | None:
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    return _content({"content": token.get("id")}) if isinstance(token, dict) else None


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, GgufValue]:
    template = settings.get("chat_template")
    if template is None:
        plain = folder / "chat_template.jinja"
        if plain.is_file():
            more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
            template = [{"name": path.stem, "template": read_text(path)} for path in more]
            template.insert(0, {"name": "default", "template": read_text(plain)})
        else:
            template = read_object_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(template, str):
        template = [{"name": "default", "template": template}]
    keys: dict[str, GgufValue] = {}
    others: list[str] = []
    for entry in template if isinstance(template, list) else ():
        if not isinstance(entry, dict):
            continue
        name, text = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            continue
        if name == "default":
            keys["tokenizer.chat_template"] = GgufValue("str", text)
        else:
            name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)
            keys[f"tokenizer.chat_template.{name}"] = GgufValue("str", text)
            others.append(name)
    if others:
        keys["tokenizer.chat_templates"] = GgufValue("arr[str]", others)
    return keys
