"""Checkpoints for reading: a mapping from weight name to `Weight`, whatever file the weights are in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from subbyte import arrays
from subbyte.arrays import Array
from subbyte.codec import get_codec
from subbyte.errors import CorruptError, Error, IoError, UnsupportedError
from subbyte.ggml import PLANE

#: The element types of safetensors that are ggml types too: decoded by their codecs.
_SAFETENSORS_CODECS = {"F64": "gguf.f64", "F32": "gguf.f32", "F16": "gguf.f16", "BF16": "gguf.bf16"}
#: Every other element type that holds one value per element, by the name the file uses.
_PLAIN = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{'u' if sign == 'U' else ''}int{bits}" for sign in "IU" for bits in (8, 16, 32, 64)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a checkpoint. Nothing is read before `decode`.

    Attributes:
        name: its name in the checkpoint.
        shape: its dense shape, in NumPy order.
        format: the codec id (``gguf.q4_k``), or the element type of a plain tensor in lower case (``bf16``, ``i64``).
        nbytes: the bytes that it takes in the file.
        file: the file or folder that was opened.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int
    file: str
    _type: str = field(repr=False)
    _read: Callable[[], Array] = field(repr=False)

    def decode(self, dtype: Any = "float32", rows: slice = slice(None), out: Array | None = None) -> Array:
        """The dense values: the same as ``decode()[rows]``.

        Args:
            dtype: float32, float16, bfloat16 or float64. Plain float16 and bfloat16 are widened exactly; 16-bit results
                are rounded once from float32, integers once from their value.
            rows: range of the first axis; only its bytes are read.
            out: array to write into, C-contiguous, of the shape and ``dtype`` of the result.

        Raises:
            ArgumentError: ``dtype``, ``rows`` or ``out`` does not fit.
            UnsupportedError: the element type cannot be decoded (Q8_1; float8 without `ml_dtypes`).
        """
        try:
            codec = self.format if self.format.startswith("gguf.") else _SAFETENSORS_CODECS.get(self._type)
            if self._type in _PLAIN:
                return self._decode_plain(arrays.dtype_name(dtype), rows, out)
            if codec is None:
                raise UnsupportedError(f"tensors of element type {self._type} cannot be decoded yet")
            if self.shape:
                return get_codec(codec).decode({PLANE: self._read()}, out=out, rows=rows, dtype=dtype)
            scalar = get_codec(codec).decode({PLANE: self._read().reshape(1, -1)}, dtype=dtype)
            return _deliver(scalar.reshape(()), (), scalar.dtype, out)
        except Error as e:
            e.file, e.tensor = e.file or self.file, e.tensor or self.name
            raise

    def _decode_plain(self, name: str, rows: slice, out: Array | None) -> Array:
        stored = _PLAIN[self._type]
        element = arrays.small_float(stored) if stored.startswith("float") else np.dtype(stored).newbyteorder("<")
        if element is None:
            raise UnsupportedError(f"{self._type} needs the package ml_dtypes: pip install ml_dtypes")
        values = self._read().reshape(-1).view(element).reshape(self.shape)
        if rows != slice(None):
            values = values[rows]
        wanted = arrays.result_dtype(name)
        if name == "bfloat16" and wanted == np.uint16:
            bits = get_codec("gguf.bf16").encode(values.astype(np.float32))[PLANE]
            return _deliver(bits.view(np.uint16), values.shape, wanted, out)
        return _deliver(values, values.shape, wanted, out)


def _deliver(values: Array, shape: tuple[int, ...], dtype: np.dtype[Any], out: Array | None) -> Array:
    result = arrays.destination(out, shape, dtype)
    result[...] = values.astype(dtype, copy=False)
    return result


class Checkpoint(Mapping[str, Weight]):
    """The weights of a file or folder by name. Iterating reads nothing but the headers.

    Attributes:
        path: what was opened.
        source: the container, a `subbyte.io.gguf.GgufFile` or a `subbyte.io.safetensors.SafetensorsFile`.
        config: config.json of a folder as a dictionary; empty where there is none.
    """

    def __init__(self, path: Path, source: Any, weights: Mapping[str, Weight], config: Mapping[str, Any]) -> None:
        self.path = path
        self.source = source
        self.config = dict(config)
        self._weights = dict(weights)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Opens a GGUF file, a safetensors file, or a folder of the latter, see `subbyte.open`."""
        path = Path(path)
        if not path.is_dir() and _is_gguf(path):
            return cls._open_gguf(path)
        return cls._open_safetensors(path)

    @classmethod
    def _open_gguf(cls, path: Path) -> Checkpoint:
        from subbyte.io.gguf import GgufFile

        source = GgufFile(path)

        def weight(name: str) -> Weight:
            tensor = source[name]
            codec = f"gguf.{tensor.type.lower()}"
            return Weight(
                name, tuple(tensor.shape), codec, tensor.nbytes, str(path), tensor.type, lambda: source.raw(name)
            )

        return cls(path, source, {name: weight(name) for name in source}, {})

    @classmethod
    def _open_safetensors(cls, path: Path) -> Checkpoint:
        from subbyte.io.safetensors import SafetensorsFile

        config = _read_config(path / "config.json") if path.is_dir() else {}
        quantization = config.get("quantization_config")
        if quantization:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise UnsupportedError(f"quantized with {method!r}: subbyte cannot decode this method yet", file=path)
        source = SafetensorsFile(path)

        def weight(name: str) -> Weight:
            tensor = source[name]
            return Weight(
                name,
                tuple(tensor.shape),
                tensor.dtype.lower(),
                tensor.nbytes,
                str(path),
                tensor.dtype,
                lambda: source.raw(name),
            )

        return cls(path, source, {name: weight(name) for name in source}, config)

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {len(self)} weights>"


def _is_gguf(path: Path) -> bool:
    if path.suffix in (".gguf", ".safetensors"):
        return path.suffix == ".gguf"
    try:
        with path.open("rb") as f:
            return f.read(4) == b"GGUF"
    except OSError as e:
        raise IoError.from_errno(e.errno, e.strerror or str(e), str(path)) from e


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise IoError.from_errno(e.errno, e.strerror or str(e), str(path)) from e
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"not valid JSON: {e}", file=path) from e
    if not isinstance(config, dict):
        raise CorruptError(f"holds a JSON {type(config).__name__}: expected an object", file=path)
    return config
