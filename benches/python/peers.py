"""The peers that the block bench compares with, each behind the same two calls.

``libgguf`` and ``gguf-py`` come from PyPI (the ``bench`` extra). ggml itself is called through ctypes in a
``libggml-base.so`` built outside the project: ``SUBBYTE_BENCH_GGML`` names one built with the processor's own flags
(``-march=native``), ``SUBBYTE_BENCH_GGML_STOCK`` one with the default flags of the base library.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any, Protocol

import numpy as np

DIFFERENT_BYTES = {("libgguf", "IQ1_M")}
"""Encoders that follow another revision of ggml: their bytes are not compared."""

DECODE_ONLY = {"ggml-native"}
"""Peers whose encoders are left out: compilers fuse multiply-adds in such a build, which changes the bytes."""

_MISSING = (ValueError, RuntimeError, NotImplementedError, KeyError)


class Peer(Protocol):
    """One implementation. Results go into ``out`` where the peer can do that; None means that it lacks the type."""

    name: str

    def decode(self, ggml: int, name: str, blocks: np.ndarray, out: np.ndarray) -> np.ndarray | None: ...
    def encode(
        self, ggml: int, name: str, x: np.ndarray, weights: np.ndarray | None, out: np.ndarray
    ) -> np.ndarray | None: ...


class Libgguf:
    """The row functions of the ``libgguf`` wheel."""

    name = "libgguf"

    def __init__(self) -> None:
        self.module: Any = importlib.import_module("libgguf")

    def decode(self, ggml: int, name: str, blocks: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        try:
            self.module.dequantize_rows_into_raw(ggml, blocks, out, out.shape[0], out.shape[1])
        except _MISSING:
            return None
        return out

    def encode(
        self, ggml: int, name: str, x: np.ndarray, weights: np.ndarray | None, out: np.ndarray
    ) -> np.ndarray | None:
        try:
            self.module.quantize_rows_into_raw(ggml, x, out, x.shape[0], x.shape[1], weights)
        except _MISSING:
            return None
        return out


class Ggml:
    """A ``libggml-base`` through ctypes."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.lib = ctypes.CDLL(path)
        void, long = ctypes.c_void_p, ctypes.c_int64
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, void, void, long, long, long, void]
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t

    def decode(self, ggml: int, name: str, blocks: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        lower = name[:-1].lower() + "K" if name.endswith("_K") else name.lower()
        spelled = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(name, f"dequantize_row_{lower}")
        function = getattr(self.lib, spelled, None)
        if function is None:
            return None
        function(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
        return out

    def encode(
        self, ggml: int, name: str, x: np.ndarray, weights: np.ndarray | None, out: np.ndarray
    ) -> np.ndarray | None:
        if name in ("Q8_1", "Q8_K", "F32", "F64"):
            return None
        self.lib.ggml_quantize_init(ggml)
        w = None if weights is None else weights.ctypes.data
        self.lib.ggml_quantize_chunk(ggml, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], w)
        return out


class GgufPy:
    """``gguf.quants`` of gguf-py, which allocates its results."""

    name = "gguf-py"

    def __init__(self) -> None:
        self.quants: Any = importlib.import_module("gguf.quants")
        self.types: Any = importlib.import_module("gguf").GGMLQuantizationType

    def decode(self, ggml: int, name: str, blocks: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        try:
            return np.asarray(self.quants.dequantize(blocks, self.types(ggml)))
        except _MISSING:
            return None

    def encode(
        self, ggml: int, name: str, x: np.ndarray, weights: np.ndarray | None, out: np.ndarray
    ) -> np.ndarray | None:
        if weights is not None:
            return None
        try:
            return np.asarray(self.quants.quantize(x, self.types(ggml)))
        except _MISSING:
            return None


def peers(wanted: list[str] | None = None) -> list[Peer]:
    """The peers that can be had here; prints which cannot, and why."""
    found: list[Peer] = []
    for name, variable in (("ggml-native", "SUBBYTE_BENCH_GGML"), ("ggml-stock", "SUBBYTE_BENCH_GGML_STOCK")):
        path = os.environ.get(variable)
        if path:
            found.append(Ggml(name, path))
        else:
            print(f"peer {name}: not measured ({variable} is not set)")
    for kind in (Libgguf, GgufPy):
        try:
            found.append(kind())
        except ImportError as e:
            print(f"peer {kind.name}: not measured ({e}); pip install 'subbyte[bench]'")
    return [p for p in found if not wanted or p.name in wanted]
