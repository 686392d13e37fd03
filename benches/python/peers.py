"""The peers that the block formats are measured against, behind one interface.

A peer binds a decode or an encode to preallocated memory and hands back a call without arguments, so that what is timed
is the row function and one foreign call. The C functions are reached through ctypes.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import subbyte
from subbyte import _native

Array = npt.NDArray[Any]
#: Returns the result, or None where it went to the memory that was passed.
Call = Callable[[], Any]

TYPES = {row[0]: row for row in _native.ggml_types()}  # name → (name, id, block, bytes, importance, decodes, encodes)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of ``columns`` elements."""
    _, _, block, size, *_ = TYPES[kind]
    return columns // block * size


class Subbyte:
    """This library, through the extension module."""

    name = "subbyte"

    def __init__(self) -> None:
        self.version = f"{subbyte.__version__} {_native.level()}"

    def decoder(self, kind: str, blocks: Array, out: Array, columns: int) -> Call | None:
        flat, target = blocks.reshape(-1), out.reshape(-1).view(np.uint8)
        return lambda: _native.decode(kind, flat, columns, "float32", target)

    def encoder(self, kind: str, x: Array, importance: Array | None, out: Array) -> Call | None:
        source, target, columns = x.reshape(-1).view(np.uint8), out.reshape(-1), x.shape[1]
        weights = None if importance is None else importance.view(np.uint8)
        return lambda: _native.encode(kind, source, "float32", columns, 1, weights, target)


class _Traits(ctypes.Structure):
    """The head of ggml's ``ggml_type_traits``."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


_ROW = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Ggml:
    """ggml's base library, from the path in an environment variable."""

    #: Not part of ggml_quantize_chunk and of the traits: activation formats.
    _ACTIVATION = ("Q8_1", "Q8_K")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._lib = lib = ctypes.CDLL(path)
        lib.ggml_version.restype = lib.ggml_commit.restype = ctypes.c_char_p
        lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        self.version = f"{lib.ggml_version().decode()} ({lib.ggml_commit().decode()})"

    def decoder(self, kind: str, blocks: Array, out: Array, columns: int) -> Call | None:
        row = None
        if kind == "Q8_K":
            row = _ROW(("dequantize_row_q8_K", self._lib))
        elif address := self._lib.ggml_get_type_traits(TYPES[kind][1]).contents.to_float:
            row = _ROW(address)
        return None if row is None else _bound(row, blocks, out, out.size)

    def encoder(self, kind: str, x: Array, importance: Array | None, out: Array) -> Call | None:
        if kind in self._ACTIVATION:
            row = _ROW((f"quantize_row_{kind[:3].lower()}{kind[3:]}_ref", self._lib))
            return _bound(row, x, out, x.size)
        self._lib.ggml_quantize_init(TYPES[kind][1])
        run, args = self._lib.ggml_quantize_chunk, (TYPES[kind][1], x.ctypes.data, out.ctypes.data, 0, *x.shape)
        weights = None if importance is None else importance.ctypes.data
        return lambda: _check(run(*args, weights), out.nbytes)


class Libgguf:
    """The PyPI package libgguf: its serial row functions, which its Python functions call from several threads."""

    name = "libgguf"

    def __init__(self) -> None:
        import libgguf
        from libgguf import _libgguf

        self.version = importlib.metadata.version("libgguf")
        self._types = {int(t) for t in libgguf._SUPPORTED_QUANTIZED_QTYPES}
        lib = ctypes.CDLL(_libgguf.__file__)
        self._decode = lib["_Z31libgguf_dequantize_chunk_serial9ggml_typePKvPflll"]
        self._encode = lib["_Z29libgguf_quantize_chunk_serial9ggml_typePKfPvlllS1_"]
        for function in (self._decode, self._encode):
            function.restype = ctypes.c_size_t
            function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_long] * 3]
        self._encode.argtypes = [*self._encode.argtypes, ctypes.c_void_p]
        self._init = lib["_Z14iq_tables_init9ggml_type"]

    def decoder(self, kind: str, blocks: Array, out: Array, columns: int) -> Call | None:
        if TYPES[kind][1] not in self._types:
            return None
        run, args = self._decode, (TYPES[kind][1], blocks.ctypes.data, out.ctypes.data, 0, out.size // columns, columns)
        return lambda: _check(run(*args), out.nbytes)

    def encoder(self, kind: str, x: Array, importance: Array | None, out: Array) -> Call | None:
        # Its IQ1_M encoder follows an older ggml and writes other bytes.
        if TYPES[kind][1] not in self._types or kind == "IQ1_M":
            return None
        self._init(TYPES[kind][1])
        run, args = self._encode, (TYPES[kind][1], x.ctypes.data, out.ctypes.data, 0, *x.shape)
        weights = None if importance is None else importance.ctypes.data
        return lambda: _check(run(*args, weights), out.nbytes)


class GgufPy:
    """The PyPI package gguf (NumPy)."""

    name = "gguf-py"

    def __init__(self) -> None:
        from gguf import GGMLQuantizationType, quants

        self.version = importlib.metadata.version("gguf")
        self._types, self._quants = GGMLQuantizationType.__members__, quants

    def _has(self, kind: str, what: str) -> bool:
        if kind not in self._types or kind == "F32":
            return False
        # F16 and BF16 are numpy operations without a class of their own to decode F16.
        one = np.zeros((1, row_bytes(kind, 256)), np.uint8) if what == "dequantize" else np.zeros((1, 256), np.float32)
        try:
            getattr(self._quants, what)(one.view(np.float16) if (kind, what) == ("F16", "dequantize") else one,
                                        self._types[kind])  # fmt: skip
        except NotImplementedError:
            return False
        return True

    def decoder(self, kind: str, blocks: Array, out: Array, columns: int) -> Call | None:
        if not self._has(kind, "dequantize"):
            return None
        rows = blocks.view(np.float16) if kind == "F16" else blocks
        return lambda: self._quants.dequantize(rows, self._types[kind])

    def encoder(self, kind: str, x: Array, importance: Array | None, out: Array) -> Call | None:
        if importance is not None or not self._has(kind, "quantize"):
            return None
        return lambda: self._quants.quantize(x, self._types[kind])


def _bound(row: Any, source: Array, out: Array, n: int) -> Call:
    args = (source.ctypes.data, out.ctypes.data, n)
    return lambda: row(*args)


def _check(written: int, expected: int) -> None:
    if written != expected:
        raise RuntimeError(f"the peer wrote {written} bytes, expected {expected}")


#: name → environment variable with the path of a libggml-base.so
GGML = {"ggml-native": "SUBBYTE_BENCH_GGML", "ggml-stock": "SUBBYTE_BENCH_GGML_STOCK"}
NAMES = ("libgguf", *GGML, "gguf-py")


def load(name: str) -> Any:
    """The peer of this name, or None (with a line that says why) where it is not installed."""
    try:
        if name in GGML:
            if not (path := os.environ.get(GGML[name])):
                raise OSError(f"set {GGML[name]} to the path of libggml-base.so")
            return Ggml(name, path)
        return {"libgguf": Libgguf, "gguf-py": GgufPy}[name]()
    except (ImportError, OSError, AttributeError) as e:
        print(f"without {name}: {e}")
        return None
