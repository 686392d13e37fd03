"""``tokenizer.ggml.pre``: the name of the splitting rule that a byte-level BPE tokenizer applies before merging.

The name is derived from the structure of ``pre_tokenizer`` in tokenizer.json: its steps are written as one list of
regular expressions, and the list is looked up. (llama.cpp's converter hashes the token ids of a test text instead,
which depends on the vocabulary and is blind to many differences between the expressions.)
"""

from __future__ import annotations

from typing import Any

from subbyte.errors import FormatError

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

ADDS_BOS = frozenset({"llama-bpe"})
"""Names for which a reader adds a BOS token unless the file says otherwise."""


def pre_tokenizer_name(tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]) -> str | None:
    """The value of ``tokenizer.ggml.pre`` for a tokenizer.json; ``None`` where the structure is not known.

    Raises:
        FormatError: the structure is damaged.
    """
    steps = _steps(tokenizer.get("pre_tokenizer"))
    if steps == [GPT2]:
        return "gpt-2"
    if steps == [r"\p{N}", GPT2]:
        return "smollm" if tokenizer_config.get("clean_up_tokenization_spaces") is False else "starcoder"
    if steps == [LLAMA3]:
        return "llama-bpe" if tokenizer["model"].get("ignore_merges") else "smaug-bpe"
    return None


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
        return [GPT2] if node.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if node.get("individual_digits") else r"\p{N}+"]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(expression, str):
            expression = expression.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)
            return [expression.replace("\r", r"\r").replace("\n", r"\n")]
    return None
