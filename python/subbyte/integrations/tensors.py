"""torch tensors as planes, and decoded weights as torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from subbyte.errors import UnsupportedError
from subbyte.forms import Form
from subbyte.planes import Plane

#: safetensors element type, and the torch type of as many bits that NumPy has.
_KINDS: dict[torch.dtype, tuple[str, torch.dtype | None]] = {
    torch.float32: ("F32", None), torch.float16: ("F16", None), torch.float64: ("F64", None),
    torch.bfloat16: ("BF16", torch.uint16), torch.uint8: ("U8", None), torch.int8: ("I8", None),
    torch.int16: ("I16", None), torch.uint16: ("U16", None), torch.int32: ("I32", None), torch.uint32: ("U32", None),
    torch.int64: ("I64", None), torch.bool: ("BOOL", None), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8),
    torch.float8_e5m2: ("F8_E5M2", torch.uint8), torch.float8_e8m0fnu: ("F8_E8M0", torch.uint8),
}  # fmt: skip
_BY_KIND = {kind: dtype for dtype, (kind, _) in _KINDS.items()}
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def plane_of(tensor: torch.Tensor) -> Plane:
    """A tensor as a plane; one on a device is copied to the host.

    Raises:
        UnsupportedError: elements of a type that no checkpoint stores.
    """
    if tensor.dtype not in _KINDS:
        raise UnsupportedError(f"a plane of {tensor.dtype}: checkpoints store no such elements")
    kind, bits = _KINDS[tensor.dtype]
    held = tensor.detach().cpu().contiguous()
    return Plane((held if bits is None else held.view(bits)).numpy(), kind)


def empty_plane(kind: str, shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    """An uninitialised tensor for a plane of a checkpoint.

    Raises:
        UnsupportedError: torch has no such elements.
    """
    if kind not in _BY_KIND:
        raise UnsupportedError(f"torch has no type for elements of {kind}")
    return torch.empty(shape, dtype=_BY_KIND[kind], **options)


def decoded(form: Form, dtype: torch.dtype, *, transposed: bool = False) -> torch.Tensor:
    """The dense weight of a form on the host: in ``dtype``, or in float32 converted to it."""
    values = form.decode(_NAMES.get(dtype, "float32"))
    if transposed:
        values = np.ascontiguousarray(np.swapaxes(values, -1, -2))
    if dtype == torch.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values).to(dtype)
