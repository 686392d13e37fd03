"""One hierarchy for everything that subbyte refuses: ``except subbyte.Error`` catches all of it.

The message says what was expected, what was found, and what to do next; the place is kept in attributes as well.

What is only doubtful is a warning of the category `SubbyteWarning`, given through the module `warnings`, so that it can
be silenced or made an error: ``warnings.simplefilter("error", subbyte.SubbyteWarning)``. Details go to the logger
``subbyte`` of the module `logging`, at the levels ``INFO`` and ``DEBUG``: they are seen where a handler is set up.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "CorruptError",
    "Error",
    "FormatError",
    "IoError",
    "LimitError",
    "NonFiniteError",
    "PluginError",
    "SubbyteWarning",
    "UnsupportedError",
]


class Error(Exception):
    """Base class of every error that subbyte raises on purpose.

    Attributes (``None`` where not known):
        message: what is wrong, without the place.
        file: path of the file.
        tensor: name of the tensor.
        byte: offset in the file or plane, in bytes.
        row, column: index of the element.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        byte: int | None = None,
        row: int | None = None,
        column: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.byte = byte
        self.row = row
        self.column = column

    def __str__(self) -> str:
        parts = []
        if self.file is not None:
            parts.append(self.file)
        if self.tensor is not None:
            parts.append(f"tensor '{self.tensor}'")
        if self.row is not None and self.column is not None:
            parts.append(f"row {self.row}, column {self.column}")
        parts.append(self.message)
        at = "" if self.byte is None else f" (at byte {self.byte})"
        return ": ".join(parts) + at


class FormatError(Error):
    """The bytes are not in the format they were opened as, or break one of its rules."""


class CorruptError(Error):
    """The bytes are in the right format but damaged: truncated, inconsistent, contradictory."""


class UnsupportedError(Error):
    """Well-formed, but outside what subbyte supports (yet)."""


class LimitError(Error):
    """A ceiling that protects against hostile files was met."""


class ArgumentError(Error, ValueError):
    """The caller passed something unusable: a shape, a dtype, a missing importance vector."""


class NonFiniteError(Error, ValueError):
    """A value to encode, or the encoded result, is NaN or infinite; ``row`` and ``column`` say where."""


class BusyError(Error):
    """Another run is writing to the same target."""


class CancelledError(Error):
    """A long call was asked to stop, and did; what it has done so far is kept where it can go on from there."""


class PluginError(Error):
    """A codec from another distribution (entry-point group ``subbyte.codecs``) could not be used."""


class IoError(Error, OSError):
    """The operating system refused; ``errno`` is set where known.

    Where Python has a builtin class for the errno (`FileNotFoundError` and the like), the error is an instance of it
    too; `IoError.from_errno` picks the class.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
    ) -> None:
        Error.__init__(self, message, file=file, tensor=tensor)
        self.errno = errno
        self.strerror = message
        self.filename = self.file

    @staticmethod
    def from_errno(errno: int | None, message: str, file: str | None = None, tensor: str | None = None) -> IoError:
        """The error for ``errno``, of the matching builtin class where there is one."""
        builtin = OSError if errno is None else type(OSError(errno, ""))
        chosen = next((c for c in _BUILTIN if builtin is not OSError and issubclass(c, builtin)), IoError)
        return chosen(message, errno=errno, file=file, tensor=tensor)

    def __reduce__(self) -> tuple[object, ...]:
        return IoError.from_errno, (self.errno, self.message, self.file, self.tensor)


class NotFoundError(IoError, FileNotFoundError):
    """No such file or folder."""


class ExistsError(IoError, FileExistsError):
    """The file or folder exists already."""


class PermissionDeniedError(IoError, PermissionError):
    """Access was denied."""


class IsFolderError(IoError, IsADirectoryError):
    """A folder where a file was expected."""


class NotFolderError(IoError, NotADirectoryError):
    """A file where a folder was expected."""


_BUILTIN: tuple[type[IoError], ...] = (NotFoundError, ExistsError, PermissionDeniedError, IsFolderError, NotFolderError)


def one_line(error: BaseException) -> str:
    """What another package raised, as one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


class SubbyteWarning(UserWarning):
    """Something that went on, but that the caller should know: of a conversion, a setting, or a plug-in."""


def warn(messages: Iterable[str], *, stacklevel: int = 3) -> None:
    """Gives each message as a `SubbyteWarning`, by default in the name of the caller's caller."""
    for message in messages:
        warnings.warn(message, SubbyteWarning, stacklevel=stacklevel)
