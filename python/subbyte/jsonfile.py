"""Reading the small JSON files beside a checkpoint, with our errors for everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import FormatError, LimitError

MAX_BYTES = 256 << 20
"""Ceiling for one JSON file: the largest tokenizers in use take about 35 MB."""


def read_text(path: Path) -> str:
    """The UTF-8 text of a file of at most :data:`MAX_BYTES`.

    Raises:
        FormatError: not UTF-8.
        LimitError: larger than the ceiling.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise LimitError(f"{size:,} bytes; at most {MAX_BYTES:,} are read", file=path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text: {error.reason}", file=path, byte=error.start) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FormatError: not JSON, or not an object at the top.
        LimitError: larger than the ceiling.
        OSError: the file cannot be read.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg} in line {error.lineno}", file=path) from None
    except (RecursionError, ValueError) as error:
        raise FormatError(f"JSON that cannot be read: {error}", file=path) from None
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found {type(value).__name__}", file=path)
    return value


def read_object_if_there(path: Path) -> dict[str, Any]:
    """Like :func:`read_object`, and the empty object where there is no such file."""
    return read_object(path) if path.is_file() else {}
