"""Looks into checkpoints: what the headers say, and the numbers of one tensor."""

from __future__ import annotations

from os import PathLike
from typing import overload

from subbyte.inspection.headers import Inspection, LayerInfo, TensorInfo, inspect_headers
from subbyte.inspection.scheme import Scheme
from subbyte.inspection.tensor import Histogram, Numbers, TensorInspection, inspect_tensor

__all__ = ["Histogram", "Inspection", "LayerInfo", "Numbers", "Scheme", "TensorInfo", "TensorInspection", "inspect"]


@overload
def inspect(path: str | PathLike[str], tensor: None = None) -> Inspection: ...
@overload
def inspect(path: str | PathLike[str], tensor: str) -> TensorInspection: ...
def inspect(path: str | PathLike[str], tensor: str | None = None) -> Inspection | TensorInspection:
    """Look into a GGUF file (all shards), a safetensors file, or a checkpoint folder; remote ones too.

    Without ``tensor`` only headers are read, and of quantized layers what tells their scheme: never their codes. With
    it, the tensor is read once, in pieces of a few megabytes; a quantized layer is named as its dense weight.

    Args:
        path: what to look into.
        tensor: name of a tensor, as the checkpoint has it.

    Raises:
        ArgumentError: there is no such tensor.
        FormatError, CorruptError: the headers are damaged.
        UnsupportedError: another kind of file.
        IoError: the file cannot be read.
    """
    return inspect_headers(path) if tensor is None else inspect_tensor(path, tensor)
