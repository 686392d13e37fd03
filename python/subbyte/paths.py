"""Paths that callers pass."""

from __future__ import annotations

import os
from pathlib import Path

from subbyte.errors import ArgumentError


def checked_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """``path`` as a `pathlib.Path`; ``what`` names the argument.

    Raises:
        ArgumentError: it is no path, empty (which would mean the current folder), or holds a NUL character.
    """
    try:
        text = os.fsdecode(path)
        os.fsencode(text)
    except (TypeError, UnicodeError):
        raise ArgumentError(f"{what}: expected a path, found {path!r}") from None
    if not text:
        raise ArgumentError(f"{what}: expected a path, found an empty one; '.' is the current folder")
    if "\0" in text:
        raise ArgumentError(f"{what}: {text!r} holds a NUL character, which no path can have")
    return Path(text)


def utf8(text: str) -> str:
    """``text`` with replacement characters for the bytes of a file name that are not UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")
