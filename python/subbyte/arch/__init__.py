"""Model architectures that can be converted: one file per family, registered in :data:`ARCHITECTURES`."""

from __future__ import annotations

from typing import Any

from subbyte.arch.base import Architecture, Config
from subbyte.arch.bert import BERT
from subbyte.arch.deepseek import DEEPSEEK2
from subbyte.arch.gemma import GEMMA2, GEMMA3
from subbyte.arch.gptoss import GPT_OSS
from subbyte.arch.llama import LLAMA
from subbyte.arch.phi3 import PHI3
from subbyte.arch.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from subbyte.errors import FormatError, UnsupportedError

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, GEMMA2, GEMMA3, PHI3, GPT_OSS, DEEPSEEK2, BERT,
)  # fmt: skip


def find_architecture(config: dict[str, Any]) -> tuple[Architecture, Config]:
    """The architecture of a config.json, and the config with the model type's defaults filled in.

    The fields of a multimodal model's ``text_config`` take the place of those of the whole.

    Raises:
        FormatError: config.json names no model type.
        UnsupportedError: an architecture that is not in the table; the message lists those that are.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise FormatError("config.json: model_type is missing: not the configuration of a language model")
    known = {name: arch for arch in ARCHITECTURES for name in arch.model_types}
    arch = known.get(kind)
    if arch is None:
        raise UnsupportedError(f"config.json: model_type '{kind}' cannot be converted (yet); known: {', '.join(known)}")
    text = config.get("text_config")
    given = {**config, **(text if isinstance(text, dict) else {})}
    filled = {**arch.model_types[kind], **{name: value for name, value in given.items() if value is not None}}
    arch.complete(filled)
    return arch, filled


__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]
