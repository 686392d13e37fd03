"""From the ``tokenizer.*`` keys of a GGUF file back to tokenizer.json and tokenizer_config.json.

GGUF keeps tokens, kinds, scores or merges, and the name of a splitting rule. What it does not keep (flags of added
tokens, templates for pairs of texts, truncation, padding) is set to the usual values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subbyte.errors import FormatError
from subbyte.tokenizer.pretokenizer import pre_tokenizers
from subbyte.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from subbyte.tokenizer.special import ID_KEYS

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
_COMPOSED = {"qwen2", "qwen35", "command-r", "deepseek-r1-qwen"}
"""Rules whose tokenizers compose characters (NFC) first."""
_DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {},
    "bert": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}
"""Ids that readers assume where the file has none."""


@dataclass(slots=True)
class RestoredTokenizer:
    """The contents of the files; ``None`` where the vocabulary cannot be restored, which ``warnings`` explain."""

    tokenizer: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def restore_tokenizer(metadata: Mapping[str, Any]) -> RestoredTokenizer:
    """tokenizer.json and tokenizer_config.json of a GGUF file's metadata.

    Raises:
        FormatError: the keys contradict each other.
    """
    result = RestoredTokenizer()
    model = metadata.get("tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in metadata:
        result.warnings.append("the file has no vocabulary: no tokenizer was written")
        return result
    if not isinstance(model, str) or model not in _DEFAULT_IDS:
        result.warnings.append(f"a '{model}' vocabulary cannot be restored (yet): no tokenizer was written")
        return result
    vocabulary = _Vocabulary.of(metadata)
    ids = _special_ids(metadata, model, len(vocabulary.texts))
    if model == "gpt2":
        built = _byte_level(metadata, vocabulary, result.warnings)
    elif model == "llama":
        built = _sentencepiece(metadata, vocabulary, ids, result.warnings)
    else:
        built = _wordpiece(metadata, vocabulary, ids)
    if built is not None:
        result.tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": vocabulary.added(),
            **built,
        }
        result.tokenizer["post_processor"] = _post_processor(metadata, vocabulary, ids, model)
    result.settings = _settings(metadata, vocabulary, ids)
    result.warnings.append(
        "tokenizer.json: strip flags of added tokens, templates for pairs, truncation and padding are not in the file"
    )
    return result


@dataclass(slots=True)
class _Vocabulary:
    texts: list[str]
    kinds: list[int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Vocabulary:
        texts = [str(text) for text in metadata["tokenizer.ggml.tokens"]]
        kinds = metadata.get("tokenizer.ggml.token_type")
        numbers = [NORMAL] * len(texts) if kinds is None else [int(kind) for kind in kinds]
        if len(numbers) < len(texts):
            raise FormatError(f"tokenizer.ggml.token_type: {len(numbers)} entries for {len(texts)} tokens")
        return cls(texts, numbers[: len(texts)])

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Ids by text; the first of equal texts counts."""
        found: dict[str, int] = {}
        for at, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind in kinds:
                found.setdefault(text, at)
        return found

    def added(self) -> list[dict[str, Any]]:
        """The entries of ``added_tokens``."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": at, "content": text, **flags, "special": kind != USER_DEFINED}
            for at, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True))
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]


def _special_ids(metadata: Mapping[str, Any], model: str, size: int) -> dict[str, int]:
    ids = dict(_DEFAULT_IDS[model])
    for role, name in ID_KEYS.items():
        value = metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(value, int):
            ids[role] = value
    return {role: at for role, at in ids.items() if 0 <= at < size}


def _byte_level(metadata: Mapping[str, Any], vocabulary: _Vocabulary, warnings: list[str]) -> dict[str, Any] | None:
    name = metadata.get("tokenizer.ggml.pre", "default")
    rule = pre_tokenizers().get(name)
    if rule is None or not rule.expressions or name in ("afmoe", "gemma4", "whitespace", "sarvam-moe"):
        warnings.append(f"pre-tokenizer '{name}' cannot be written as a tokenizer.json: no tokenizer was written")
        return None
    if name == "default":
        warnings.append("pre-tokenizer 'default' may stand for an unknown one: compare the tokenizer with the original")
    merges = []
    for entry in metadata.get("tokenizer.ggml.merges", ()):
        cut = str(entry).find(" ", 1)
        if cut < 0:
            raise FormatError(f"tokenizer.ggml.merges: expected two tokens, found {str(entry)[:80]!r}")
        merges.append([str(entry)[:cut], str(entry)[cut + 1 :]])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
        for step in rule.expressions
    ]
    return {
        "normalizer": {"type": "NFC"} if name in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            **_bpe(vocabulary.of_kind(NORMAL, CONTROL, UNKNOWN, USER_DEFINED), merges),
            "ignore_merges": rule.ignores_merges,
        },
    }


def _bpe(vocab: dict[str, int], merges: list[list[str]], unknown: str | None = None) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": unknown is not None, "byte_fallback": unknown is not None,
        "vocab": vocab, "merges": merges,
    }  # fmt: skip


def _sentencepiece(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, ids: Mapping[str, int], warnings: list[str]
) -> dict[str, Any]:
    gemma = str(metadata.get("general.architecture")).startswith("gemma")
    if gemma:  # runs of blanks are added tokens there, stored as spaces
        vocabulary.texts = [
            text.replace(" ", _BLANK) if kind == USER_DEFINED and not text.strip(" ") else text
            for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)
        ]
    scores = np.asarray(metadata.get("tokenizer.ggml.scores", ()), np.float32)
    if len(scores) < len(vocabulary.texts) or len(np.unique(scores[[k == NORMAL for k in vocabulary.kinds]])) < 2:
        warnings.append("tokenizer.ggml.scores: all equal or missing, the order of merges is lost; ids stand in for it")
        scores = np.zeros(len(vocabulary.texts), np.float32)
    order = np.zeros_like(scores) if gemma else -scores
    unknown = vocabulary.of_kind(UNKNOWN)
    unk = next(iter(unknown), None) or (vocabulary.texts[ids["unk"]] if "unk" in ids else None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) and not gemma
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    vocab = vocabulary.of_kind(NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _BLANK}, space]}
        if prefix
        else space,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**_bpe(vocab, _merges(vocabulary, order), unk), "ignore_merges": False},
    }


def _merges(vocabulary: _Vocabulary, order: np.ndarray[Any, np.dtype[np.float32]]) -> list[list[str]]:
    """Every way to make a token of two others, in the order in which SentencePiece prefers the results."""
    parts = vocabulary.of_kind(NORMAL, USER_DEFINED)
    found = []
    for text, at in parts.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in parts and right in parts:
                found.append((float(order[at]), at, -cut, [left, right]))
    # equal scores: ids, then the longer left part; the right part's length follows from it
    found.sort(key=lambda merge: merge[:3])
    return [merge for *_, merge in found]


def _wordpiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary, ids: Mapping[str, int]) -> dict[str, Any]:
    vocab: dict[str, int] = {}
    for at, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True)):
        if kind in (NORMAL, USER_DEFINED):
            text = text.removeprefix(_BLANK) if text.startswith(_BLANK) else f"##{text}"
        if kind in (NORMAL, USER_DEFINED, CONTROL, UNKNOWN):
            vocab.setdefault(text, at)
    prefix = "tokenizer.ggml.normalizer."
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": metadata.get(f"{prefix}strip_accents"),
            "lowercase": metadata.get(f"{prefix}lowercase", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": vocabulary.texts[ids["unk"]] if "unk" in ids else "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip


def _adds(metadata: Mapping[str, Any], role: str, model: str) -> bool:
    """Whether a reader adds the token: what the file says, else what readers assume."""
    rule = pre_tokenizers().get(metadata.get("tokenizer.ggml.pre", "default"))
    assumed = {
        "bos": model in ("llama", "bert") or bool(rule and model == "gpt2" and rule.adds_bos),
        "eos": model == "bert",
    }
    return bool(metadata.get(f"tokenizer.ggml.add_{role}_token", assumed[role]))


def _post_processor(
    metadata: Mapping[str, Any], vocabulary: _Vocabulary, ids: Mapping[str, int], model: str
) -> dict[str, Any] | None:
    used = {}
    for role in ("bos", "eos"):
        at = ids.get(role, ids.get("sep") if model == "bert" and role == "eos" else None)
        if at is not None and _adds(metadata, role, model):
            used[role] = at
    if not used:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True} \
            if model == "gpt2" else None  # fmt: skip

    def special(role: str, sequence: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocabulary.texts[used[role]], "type_id": sequence}}] if role in used else []

    def text(name: str, sequence: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": sequence}}

    single = [*special("bos", 0), text("A", 0), *special("eos", 0)]
    again = [] if model == "bert" else special("bos", 1)
    tokens = {vocabulary.texts[at]: at for at in used.values()}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *again, text("B", 1), *special("eos", 1)],
        "special_tokens": {name: {"id": name, "ids": [at], "tokens": [name]} for name, at in tokens.items()},
    }


def _settings(metadata: Mapping[str, Any], vocabulary: _Vocabulary, ids: Mapping[str, int]) -> dict[str, Any]:
    """tokenizer_config.json."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    model = metadata["tokenizer.ggml.model"]
    for role in ("bos", "eos", "unk", "sep", "pad", "mask"):
        if role in ids:
            settings[f"{role}_token"] = vocabulary.texts[ids[role]]
    if model == "bert" and "bos" in ids:
        settings["cls_token"] = settings["bos_token"]
    for role in ("bos", "eos"):
        value = metadata.get(f"tokenizer.ggml.add_{role}_token")
        if value is not None:
            settings[f"add_{role}_token"] = value
    if model == "llama":
        settings["add_prefix_space"] = metadata.get("tokenizer.ggml.add_space_prefix", True)
    rule = pre_tokenizers().get(metadata.get("tokenizer.ggml.pre", "default"))
    settings["clean_up_tokenization_spaces"] = bool(model == "gpt2" and rule and rule.cleans_spaces)
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if context is not None:
        settings["model_max_length"] = context
    template = metadata.get("tokenizer.chat_template")
    named = metadata.get("tokenizer.chat_templates", ())
    templates = [
        {"name": str(name), "template": metadata[f"tokenizer.chat_template.{name}"]}
        for name in named
        if f"tokenizer.chat_template.{name}" in metadata
    ]
    if templates:
        first = [] if template is None else [{"name": "default", "template": template}]
        settings["chat_template"] = first + templates
    elif template is not None:
        settings["chat_template"] = template
    return settings
