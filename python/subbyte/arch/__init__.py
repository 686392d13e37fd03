"""Model architectures that can be converted: one file each, registered in :data:`ARCHITECTURES`."""

from __future__ import annotations

from typing import Any

from subbyte.arch.base import Architecture, Config
from subbyte.arch.llama import LLAMA, head_dim
from subbyte.errors import FormatError, UnsupportedError

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA,)


def find_architecture(config: dict[str, Any]) -> tuple[Architecture, Config]:
    """The architecture of a config.json, and the config with the model type's defaults filled in.

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
    filled = {**arch.model_types[kind], **{name: value for name, value in config.items() if value is not None}}
    filled.setdefault("num_key_value_heads", filled.get("num_attention_heads"))
    filled.setdefault("head_dim", head_dim(filled))
    return arch, filled


__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]
