"""Checkpoints that are not on this machine: repositories of the Hugging Face Hub, web servers, object stores.

Only what is needed is read: headers by a few growing ranges, small files whole, tensors when their bytes are asked
for. ``docs/remote.md`` describes the addresses.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from subbyte import _native
from subbyte.errors import ArgumentError, CorruptError, Error, IoError, LimitError, UnsupportedError, one_line
from subbyte.paths import checked_path

if TYPE_CHECKING:
    from subbyte.io.stores import Store

__all__ = ["Place", "RemoteFile", "RemotePath", "place"]

FIRST = 256 << 10
"""Bytes of the first request for a file: the headers of most safetensors shards."""
GROWTH = 6
"""How many times longer the known beginning becomes with each further request while a header is read."""
MOST_AHEAD = 16 << 20
"""Most bytes that are read ahead of what a header needs."""
AT_ONCE = 8
"""Files whose beginnings are fetched at the same time."""

_FILES = (".gguf", ".safetensors", ".safetensors.index.json")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_REPOSITORY = re.compile(
    r"(?P<explicit>hf://)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/@]+))?(?:/(?P<file>[^@]*))?"
)


class RemoteFile:
    """A file that is read by ranges: what the extension module reads headers and tensors from.

    While a header is read, its beginning is kept, so that reading it in small steps needs few requests. Every part has
    to be of the same size and version as the first.

    Attributes:
        path: its address for messages.
        size: its bytes.
        version: what changes with its contents, as its store says it.
    """

    def __init__(self, path: RemotePath) -> None:
        self._place = path
        self.path = str(path)
        part = path.store.fetch(path.key, 0, FIRST)
        self.size, self.version = part.size, part.version
        self._start: bytes | None = self._checked(part.data, 0, FIRST)

    def read_range(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``.

        Raises:
            CorruptError: the file has fewer, or has changed since it was opened.
            IoError: the store does not give them.
        """
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise CorruptError(f"{length} bytes lie outside the file", file=self.path, byte=offset)
        start = self._start
        if start is None or offset > len(start):
            return self._fetch(offset, end) if length else b""
        if end > len(start):
            ahead = min(GROWTH * len(start), len(start) + MOST_AHEAD, self.size)
            start += self._fetch(len(start), max(end, ahead))
            self._start = start
        return start[offset:end]

    def sibling(self, name: str) -> RemoteFile:
        """The file of this name beside it."""
        return self._place.with_name(name).open()

    def seal(self) -> None:
        """Forgets the beginning, unless that is the whole file: the header has been read."""
        if self._start is not None and len(self._start) < self.size:
            self._start = None

    def _fetch(self, start: int, stop: int) -> bytes:
        part = self._place.store.fetch(self._place.key, start, stop)
        if (part.size, part.version) != (self.size, self.version):
            raise CorruptError(
                f"the file changed while it was read: {self.size} bytes ({self.version}) before, "
                f"{part.size} bytes ({part.version}) now; start again",
                file=self.path,
            )
        return self._checked(part.data, start, stop)

    def _checked(self, data: bytes, start: int, stop: int) -> bytes:
        if len(data) != min(stop, self.size) - start:
            raise CorruptError(
                f"{len(data)} bytes came, {min(stop, self.size) - start} were asked for", file=self.path, byte=start
            )
        return data


class RemotePath:
    """The address of a file or folder in a store, with the few methods of `pathlib.Path` that readers need.

    Attributes:
        store: where it is.
        key: name under the store's base; empty for the base itself.
    """

    def __init__(self, store: Store, key: str = "") -> None:
        self.store, self.key = store, key
        self._opened: dict[str, RemoteFile] = {}

    @property
    def name(self) -> str:
        """The last part: of the base, the folder's name."""
        return self.key.rpartition("/")[2] or self.store.title

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return Path(self.name).suffix

    @cached_property
    def title(self) -> str:
        """The folder's name, made fit for a local folder."""
        return re.sub(r"[^\w.-]", "_", self.store.title).strip(".") or "model"

    def is_dir(self) -> bool:
        """Whether it is the base of files rather than one of them."""
        return not self.key

    def with_name(self, name: str) -> RemotePath:
        """The file of this name in the same folder; for a folder, in it."""
        path = RemotePath(self.store, self.key[: self.key.rfind("/") + 1] + name)
        path._opened = self._opened
        return path

    def open(self) -> RemoteFile:
        """The file, asked for once.

        Raises:
            IoError: as `Store.fetch`.
        """
        if self.key not in self._opened:
            self._opened[self.key] = RemoteFile(self)
        return self._opened[self.key]

    def exists(self) -> bool:
        """Whether there is such a file.

        Raises:
            IoError: the store does not say.
        """
        if self.store.names is not None:
            return self.key in self.store.names
        try:
            self.open()
        except FileNotFoundError:
            return False
        return True

    def seal(self) -> None:
        """Forgets the beginnings of all files opened: their headers have been read."""
        for file in self._opened.values():
            file.seal()

    @property
    def versions(self) -> dict[str, list[str | int]]:
        """Size and version by name of each file opened."""
        return {name: [file.size, file.version] for name, file in self._opened.items()}

    @contextmanager
    def copies(self, names: Iterable[str]) -> Iterator[Path]:
        """A temporary folder, called as this one, with copies of those of the small files ``names`` that exist.

        Errors that name a copy name the remote file instead.

        Raises:
            LimitError: a file is larger than ``_native.SIDE_FILE_BYTES``.
            IoError: a file cannot be read.
        """
        import tempfile
        from concurrent.futures import ThreadPoolExecutor

        with tempfile.TemporaryDirectory(prefix="subbyte-") as above:
            folder = Path(above) / self.title
            folder.mkdir()
            paths = [self.with_name(name) for name in names]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = list(pool.map(RemotePath.exists, paths))
            for path in (path for path, there in zip(paths, found, strict=True) if there):
                name, file = path.key, path.open()
                if file.size > _native.SIDE_FILE_BYTES:
                    raise LimitError(
                        f"{file.size:,} bytes; at most {_native.SIDE_FILE_BYTES:,} are read", file=file.path
                    )
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(file.read_range(0, file.size))
            try:
                yield folder
            except Error as error:
                if error.file is not None and Path(error.file).is_relative_to(folder):
                    relative = Path(error.file).relative_to(folder).as_posix()
                    error.file = str(self.with_name("" if relative == "." else relative))
                raise

    def __fspath__(self) -> str:
        """The address without secrets, as errors name it."""
        return self.store.place(self.key)

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"


Place: TypeAlias = Path | RemotePath
"""A local path or a remote address."""


def place(location: str | os.PathLike[str], what: str = "path") -> Place:
    """What a user's location stands for; ``what`` names the argument. Only strings can be addresses, and a local path
    that exists is never taken for a repository.

    Raises:
        ArgumentError: neither a path nor an address.
        UnsupportedError: a scheme or a package that is missing.
        IoError: the Hub does not know the repository, or cannot be reached.
    """
    if isinstance(location, RemotePath):
        return location
    if not isinstance(location, str):
        return checked_path(location, what)
    scheme = _SCHEME.match(location)
    repository = _REPOSITORY.fullmatch(location)
    if repository and (repository["explicit"] or (repository["revision"] and not os.path.lexists(location))):
        return _hub(location, repository["repo"], repository["revision"], repository["file"] or "")
    if not scheme:
        return checked_path(location, what)
    kind = scheme[1].lower()
    if kind in ("http", "https"):
        return _web(location)
    if kind in ("s3", "gs", "az"):
        from subbyte.io.stores import ObjectStore

        bucket, _, key = location[len(scheme[0]) :].partition("/")
        folder, name = _divide(key)
        if not bucket:
            raise ArgumentError("the address names no bucket", file=location)
        return RemotePath(ObjectStore(f"{kind}://{bucket}", folder), name)
    raise UnsupportedError(
        f"addresses of the kind {kind}:// are not read; http, https, s3, gs, az and hf are", file=location
    )


def _divide(path: str) -> tuple[str, str]:
    """The folder of an address, empty or ending with a slash, and the file's name, empty for a folder."""
    if path.endswith(_FILES):
        above, slash, name = path.rpartition("/")
        return above + slash, name
    return path.rstrip("/") + "/" if path.strip("/") else "", ""


def _web(location: str) -> RemotePath:
    from subbyte.io.stores import HttpStore

    try:
        parts = urlsplit(location)
        host, secret, _ = parts.hostname, parts.username or parts.password, parts.port
    except ValueError as error:
        raise ArgumentError(f"not an address: {error}", file=location) from None
    if not host or secret:
        what = "user names and passwords in addresses end up in logs; they are not read" if secret else "no host"
        raise ArgumentError(what, file=f"{parts.scheme}://{host or ''}")
    folder, name = _divide(quote(parts.path, safe="/%:@!$&'()*+,;=~-._").lstrip("/"))
    base = f"{parts.scheme}://{parts.netloc}/{folder}"
    title = unquote(folder.rstrip("/").rpartition("/")[2])
    return RemotePath(HttpStore(base, parts.query, title=title), unquote(name))


def _hub(location: str, repo: str, revision: str | None, file: str) -> RemotePath:
    """A repository at one commit; in offline mode what huggingface_hub has in its cache."""
    from subbyte.io.stores import FolderStore, HttpStore

    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError:
        raise UnsupportedError(
            "repositories of the Hugging Face Hub need the package huggingface_hub: pip install 'subbyte[hub]'",
            file=location,
        ) from None
    folder, name = _divide(file)
    title = (folder.rstrip("/") or repo).rpartition("/")[2]
    try:
        if constants.HF_HUB_OFFLINE:
            cached = huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
            store: Store = FolderStore(Path(cached) / folder, title)
            store.repository = repo
            return RemotePath(store, name)
        info = huggingface_hub.HfApi().model_info(repo, revision=revision)
        found = [sibling.rfilename for sibling in info.siblings or ()]
        names = frozenset(file.removeprefix(folder) for file in found if file.startswith(folder))
        base = huggingface_hub.hf_hub_url(repo, folder + "x", revision=info.sha).removesuffix("x")
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else huggingface_hub.get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        store = HttpStore(base, headers=headers, title=title, names=names)
        store.repository = repo
        return RemotePath(store, name)
    except Exception as error:  # its own classes, and those of the web client it uses
        raise IoError(f"huggingface_hub: {one_line(error)}", file=location) from error
