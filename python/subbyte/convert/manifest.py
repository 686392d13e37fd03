"""What is written beside a converted file: its manifest, the proof of what was written and how.

The manifest of ``model.gguf`` is ``model.gguf.subbyte.json``. It holds the report of the conversion, what identifies
the command that made it, and a hash of each tensor: SHA-256 over the SHA-256 digests of its units of ``unit_rows``
rows, so that units can be hashed at the same time and a resumed run need not read finished tensors again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subbyte import _native
from subbyte.errors import Error, FormatError
from subbyte.jsonfile import read_object

VERSION = 1
SUFFIX = ".subbyte.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one file.

    Attributes:
        identity: what identifies the conversion (:func:`~subbyte.convert.journal.identify`).
        nbytes, mtime_ns: size and time of modification of the file when it was completed.
        header_nbytes, header_sha256: length and hash of the bytes before the first tensor.
        report: the report as JSON data; its tensors carry the hashes.
    """

    identity: dict[str, Any]
    nbytes: int
    mtime_ns: int
    header_nbytes: int
    header_sha256: str
    report: dict[str, Any]

    def write(self, dst: Path) -> None:
        """Write it beside ``dst``, at once.

        Raises:
            IoError: the system refused.
        """
        data = {"subbyte_manifest": VERSION, **{name: getattr(self, name) for name in self.__slots__}}
        _native.write_file(os.fspath(manifest_path(dst)), json.dumps(data, indent=1).encode())

    def describes(self, dst: Path) -> bool:
        """Whether ``dst`` is there and was not touched since."""
        try:
            found = dst.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.nbytes, self.mtime_ns)


def manifest_path(dst: Path) -> Path:
    """The name of the manifest of ``dst``."""
    return dst.with_name(dst.name + SUFFIX)


def read_manifest(dst: Path) -> Manifest | None:
    """The manifest of ``dst``; ``None`` where there is none.

    Raises:
        FormatError: what is there is no manifest.
        UnsupportedError, IoError: it cannot be read.
    """
    path = manifest_path(dst)
    if not path.exists():
        return None
    data = read_object(path)
    if data.get("subbyte_manifest") != VERSION:
        raise FormatError(
            f"expected a manifest of version {VERSION}, found {data.get('subbyte_manifest')!r}", file=path
        )
    kinds = {
        "identity": dict,
        "nbytes": int,
        "mtime_ns": int,
        "header_nbytes": int,
        "header_sha256": str,
        "report": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise FormatError(f"{name}: expected {kind.__name__}, found {type(data.get(name)).__name__}", file=path)
    return Manifest(**{name: data[name] for name in kinds})


def find_manifest(dst: Path) -> Manifest | None:
    """Like :func:`read_manifest`, and ``None`` as well where it cannot be read: then it proves nothing."""
    try:
        return read_manifest(dst)
    except Error:
        return None


def digest(data: Any) -> str:
    """SHA-256 of a buffer, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def combined(units: Iterable[str]) -> str:
    """The hash of a tensor from those of its units."""
    return digest(b"".join(bytes.fromhex(unit) for unit in units))
