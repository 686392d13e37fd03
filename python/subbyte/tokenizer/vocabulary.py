"""The token list of a checkpoint: texts, scores, kinds and merges, as GGUF stores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from subbyte.errors import FormatError, UnsupportedError
from subbyte.io.gguf import GgufValue
from subbyte.jsonfile import read_object_if_there
from subbyte.tokenizer import sentencepiece
from subbyte.tokenizer.pretokenizer import pre_tokenizer_name, pre_tokenizers
from subbyte.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from subbyte.tokenizer.special import added_tokens, special_keys

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space as this character
_WIDE_BAR = "\N{FULLWIDTH VERTICAL LINE}"
_BYTE_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # byte-level BPE writes a space as this character
MAX_TOKENS = sentencepiece.MAX_PIECES


@dataclass(slots=True)
class Vocabulary:
    """A vocabulary as GGUF metadata.

    Attributes:
        keys: ``tokenizer.*`` keys in the order they are written; empty where the checkpoint has no tokenizer.
        size: number of tokens.
        warnings: what a reader of the file should know.
    """

    keys: dict[str, GgufValue] = field(default_factory=dict)
    size: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Tokens:
    """Columns of the token table while it is filled."""

    texts: list[str]
    kinds: list[int]
    scores: list[float]

    @classmethod
    def blank(cls, size: int) -> _Tokens:
        if size > MAX_TOKENS:
            raise FormatError(f"config.json: vocab_size {size:,}: at most {MAX_TOKENS:,} tokens are expected")
        return cls([f"[PAD{i}]" for i in range(size)], [UNUSED] * size, [-10000.0] * size)

    def put(self, at: int, text: str, kind: int, score: float = 0.0) -> None:
        self.texts[at], self.kinds[at], self.scores[at] = text, kind, score


def tokenizer_keys(folder: Path, config: dict[str, Any], pre_name: str | None = None) -> Vocabulary:
    """The vocabulary of the checkpoint in ``folder``.

    Args:
        folder: with tokenizer.model or tokenizer.json, and optionally tokenizer_config.json and chat templates.
        config: config.json; ``vocab_size`` gives the number of tokens.
        pre_name: the value of ``tokenizer.ggml.pre``; ``None`` derives it from the structure of tokenizer.json.

    Raises:
        FormatError: a tokenizer file is damaged.
        UnsupportedError: a kind of tokenizer that cannot be stored yet.
    """
    settings = read_object_if_there(folder / "tokenizer_config.json")
    tokenizer = read_object_if_there(folder / "tokenizer.json")
    result = Vocabulary()
    if (folder / "tokenizer.model").is_file():
        model = "llama"
        tokens = _from_sentencepiece(folder, settings, config, result.warnings)
        pre: str | None = "default"
        merges: list[str] = []
    elif tokenizer:
        try:
            model, tokens, merges = _from_json(tokenizer, config, result.warnings)
            pre = pre_tokenizer_name(tokenizer, settings) if model == "gpt2" else "default"
        except FormatError as error:
            error.file = error.file or str(folder / "tokenizer.json")
            raise
    else:
        result.warnings.append("no tokenizer.model or tokenizer.json: the file gets no vocabulary")
        return result
    if pre_name is not None:
        pre = pre_name
        if pre not in pre_tokenizers():
            result.warnings.append(f"pre-tokenizer '{pre}' is none that is known: programs may refuse the file")
    elif pre is None:
        pre = "default"
        result.warnings.append(
            "tokenizer.json: unknown pre-tokenizer, written as 'default': programs may split texts otherwise; "
            "the option pre names another"
        )
    elif model == "gpt2":
        whole = bool(tokenizer["model"].get("ignore_merges"))
        if pre_tokenizers()[pre].ignores_merges != whole:
            result.warnings.append(
                f"tokenizer.json: ignore_merges is {str(whole).lower()}, '{pre}' implies the opposite: "
                "programs may merge some words otherwise"
            )

    keys = result.keys
    keys["tokenizer.ggml.model"] = GgufValue("str", model)
    keys["tokenizer.ggml.pre"] = GgufValue("str", pre)
    keys["tokenizer.ggml.tokens"] = GgufValue("arr[str]", tokens.texts)
    if model == "llama":
        keys["tokenizer.ggml.scores"] = GgufValue("arr[f32]", tokens.scores)
    keys["tokenizer.ggml.token_type"] = GgufValue("arr[i32]", tokens.kinds)
    if model == "gpt2" and merges:
        keys["tokenizer.ggml.merges"] = GgufValue("arr[str]", merges)
    result.size = len(tokens.texts)
    special, warnings = special_keys(folder, tokenizer, settings, config, result.size)
    keys.update(special)
    result.warnings += warnings
    if model == "gpt2" and pre in pre_tokenizers() and pre_tokenizers()[pre].adds_bos:
        keys.setdefault("tokenizer.ggml.add_bos_token", GgufValue("bool", False))
    normalizer = tokenizer.get("normalizer")
    if model == "bert" and isinstance(normalizer, dict):
        for name in ("lowercase", "strip_accents"):
            if isinstance(normalizer.get(name), bool):
                keys[f"tokenizer.ggml.normalizer.{name}"] = GgufValue("bool", normalizer[name])
    space_prefix = settings.get("add_prefix_space")
    if isinstance(space_prefix, bool) and model != "bert":
        keys["tokenizer.ggml.add_space_prefix"] = GgufValue("bool", space_prefix)
    return result


def _vocab_size(config: dict[str, Any], default: int) -> int:
    size = config.get("vocab_size", default)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise FormatError(f"config.json: vocab_size: expected a positive number, found {size!r}")
    return size


def _looks_special(text: str) -> bool:
    """Whether an added token is a control token by its form, whatever its flag says."""
    if text in ("<pad>", "<mask>"):
        return True
    bars = text.startswith(("<|", "<" + _WIDE_BAR)) and text.endswith(("|>", _WIDE_BAR + ">"))
    return bars or (text.startswith("<unused") and text.endswith(">"))


def _from_sentencepiece(folder: Path, settings: dict[str, Any], config: dict[str, Any], warnings: list[str]) -> _Tokens:
    model = sentencepiece.read_model(folder / "tokenizer.model")
    size = _vocab_size(config, len(model.pieces))
    if len(model.pieces) > size:
        warnings.append(f"tokenizer.model: {len(model.pieces)} pieces, vocab_size {size}: the rest is left out")
    tokens = _Tokens.blank(size)
    for at, piece in enumerate(model.pieces[:size]):
        # The original stores user-defined pieces as normal ones: their text is found by merging like any other.
        kind = NORMAL if piece.kind == USER_DEFINED else piece.kind
        tokens.put(at, piece.text, kind, piece.score)

    extra = {at: (text, False) for text, at in read_object_if_there(folder / "added_tokens.json").items()}
    decoder = settings.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and number.isdecimal():
            extra[int(number)] = (token["content"], bool(token.get("special")))
    for at, (text, special) in extra.items():
        if not isinstance(at, int) or not 0 <= at < size:
            warnings.append(f"added token '{text}' has id {at}, vocab_size is {size}: left out")
        elif special or _looks_special(text):
            tokens.put(at, text, CONTROL, -1000.0)
        else:
            tokens.put(at, text.replace(_BLANK, " "), USER_DEFINED, -1000.0)
    return tokens


def _from_json(
    tokenizer: dict[str, Any], config: dict[str, Any], warnings: list[str]
) -> tuple[str, _Tokens, list[str]]:
    """Kind of vocabulary ("gpt2", "llama" or "bert"), tokens and merges of a tokenizer.json."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise FormatError("expected an object 'model'")
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "WordPiece"):
        raise UnsupportedError(f"tokenizer.json: a {kind} tokenizer cannot be stored (yet), only BPE and WordPiece")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab or not all(isinstance(at, int) and at >= 0 for at in vocab.values()):
        raise FormatError("model.vocab: expected token texts with their ids")
    added = added_tokens(tokenizer)
    top = max(*vocab.values(), *(token["id"] for token in added), 0)
    tokens = _Tokens.blank(_vocab_size(config, top + 1))
    if top >= len(tokens.texts):
        raise FormatError(f"token id {top} is not below vocab_size {len(tokens.texts)} of config.json")
    merges = _merges(model.get("merges"))
    if kind == "BPE" and not merges and any(len(text) > 1 for text in vocab):
        warnings.append("tokenizer.json: no merges: programs will split every text into single characters or bytes")
    warnings += _shared_ids([*vocab.items(), *((token["content"], token["id"]) for token in added)])
    if kind == "WordPiece":
        for text, at in vocab.items():
            tokens.put(at, text[2:] if text.startswith("##") else _BLANK + text, NORMAL)
    elif model.get("byte_fallback"):
        _put_ranked(tokens, vocab, merges, model.get("unk_token"))
    else:
        for text, at in vocab.items():
            tokens.put(at, text, NORMAL)
    for token in added:
        text, at = token["content"], token["id"]
        if at < 0:
            raise FormatError(f"added token '{text}' has id {at}")
        if token.get("special") or _looks_special(text):
            tokens.put(at, text, UNKNOWN if tokens.kinds[at] == UNKNOWN else CONTROL)
        else:
            tokens.put(at, text.replace(_BLANK, " "), USER_DEFINED)
    if kind == "WordPiece":
        return "bert", tokens, []
    if model.get("byte_fallback"):
        return "llama", tokens, []
    # A space inside a merge would read as the border between its parts, so it is stored in its byte-level form.
    joined = [" ".join(part.replace(" ", _BYTE_SPACE) for part in pair) for pair in merges]
    return "gpt2", tokens, joined


def _shared_ids(tokens: list[tuple[str, int]]) -> list[str]:
    """A warning where two texts have the same id: only the last of them is stored."""
    texts: dict[int, str] = {}
    clashes = [(texts[at], text, at) for text, at in tokens if texts.setdefault(at, text) != text]
    if not clashes:
        return []
    first, second, at = clashes[0]
    return [
        f"tokenizer.json: {len(clashes)} tokens have the id of another one, which is not stored: id {at} is that of "
        f"{first[:40]!r} and {second[:40]!r}"
    ]


def _put_ranked(tokens: _Tokens, vocab: dict[str, int], merges: list[tuple[str, str]], unknown: str | None) -> None:
    """Tokens of a SentencePiece-like vocabulary, with scores that make a reader merge in the order of ``merges``."""
    rank = {left + right: i for i, (left, right) in reversed(list(enumerate(merges)))}
    for text, at in vocab.items():
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            tokens.put(at, text, BYTE)
        else:
            tokens.put(at, text, UNKNOWN if text == unknown else NORMAL, -float(rank.get(text, 10**9)))


def _merges(entries: Any) -> list[tuple[str, str]]:
    """Merges as pairs, from either of the two spellings in use: ``"a b"`` and ``["a", "b"]``."""
    merges: list[tuple[str, str]] = []
    for entry in entries if isinstance(entries, list) else ():
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise FormatError(f"merge {len(merges)}: expected two tokens, found {str(entry)[:80]!r}")
        merges.append((pair[0], pair[1]))
    return merges
