"""What this installation can do: formats, codecs, SIMD levels."""

from __future__ import annotations

from typing import Any

from subbyte import _native
from subbyte.codec import codec_ids
from subbyte.convert.types import FLOATS
from subbyte.formats import PLANNED, format_ids
from subbyte.ggml import TYPES
from subbyte.planning.mix import FILE_TYPES


def list_formats() -> list[dict[str, Any]]:
    """Format ids and conversion targets: ``id``; ``use`` (``"convert"`` or ``"decode, encode"``); ``status``."""
    targets = [{"id": f"gguf.{name.lower()}", "use": "convert", "status": "supported"} for name in FILE_TYPES]
    targets += [{"id": f"hf.{name.lower()}", "use": "convert", "status": "supported"} for name in FLOATS]
    layers = [*codec_ids(), *format_ids()]
    codecs = [{"id": name, "use": "decode, encode", "status": "supported"} for name in layers]
    planned = [{"id": name, "use": "decode, encode", "status": "planned"} for name in sorted(PLANNED)]
    return targets + codecs + planned


def list_codecs() -> list[dict[str, Any]]:
    """Codec ids with ``block`` (elements), ``bits_per_weight`` and ``importance`` (use of importance weights)."""
    rows = []
    for name in codec_ids():
        facts = TYPES.get(name.removeprefix("gguf.").upper())
        rows.append(
            {"id": name}
            if facts is None
            else {
                "id": name,
                "block": facts.block,
                "bits_per_weight": 8 * facts.block_bytes / facts.block,
                "importance": facts.importance,
            }
        )
    return rows


def list_levels() -> list[dict[str, Any]]:
    """SIMD levels, lowest first: ``level``, ``available`` (this processor can run it), and which one is ``used``."""
    used = _native.level()
    return [{"level": name, "available": runs, "used": name == used} for name, runs in _native.levels()]
