"""Paths that callers pass, and small files that are written to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from subbyte import _native
from subbyte.errors import ArgumentError, IoError


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


def target_path(path: str | os.PathLike[str], what: str = "dst") -> Path:
    """As :func:`checked_path`, for what is to be written: a path with a name of its own, which others can stand beside.

    Raises:
        ArgumentError: it is no path, or leads to the current folder or to one that holds it.
        IoError: the current folder is gone.
    """
    found = checked_path(path, what)
    try:
        real, here = (Path(os.path.realpath(place)) for place in (found, "."))
    except OSError:
        raise IoError("the current folder is gone; change to another", file=path) from None
    if found.name in ("", ".."):
        found = real
    if not found.name or real in (here, *here.parents):
        raise ArgumentError("is the current folder, or one that holds it; choose another name", file=path)
    return found


def utf8(text: str) -> str:
    """``text`` with replacement characters for the bytes of a file name that are not UTF-8."""
    return os.fsencode(text).decode("utf-8", "replace")


def check_apart(path: str | os.PathLike[str], read: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to write to one of the files that are read.

    Raises:
        ArgumentError: ``path`` is one of them, by whatever name.
        IoError: a file cannot be looked at.
    """
    if any(_native.same_file(os.fspath(path), os.fspath(other)) for other in read):
        raise ArgumentError("is a file that is read here, and would be lost; choose another name", file=path)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file: what is there stays until the new one is complete; pipes and devices are written directly.

    Raises:
        IoError: the system refused.
    """
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(path, "wb") as out:
                out.write(data)
            return
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
    _native.write_file(target, data)
