"""What is written beside a converted file: its manifest, the proof of what was written and how.

The manifest of ``model.gguf`` is ``model.gguf.subbyte.json``, that of a folder is ``manifest.subbyte.json`` in it. It
holds the report of the conversion, what identifies the command that made it, facts about each file, and a hash of each
tensor: SHA-256 over the SHA-256 digests of its units of ``unit_rows`` rows of ``unit_columns`` elements, so that units
can be hashed at the same time and a resumed run need not read finished tensors again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from subbyte import _native
from subbyte.convert.report import Report
from subbyte.errors import Error, FormatError
from subbyte.jsonfile import read_object

VERSION = 2
SUFFIX = ".subbyte.json"
_MOST_HEADER = 1 << 30


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a complete file.

    Attributes:
        nbytes, mtime_ns: its size and time of modification.
        header_nbytes, header_sha256: length and hash of the bytes before the first tensor: all of a file without any.
    """

    nbytes: int
    mtime_ns: int
    header_nbytes: int
    header_sha256: str

    @classmethod
    def of(cls, path: Path, header: bytes) -> FileFacts:
        """The facts of a file on disk that begins with ``header``.

        Raises:
            OSError: it cannot be looked at.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, len(header), digest(header))

    def fit(self, path: Path) -> bool:
        """Whether a file has this size and header."""
        try:
            with path.open("rb") as file:
                header = file.read(min(max(self.header_nbytes, 0), self.nbytes, _MOST_HEADER))
                return os.fstat(file.fileno()).st_size == self.nbytes and digest(header) == self.header_sha256
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of a file or a folder.

    Attributes:
        identity: what identifies the conversion (:func:`~subbyte.convert.journal.identify`).
        files: facts of each file by its name in the folder; the name is empty where the target is one file.
        report: the report as JSON data; its tensors carry the hashes.
    """

    identity: dict[str, Any]
    files: dict[str, FileFacts]
    report: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write it as ``path``, at once.

        Raises:
            IoError: the system refused.
        """
        files = {name: asdict(facts) for name, facts in self.files.items()}
        data = {"subbyte_manifest": VERSION, "identity": self.identity, "files": files, "report": self.report}
        _native.write_file(os.fspath(path), json.dumps(data, indent=1).encode())

    def paths(self, dst: Path) -> dict[Path, FileFacts]:
        """The facts by path of the files of ``dst``."""
        return {dst / name if name else dst: facts for name, facts in self.files.items()}

    def describes(self, dst: Path) -> bool:
        """Whether ``dst`` is there and was not touched since."""
        try:
            found = [(path.stat(), facts) for path, facts in self.paths(dst).items()]
        except OSError:
            return False
        return all((f.st_size, f.st_mtime_ns) == (facts.nbytes, facts.mtime_ns) for f, facts in found)

    def fits(self, dst: Path) -> bool:
        """Whether ``dst`` has the sizes and headers that the manifest says; nothing else is read."""
        return all(facts.fit(path) for path, facts in self.paths(dst).items())

    def refreshed(self, dst: Path) -> Manifest:
        """The manifest with the present times of modification.

        Raises:
            OSError: a file is gone.
        """
        paths = self.paths(dst)
        times = {name: path.stat().st_mtime_ns for name, path in zip(self.files, paths, strict=True)}
        return replace(self, files={name: replace(f, mtime_ns=times[name]) for name, f in self.files.items()})

    def settle(self, dst: Path) -> None:
        """Write it beside or in the complete ``dst``, whose manifest may be pending since a crash.

        Raises:
            IoError: the system refused.
        """
        self.write(manifest_path(dst))
        _native.remove_file(os.fspath(pending_path(dst)))


def manifest_path(dst: Path) -> Path:
    """The name of the manifest of ``dst``: in a folder, beside a file."""
    return dst / f"manifest{SUFFIX}" if dst.is_dir() else dst.with_name(dst.name + SUFFIX)


def pending_path(dst: Path) -> Path:
    """The name of the manifest of the file ``dst`` until the file has its name.

    So the manifest of a file that is replaced stays beside it to the last, and a run that dies right after that leaves
    the new file with the pending manifest, which describes it.
    """
    return dst.with_name(f"{dst.name}.subbyte-part{SUFFIX}")


def read_manifest(dst: Path) -> Manifest | None:
    """The manifest of ``dst``; ``None`` where there is none.

    Raises:
        FormatError: what is there is no manifest.
        UnsupportedError, IoError: it cannot be read.
    """
    if not dst.is_dir() and (pending := pending_path(dst)).exists():
        try:
            found = _read(pending)
        except Error:
            found = None
        if found is not None and found.describes(dst):
            return found
    path = manifest_path(dst)
    return _read(path) if path.exists() else None


def _read(path: Path) -> Manifest:
    data = read_object(path)
    if data.get("subbyte_manifest") != VERSION:
        raise FormatError(
            f"expected a manifest of version {VERSION}, found {data.get('subbyte_manifest')!r}", file=path
        )
    for name in ("identity", "files", "report"):
        if not isinstance(data.get(name), dict):
            raise FormatError(f"{name}: expected dict, found {type(data.get(name)).__name__}", file=path)
    if not isinstance(data["identity"].get("subbyte"), str):
        raise FormatError("identity: the version of subbyte is missing", file=path)
    try:
        Report.from_json(data["report"])
    except FormatError as error:
        error.file = os.fspath(path)
        raise
    files = {name: _facts(name, entry, path) for name, entry in data["files"].items()}
    return Manifest(data["identity"], files, data["report"])


def _facts(name: str, entry: Any, path: Path) -> FileFacts:
    """An entry of a manifest, whose names lead nowhere but into the folder."""
    kinds = {"nbytes": int, "mtime_ns": int, "header_nbytes": int, "header_sha256": str}
    if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        raise FormatError(f"files: expected the facts of '{name}', found {entry!r:.80}", file=path)
    if name and (PurePath(name).is_absolute() or ".." in PurePath(name).parts):
        raise FormatError(f"files: '{name}' is not in the folder", file=path)
    return FileFacts(**{key: entry[key] for key in kinds})


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
