"""What both containers share: byte views, planned files being written, side files."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from subbyte import _native, arguments
from subbyte.arrays import Array, as_bytes, load
from subbyte.errors import ArgumentError, Error, FormatError
from subbyte.paths import checked_path


def same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two paths are the same file, by device and inode; symbolic and hard links are seen through.

    A path that does not exist is the same as no other.
    """
    return _native.same_file(os.fspath(a), os.fspath(b))


def load_json(path: str | os.PathLike[str], *, unique_keys: bool = False) -> Any:
    """Reads a JSON side file of at most ``_native.SIDE_FILE_BYTES``, nested at most 64 deep.

    Args:
        unique_keys: refuse an object in which a key occurs twice (`json` keeps the last).

    Raises:
        FormatError: not JSON, or a key occurs twice.
        LimitError: too long or too deeply nested.
        IoError: the file cannot be read.
    """
    name = os.fspath(path)
    text = _native.read_json(name, _native.SIDE_FILE_BYTES)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise FormatError(f"key {twice!r} occurs twice in one JSON object", file=name)
        return found

    try:
        return json.loads(text, object_pairs_hook=unique if unique_keys else None)
    except ValueError as error:
        raise FormatError(f"not usable JSON: {error}", file=name) from error


def view(data: _native.FileBytes) -> npt.NDArray[np.uint8]:
    """The bytes as a read-only array that keeps the file mapped."""
    if len(data):
        return np.frombuffer(memoryview(data), dtype=np.uint8)
    empty = np.empty(0, np.uint8)  # NumPy refuses to look at buffers without bytes
    empty.flags.writeable = False
    return empty


def typed(data: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A row of bytes as an array; a read-only copy where they are not aligned to their elements (old writers)."""
    array = data.view(dtype).reshape(shape)
    if not array.flags.aligned:
        array = array.copy()
        array.flags.writeable = False
    return array


def contiguous(array: Array) -> Array:
    """The array C-contiguous and little-endian; itself where it is."""
    array = np.asarray(array, order="C")
    swapped = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return array.astype(array.dtype.newbyteorder("<")) if swapped else array


def to_bytes(array: Array) -> Array:
    """The memory of an array, little-endian and in C order, as one row of ``uint8``."""
    return as_bytes(contiguous(array))


def planned(tensors: Sequence[tuple[str, str, Sequence[int]]]) -> list[tuple[str, str, list[int]]]:
    """Name, stored type and shape of the tensors to write.

    Raises:
        ArgumentError: an entry is none of these.
    """
    plan = []
    if not isinstance(tensors, Sequence):
        raise ArgumentError(f"{tensors!r:.80} is planned: expected a sequence of tensors")
    for entry in tensors:
        if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
            raise ArgumentError(f"{entry!r:.80} is planned: expected the name, type and shape of a tensor")
        name = arguments.text(entry[0], "a tensor's name")
        kind = arguments.text(entry[1], f"the type of tensor '{name}'")
        plan.append((name, kind, list(arguments.dimensions(entry[2], f"the shape of tensor '{name}'"))))
    return plan


T = TypeVar("T")


class OpenFiles(Mapping[str, T]):
    """What open files hold, by name and in their order; leaving the ``with`` block closes them."""

    _entries: dict[str, T]

    def close(self) -> None:
        """Lets go of the files; arrays handed out stay valid, and so does what the headers say."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PlannedWriter:
    """A file whose header and size are known in full; its tensors are written in any order, from any thread.

    The bytes go to a temporary sibling with its space reserved. `close` checks that every byte was written, syncs,
    and gives the file its name: nothing incomplete is ever seen under that name. Leaving the ``with`` block by an
    exception, `abort`, and garbage collection discard the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: _native.FilePlan,
        types: Mapping[str, str],
        fitting: Callable[[str], set[np.dtype[Any] | None]],
    ) -> None:
        """``types`` names the stored type of each tensor, ``fitting`` gives the element types that have its bytes."""
        self._path = os.fspath(checked_path(path))
        self._types = types
        self._fitting = fitting
        self._nbytes = plan.nbytes
        self._file = plan.create(self._path)
        self._closed = self._discarded = False

    @property
    def nbytes(self) -> int:
        """Exact size of the complete file in bytes."""
        return self._nbytes

    def write(self, name: str, data: Any, offset: int = 0) -> None:
        """Writes ``data`` at byte ``offset`` of tensor ``name``; bytes may be written again.

        Args:
            data: an array, also one with DLPack (its memory in C order and little-endian), or any contiguous buffer.

        Raises:
            ArgumentError: unknown tensor, wrong element type, more bytes than the tensor has, or a closed file.
            IoError: the system refused, for instance because the disk is full.
        """
        if hasattr(data, "__dlpack__") or isinstance(data, np.generic):
            array, _ = load(data)
            self._check_dtype(name, array)
            data = to_bytes(array)
        else:
            try:
                data = memoryview(data).cast("B")
            except TypeError as e:
                raise ArgumentError(f"{type(data).__name__} is no contiguous buffer: {e}", tensor=name) from e
        self._file.write(arguments.text(name, "a tensor's name"), data, arguments.integer(offset, "the offset"))

    def _check_dtype(self, name: str, array: Array) -> None:
        kind = self._types.get(name)
        if kind is None or array.dtype == np.uint8:
            return  # bytes are written as they are; a name not planned is refused by the file
        if array.dtype.newbyteorder("<") not in self._fitting(kind):
            raise ArgumentError(
                f"the tensor is stored as {kind}, the array holds {array.dtype}", file=self._path, tensor=name
            )

    def close(self) -> None:
        """Completes the file; does nothing the second time.

        Raises:
            ArgumentError: bytes are missing; the file is discarded. Or it was discarded before.
            IoError: the system refused; the file is discarded.
        """
        if self._discarded:
            raise ArgumentError("the file was discarded: nothing is left to complete", file=self._path)
        try:
            self._file.commit()
        except Error:
            self._discarded = True
            raise
        self._closed = True

    def abort(self) -> None:
        """Discards the file, unless it was closed."""
        self._discarded = not self._closed
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif not self._discarded:
            self.close()
