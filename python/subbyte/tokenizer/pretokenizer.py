"""``tokenizer.ggml.pre``: the name of the splitting rule that a byte-level BPE tokenizer applies before merging.

The name is derived from the structure of ``pre_tokenizer`` in tokenizer.json: its steps are written as one list of
regular expressions, and the list is looked up. (llama.cpp's converter hashes the token ids of a test text instead,
which depends on the vocabulary and is blind to many differences between the expressions.) The lists that belong to the
names, and what else a name implies, are those of llama.cpp (revision 0c1e57098): pretokenizers.json. ``TEKKEN_HF`` and
``GPT4O_HF`` are tokenizer.json's own forms of lists that llama.cpp writes without classes of letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from subbyte.errors import FormatError

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ASCII_PUNCTUATION = "Punctuation"
_OWN_FORMS = {"TEKKEN": "TEKKEN_HF", "GPT4O": "GPT4O_HF"}
_FIRST_OF_LIST = {
    "QWEN2": "qwen2", "QWEN35": "qwen35", "TEKKEN_HF": "tekken", "GPT4O_HF": "gpt-4o", "DEEPSEEK3": "deepseek-v3",
    "DEEPSEEK_LLM": "deepseek-llm", "DEEPSEEK_CODER": "deepseek-coder", "FALCON": "falcon", "BLOOM": "bloom",
    "VIKING": "viking", "SUPERBPE": "superbpe", "BAILINGMOE": "bailingmoe", "SEED_CODER": "seed-coder",
    "MINICPM5": "minicpm5", "EXAONE_MOE": "exaone-moe", "YOUTU": "youtu", "CHAMELEON": "chameleon",
    "SPARK2_5": "spark2_5", "UFAKZEKA": "ufakzeka", "JAIS2": "jais-2", "TINY_AYA": "tiny_aya", "DEFAULT": "default",
    "LAGUNA": "laguna",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What a name means to a reader.

    Attributes:
        expressions: applied one after the other, each cutting every piece so far into matches and the text between.
        ignores_merges: a piece that is a token is taken whole.
        adds_bos: a BOS token is put in front unless the file says otherwise.
        adds_sep: a separator is added unless the file says otherwise.
        cleans_spaces: spaces in front of punctuation are dropped when tokens become text.
    """

    expressions: tuple[str, ...]
    ignores_merges: bool
    adds_bos: bool
    adds_sep: bool
    cleans_spaces: bool


@cache
def expression_lists() -> Mapping[str, tuple[str, ...]]:
    """The lists of regular expressions by name, names inside lists replaced by what they stand for."""
    raw = _table()["lists"]
    return {name: tuple(step for entry in entries for step in raw.get(entry, [entry])) for name, entries in raw.items()}


@cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("pretokenizers.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


@cache
def pre_tokenizers() -> Mapping[str, PreTokenizer]:
    """Every name that readers know."""
    found = {}
    for name, ids in _table()["ids"].items():
        expressions = expression_lists().get(_OWN_FORMS.get(name, name), ())
        for identifier, flags in ids.items():
            found[identifier] = PreTokenizer(expressions, *(flag in flags for flag in "mbsc"))
    return found


def pre_tokenizer_name(tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]) -> str | None:
    """The value of ``tokenizer.ggml.pre`` for a tokenizer.json; ``None`` where the structure is not known.

    Raises:
        FormatError: the structure is damaged.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    if steps is None:
        return None
    if steps[:1] == [_ASCII_PUNCTUATION]:
        steps = [expression_lists()["FALCON"][0], *steps[1:]]
        falcon = expression_lists()["FALCON"]
        return "falcon" if steps in ([*falcon], [*falcon[:2], r"\p{N}+", falcon[2]]) else None
    gpt2 = expression_lists()["GPT2"][0]
    steps = [gpt2 if step == gpt2 + r"|\s+" else step for step in steps]
    if steps[:-1] == list(expression_lists()["DEEPSEEK_LLM"][:-1]) and steps[-1] == r"\p{N}":
        return "deepseek-llm"
    name = next((name for name, expressions in expression_lists().items() if steps == list(expressions)), None)
    if name == "GPT2":
        return "roberta-bpe" if _has_roberta(tokenizer.get("post_processor")) else "gpt-2"
    if name == "DIGITS_GPT2":
        return "smollm" if tokenizer_config.get("clean_up_tokenization_spaces") is False else "starcoder"
    model = tokenizer.get("model")
    if name == "LLAMA3":
        return "llama-bpe" if isinstance(model, dict) and model.get("ignore_merges") else "smaug-bpe"
    return _FIRST_OF_LIST.get(name) if name else None


def _has_roberta(processor: Any) -> bool:
    if not isinstance(processor, dict):
        return False
    members = processor.get("processors")
    if isinstance(members, list):
        return any(_has_roberta(member) for member in members)
    return processor.get("type") == "RobertaProcessing"


def _steps(node: Any) -> list[str] | None:
    """The expressions of a pre-tokenizer, each an isolating split; ``None`` if it does anything else."""
    if node is None:
        return []
    if not isinstance(node, dict):
        raise FormatError(f"tokenizer.json: pre_tokenizer: expected an object, found {type(node).__name__}")
    kind = node.get("type")
    if kind == "Sequence":
        steps: list[str] = []
        members = node.get("pretokenizers")
        for member in members if isinstance(members, list) else ():
            inner = _steps(member)
            if inner is None:
                return None
            steps += inner
        return steps
    if kind == "ByteLevel":
        return [expression_lists()["GPT2"][0]] if node.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if node.get("individual_digits") else r"\p{N}+"]
    if kind == "Punctuation" and node.get("behavior") == "Contiguous":
        return [_ASCII_PUNCTUATION]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(expression, str):
            expression = expression.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)
            return [expression.replace("\r", r"\r").replace("\n", r"\n")]
    return None
