"""A web server on the loopback interface that knows ranges, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Server:
    """What is served, and what was asked for.

    Attributes:
        files: contents by path, without the first slash.
        url: base address, ends with a slash.
        requests: path and Range header of each request.
        misbehave: called with the handler before a file is sent; true if it has answered.
    """

    def __init__(self, files: Mapping[str, bytes], url: str) -> None:
        self.files = dict(files)
        self.url = url
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.misbehave: Callable[[Any], bool] = lambda handler: False


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; underscores in header names become hyphens, and Content-Length can be replaced."""
        self.send_response(status)
        headers = {"Content_Length": str(len(body)), "Connection": "close", **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def range(self) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert found, f"no range asked for: {self.headers.get('Range')}"
        return int(found[1]), int(found[2]) + 1

    def send_part(self, data: bytes, **headers: str) -> None:
        """The range of ``data`` that was asked for."""
        start, stop = self.range()
        stop = min(stop, len(data))
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"', **headers}
        if start >= len(data):
            self.answer(416, Content_Range=f"bytes */{len(data)}", **headers)
            return
        self.answer(206, data[start:stop], **{"Content_Range": f"bytes {start}-{stop - 1}/{len(data)}", **headers})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.state.requests.append((path, self.headers.get("Range", "")))
        self.state.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.state.misbehave(self):
            return
        hub = re.fullmatch(r"api/models/([^/]+/[^/]+)/revision/(.+)", path)
        if hub:
            self._repository(hub[1], hub[2])
        elif path in self.state.files:
            self.send_part(self.state.files[path])
        else:
            self.answer(404)

    def _repository(self, repo: str, revision: str) -> None:
        """What the Hub says of a repository: the files under ``<repo>/resolve/<commit>/`` at revision ``main``."""
        prefix = f"{repo}/resolve/"
        found = [path.removeprefix(prefix).split("/", 1) for path in self.state.files if path.startswith(prefix)]
        if not found or revision != "main":
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        body = {"id": repo, "sha": found[0][0], "siblings": [{"rfilename": name} for _, name in found]}
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")


@contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[Server]:
    """Serve ``files`` until the block is left."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        httpd.daemon_threads = True
        handler.state = Server(files, f"http://127.0.0.1:{httpd.server_port}/")
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield handler.state
        finally:
            httpd.shutdown()
            thread.join()
