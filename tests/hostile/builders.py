"""Files with any field set to any value: what no writer would write."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

U64_BOUNDARIES = (0, 1, 63, 64, 2**31, 2**32 - 1, 2**32, 2**61 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)


def string(text: bytes) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(text)) + text


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    """A GGUF key-value pair."""
    return string(key) + struct.pack("<i", kind) + value


def info(name: bytes, dims: Sequence[int], kind: int, offset: int, *, n_dims: int | None = None) -> bytes:
    """A GGUF tensor info."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QiQ", count, *dims, kind, offset)


def gguf(
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    n_kv: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; the counts can be made to lie."""
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(infos) if n_tensors is None else n_tensors,
        len(entries) if n_kv is None else n_kv,
    )
    head += b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; ``header`` is a JSON value, a string or bytes, and its length can be made to lie."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """A safetensors header entry."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def written(folder: Path, name: str, content: bytes) -> Path:
    """``content`` as a file."""
    path = folder / name
    path.write_bytes(content)
    return path
