"""The functions most users need: decode, encode, open, load_state_dict."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from subbyte.arrays import Array, dtype_name
from subbyte.checkpoint import Checkpoint
from subbyte.codec import Encoded
from subbyte.formats import get_format

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def decode(
    format: str, planes: Mapping[str, Any], *, params: Mapping[str, Any] = _NOTHING, dtype: Any = "float32"
) -> Array:
    """Decodes the stored arrays of one layer to its dense weight.

    Args:
        format: a format id (``gguf.q4_k`` …; `list_formats` lists them).
        planes: the arrays as the format stores them, under its own names: for a ggml type ``{"blocks": uint8 [..., row
            bytes]}``.
        params: the format's own parameters, under its own names; the ggml types have none and ignore them.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        The weight, ``[..., rows, columns]``. bfloat16 is an `ml_dtypes` array where that package is installed, and
        raw ``uint16`` bits otherwise.

    Raises:
        ArgumentError: unknown id, missing plane, shapes or element types that do not fit.
        UnsupportedError: the format is known but not supported yet, or has no decoder.
    """
    return get_format(format).decode(planes, params=params, dtype=dtype)


def encode(format: str, array: Any, *, params: Mapping[str, Any] = _NOTHING, importance: Any = None) -> Encoded:
    """Encodes a dense weight.

    Args:
        format: a format id.
        array: floats ``[..., columns]``: a NumPy array, or anything with the buffer protocol or DLPack in host memory.
            float64 is rounded to float32 first.
        params: the format's own parameters.
        importance: weights of the columns, ``[columns]``; for expert tensors also ``[experts, columns]``.

    Returns:
        The planes by name, with ``config`` and ``shape``.

    Raises:
        ArgumentError: unknown id, integers, a row that is no whole number of blocks, a missing required importance.
        NonFiniteError: NaN, infinity, or a value too large for the format; ``row`` and ``column`` say where.
        UnsupportedError: the format is known but not supported yet.
    """
    return get_format(format).encode(array, params=params, importance=importance)


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint: a GGUF file, a safetensors file, or a folder with config.json and safetensors.

    Only headers are read; weights are read when they are decoded. For a split GGUF, pass its first part.

    Returns:
        A mapping from weight name to `Weight`.

    Raises:
        FormatError, CorruptError, LimitError: the file is not what it claims to be; nothing of it is used.
        UnsupportedError: it is quantized in a way that subbyte cannot decode yet.
        IoError: the operating system refused; also an instance of the builtin `OSError` class for its errno.
    """
    return Checkpoint.open(path)


def load_state_dict(path: str | os.PathLike[str], *, dtype: Any = "float32", lazy: bool = False) -> Mapping[str, Array]:
    """The weights of a checkpoint of any format as plain arrays, with nothing but NumPy.

    Args:
        path: what `subbyte.open` opens.
        dtype: float32, float16, bfloat16 or float64, for quantized weights and for floats. Integers and booleans keep
            their own type.
        lazy: decode a weight each time that it is asked for, instead of all of them now.

    Returns:
        Arrays by the name of the dense weight. A dictionary, or with ``lazy`` a mapping that keeps nothing but the open
        files. bfloat16 is an `ml_dtypes` array where that package is installed, and raw ``uint16`` bits otherwise.

    Raises:
        ArgumentError: ``dtype`` is none of these.
        Error: as `subbyte.open`, and as `Weight.decode` for what is damaged or cannot be decoded.
    """
    weights = _Decoded(Checkpoint.open(path), dtype_name(dtype))
    if lazy:
        return weights
    with weights.checkpoint:
        return dict(weights)


class _Decoded(Mapping[str, Array]):
    """The weights of a checkpoint, decoded when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        self.checkpoint = checkpoint
        self._dtype = dtype

    def __getitem__(self, name: str) -> Array:
        weight = self.checkpoint[name]
        return weight.elements() if weight.whole else weight.decode(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)
