"""Vocabularies as GGUF metadata."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte.io.gguf import GgufFile
from subbyte.tokenizer import tokenizer_keys
from subbyte.tokenizer.pretokenizer import expression_lists, pre_tokenizer_name, pre_tokenizers
from subbyte.tokenizer.sentencepiece import parse_model, read_model

(GPT2,), (LLAMA3,) = expression_lists()["GPT2"], expression_lists()["LLAMA3"]

TINY = GOLDEN / "convert"


@pytest.mark.parametrize("name", ["tiny-llama-bf16", "tiny-qwen2-f16"])
def test_keys_equal_those_of_the_original_converter(name: str) -> None:
    folder = TINY / name.rpartition("-")[0]
    want = GgufFile(TINY / f"{name}.gguf")
    got = tokenizer_keys(folder, json.loads((folder / "config.json").read_text()))
    expected = {key: value for key, value in want.metadata.items() if key.startswith("tokenizer.")}
    assert list(got.keys) == list(expected)
    for key, value in got.keys.items():
        assert value.type == want.metadata_types[key]
        if key == "tokenizer.ggml.pre":  # the golden's name was set by hand: its structure is GPT-2's
            assert value.value == {"tiny-qwen2-f16": "gpt-2"}.get(name, expected[key])
        elif key == "tokenizer.ggml.scores":
            assert np.array_equal(np.array(value.value, np.float32), expected[key])
        else:
            array = value.type.startswith("arr")
            assert (list(value.value) if array else value.value) == (list(expected[key]) if array else expected[key]), (
                key
            )
    assert got.warnings == []


def test_the_vocabulary_of_the_example() -> None:
    config = json.loads((SMALL_LLAMA / "config.json").read_text())
    got = tokenizer_keys(SMALL_LLAMA, config)
    tokenizer = json.loads((SMALL_LLAMA / "tokenizer.json").read_text())
    assert got.warnings == []
    assert got.size == 4096
    keys = {key.removeprefix("tokenizer.ggml."): value.value for key, value in got.keys.items()}
    assert (keys["model"], keys["pre"]) == ("gpt2", "gpt-2")
    assert all(keys["tokens"][at] == text for text, at in tokenizer["model"]["vocab"].items())
    assert keys["token_type"] == [3] + [1] * 4095
    assert keys["merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (0, 0)
    assert "scores" not in keys


# SentencePiece models, written by hand.


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def piece(text: str, score: float = 0.0, kind: int | None = None) -> bytes:
    body = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return message(1, body + (b"" if kind is None else varint(3 << 3) + varint(kind)))


MODEL = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("<0x0A>", 0, 6) + piece("\u2581a", -1.5) + piece("user", 0, 4)


def test_pieces_scores_and_kinds() -> None:
    skipped = varint(9 << 3) + varint(5) + varint(8 << 3 | 1) + b"12345678" + message(2, b"\xff\xff")
    model = parse_model(skipped + MODEL + message(3, varint(3 << 3) + b"\0" + varint(4 << 3) + b"\1"))
    assert [(p.text, p.score, p.kind) for p in model.pieces] == [
        ("<unk>", 0, 2), ("<s>", 0, 3), ("<0x0A>", 0, 6), ("\u2581a", -1.5, 1), ("user", 0, 4),
    ]  # fmt: skip
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (False, True)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no vocabulary"),
        (MODEL[:-1], "remain"),
        (b"\xff" * 20, "does not end"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "remain"),
        (b"\x0b\x00", "wire type"),
        (b"\x00\x01", "number 0"),
        (message(1, message(1, b"\xff")), "UTF-8"),
        (piece("x", 0, 9), "unknown kind"),
        (b"GGUF" * 10, "not a SentencePiece|remain|wire type"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(subbyte.FormatError, match=match) as caught:
        read_model(tmp_path / "tokenizer.model")
    assert "tokenizer.model" in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(MODEL)))
def test_any_bytes_give_a_model_or_our_error(data: bytes, cut: int) -> None:
    for candidate in (data, MODEL[:cut] + data, MODEL[:cut] + data + MODEL[cut:]):
        with contextlib.suppress(subbyte.Error):
            assert parse_model(candidate).pieces


def test_holes_added_tokens_and_flags_of_sentencepiece(tmp_path: Path) -> None:
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            "5": {"content": "<|im|>", "special": False},
            "6": {"content": "\u2581\u2581", "special": False},
            "1": {"content": "<s>", "special": True},
            "99": {"content": "out", "special": True},
        },
    }
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    got = tokenizer_keys(tmp_path, {"vocab_size": 8, "bos_token_id": 1, "eos_token_id": 50, "pad_token_id": None})
    keys = {key.removeprefix("tokenizer.ggml."): value.value for key, value in got.keys.items()}
    assert keys["tokens"] == ["<unk>", "<s>", "<0x0A>", "\u2581a", "user", "<|im|>", "  ", "[PAD7]"]
    assert keys["token_type"] == [2, 3, 6, 1, 1, 3, 4, 5]
    assert keys["scores"] == [0, -1000, 0, -1.5, 0, -1000, -1000, -10000]
    assert keys["bos_token_id"] == 1
    assert keys["add_space_prefix"] is False
    assert "eos_token_id" not in keys
    assert len(got.warnings) == 2
    assert "'out' has id 99" in got.warnings[0]
    assert "eos_token_id 50" in got.warnings[1]


# tokenizer.json


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


BYTE_LEVEL = {"type": "ByteLevel", "use_regex": True}
NO_REGEX = {"type": "ByteLevel", "use_regex": False}
LLAMA3_HF = LLAMA3.replace(LLAMA3[: LLAMA3.index("|[^")], "(?i:'s|'t|'re|'ve|'m|'ll|'d)")


@pytest.mark.parametrize(
    ("steps", "model", "settings", "want"),
    [
        ([BYTE_LEVEL], {}, {}, "gpt-2"),
        ([split(GPT2), NO_REGEX], {}, {}, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], {},
         {"clean_up_tokenization_spaces": False}, "smollm"),
        ([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL], {}, {}, "starcoder"),
        ([split(LLAMA3_HF), NO_REGEX], {"ignore_merges": True}, {}, "llama-bpe"),
        ([split(LLAMA3_HF), NO_REGEX], {}, {}, "smaug-bpe"),
        ([split(LLAMA3_HF.replace(r"\r", "\r").replace(r"\n", "\n")), NO_REGEX], {}, {}, "smaug-bpe"),
        ([split("x"), NO_REGEX], {}, {}, None),
        ([NO_REGEX], {}, {}, None),
        ([{"type": "Whitespace"}], {}, {}, None),
        ([{**split(GPT2), "invert": True}], {}, {}, None),
        ([{"type": "Digits", "individual_digits": False}, BYTE_LEVEL], {}, {}, None),
    ],
)  # fmt: skip
def test_pre_tokenizer_names(steps: list, model: dict, settings: dict, want: str | None) -> None:
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    assert "(?i:" in LLAMA3_HF
    assert pre_tokenizer_name({"pre_tokenizer": pre, "model": model}, settings) == want


def bpe(**changes: Any) -> dict[str, Any]:
    vocab = {"a": 0, "b": 1, "ab": 2, "\u0120": 3}
    added = [
        {"id": 4, "content": "<s>", "special": True},
        {"id": 5, "content": "<|x|>", "special": False},
        {"id": 6, "content": "plain", "special": False},
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"]} | changes.pop("model", {})
    return {"added_tokens": added, "pre_tokenizer": BYTE_LEVEL, "model": model} | changes


def keys_of(folder: Path, tokenizer: dict, settings: dict | None = None, **config: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {
        key.removeprefix("tokenizer.ggml."): value.value
        for key, value in tokenizer_keys(folder, {"vocab_size": 8} | config).keys.items()
    }


def test_byte_level_bpe(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, bpe(model={"merges": [["a", "b"], ["a", " b"]]}))
    assert keys["tokens"] == ["a", "b", "ab", "\u0120", "<s>", "<|x|>", "plain", "[PAD7]"]
    assert keys["token_type"] == [1, 1, 1, 1, 3, 3, 4, 5]
    assert keys["merges"] == ["a b", "a \u0120b"]


def test_byte_fallback_keeps_the_order_of_merges_in_the_scores(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "aab": 5}
    model = {"vocab": vocab, "merges": ["a b", "a ab"], "byte_fallback": True, "unk_token": "<unk>"}
    keys = keys_of(
        tmp_path, bpe(model=model, added_tokens=[{"id": 0, "content": "<unk>", "special": True}]), vocab_size=6
    )
    assert (keys["model"], keys["pre"]) == ("llama", "default")
    assert keys["token_type"] == [2, 6, 1, 1, 1, 1]
    assert keys["scores"] == [0, 0, -1e9, -1e9, 0, -1]
    assert "merges" not in keys


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
}


def test_the_post_processor_decides_what_is_added(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": {"content": "<|x|>"}, "add_bos_token": False, "add_eos_token": False}
    keys = keys_of(tmp_path, bpe(post_processor={"type": "Sequence", "processors": [NO_REGEX, TEMPLATE]}), settings)
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (4, 5)
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (True, False)
    ending = {**TEMPLATE, "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "plain"}}]}
    keys = keys_of(tmp_path, bpe(post_processor=ending), settings)
    assert (keys["eos_token_id"], keys["eot_token_id"], keys["add_eos_token"]) == (6, 5, True)


def test_llama3_always_says_whether_bos_is_added(tmp_path: Path) -> None:
    pre = {"type": "Sequence", "pretokenizers": [split(LLAMA3_HF), NO_REGEX]}
    keys = keys_of(tmp_path, bpe(pre_tokenizer=pre, model={"ignore_merges": True}))
    assert (keys["pre"], keys["add_bos_token"]) == ("llama-bpe", False)


def test_chat_templates(tmp_path: Path) -> None:
    assert keys_of(tmp_path, bpe(), {"chat_template": "{{ x }}"})["tokenizer.chat_template"] == "{{ x }}"
    several = [{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}, {"name": 3}]
    keys = keys_of(tmp_path, bpe(), {"chat_template": several})
    assert keys["tokenizer.chat_template"] == "d"
    assert keys["tokenizer.chat_template.tool_use"] == "t"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert keys_of(tmp_path, bpe(), {})["tokenizer.chat_template"] == "from the file"


def test_an_unknown_pre_tokenizer_is_written_as_default_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe(pre_tokenizer={"type": "Whitespace"})))
    got = tokenizer_keys(tmp_path, {"vocab_size": 8})
    assert got.keys["tokenizer.ggml.pre"].value == "default"
    assert "pre-tokenizer" in got.warnings[0]


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": 3}, {}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": -1}}}, {"model": {"vocab": {"a": "b"}}},
        {"model": {"vocab": {"a": 8}}}, {"model": {"vocab": {"a": 2**70}}}, bpe(model={"merges": ["a"]}),
        bpe(model={"merges": [["a", 1]]}), bpe(pre_tokenizer=[1]), bpe(added_tokens=[{"id": -1, "content": "x"}]),
        bpe(model={"type": "Unigram"}),
    ],
)  # fmt: skip
def test_damaged_tokenizers_are_refused_with_our_error(tmp_path: Path, tokenizer: dict) -> None:
    if not tokenizer:
        (tmp_path / "tokenizer.json").write_text("[]")
        with pytest.raises(subbyte.FormatError):
            tokenizer_keys(tmp_path, {"vocab_size": 8})
        return
    with pytest.raises(subbyte.Error):
        keys_of(tmp_path, tokenizer)


def test_a_vocabulary_size_that_cannot_be(tmp_path: Path) -> None:
    for size in (10**12, -1, "many", True):
        with pytest.raises(subbyte.Error, match="vocab_size"):
            keys_of(tmp_path, bpe(), vocab_size=size)


def test_smollm_never_adds_bos(tmp_path: Path) -> None:
    tensors = llama_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.ones((49152, 64), np.float16)
    settings = {"bos_token": "<s>", "add_bos_token": True, "clean_up_tokenization_spaces": False}
    pre = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}
    files = {"tokenizer.json": bpe(pre_tokenizer=pre), "tokenizer_config.json": settings}
    subbyte.convert(checkpoint(tmp_path / "m", tensors, files, vocab_size=49152), tmp_path / "out.gguf", to="gguf.q8_0")
    metadata = GgufFile(tmp_path / "out.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152


def test_texts_that_are_not_unicode(tmp_path: Path) -> None:
    """JSON can spell a lone surrogate, which no UTF-8 text holds."""
    vocab = {"a": 0, "\ud800": 1}
    files = {"tokenizer.json": json.dumps(bpe(model={"vocab": vocab, "merges": []}, added_tokens=[]))}
    folder = checkpoint(tmp_path / "m", files=files, vocab_size=32)
    with pytest.raises(subbyte.Error):
        subbyte.convert(folder, tmp_path / "out.gguf", to="gguf.q8_0")
    assert not (tmp_path / "out.gguf").exists()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["model", "added_tokens", "post_processor", "pre_tokenizer", "normalizer"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "vocab", "merges", "id", "content", "single", "processors", "pretokenizers", "pattern",
                     "SpecialToken", "special", "byte_fallback", "Regex", "behavior"]
                ),
                inner,
                max_size=4,
            ),
            max_leaves=8,
        ),
    )
)  # fmt: skip
def test_any_json_gives_a_vocabulary_or_our_error(tokenizer: dict) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(subbyte.Error):
        whole = tokenizer if "model" in tokenizer else bpe(**tokenizer)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(whole))
        assert tokenizer_keys(Path(folder), {"vocab_size": 8}).size in (0, 8)


def pre_tokenizer(name: str) -> dict:
    """The ``pre_tokenizer`` that the list of a name stands for."""
    steps = [{"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated"}
             for step in pre_tokenizers()[name].expressions]  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", "use_regex": False}]}


NOT_BYTE_LEVEL = {"LINES", "WHITESPACE", "AFMOE", "GRANITE_EMB_MULTI", "TEKKEN", "GPT4O"}


def test_every_list_is_found_again() -> None:
    named = {name for name, rule in pre_tokenizers().items() if rule.expressions}
    lists = {rule: key for key, rule in expression_lists().items()}
    found = {}
    for name in sorted(named):
        rule = pre_tokenizers()[name]
        if lists[rule.expressions] in NOT_BYTE_LEVEL:
            continue
        tokenizer = {"pre_tokenizer": pre_tokenizer(name), "model": {"ignore_merges": rule.ignores_merges}}
        got = pre_tokenizer_name(tokenizer, {"clean_up_tokenization_spaces": rule.cleans_spaces})
        assert got is not None, name
        assert pre_tokenizers()[got].expressions == rule.expressions
        found[name] = got
    for name in ("gpt-2", "starcoder", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "qwen35", "tekken", "gpt-4o",
                 "deepseek-v3", "deepseek-llm", "deepseek-coder", "falcon", "bloom", "viking", "superbpe", "default",
                 "tiny_aya", "youtu", "minicpm5", "chameleon", "jais-2", "exaone-moe", "seed-coder"):  # fmt: skip
        assert found[name] == name
    assert len(found) > 60


def test_structures_that_are_written_in_other_ways() -> None:
    byte_level = {"type": "ByteLevel", "use_regex": True}

    def name(*steps: dict, processor: dict | None = None) -> str | None:
        structure = {"type": "Sequence", "pretokenizers": list(steps)}
        return pre_tokenizer_name({"pre_tokenizer": structure, "post_processor": processor, "model": {}}, {})

    def split(regex: str) -> dict:
        return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}

    insensitive = LLAMA3.replace(
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    )
    assert insensitive != LLAMA3
    assert name(split(insensitive.replace(r"\r", "\r").replace(r"\n", "\n"))) == "smaug-bpe"
    assert name(split(GPT2 + r"|\s+")) == "gpt-2"
    assert name(byte_level, processor={"type": "RobertaProcessing"}) == "roberta-bpe"
    punctuation = {"type": "Punctuation", "behavior": "Contiguous"}
    digits = {"type": "Digits", "individual_digits": False}
    assert name(punctuation, byte_level, digits, split("[0-9][0-9][0-9]")) == "falcon"
    llm = [split(step) for step in expression_lists()["DEEPSEEK_LLM"][:-1]]
    assert name(*llm, {"type": "Digits", "individual_digits": True}) == "deepseek-llm"
    assert name(punctuation, byte_level) is None
    assert name({"type": "Metaspace"}) is None


def test_what_a_name_implies_and_the_tokenizer_does_not_is_warned_about(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "ignore_merges": True}
    body = {"model": model, "pre_tokenizer": pre_tokenizer("qwen2")}
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    assert any("ignore_merges is true" in warning for warning in tokenizer_keys(tmp_path, {}).warnings)
    body["pre_tokenizer"] = pre_tokenizer("tekken")
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    got = tokenizer_keys(tmp_path, {})
    assert got.warnings == []
    assert got.keys["tokenizer.ggml.add_bos_token"].value is False


def test_wordpiece(tmp_path: Path) -> None:
    body = {
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "[CLS]": 1, "un": 2, "##do": 3}},
        "added_tokens": [
            {"id": 0, "content": "[UNK]", "special": True},
            {"id": 1, "content": "[CLS]", "special": True},
        ],
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": True},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "unk_token": "[UNK]"}))
    keys = {
        key.removeprefix("tokenizer.ggml."): value.value for key, value in tokenizer_keys(tmp_path, {}).keys.items()
    }
    assert keys["model"] == "bert"
    assert keys["tokens"] == ["[UNK]", "[CLS]", "\u2581un", "do"]
    assert keys["token_type"] == [3, 3, 1, 1]
    assert (keys["normalizer.lowercase"], keys["normalizer.strip_accents"]) == (False, True)
    assert (keys["bos_token_id"], keys["unknown_token_id"]) == (1, 0)
    assert "scores" not in keys
    body["model"]["type"] = "Unigram"
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(subbyte.UnsupportedError, match="Unigram"):
        tokenizer_keys(tmp_path, {})


def test_a_vocabulary_that_cannot_be_meant_is_warned_about(tmp_path: Path) -> None:
    config = {"vocab_size": 8}
    for changes, words in (
        ({"model": {"merges": None}}, "no merges"),
        (
            {"model": {"vocab": {"a": 0, "b": 1, "ab": 1}}},
            "1 tokens have the id of another one.*id 1 is that of 'b' and 'ab'",
        ),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(bpe(**changes)))
        warnings = tokenizer_keys(tmp_path, config).warnings
        assert any(re.search(words, warning) for warning in warnings), warnings
