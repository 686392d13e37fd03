"""The small files beside a checkpoint's weights, with our errors for everything that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from subbyte import _native
from subbyte.errors import FormatError, IoError, LimitError
from subbyte.io import load_json


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of at most ``_native.SIDE_FILE_BYTES``.

    Raises:
        LimitError: larger than the ceiling.
        IoError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > _native.SIDE_FILE_BYTES:
            raise LimitError(f"{size:,} bytes; at most {_native.SIDE_FILE_BYTES:,} are read", file=path)
        return path.read_bytes()
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None


def read_text(path: Path) -> str:
    """The UTF-8 text of a file; errors as :func:`read_bytes`, and `FormatError` where it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text: {error.reason}", file=path, byte=error.start) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; errors as :func:`subbyte.io.load_json`."""
    value = load_json(path)
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found {type(value).__name__}", file=path)
    return value


def read_object_if_there(path: Path) -> dict[str, Any]:
    """Like :func:`read_object`, and the empty object where there is no such file."""
    return read_object(path) if path.is_file() else {}
