"""GGUF files: metadata, tensors and raw bytes, read lazily; and a writer that leaves complete files only.

Reads versions 2 and 3, either byte order, split files and alignments up to 1 MiB; writes version 3, little-endian.
What ggml's own reader refuses is refused, and everything that would make it crash: see `GgufFile`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from subbyte import _native, arguments
from subbyte.arrays import Array, load, small_float
from subbyte.errors import ArgumentError, UnsupportedError
from subbyte.io.remote import RemotePath, place
from subbyte.io.source import OpenFiles, PlannedWriter, planned, to_bytes, typed, view

__all__ = ["GgufFile", "GgufTensor", "GgufValue", "GgufWriter", "StringArray", "gguf_nbytes", "write_gguf"]

#: NumPy types of the numeric metadata types.
_NUMBERS = {
    "u8": "|u1", "i8": "|i1", "u16": "<u2", "i16": "<i2", "u32": "<u4", "i32": "<i4", "u64": "<u8", "i64": "<i8",
    "f32": "<f4", "f64": "<f8", "bool": "|b1",
}  # fmt: skip
_NUMBER_NAMES = {np.dtype(code): name for name, code in _NUMBERS.items()}
#: NumPy types of the plain tensor types; BF16 is added where `ml_dtypes` is installed.
_PLAIN = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "BF16": "<u2",
}  # fmt: skip


@cache
def _plain_dtype(name: str) -> np.dtype[Any] | None:
    if name not in _PLAIN:
        return None
    return (small_float("bfloat16") if name == "BF16" else None) or np.dtype(_PLAIN[name])


def _fitting(kind: str) -> set[np.dtype[Any] | None]:
    """Element types of arrays that can be written as ``kind``."""
    if kind not in _PLAIN:
        return set()
    return {np.dtype(_PLAIN[kind]), _plain_dtype(kind)} | ({np.dtype(np.uint16)} if kind == "F16" else set())


@cache
def _blocks() -> dict[str, tuple[int, int]]:
    """Elements and bytes per block of each ggml type."""
    return {name: (elements, nbytes) for name, _, elements, nbytes, *_ in _native.ggml_types()}


class StringArray(Sequence[str]):
    """A string array of a file's metadata: each string is made when asked for.

    Bytes that are not UTF-8 become lone surrogates (``surrogateescape``); writing the array back gives the same bytes.
    """

    __slots__ = ("_native",)

    def __init__(self, native: _native.GgufStrings) -> None:
        self._native = native

    def __len__(self) -> int:
        return len(self._native)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._native.range(start, stop)
            return [self._native.get(i) for i in range(start, stop, step)]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        return self._native.get(position)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def tolist(self) -> list[str]:
        """All strings as a list."""
        return self._native.range(0, len(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray | list | tuple):
            return len(self) == len(other) and self.tolist() == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self[:5])
        return f"StringArray([{shown}{', …' if len(self) > 5 else ''}], length {len(self)})"


@dataclass(frozen=True, slots=True)
class GgufValue:
    """A metadata value with its stored type, for writing.

    Attributes:
        type: ``u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str``, or one of them as ``arr[…]``.
        value: a number, bool or string; a sequence or array of them.
    """

    type: str
    value: Any


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a file.

    Attributes:
        type: ggml's name of the storage type (``"Q4_K"``).
        shape: dimensions in NumPy's order, slowest-varying first (the reverse of what the file stores).
        nbytes: size of the data without padding.
        offset: first byte of the data in the file ``path``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    path: str


class _Metadata(Mapping[str, Any]):
    """Metadata by key; values are made when asked for, and kept."""

    def __init__(self, reader: _native.GgufReader) -> None:
        self._reader = reader
        self._entries = {key: (index, kind) for index, (key, kind) in enumerate(reader.metadata())}
        self._values: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            index, kind = self._entries[key]
            self._values[key] = self._convert(self._reader.value(index), kind)
        return self._values[key]

    def _convert(self, value: Any, kind: str) -> Any:
        if isinstance(value, _native.GgufStrings):
            return StringArray(value)
        if isinstance(value, bytes):
            dtype = np.dtype(_NUMBERS[kind[4:-1]])
            stored = dtype.newbyteorder(">") if self._reader.facts()[1] else dtype
            return np.frombuffer(value, stored).astype(dtype, copy=False)
        return value

    def types(self) -> dict[str, str]:
        return {key: kind for key, (_, kind) in self._entries.items()}

    def __repr__(self) -> str:
        return f"<{len(self)} metadata entries>"


class GgufFile(OpenFiles[GgufTensor]):
    """A GGUF model, open for reading: a mapping from tensor name to `GgufTensor`, in file order.

    Opening reads and checks the header only. The first shard of a split model opens all of them.

    Args:
        path: the file, or the first shard; a remote address as well (`subbyte.io.remote`).
        mmap: hand out views of the memory-mapped file. A mapped file that another program truncates kills the process
            when its missing part is touched; pass ``False`` for files on unreliable disks: data is copied then.

    Raises:
        FormatError, CorruptError: not GGUF, or a rule of the format is broken (counts, lengths, types, alignment,
            names, offsets, sizes, contradictory metadata). The message names the rule and the byte.
        UnsupportedError: version 1, nested arrays, unknown or removed tensor types.
        LimitError: a ceiling on names, counts or alignment.
        IoError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, mmap: bool = True) -> None:
        where = place(path)
        if isinstance(where, RemotePath):
            reader = _native.GgufReader.remote(where.open(), where.name)
            where.seal()
        else:
            reader = _native.GgufReader(os.fspath(where), mmap)
        self._reader: _native.GgufReader | None = reader
        self._version, big, self._alignment = reader.facts()
        self._byte_order = "big" if big else "little"
        files = reader.files()
        self._paths = [file for file, _ in files]
        self._nbytes = sum(size for _, size in files)
        self._metadata = _Metadata(reader)
        self._entries: dict[str, GgufTensor] = {}
        self._places: dict[str, tuple[int, int, int | None]] = {}
        for name, kind, dims, row, nbytes, offset, shard, index in reader.tensors():
            self._entries[name] = GgufTensor(name, kind, tuple(reversed(dims)), nbytes, offset, self._paths[shard])
            self._places[name] = (shard, index, row)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata by key, in file order: int, float, bool, str, NumPy arrays, `StringArray`."""
        return self._metadata

    @property
    def metadata_types(self) -> dict[str, str]:
        """Stored type of each metadata entry: ``u32``, ``str``, ``arr[f32]`` …"""
        return self._metadata.types()

    @property
    def version(self) -> int:
        """Format version: 2 or 3."""
        return self._version

    @property
    def byte_order(self) -> str:
        """``"little"`` or ``"big"``."""
        return self._byte_order

    @property
    def alignment(self) -> int:
        """Alignment of the tensors in bytes."""
        return self._alignment

    @property
    def paths(self) -> list[str]:
        """The files of the model; several if it is split."""
        return list(self._paths)

    @property
    def nbytes(self) -> int:
        """Total size of the files in bytes."""
        return self._nbytes

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor: ``uint8``, read-only, shape ``(*shape[:-1], bytes per row)``, no copy.

        One dimension for the types of BitNet's fork (I2_S, TL1, TL2), which have no rows. Of a big-endian file, a copy
        in little-endian order.

        Raises:
            KeyError: no such tensor.
            UnsupportedError: a type whose big-endian form is not defined.
            CorruptError: the file shrank.
        """
        tensor = self._entries[name]
        data, row = self.read(name, 0, tensor.nbytes), self._places[name][2]
        return data if row is None else data.reshape(*tensor.shape[:-1], row)

    def read(self, name: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """``count`` stored bytes from byte ``start`` of a tensor: ``uint8``, one row; copied where not mapped.

        Of a big-endian file, in little-endian order; there both have to be whole blocks.

        Raises:
            KeyError: no such tensor.
            ArgumentError: the tensor has fewer bytes, or the file is closed.
            CorruptError: the file shrank.
        """
        shard, index, _ = self._places[name]
        if self._reader is None:
            raise ArgumentError("the file is closed", file=self._entries[name].path, tensor=name)
        start, count = arguments.integer(start, "start"), arguments.integer(count, "count")
        return view(self._reader.raw(shard, index, start, count))

    def array(self, name: str) -> Array:
        """A tensor of a plain type (F32, F16, BF16, F64, I8 to I64) as an array; a view of the file where possible.

        BF16 is ``ml_dtypes.bfloat16`` where that package is installed, else its bits as ``uint16``.

        Raises:
            KeyError: no such tensor.
            UnsupportedError: a quantized type; `subbyte.decode` gives its values.
        """
        tensor = self._entries[name]
        dtype = _plain_dtype(tensor.type)
        if dtype is None:
            raise UnsupportedError(
                f"{tensor.type} is not a plain array; decode raw() with subbyte.decode", file=tensor.path, tensor=name
            )
        return typed(self.read(name, 0, tensor.nbytes), dtype, tensor.shape)

    def close(self) -> None:
        self._reader = None

    def __repr__(self) -> str:
        return f"<GgufFile {self._paths[0]!r}: {len(self)} tensors, {len(self._metadata)} metadata entries>"


class GgufWriter(PlannedWriter):
    """Writes a GGUF file (version 3, little-endian) whose metadata and tensors are known beforehand.

    Args:
        path: the file; it appears there when complete.
        metadata: by key, in order. Plain Python values get the type ``bool``, ``u32`` (``i32``, ``u64``, ``i64`` where
            it does not fit), ``f32`` or ``str``; NumPy scalars and arrays keep theirs; `GgufValue` states it.
        tensors: name, ggml type and shape (NumPy's order) of each, in order.
        alignment: of the data, in bytes; by default what ``general.alignment`` says, else 32.

    Raises:
        ArgumentError, LimitError, FormatError: something that cannot be stored.
        IoError: the file cannot be created, or the disk lacks the space.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        tensors: Sequence[tuple[str, str, Sequence[int]]],
        *,
        alignment: int | None = None,
    ) -> None:
        plan = planned(tensors)
        types = {name: kind.upper() for name, kind, _ in plan}
        super().__init__(path, plan_gguf(metadata, plan, alignment=alignment), types, _fitting)


def plan_gguf(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, str, Sequence[int]]], *, alignment: int | None = None
) -> _native.FilePlan:
    """The layout of the file that `GgufWriter` writes; arguments and errors as there."""
    builder = _native.GgufBuilder()
    for key, value in arguments.entries(metadata, "the metadata"):
        _add(builder, key, value)
    plan = [(name, kind, shape[::-1]) for name, kind, shape in planned(tensors)]
    return builder.finish(plan, None if alignment is None else arguments.integer(alignment, "the alignment"))


def gguf_nbytes(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, str, Sequence[int]]], *, alignment: int | None = None
) -> int:
    """The exact size in bytes of the file that `GgufWriter` writes; arguments and errors as there."""
    return plan_gguf(metadata, tensors, alignment=alignment).nbytes


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array | tuple[str, Array]],
    *,
    alignment: int | None = None,
) -> None:
    """Writes a GGUF file from arrays; path, metadata, alignment and errors are those of `GgufWriter`.

    Args:
        tensors: by name, in order: an array of a plain type, stored as it is; or a ggml type and its raw blocks,
            ``uint8`` of shape ``(…, bytes per row)``, as `GgufFile.raw` gives them.
    """
    plan = []
    data: dict[str, Array] = {}
    for name, entry in arguments.entries(tensors, "tensors"):
        if isinstance(entry, tuple):
            if len(entry) != 2:
                raise ArgumentError(f"a tuple of {len(entry)}: expected a ggml type and its blocks", tensor=name)
            kind, array = arguments.text(entry[0], f"the type of tensor '{name}'"), load(entry[1])[0]
            shape = _raw_shape(name, kind.upper(), array)
        else:
            array, _ = load(entry)
            kind, shape = _type_of(name, array), array.shape
        plan.append((name, kind, shape))
        data[name] = array
    with GgufWriter(path, metadata, plan, alignment=alignment) as writer:
        for name, array in data.items():
            writer.write(name, array)


def _type_of(name: str, array: Array) -> str:
    dtype = array.dtype.newbyteorder("<")
    for kind in _PLAIN:
        if dtype == _plain_dtype(kind) and (kind != "BF16" or dtype != np.uint16):
            return kind
    raise ArgumentError(f"no ggml type stores {dtype}; give a type and raw blocks", tensor=name)


def _raw_shape(name: str, kind: str, array: Array) -> tuple[int, ...]:
    if kind not in _blocks():
        raise ArgumentError(f"unknown ggml type {kind!r}", tensor=name)
    elements, nbytes = _blocks()[kind]
    if array.dtype != np.uint8 or array.ndim == 0 or array.shape[-1] % nbytes:
        raise ArgumentError(
            f"raw {kind} is uint8 with rows of whole blocks of {nbytes} bytes, not {array.dtype} {array.shape}",
            tensor=name,
        )
    return (*array.shape[:-1], array.shape[-1] // nbytes * elements)


def _add(builder: _native.GgufBuilder, key: str, value: Any) -> None:
    """Adds a metadata entry; see `GgufWriter` for the types of plain values."""
    arguments.text(key, "a metadata key")
    kind = None
    if isinstance(value, GgufValue):
        kind, value = arguments.text(value.type, f"the type of metadata '{key}'"), value.value
    if isinstance(value, StringArray) and kind in (None, "arr[str]"):
        builder.copy_strings(key, value._native)
        return
    kind = kind or _infer(key, value)
    if kind.startswith("arr[") and kind.endswith("]"):
        _add_array(builder, key, kind[4:-1], value)
    elif kind == "str":
        if not isinstance(value, str):
            raise ArgumentError(f"metadata '{key}': {value!r} is not a string")
        builder.text(key, value)
    else:
        builder.scalar(key, kind, value.item() if isinstance(value, np.generic) else value)
        if key == "split.count" and value > 1:
            raise ArgumentError(f"split.count is {value}: files that stand alone are written, leave out the split keys")


def _add_array(builder: _native.GgufBuilder, key: str, element: str, value: Any) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise ArgumentError(f"metadata '{key}': arr[{element}] needs a sequence, not {type(value).__name__}")
    if element == "str":
        strings = value.tolist() if isinstance(value, np.ndarray | StringArray) else list(value)
        if not all(isinstance(text, str) for text in strings):
            raise ArgumentError(f"metadata '{key}': not all elements are strings")
        builder.strings(key, strings)
        return
    if element not in _NUMBERS:
        raise ArgumentError(f"metadata '{key}': unknown element type {element!r}")
    dtype = np.dtype(_NUMBERS[element])
    given = value if isinstance(value, np.ndarray) else _numbers(list(value), dtype)
    if given is None or given.ndim != 1 or given.dtype.kind not in "biuf":
        raise ArgumentError(f"metadata '{key}': values do not fit one row of {element}")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = given.astype(dtype)
    # Integers and bools must be exact; floats are rounded to the stored type, but stay finite.
    exact = dtype.kind != "f" or given.dtype.kind in "bu"
    if (exact and not np.array_equal(stored, given)) or not np.array_equal(np.isfinite(stored), np.isfinite(given)):
        raise ArgumentError(f"metadata '{key}': values do not fit {element}")
    builder.numbers(key, element, to_bytes(stored))


def _numbers(items: list[Any], dtype: np.dtype[Any]) -> Array | None:
    """Python numbers as an array, exact for integers and bools; None where they do not fit."""
    if dtype.kind == "f":
        fits = all(isinstance(item, int | float | np.number) for item in items)
    elif dtype.kind == "b":
        fits = all(isinstance(item, bool | np.bool_) for item in items)
    else:
        limits = np.iinfo(dtype)
        fits = all(isinstance(item, int | np.integer) and limits.min <= item <= limits.max for item in items)
    return np.array(items, np.float64 if dtype.kind == "f" else dtype) if fits else None


def _infer(key: str, value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        name = "str" if value.dtype.kind == "U" else _NUMBER_NAMES.get(value.dtype.newbyteorder("<"))
        if name is not None:
            return name if isinstance(value, np.generic) else f"arr[{name}]"
    elif isinstance(value, bool):
        return "bool"
    elif isinstance(value, int):
        return _integer_type(key, value, value)
    elif isinstance(value, float):
        return "f32"
    elif isinstance(value, str):
        return "str"
    elif isinstance(value, list | tuple) and value:
        kinds = {_infer(key, item) for item in value}
        if len(kinds) == 1:
            return f"arr[{kinds.pop()}]"
        numbers = [item for item in value if isinstance(item, int | float) and not isinstance(item, bool)]
        if len(numbers) == len(value):
            if any(isinstance(item, float) for item in numbers):
                return "arr[f32]"
            return f"arr[{_integer_type(key, int(min(numbers)), int(max(numbers)))}]"
    raise ArgumentError(f"metadata '{key}': give the type of {value!r:.80} with GgufValue")


def _integer_type(key: str, low: int, high: int) -> str:
    for name in ("u32", "i32", "u64", "i64"):
        limits = np.iinfo(_NUMBERS[name])
        if limits.min <= low and high <= limits.max:
            return name
    raise ArgumentError(f"metadata '{key}': no integer type holds {low} to {high}")
