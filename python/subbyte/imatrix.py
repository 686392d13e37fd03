"""Importance data of llama.cpp ("imatrix" files): how much each column of a weight matters to a calibration text.

Two kinds of files hold the same numbers. In a GGUF file (``general.type`` is ``imatrix``) ``NAME.in_sum2`` are sums of
squared activations and ``NAME.counts`` how many were summed; in the older ``.dat`` file the sums are divided by the
count and multiplied by the number of calls. Either way importance is the quotient, one vector of the row's length for
a matrix, one per expert for a stack.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import ArgumentError, FormatError, IoError, NonFiniteError
from subbyte.io.gguf import GgufFile, GgufValue, write_gguf
from subbyte.paths import write_bytes

__all__ = ["Entry", "ImportanceMatrix", "load_imatrix", "save_imatrix"]

Floats = NDArray[np.float32]

_MAX_ENTRIES, _MAX_NAME = 1 << 20, 1 << 12


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured for one weight.

    Attributes:
        sums: sums of squared inputs, float32, shape (matrices, columns); a ``.dat`` file does not say where one matrix
            ends: there it is (1, matrices · columns).
        counts: inputs that were summed for each matrix, float32, shape (matrices,).
    """

    sums: Floats
    counts: Floats


@dataclass(frozen=True, slots=True)
class ImportanceMatrix(Mapping[str, Entry]):
    """Entries by tensor name (``blk.0.attn_q.weight``). An entry is read when it is asked for.

    Attributes:
        path: the file; ``None`` if made in memory.
        datasets: names of the calibration texts.
        chunk_count: pieces of text that were used.
        chunk_size: tokens of a piece; 0 where the file does not say.
    """

    path: Path | None = None
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    loaders: Mapping[str, Callable[[], Entry]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, entries: Mapping[str, Entry], *, datasets: tuple[str, ...] = (), chunk_count: int = 0, chunk_size: int = 0
    ) -> ImportanceMatrix:
        """Importance data from arrays."""
        loaders = {name: (lambda entry=entry: entry) for name, entry in entries.items()}
        return cls(None, datasets, chunk_count, chunk_size, loaders)

    def __getitem__(self, name: str) -> Entry:
        return self.loaders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.loaders)

    def __len__(self) -> int:
        return len(self.loaders)

    def importance(self, name: str, matrices: int, columns: int) -> Floats:
        """The weights of the columns: float32, shape (matrices, columns).

        A matrix that no input reached, and one whose sums are all zero, gets ones: the data say nothing about it, and
        zero weights would make every scale equally good.

        Raises:
            KeyError: there is no such entry.
            ArgumentError: the entry has another size.
            NonFiniteError: a sum or a quotient is NaN, infinite or negative.
        """
        entry = self[name]
        if entry.sums.size != matrices * columns or len(entry.counts) not in (1, matrices):
            raise ArgumentError(
                f"importance for {len(entry.counts)} matrices with {entry.sums.size:,} columns in all, the tensor has "
                f"{matrices} with {columns:,} each; the imatrix was made for another model",
                file=self.path,
                tensor=name,
            )
        sums = entry.sums.reshape(matrices, columns)
        counts = np.broadcast_to(np.rint(entry.counts).reshape(-1, 1), (matrices, 1)).astype(np.float32)
        with np.errstate(all="ignore"):
            quotient = np.where(counts > 0, sums / np.where(counts > 0, counts, np.float32(1)), np.float32(1))
        bad = ~(quotient >= 0) | np.isinf(quotient)
        if bad.any():
            row, column = (int(at) for at in np.argwhere(bad)[0])
            raise NonFiniteError(
                f"importance {quotient[row, column]} is no finite positive number: make the imatrix again",
                file=self.path,
                tensor=name,
                row=row,
                column=column,
            )
        quotient[~quotient.any(axis=1)] = 1
        return quotient.astype(np.float32)


def load_imatrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Open an imatrix file of either kind.

    Raises:
        FormatError: it is neither, or damaged; the message has the byte.
        IoError: it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
    return _load_gguf(path) if magic == b"GGUF" else _load_dat(path)


def _load_gguf(path: Path) -> ImportanceMatrix:
    file = GgufFile(path, mmap=False)
    if file.metadata.get("general.type") != "imatrix":
        raise FormatError(f"a GGUF file of type {file.metadata.get('general.type')!r}, expected 'imatrix'", file=path)
    datasets = file.metadata.get("imatrix.datasets")
    count, size = (file.metadata.get(f"imatrix.chunk_{name}") for name in ("count", "size"))
    if datasets is None or not isinstance(count, int) or not isinstance(size, int):
        raise FormatError("imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size are expected", file=path)
    loaders: dict[str, Callable[[], Entry]] = {}
    for name, tensor in file.items():
        weight, _, part = name.rpartition(".")
        if part == "counts":
            continue
        counts = f"{weight}.counts"
        if part != "in_sum2" or counts not in file:
            raise FormatError(f"expected pairs of NAME.in_sum2 and {counts}", file=path, tensor=name)
        matrices = math.prod(tensor.shape[:-1])
        if {tensor.type, file[counts].type} != {"F32"} or math.prod(file[counts].shape) != matrices:
            raise FormatError(f"sums {tensor.shape}, counts {file[counts].shape}", file=path, tensor=name)
        loaders[weight] = _gguf_loader(file, name, counts, matrices)
    if not loaders:
        raise FormatError("no entries", file=path)
    return ImportanceMatrix(path, tuple(str(name) for name in datasets), count, size, loaders)


def _gguf_loader(file: GgufFile, sums: str, counts: str, matrices: int) -> Callable[[], Entry]:
    return lambda: Entry(
        np.asarray(file.array(sums), np.float32).reshape(matrices, -1),
        np.asarray(file.array(counts), np.float32).reshape(-1),
    )


def _load_dat(path: Path) -> ImportanceMatrix:
    size = path.stat().st_size
    loaders: dict[str, Callable[[], Entry]] = {}
    datasets: tuple[str, ...] = ()
    chunks = 0
    with path.open("rb") as file:

        def number(what: str, most: int) -> int:
            at = file.tell()
            raw = file.read(4)
            value = struct.unpack("<i", raw)[0] if len(raw) == 4 else -1
            if not 0 <= value <= most:
                raise FormatError(f"{what} is missing or impossible: not an imatrix file", file=path, byte=at)
            return int(value)

        def text(length: int) -> str:
            at = file.tell()
            raw = file.read(length)
            try:
                if len(raw) == length:
                    return raw.decode("utf-8")
            except UnicodeDecodeError:
                pass
            raise FormatError("a name is cut off or not UTF-8 text: not an imatrix file", file=path, byte=at)

        entries = number("the number of entries", _MAX_ENTRIES)
        for _ in range(entries):
            name = text(number("the length of a name", _MAX_NAME))
            calls = number("the number of calls", 2**31 - 1)
            values = number("the number of values", 2**31 - 1)
            start = file.tell()
            if values == 0 or values * 4 > size - start:
                raise FormatError(
                    f"{values:,} values where {size - start:,} bytes remain", file=path, byte=start, tensor=name
                )
            if name in loaders:
                raise FormatError("an entry occurs twice", file=path, byte=start, tensor=name)
            loaders[name] = _dat_loader(path, start, values, calls)
            file.seek(start + 4 * values)
        if file.tell() < size:
            chunks = number("the number of chunks", 2**31 - 1)
            datasets = (text(number("the length of the data set's name", _MAX_NAME)),)
        rest = size - file.tell()
        if rest:
            raise FormatError(f"{rest:,} bytes follow the last entry: not an imatrix file", file=path, byte=file.tell())
    if not loaders:
        raise FormatError("no entries: not an imatrix file", file=path)
    return ImportanceMatrix(path, datasets, chunks, 0, loaders)


def _dat_loader(path: Path, start: int, values: int, calls: int) -> Callable[[], Entry]:
    def load() -> Entry:
        try:
            sums = np.fromfile(path, "<f4", values, offset=start)
        except OSError as error:
            raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
        if len(sums) != values:
            raise FormatError("the file became shorter", file=path, byte=start)
        # values of an entry that was never called are importance already: a count of one leaves them as they are
        return Entry(sums.astype(np.float32).reshape(1, -1), np.array([max(calls, 1)], np.float32))

    return load


def save_imatrix(path: str | os.PathLike[str], data: ImportanceMatrix, *, kind: str = "gguf") -> None:
    """Write importance data as a file of either kind; the original tools read both.

    Args:
        kind: ``"gguf"`` or ``"dat"``. A ``.dat`` file keeps quotients: all counts of an entry become one.

    Raises:
        ArgumentError: an unknown kind, no entries, or an entry whose arrays do not fit together.
        IoError: writing failed.
    """
    if kind not in ("gguf", "dat"):
        raise ArgumentError(f"unknown kind of imatrix file '{kind}': expected gguf or dat")
    if not data:
        raise ArgumentError("no entries to write", file=path)
    for name, entry in data.items():
        if entry.sums.ndim != 2 or entry.counts.shape != entry.sums.shape[:1]:
            raise ArgumentError(f"sums {entry.sums.shape}, counts {entry.counts.shape}", tensor=name)
    names = sorted(data, key=str.encode)
    if kind == "gguf":
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": GgufValue("arr[str]", list(data.datasets)),
            "imatrix.chunk_count": GgufValue("u32", data.chunk_count),
            "imatrix.chunk_size": GgufValue("u32", data.chunk_size),
        }
        tensors = {}
        for name in names:
            entry = data[name]
            whole = len(entry.counts) == 1  # ggml stores no axis of length one behind the last that is longer
            tensors[f"{name}.in_sum2"] = entry.sums[0] if whole else entry.sums
            tensors[f"{name}.counts"] = entry.counts if whole else entry.counts.reshape(-1, 1)
        write_gguf(path, metadata, tensors)
        return
    text = (data.datasets[0] if data.datasets else "").encode()
    parts = [struct.pack("<i", len(names)), *(_dat_entry(name, data[name], data.chunk_size) for name in names)]
    # Entries are read when they are asked for, perhaps from the file that is replaced: it stays until all are there.
    write_bytes(path, b"".join((*parts, struct.pack("<ii", data.chunk_count, len(text)), text)))


def _dat_entry(name: str, entry: Entry, chunk_size: int) -> bytes:
    counts = entry.counts.reshape(-1, 1)
    calls = math.ceil(float(counts.max()) / chunk_size) if chunk_size else int(counts.max())
    factor = np.float32(calls)
    with np.errstate(all="ignore"):
        values = np.where(counts > 0, entry.sums / np.where(counts > 0, counts, np.float32(1)), np.float32(1)) * factor
    raw = name.encode()
    head = struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, values.size)
    return head + values.astype("<f4").tobytes()
