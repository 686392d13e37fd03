"""Checkpoints for reading: a mapping from weight name to `Weight`, whatever file the weights are in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from subbyte import arguments, arrays
from subbyte.arrays import Array
from subbyte.codec import get_codec
from subbyte.errors import ArgumentError, Error, FormatError, IoError, UnsupportedError
from subbyte.formats import checkpoint_format, read_layer
from subbyte.formats.base import Folder, Layer
from subbyte.formats.detect import identify
from subbyte.forms import Form
from subbyte.ggml import PLANE
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place, RemotePath, place
from subbyte.io.safetensors import SafetensorsFile
from subbyte.io.source import OpenFiles, load_json
from subbyte.planes import float8_values, stored

#: Element types of safetensors that are ggml types as well, with their bytes: their codecs decode them.
_SAFETENSORS_CODECS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

#: Element types that are no floats.
_WHOLE = frozenset(("bool", *(f"{sign}{bits}" for sign in "iu" for bits in (8, 16, 32, 64))))

#: Types of tensors that only BitNet's fork of ggml has.
_BITNET = ("I2_S", "TL1", "TL2")


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a checkpoint. Nothing is read before `decode`.

    Attributes:
        name: its name in the checkpoint.
        shape: its dense shape, in NumPy order.
        format: the id of its format or codec (``gptq``, ``gguf.q4_k``), or the element type of a plain tensor in lower
            case (``bf16``, ``i64``).
        nbytes: the bytes that it takes in the file.
        file: the file that holds it.
        layer: the planes it is made of, for a weight of a quantized checkpoint; None otherwise.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    file: str
    _codec: str | None = field(repr=False)
    _read: Callable[[], Array] = field(repr=False)  # blocks for the codec, or without one the elements
    layer: Layer | None = field(default=None, repr=False)
    _form: Callable[[], Form] | None = field(default=None, repr=False)

    def decode(self, dtype: Any = "float32", rows: slice = slice(None), out: Array | None = None) -> Array:
        """The dense values: the same as ``decode()[rows]``.

        Args:
            dtype: float32, float16, bfloat16 or float64. 16-bit results are rounded once from float32; integers and
                float64 elements are rounded to it first.
            rows: range of the first axis; only its bytes are read.
            out: array to write into, C-contiguous, of the shape and ``dtype`` of the result.

        Raises:
            ArgumentError: ``dtype``, ``rows`` or ``out`` does not fit.
            UnsupportedError: the element type cannot be decoded (Q8_1, complex).
        """
        try:
            if self._form is not None:
                return self._decode_form(self._form(), arrays.dtype_name(dtype), rows, out)
            if self._codec is None:
                return self._convert(arrays.dtype_name(dtype), rows, out)
            if len(self.shape) == 1 and arguments.row_range(rows) != slice(None):
                return self._part(arrays.dtype_name(dtype), rows, out)
            return get_codec(self._codec).decode({PLANE: self._read()}, out=out, rows=rows, dtype=dtype)
        except Error as e:
            e.file, e.tensor = e.file or self.file, e.tensor or self.name
            raise

    @property
    def whole(self) -> bool:
        """Whether it holds integers or booleans, which `elements` gives as they are stored."""
        return self.format.removeprefix("gguf.") in _WHOLE

    def elements(self) -> Array:
        """The elements of a tensor of integers or booleans, as they are stored.

        Raises:
            UnsupportedError: it holds floats, or is quantized; `decode` gives its values.
        """
        if not self.whole:
            raise UnsupportedError(
                f"stored as {self.format}: only integers and booleans are elements", tensor=self.name
            )
        return self._read()

    def form(self) -> Form:
        """The weight in the terms of its family (`subbyte.forms`).

        Raises:
            UnsupportedError: it is no weight of a quantized checkpoint.
            FormatError, CorruptError: its planes do not fit together.
        """
        if self._form is None:
            raise UnsupportedError(f"stored as {self.format}, which has no canonical form", tensor=self.name)
        try:
            return self._form()
        except Error as e:
            e.file, e.tensor = e.file or self.file, e.tensor or self.name
            raise

    def _decode_form(self, form: Form, name: str, rows: slice, out: Array | None) -> Array:
        transposed = self.layer is not None and self.layer.transposed
        shape = (*form.shape[:-2], form.shape[-1], form.shape[-2]) if transposed else form.shape
        start, stop, step = arguments.row_range(rows).indices(shape[0])
        if step != 1 or len(shape) < (3 if transposed else 2):
            values = form.decode(name)
            values = (np.swapaxes(values, -1, -2) if transposed else values)[rows]
            result = arrays.destination(out, values.shape, values.dtype)
            result.view(values.dtype)[...] = values
            return result
        each = form.rows // max(shape[0], 1)
        stop = max(start, stop)
        part = slice(start * each, stop * each)
        if not transposed:
            result = arrays.destination(out, (stop - start, *shape[1:]), arrays.result_dtype(name))
            form.decode_rows(part, name, result.reshape(-1, form.columns))
            return result
        values = form.decode_rows(part, name).reshape(stop - start, *form.shape[1:])
        result = arrays.destination(out, (stop - start, *shape[1:]), values.dtype)
        result.view(values.dtype)[...] = np.swapaxes(values, -1, -2)
        return result

    def _part(self, name: str, rows: slice, out: Array | None) -> Array:
        """Elements of a vector, which is a single row to its codec."""
        values = self.decode(name)[rows]
        result = arrays.destination(out, values.shape, values.dtype)
        result.view(values.dtype)[...] = values
        return result

    def _convert(self, name: str, rows: slice, out: Array | None) -> Array:
        values = self._read()
        if self.format.startswith("f8") and values.dtype == np.uint8:
            values = float8_values(self.format.upper())[values]
        if values.dtype.kind == "c":
            raise UnsupportedError(f"{self.format} elements are complex numbers: read them with subbyte.io")
        if self.format == "bf16" and values.dtype == np.uint16:
            values = arrays.Floats(values, "bfloat16").to_float32()
        if arguments.row_range(rows) != slice(None):
            if not self.shape:
                raise ArgumentError("a scalar has no rows")
            values = values[rows]
        wanted = arrays.result_dtype(name)
        result = arrays.destination(out, values.shape, wanted)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite where too large; signalling NaN becomes quiet
            if wanted.itemsize == 2:
                plane = arrays.as_bytes(values.astype(np.float32, order="C"))
                values = get_codec("gguf.f32").decode({PLANE: plane}, dtype=name).reshape(values.shape)
            result.view(wanted)[...] = values
        return result


class Checkpoint(OpenFiles[Weight]):
    """The weights of a file or folder by name. Iterating reads nothing but the headers.

    Attributes:
        path: what was opened.
        source: the container, a `subbyte.io.gguf.GgufFile` or a `subbyte.io.safetensors.SafetensorsFile`.
        config: config.json of the folder, or beside the file, as a dictionary; empty where there is none.
        format: the format id of a quantized checkpoint (``gptq``); None for GGUF files and dense checkpoints.
        notes: what is stale or odd but harmless (a module listed as quantized but stored dense).
    """

    def __init__(
        self,
        path: Place,
        source: GgufFile | SafetensorsFile,
        weights: Mapping[str, Weight],
        config: Mapping[str, Any],
        format: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.source = source
        self.config = dict(config)
        self.format = format
        self.notes = list(notes)
        self._entries = dict(weights)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Opens a GGUF file, a safetensors file, or a folder of the latter, see `subbyte.open`."""
        where = place(path)
        if not where.is_dir() and _is_gguf(where):
            return cls._open_gguf(where)
        return cls._open_safetensors(where)

    @classmethod
    def _open_gguf(cls, path: Place) -> Checkpoint:
        source = GgufFile(path)

        def weight(name: str) -> Weight:
            tensor = source[name]
            codec = f"gguf.{tensor.type.lower()}"
            if tensor.type in _BITNET:
                return _bitnet_weight(source, name)
            if tensor.type in ("I8", "I16", "I32", "I64"):
                return Weight(name, tensor.shape, codec, tensor.nbytes, tensor.path, None, lambda: source.array(name))
            return Weight(name, tensor.shape, codec, tensor.nbytes, tensor.path, codec, lambda: source.raw(name))

        return cls(path, source, {name: weight(name) for name in source}, {})

    @classmethod
    def _open_safetensors(cls, path: Place) -> Checkpoint:
        config = _folder_config(path)
        source = SafetensorsFile(path)

        def weight(name: str) -> Weight:
            tensor = source[name]
            kind = tensor.dtype.lower()
            if tensor.dtype not in _SAFETENSORS_CODECS or not tensor.shape:
                return Weight(name, tensor.shape, kind, tensor.nbytes, tensor.path, None, lambda: source.array(name))
            rows = (*tensor.shape[:-1], tensor.shape[-1] * _SAFETENSORS_CODECS[tensor.dtype])
            return Weight(
                name,
                tensor.shape,
                kind,
                tensor.nbytes,
                tensor.path,
                f"gguf.{kind}",
                lambda: source.raw(name).reshape(rows),
            )

        try:
            found = identify(config, source, partial(_side_file, path))
            if found is None:
                return cls(path, source, {name: weight(name) for name in source}, config)
            id, settings = found
            folder = Folder(source, config, settings, partial(_side_file, path))
            layers = checkpoint_format(id).layers(folder)
        except Error as e:
            e.file = e.file or os.fspath(path)
            raise
        if not layers:
            folder.notes.append(f"the settings say '{id}', but no tensor is quantized")
        weights = {layer.name: _layer_weight(source, id, layer) for layer in layers}
        taken = {tensor for layer in layers for tensor in layer.planes.values()}
        clash = next((name for name in source if name in weights and name not in taken), None)
        if clash is not None:
            raise FormatError("stored both dense and quantized; which one counts?", file=path, tensor=clash)
        weights |= {name: weight(name) for name in source if name not in taken}
        return cls(path, source, weights, config, id, folder.notes)

    def close(self) -> None:
        self.source.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {len(self)} weights>"


def _layer_weight(source: SafetensorsFile, id: str, layer: Layer) -> Weight:
    tensors = {plane: source[name] for plane, name in layer.planes.items()}

    def form() -> Form:
        planes = {
            plane: stored(source.raw(tensor.name), tensor.dtype, tensor.shape) for plane, tensor in tensors.items()
        }
        return read_layer(id, layer, planes)

    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    file = next(iter(tensors.values())).path
    return Weight(
        layer.name, layer.shape, layer.format or id, nbytes, file, None, lambda: _no_elements(layer.name), layer, form
    )


def _bitnet_weight(source: GgufFile, name: str) -> Weight:
    """A tensor of a type of BitNet's fork of ggml."""
    tensor = source[name]
    id = f"bitnet.{tensor.type.lower()}"

    def form() -> Form:
        if tensor.type != "I2_S":
            raise UnsupportedError(
                f"{tensor.type} is cut into tiles whose sizes (BM, BK, bm) the file does not tell: pass them with the "
                f"bytes of subbyte.io.GgufFile.raw to subbyte.decode('{id}')"
            )
        return checkpoint_format(id).read({"packed": source.raw(name)}, {"shape": tensor.shape})

    return Weight(name, tensor.shape, id, tensor.nbytes, tensor.path, None, lambda: _no_elements(name), None, form)


def _no_elements(name: str) -> Array:
    raise UnsupportedError("a quantized weight has no elements of its own", tensor=name)


def _side_file(path: Place, name: str) -> Any:
    """A JSON file beside the weights, None where there is none."""
    try:
        if not isinstance(path, RemotePath):
            return load_json((path if path.is_dir() else path.parent) / name)
        with path.copies([name]) as copy:
            return load_json(copy / name)
    except FileNotFoundError:
        return None


def _is_gguf(path: Place) -> bool:
    if isinstance(path, RemotePath) or path.suffix in (".gguf", ".safetensors"):
        return path.suffix == ".gguf"
    try:
        with path.open("rb") as f:
            return f.read(4) == b"GGUF"
    except OSError as e:
        raise IoError.from_errno(e.errno, e.strerror or str(e), str(path)) from e


def _folder_config(path: Place) -> dict[str, Any]:
    """config.json of a folder, or beside a file."""
    if not isinstance(path, RemotePath):
        return _read_config((path if path.is_dir() else path.parent) / "config.json")
    with path.copies(["config.json"]) as copy:
        return _read_config(copy / "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = load_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(config, dict):
        raise FormatError(f"expected a JSON object, found {type(config).__name__}", file=path)
    return config
