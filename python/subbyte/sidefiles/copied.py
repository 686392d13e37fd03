"""Which files of a checkpoint folder go along into another one, and which do not.

Configurations, tokenizers, templates, licences, model cards and the model's own Python files are copied as they are
(nothing is ever run); other weights, pictures and whatever is large stay behind, and are listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subbyte import _native
from subbyte.io.remote import Place, RemotePath
from subbyte.jsonfile import read_bytes
from subbyte.sidefiles import SmallFile

_COPIED = re.compile(
    r"[^./][^/]*\.(json|model|txt|jinja|md|py|tiktoken|bpe|vocab)"
    r"|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[^/]*"
    r"|additional_chat_templates/[\w-]+\.jinja|\d+_[A-Z]\w*/config\.json",
)
_FOLDERS = re.compile(r"\d+_[A-Z]\w*|additional_chat_templates")
_MADE = re.compile(r"config\.json|.*\.safetensors(\.index\.json)?")
"""What the new folder has of its own."""

_OF_QUANTIZERS = (
    "quantize_config.json", "quant_config.json", "hf_quant_config.json", "quanto_qmap.json", "quantization_map.json",
    "model.safetensors.index.json.meta.json",
)  # fmt: skip

_STORED = re.compile(
    r"(config|modules|tokenizer|tokenizer_config|vocab|added_tokens|special_tokens_map|chat_template)\.json"
    r"|tokenizer\.model|merges\.txt|vocab\.txt|chat_template\.jinja|additional_chat_templates/.*|1_Pooling/config\.json"
    r"|.*\.safetensors(\.index\.json)?|.*\.gguf"
)
"""Files whose content a GGUF file has a place for."""

_REMOTE = (
    "config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja", "chat_template.json", "README.md",
)  # fmt: skip
"""What is asked for beside remote weights: most places cannot be listed."""


@contextmanager
def with_side_files(src: Place) -> Iterator[Path]:
    """The folder of the files beside the weights at ``src``: copies of them while the block runs if it is remote.

    Raises:
        LimitError: a file is larger than ``_native.SIDE_FILE_BYTES``.
        IoError: a file cannot be read.
    """
    if not isinstance(src, RemotePath):
        yield src if src.is_dir() else src.parent
        return
    known = [name for name in src.store.names or ("LICENSE", "LICENSE.txt") if _COPIED.fullmatch(name)]
    with src.copies([*_REMOTE, *(name for name in known if name not in _REMOTE)]) as folder:
        yield folder


def copied_files(src: Place, folder: Path) -> tuple[list[SmallFile], list[tuple[str, str]], list[Path]]:
    """The files that are copied; name and reason of those that are not; the paths of those that were read.

    Args:
        src: where the weights are.
        folder: what :func:`with_side_files` gave for it.

    Raises:
        IoError: a file cannot be read.
    """
    small: list[SmallFile] = []
    left: list[tuple[str, str]] = []
    read = [folder / "config.json"]
    for name in _names(src, folder):
        path = folder / name
        if _MADE.fullmatch(name):
            continue
        if name in _OF_QUANTIZERS:
            left.append((name, "describes a quantized checkpoint"))
        elif not _COPIED.fullmatch(name) or not path.is_file():
            left.append((name, "no configuration, tokenizer, template, card or licence"))
        elif path.stat().st_size > _native.SIDE_FILE_BYTES:
            left.append((name, f"larger than {_native.SIDE_FILE_BYTES:,} bytes"))
        else:
            small.append(SmallFile(name, read_bytes(path), "copied"))
            read.append(path)
    return small, left, read


def without_place(src: Place, folder: Path) -> list[tuple[str, str]]:
    """Name and reason of the files of a checkpoint that a GGUF file does not hold; arguments as `copied_files`."""
    return [
        (name, "only its front matter is stored" if name == "README.md" else "GGUF has no place for it")
        for name in _names(src, folder)
        if not _STORED.fullmatch(name)
    ]


def _names(src: Place, folder: Path) -> list[str]:
    """The files of a checkpoint, but those that are hidden or that a conversion made; other folders end in ``/``."""
    if isinstance(src, RemotePath) and src.store.names is not None:
        found = list(src.store.names)
    else:
        found = []
        for entry in folder.iterdir():
            if entry.is_file():
                found.append(entry.name)
            elif _FOLDERS.fullmatch(entry.name):
                found += [f"{entry.name}/{path.name}" for path in entry.iterdir() if path.is_file()]
            elif entry.is_dir():
                found.append(f"{entry.name}/")
    return sorted(name for name in found if not name.startswith(".") and ".subbyte" not in name)
