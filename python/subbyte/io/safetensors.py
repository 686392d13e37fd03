"""Safetensors files, single or sharded: read lazily, and written complete or not at all.

Stricter than the reference reader where the format's description is: duplicate names are refused, and so are holes,
overlaps, fields and dtypes that are not known. Pickles (``.bin``, ``.pt``) are never read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte import _native, arguments
from subbyte.arrays import Array, load, small_float
from subbyte.errors import ArgumentError, CorruptError, FormatError, UnsupportedError
from subbyte.io.remote import AT_ONCE, Place, RemotePath, place
from subbyte.io.source import OpenFiles, PlannedWriter, load_json, planned, typed, view

__all__ = ["SafetensorsFile", "SafetensorsTensor", "SafetensorsWriter", "write_safetensors"]

_INDEX = ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: NumPy type by dtype; for the small floats the `ml_dtypes` name comes first, the bits stand in without that package.
_DTYPES: dict[str, tuple[str | None, str]] = {
    "BOOL": (None, "|b1"), "U8": (None, "|u1"), "I8": (None, "|i1"), "U16": (None, "<u2"), "I16": (None, "<i2"),
    "U32": (None, "<u4"), "I32": (None, "<i4"), "U64": (None, "<u8"), "I64": (None, "<i8"), "F16": (None, "<f2"),
    "F32": (None, "<f4"), "F64": (None, "<f8"), "C64": (None, "<c8"), "BF16": ("bfloat16", "<u2"),
    "F8_E4M3": ("float8_e4m3fn", "|u1"), "F8_E5M2": ("float8_e5m2", "|u1"), "F8_E8M0": ("float8_e8m0fnu", "|u1"),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", "|u1"), "F8_E5M2FNUZ": ("float8_e5m2fnuz", "|u1"),
}  # fmt: skip


@cache
def numpy_dtype(name: str) -> np.dtype[Any] | None:
    if name not in _DTYPES:
        return None
    small, plain = _DTYPES[name]
    return (small_float(small) if small else None) or np.dtype(plain)


def _fitting(kind: str) -> set[np.dtype[Any] | None]:
    """Element types of arrays that can be written as ``kind``."""
    if kind not in _DTYPES:
        return set()
    return {np.dtype(_DTYPES[kind][1]), numpy_dtype(kind)} | ({np.dtype(np.uint16)} if kind == "F16" else set())


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """A tensor of a file.

    Attributes:
        dtype: the format's name of the element type (``"BF16"``).
        shape: dimensions, slowest-varying first.
        nbytes: size of the data.
        offset: first byte of the data in the file ``path``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    path: str


class SafetensorsFile(OpenFiles[SafetensorsTensor]):
    """A safetensors checkpoint, open for reading: a mapping from tensor name to `SafetensorsTensor`.

    Names come in the header's order; those of several shards in sorted order of the shards.

    Args:
        path: a file, an index (``*.safetensors.index.json``), or a folder that holds one or the other; a remote
            address as well (`subbyte.io.remote`).
        mmap: hand out views of the memory-mapped files. A mapped file that another program truncates kills the process
            when its missing part is touched; pass ``False`` for files on unreliable disks: data is copied then.

    Raises:
        FormatError, CorruptError: a rule of the format is broken, or the index and its shards disagree.
        UnsupportedError: an unknown dtype, or a pickle.
        LimitError: a header over 100 MB and other ceilings.
        IoError: a file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, mmap: bool = True) -> None:
        files, index = _resolve(place(path))
        self._mapped = mmap and not any(isinstance(file, RemotePath) for file in files)
        self._paths = [os.fspath(file) for file in files]
        self._readers: list[_native.SafetensorsReader] | None = []
        self._entries: dict[str, SafetensorsTensor] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._metadata: dict[str, str] = {}
        self._nbytes = 0
        for shard, (file, reader) in enumerate(zip(self._paths, _readers(files, mmap), strict=True)):
            self._readers.append(reader)
            self._nbytes += reader.nbytes
            self._metadata.update(reader.metadata())
            for number, (name, dtype, shape, nbytes, offset) in enumerate(reader.tensors()):
                if name in self._entries:
                    raise CorruptError(f"also in {self._entries[name].path}; which one counts?", file=file, tensor=name)
                self._entries[name] = SafetensorsTensor(name, dtype, tuple(shape), nbytes, offset, file)
                self._places[name] = (shard, number)
        for name, shard_name in index.items():
            found = self._entries.get(name)
            if found is None or Path(found.path).name != shard_name:
                found_in = "in no shard" if found is None else f"in {Path(found.path).name}"
                raise CorruptError(
                    f"the index says it is in {shard_name}; it is {found_in}", file=os.fspath(path), tensor=name
                )

    @property
    def metadata(self) -> dict[str, str]:
        """The strings under ``__metadata__``; of several shards, the union with later shards counting."""
        return dict(self._metadata)

    @property
    def paths(self) -> list[str]:
        """The files of the checkpoint."""
        return list(self._paths)

    @property
    def nbytes(self) -> int:
        """Total size of the files in bytes."""
        return self._nbytes

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor: ``uint8``, one row, read-only, no copy.

        Raises:
            KeyError: no such tensor.
            CorruptError: the file shrank.
        """
        return self.read(name, 0, self._entries[name].nbytes)

    def read(self, name: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """``count`` stored bytes from byte ``start`` of a tensor: ``uint8``, one row; copied where not mapped.

        Raises:
            KeyError: no such tensor.
            ArgumentError: the tensor has fewer bytes, or the file is closed.
            CorruptError: the file shrank.
        """
        shard, number = self._places[name]
        if self._readers is None:
            raise ArgumentError("the file is closed", file=self._entries[name].path, tensor=name)
        start, count = arguments.integer(start, "start"), arguments.integer(count, "count")
        return view(self._readers[shard].raw(number, start, count))

    def array(self, name: str) -> Array:
        """A tensor as an array, a view of the file (a copy where the file does not align it).

        BF16 and the F8 types are `ml_dtypes` arrays where that package is installed, else their bits (``uint16``,
        ``uint8``).

        Raises:
            KeyError: no such tensor.
            UnsupportedError: F4 and F6, whose elements NumPy cannot address; `raw` gives their bytes.
        """
        tensor = self._entries[name]
        dtype = numpy_dtype(tensor.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"{tensor.dtype} elements are smaller than a byte; use raw()", file=tensor.path, tensor=name
            )
        data = self.raw(name)
        if dtype == np.bool_ and data.size and data.max() > 1:
            raise CorruptError("a bool is stored as neither 0 nor 1", file=tensor.path, tensor=name)
        return typed(data, dtype, tensor.shape)

    def release(self) -> None:
        """Lets go of the pages of mapped files that were read, but for those of arrays that are still in use.

        Does nothing to files that are not mapped, and to closed ones.

        Raises:
            CorruptError: a file has changed since it was opened.
            IoError: a file cannot be opened any more.
        """
        if self._readers is None or not self._mapped:
            return
        headers = [reader.tensors() for reader in self._readers]
        self._readers = [_native.SafetensorsReader(path, True) for path in self._paths]
        for path, before, reader in zip(self._paths, headers, self._readers, strict=True):
            if reader.tensors() != before:
                raise CorruptError("the file was changed while it was open", file=path)

    def close(self) -> None:
        self._readers = None

    def __repr__(self) -> str:
        return f"<SafetensorsFile {self._paths[0]!r}{' …' if len(self._paths) > 1 else ''}: {len(self)} tensors>"


def _readers(files: Sequence[Place], mmap: bool) -> Iterator[_native.SafetensorsReader]:
    """The opened files; of remote ones several beginnings are fetched at a time."""
    remote = [file for file in files if isinstance(file, RemotePath)]
    if not remote:
        yield from (_native.SafetensorsReader(os.fspath(file), mmap) for file in files)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for file, opened in zip(remote, pool.map(RemotePath.open, remote), strict=True):
            yield _native.SafetensorsReader.remote(opened)
            file.seal()


def _resolve(path: Place) -> tuple[Sequence[Place], dict[str, str]]:
    """The files that ``path`` stands for, and what the index says of each tensor."""
    if path.is_dir():
        return _resolve(_in_folder(path))
    if path.name.endswith(_INDEX):
        if isinstance(path, RemotePath):
            with path.copies([path.name]) as folder:
                weight_map = _weight_map(folder / path.name)
        else:
            weight_map = _weight_map(path)
        return [path.with_name(name) for name in sorted(set(weight_map.values()))], weight_map
    return [path], {}


def _in_folder(folder: Place) -> Place:
    """The file or index to open in a folder, as the libraries that write such folders choose it."""
    inside = folder.with_name if isinstance(folder, RemotePath) else folder.joinpath
    for name in ("model.safetensors", "model" + _INDEX):
        if inside(name).exists():
            return inside(name)
    if isinstance(folder, RemotePath):
        names = sorted(name for name in folder.store.names or () if "/" not in name)
    else:
        names = sorted(entry.name for entry in os.scandir(folder))
    for suffix in (_INDEX, ".safetensors"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            check_whole(inside(found[0]))
            return inside(found[0])
        if found:
            raise FormatError(
                f"several files end in {suffix} ({', '.join(found[:3])} …); name one", file=os.fspath(folder)
            )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise UnsupportedError(
            f"no safetensors here, only pickles ({pickles[0]}), which run code when loaded and are never read; "
            "convert them to safetensors with a tool you trust, or download the safetensors version of the model",
            file=os.fspath(folder),
        )
    raise FormatError("no .safetensors file or index in this folder", file=os.fspath(folder))


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


def check_whole(path: Place) -> None:
    """Refuse a file that its own name calls one of several, where the whole model is meant.

    Raises:
        FormatError: it is.
    """
    match = _SHARD.search(path.name)
    if match and int(match[2]) > 1:
        raise FormatError(
            f"one of {int(match[2])} files that make the model between them; name their index "
            "(model.safetensors.index.json) or the folder that holds it and all of them",
            file=str(path),
        )


def _weight_map(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor name to the name of a file beside the index."""
    index = load_json(path, unique_keys=True)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("the index has no weight_map", file=os.fspath(path))
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _plain_name(file):
            raise FormatError(
                f"weight_map names {file!r}; only files beside the index are read", file=os.fspath(path), tensor=name
            )
    return weight_map


def _plain_name(name: str) -> bool:
    """Whether ``name`` is a file name without any path to it, on every system."""
    return (
        name.endswith(".safetensors")
        and not name.startswith(".")
        and name.isprintable()
        and not any(c in '/\\:*?"<>|' for c in name)
    )


class SafetensorsWriter(PlannedWriter):
    """Writes a safetensors file whose tensors are known beforehand.

    The data is laid out in descending element size, so that every tensor is aligned to its elements.

    Args:
        path: the file; it appears there when complete.
        tensors: name, dtype (``"BF16"``) and shape of each.
        metadata: strings to store under ``__metadata__``.

    Raises:
        ArgumentError, LimitError, FormatError: something that cannot be stored.
        IoError: the file cannot be created, or the disk lacks the space.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Sequence[tuple[str, str, Sequence[int]]],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        plan = planned(tensors)
        entries = [
            (arguments.text(key, "a metadata key"), arguments.text(value, f"metadata '{key}'"))
            for key, value in arguments.entries({} if metadata is None else metadata, "the metadata")
        ]
        dtypes = {name: dtype for name, dtype, _ in plan}
        super().__init__(path, _native.safetensors_plan(plan, entries), dtypes, _fitting)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file from arrays (`ml_dtypes` arrays included); errors are those of `SafetensorsWriter`."""
    arrays = {name: load(array)[0] for name, array in arguments.entries(tensors, "tensors")}
    plan = [(name, _dtype_name(name, array), array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, plan, metadata=metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def _dtype_name(name: str, array: Array) -> str:
    dtype = array.dtype.newbyteorder("<")
    for kind, (small, plain) in _DTYPES.items():
        if dtype == (np.dtype(plain) if small is None else small_float(small)):
            return kind
    raise ArgumentError(f"no safetensors dtype stores {array.dtype}", tensor=name)
