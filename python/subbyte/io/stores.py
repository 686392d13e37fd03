"""Where remote files are: web servers, object stores and the Hub's local cache, each read by ranges of bytes.

Nothing that a server says is trusted: a range of the wrong place or length, a body longer than what was asked for and
an encoded body are refused. `subbyte.io.remote` sees to it that all parts are of one and the same file.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from subbyte.errors import Error, IoError, UnsupportedError, one_line

TRIES = 4
"""Requests for one range that may fail in a row before giving up; the pause before each further one doubles."""
PAUSE = 0.5
"""Seconds before the second request."""
LONGEST_PAUSE = 30
"""Most seconds that a server's ``Retry-After`` is followed."""
CONTINUED = 1 << 20
"""Bytes of a range that have to arrive before a connection ends for the next request to go on after them."""
TIMEOUT = 30.0
"""Seconds in which a server has to answer or to send more."""
SLOWEST = 1 << 16
"""Bytes per second below which a transfer is given up, `TIMEOUT` after its start."""


class Part(NamedTuple):
    """A range of a file.

    Attributes:
        data: the bytes, fewer than asked for only at the end of the file.
        size: bytes of the whole file.
        version: what changes with the contents: ETag, time of the last change; empty where the store has neither.
    """

    data: bytes
    size: int
    version: str


class Store(ABC):
    """Files under one base.

    Attributes:
        base: address of the base for messages, without secrets; ends with ``/``.
        title: name of the folder.
        names: the files, where the store can list them.
        repository: id on the Hugging Face Hub; empty elsewhere.
    """

    base: str
    title: str
    names: frozenset[str] | None = None
    repository: str = ""

    @abstractmethod
    def fetch(self, name: str, start: int, stop: int) -> Part:
        """Bytes ``start`` to ``stop`` of a file, cut at its end; ``start`` is 0 or inside the file.

        Raises:
            IoError: they cannot be had; the builtin `FileNotFoundError` and `PermissionError` where that is why.
        """

    def place(self, name: str) -> str:
        """The address of a file for messages."""
        return self.base + name


def refused(message: str, place: str, error: BaseException | None = None) -> IoError:
    """The error for what a store did; of the builtin class for missing files and missing rights."""
    code = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
    number = next((value for kind, value in code.items() if isinstance(error, kind)), None)
    return IoError.from_errno(number, message, place)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web servers only, never from https to http, and tells no other server the credentials."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            fp.close()
            raise _RefusedError(f"the server redirects to {new.scheme}://{new.hostname}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


class _RefusedError(Exception):
    """An answer that asking again would not mend."""


class _FailedError(Exception):
    """An answer that asking again may mend, after ``pause`` seconds if the server says so; ``begun`` is what came."""

    def __init__(self, message: str, pause: float = 0.0, begun: Part | None = None) -> None:
        super().__init__(message)
        self.pause, self.begun = pause, begun


class HttpStore(Store):
    """Files of a web server, with the standard library alone. Proxies are taken from the environment."""

    def __init__(
        self,
        base: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        title: str = "",
        names: frozenset[str] | None = None,
    ) -> None:
        """``base`` is percent-encoded; ``query`` is added to the address of every file and never shown."""
        self.base, self.title, self.names = base, title, names
        self._query = f"?{query}" if query else ""
        self._headers = {"User-Agent": "subbyte", **(headers or {}), "Accept-Encoding": "identity"}
        self._open = urllib.request.build_opener(_Redirects).open

    def fetch(self, name: str, start: int, stop: int) -> Part:
        wait, tries = PAUSE, 0
        begun: list[Part] = []  # what earlier requests got before their connections ended
        came = 0
        while True:
            try:
                part = self._fetch(name, start + came, stop)
                if begun and part[1:] != begun[0][1:]:
                    begun, came = [], 0
                    raise _FailedError("the file changed while it was read")
                return part._replace(data=b"".join(piece.data for piece in (*begun, part)))
            except _RefusedError as error:
                raise refused(str(error), self.place(name)) from None
            except (_FailedError, OSError, http.client.HTTPException) as error:
                if isinstance(error, Error):
                    raise
                more = getattr(error, "begun", None)
                if more is not None and len(more.data) >= CONTINUED and (not begun or more[1:] == begun[0][1:]):
                    begun.append(more)
                    came, wait, tries = came + len(more.data), PAUSE, 0
                tries += 1
                if tries == TRIES:
                    reason = getattr(error, "reason", None) or error
                    raise refused(
                        f"no success after {TRIES} requests: {reason or type(reason).__name__}", self.place(name)
                    ) from error
                time.sleep(max(wait, getattr(error, "pause", 0.0)))
                wait *= 2

    def _fetch(self, name: str, start: int, stop: int) -> Part:
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        try:
            request = urllib.request.Request(self.base + quote(name) + self._query, headers=headers)
            with self._open(request, timeout=TIMEOUT) as response:
                return _part(response, start, stop)
        except urllib.error.HTTPError as error:
            with error:
                return self._status(name, error, start)
        except (ValueError, http.client.InvalidURL) as error:
            raise _RefusedError(f"not a usable address: {error}") from None

    def _status(self, name: str, error: urllib.error.HTTPError, start: int) -> Part:
        said = f"the server says {error.code} {error.reason}"
        if error.code == 416 and start == 0:
            return Part(b"", 0, _version(error.headers))  # an empty file has no first byte
        if error.code in (404, 410):
            raise refused(f"no such file: {said}", self.place(name), FileNotFoundError())
        if error.code in (401, 403):
            raise refused(f"access denied: {said}", self.place(name), PermissionError())
        if error.code in (408, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise _FailedError(said, min(float(after), LONGEST_PAUSE) if re.fullmatch(r"[0-9]{1,9}", after) else 0.0)
        raise _RefusedError(said)


def _part(response: http.client.HTTPResponse, start: int, stop: int) -> Part:
    """The answer to a request for bytes ``start`` to ``stop``, checked."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise _RefusedError(f"the server encodes the file as {encoding!r}, which was not asked for")
    if response.status == 206:
        stated = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", stated)
        first, last, size = (int(text) for text in found.groups()) if found else (0, 0, 0)
        if not found or first != start or last + 1 != min(stop, size):
            raise _RefusedError(f"bytes {start}-{stop - 1} were asked for, the server sends {stated!r}")
        wanted = last + 1 - start
        announced = response.headers.get("Content-Length", str(wanted))
        if announced != str(wanted):
            raise _RefusedError(f"the server announces {announced!r} bytes for a range of {wanted}")
        body, trouble = _body(response, wanted)
        if len(body) < wanted:
            came = f"{trouble or 'the connection ended'} after {len(body)} of {wanted} bytes"
            raise _FailedError(came, begun=Part(body, size, _version(response.headers)))
    elif response.status == 200 and start == 0:
        # The server knows no ranges: fine where the whole file is no more than what was asked for.
        length = response.headers.get("Content-Length", "")
        wanted = int(length) if re.fullmatch(r"[0-9]{1,19}", length) else -1
        body, trouble = (b"", "") if wanted > stop else _body(response, stop)
        if wanted > stop or len(body) > stop:
            raise _RefusedError("the server does not send ranges, only the whole file: download it and use the copy")
        size = wanted = len(body) if wanted < 0 else wanted
        if trouble or len(body) < wanted:
            raise _FailedError(f"{trouble or 'the connection ended'} after {len(body)} bytes")
    else:
        raise _RefusedError(
            f"bytes {start}-{stop - 1} were asked for, the server says {response.status} without a range"
        )
    if len(body) > wanted:
        raise _RefusedError(f"the server sends more than the {wanted} bytes it announces")
    return Part(body, size, _version(response.headers))


def _body(response: http.client.HTTPResponse, most: int) -> tuple[bytes, str]:
    """The body, at most one byte more than ``most``: enough to see that it is too long; and why there is no more."""
    deadline = time.monotonic() + TIMEOUT + most / SLOWEST
    body = bytearray()
    while len(body) <= most:
        try:
            data = response.read1(min(most + 1 - len(body), 1 << 20))
        except (OSError, http.client.HTTPException) as error:
            return bytes(body), str(error) or type(error).__name__
        if not data:
            break
        body += data
        if time.monotonic() > deadline:
            raise _FailedError(f"too slow: {len(body)} of {most} bytes in {TIMEOUT + most / SLOWEST:.0f} s")
    return bytes(body), ""


def _version(headers: Any) -> str:
    return " ".join(text for text in (headers.get("ETag"), headers.get("Last-Modified")) if text)


class ObjectStore(Store):
    """Files of an object store, through obstore if it is installed, else fsspec; credentials are theirs to find."""

    def __init__(self, bucket: str, folder: str) -> None:
        """``bucket`` is ``s3://name``, ``gs://name`` or ``az://name``, ``folder`` empty or ending with ``/``."""
        self.base, self.title = f"{bucket}/{folder}", (f"{bucket}/{folder}").rstrip("/").rpartition("/")[2]
        self._get: Callable[[str, int, int], Part]
        try:
            self._get = _obstore(bucket, folder)
        except ImportError:
            try:
                self._get = _fsspec(bucket, folder)
            except ImportError as error:
                raise UnsupportedError(
                    f"object stores need the package obstore, or fsspec with the part for this one ({error}): "
                    "pip install 'subbyte[hub]'",
                    file=self.base,
                ) from None
        except Exception as error:
            raise refused(one_line(error), self.base, error) from error

    def fetch(self, name: str, start: int, stop: int) -> Part:
        try:
            return self._get(name, start, stop)
        except Exception as error:  # the packages raise their own classes, and those of packages below them
            raise refused(one_line(error), self.place(name), error) from error


def _obstore(bucket: str, folder: str) -> Callable[[str, int, int], Part]:
    import obstore
    from obstore.store import from_url

    store = from_url(bucket)

    def get(name: str, start: int, stop: int) -> Part:
        result = obstore.get(store, folder + name, options={"range": (start, stop)})
        meta = result.meta
        version = f"{meta.get('e_tag') or ''} {meta.get('last_modified') or ''}"
        return Part(bytes(result.bytes()), int(meta["size"]), version.strip())

    return get


def _fsspec(bucket: str, folder: str) -> Callable[[str, int, int], Part]:
    import fsspec

    system, root = fsspec.core.url_to_fs(f"{bucket}/{folder}")

    def get(name: str, start: int, stop: int) -> Part:
        path = f"{root.rstrip('/')}/{name}"
        system.invalidate_cache()  # a file that changed meanwhile has to be noticed
        facts = system.info(path)
        size = int(facts["size"])
        found = (facts.get(key) for key in ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated"))
        data = system.cat_file(path, start=start, end=min(stop, size)) if size else b""
        return Part(bytes(data), size, " ".join(str(value) for value in found if value))

    return get


class FolderStore(Store):
    """A local folder under the name of the repository that it is a copy of."""

    def __init__(self, folder: Path, title: str) -> None:
        self.base, self.title = os.fspath(folder) + "/", title
        self._folder = folder
        self.names = frozenset(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def fetch(self, name: str, start: int, stop: int) -> Part:
        try:
            with (self._folder / name).open("rb") as file:
                facts = os.fstat(file.fileno())
                file.seek(start)
                return Part(file.read(stop - start), facts.st_size, str(facts.st_mtime_ns))
        except OSError as error:
            raise IoError.from_errno(error.errno, error.strerror or str(error), self.place(name)) from None
