"""Planes: the arrays of one quantized layer, with the element types that safetensors files name.

Small floats are kept as their bits, so that everything works without `ml_dtypes`; `Plane.float32` gives their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subbyte import _native, arrays
from subbyte.arrays import Array
from subbyte.errors import ArgumentError, FormatError, NonFiniteError, UnsupportedError

FLOATS = ("F32", "F16", "BF16")
MAX_FLOAT32 = float(np.finfo(np.float32).max)

#: safetensors element type by the name of a NumPy or `ml_dtypes` type.
_KINDS = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Plane(NamedTuple):
    """An array and its element type.

    Attributes:
        data: the elements; those of small floats (``BF16``, ``F8_*``) as unsigned integers of their bits.
        kind: the element type as safetensors names it.
    """

    data: Array
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions, slowest-varying first."""
        return self.data.shape

    def float32(self) -> NDArray[np.float32]:
        """The values of a float plane, exactly (those of F64 are rounded)."""
        if self.kind == "BF16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.kind.startswith("F8_"):
            return float8_values(self.kind)[self.data]
        return self.data.astype(np.float32)

    def array(self) -> Array:
        """The elements as callers get them: `ml_dtypes` arrays where that package is installed."""
        small = arrays.small_float(_NAMES[self.kind]) if self.kind == "BF16" or self.kind[:2] == "F8" else None
        return self.data if small is None else self.data.view(small)


def plane(value: Any) -> Plane:
    """What a caller passed as a plane.

    Raises:
        ArgumentError: it is no array of a type that checkpoints store.
    """
    if isinstance(value, Plane):
        return value
    data, name = arrays.load(value)
    if name not in _KINDS:
        raise ArgumentError(f"an array of {name}: checkpoints store no such elements")
    kind = _KINDS[name]
    if kind == "BF16" or kind.startswith("F8_"):
        data = data.view(np.uint16 if kind == "BF16" else np.uint8)
    return Plane(data, kind)


def stored(raw: NDArray[np.uint8], kind: str, shape: Sequence[int]) -> Plane:
    """The plane that a safetensors file stores as the bytes ``raw``.

    Raises:
        UnsupportedError: elements smaller than a byte.
    """
    if kind not in _NAMES:
        raise UnsupportedError(f"{kind} elements cannot be read as an array")
    if kind in ("BF16", "F16") or kind.startswith("F8_"):
        dtype = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2")}.get(kind, np.dtype(np.uint8))
    else:
        dtype = np.dtype(_NAMES[kind]).newbyteorder("<")
    if raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return Plane(raw.view(dtype).reshape(tuple(shape)), kind)


def get(
    planes: Mapping[str, Any],
    name: str,
    kinds: Sequence[str] | str | None = None,
    shape: Sequence[int | None] | None = None,
) -> Plane:
    """The plane ``name``, checked.

    Args:
        planes: the planes of a layer.
        name: which.
        kinds: element types that it may have (one, or several); any if not given.
        shape: its dimensions, with None for those that may be anything; any if not given.

    Raises:
        ArgumentError: there is no such plane.
        FormatError: it has another element type or shape.
    """
    found = plane(arrays.get_plane(planes, name))
    allowed = (kinds,) if isinstance(kinds, str) else kinds
    if allowed is not None and found.kind not in allowed:
        raise FormatError(f"plane '{name}' holds {found.kind}: expected {' or '.join(allowed)}")
    if shape is not None and (
        len(found.shape) != len(shape)
        or any(want is not None and want != have for want, have in zip(shape, found.shape, strict=True))
    ):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise FormatError(f"plane '{name}' has shape {list(found.shape)}: expected [{wanted}]")
    return found


def optional(
    planes: Mapping[str, Any],
    name: str,
    kinds: Sequence[str] | str | None = None,
    shape: Sequence[int | None] | None = None,
) -> Plane | None:
    """Like `get`, but None where there is no such plane."""
    return get(planes, name, kinds, shape) if name in planes else None


@cache
def float8_values(kind: str) -> NDArray[np.float32]:
    """The 256 values of an 8-bit float type; NaN codes are quiet NaN.

    E4M3 (``F8_E4M3``: OCP FP8, no infinities), E5M2 (IEEE-like), E8M0 (powers of two, 255 is NaN), and the ``FNUZ``
    variants (bias one larger, NaN at 0x80, no negative zero).
    """
    code = np.arange(256)
    if kind == "F8_E8M0":
        return np.where(code == 255, np.nan, np.ldexp(1.0, code - 127)).astype(np.float32)
    mantissa_bits = {"F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2}.get(kind)
    if mantissa_bits is None:
        raise UnsupportedError(f"{kind} is no 8-bit float type that subbyte knows")
    unusual = kind.endswith("FNUZ")
    bias = (7 if mantissa_bits == 3 else 15) + unusual
    sign = np.where(code & 128, -1.0, 1.0)
    exponent, mantissa = (code & 127) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    unit = 1 << mantissa_bits
    value = sign * np.ldexp(mantissa / unit + (exponent > 0), np.maximum(exponent, 1) - bias)
    if unusual:
        value[128] = np.nan
    elif mantissa_bits == 3:
        value[[127, 255]] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(mantissa[top] == 0, sign[top] * np.inf, np.nan)
    return np.asarray(value, np.float32)


def rounded(values: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """``values`` rounded to F32, F16 or BF16 (nearest, ties to even; NaN stays), as float32.

    Sums, differences and products of values of a 16-bit type, computed in float32 and rounded with this, are those of
    arithmetic in that type: float32 has more than twice its digits (S. A. Figueroa, 1995).
    """
    if kind == "F32":
        return values
    if kind == "BF16":
        return Plane(bfloat16_bits(values), kind).float32()
    out = np.empty(values.shape, np.float32)
    if out.size:
        _native.decode("F16", arrays.as_bytes(_narrowed(values, "F16")), out.size, "float32", arrays.as_bytes(out))
    return out


def promoted(*kinds: str) -> str:
    """The type in which values of these float types are computed together: their own if they have one, else F32."""
    distinct = set(kinds)
    return distinct.pop() if len(distinct) == 1 else "F32"


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """``values`` as the bits of bfloat16, rounded to nearest, ties to even."""
    return _narrowed(values, "BF16")


def _narrowed(values: NDArray[np.float32], kind: str) -> NDArray[np.uint16]:
    """``values`` as the bits of a 16-bit type; the extension is several times as fast as NumPy."""
    out = np.empty(values.shape, np.uint16)
    narrow(values, kind, out)
    return out


def folded(data: Array) -> Array:
    """An array as a matrix of rows: all axes but the last one in one."""
    return data.reshape(prod(data.shape[:-1]), data.shape[-1])


def float_plane(values: NDArray[np.float32], kind: str) -> Plane:
    """``values`` rounded to a float plane of type F32, F16 or BF16."""
    if kind == "F32":
        return Plane(np.ascontiguousarray(values, np.float32), kind)
    bits = _narrowed(values, kind)
    return Plane(bits.view(np.float16) if kind == "F16" else bits, kind)


def finite_plane(values: NDArray[np.float32], kind: str) -> Plane:
    """Like `float_plane`, for what an encoder computed from finite weights.

    Raises:
        NonFiniteError: a value is NaN, infinite, or too large for the type.
    """
    found = float_plane(values, kind)
    if not np.isfinite(found.float32()).all():
        raise NonFiniteError(f"the weights are too large to be encoded with parameters of type {kind}")
    return found


def narrow(values: NDArray[np.float32], kind: str, out: Array) -> None:
    """Writes float32 values to a C-contiguous ``out`` of their shape, rounded once to a float type ``kind``."""
    if kind in ("F32", "F64"):
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes quiet
            out[...] = values
    elif values.size:
        flat = np.ascontiguousarray(values, np.float32)
        _native.decode("F32", arrays.as_bytes(flat), flat.size, _NAMES[kind], arrays.as_bytes(out))


def result(values: NDArray[np.float32], dtype: Any) -> Array:
    """float32 values as what `subbyte.decode` returns for ``dtype``, rounded once."""
    name = arrays.dtype_name(dtype)
    out = arrays.empty(values.shape, arrays.result_dtype(name))
    narrow(values, _KINDS[name], out)
    return out


def dtype_kind(dtype: Any) -> str:
    """The float type that ``dtype`` means, as safetensors names it."""
    return _KINDS[arrays.dtype_name(dtype)]


def source(array: Any) -> Plane:
    """An array to encode: a contiguous float plane F32, F16 or BF16 of at least one dimension.

    Raises:
        ArgumentError, NonFiniteError, UnsupportedError: see `subbyte.arrays.load_floats`.
        NonFiniteError: NaN or infinity.
    """
    floats = arrays.load_floats(array)
    found = Plane(floats.data, _KINDS[floats.dtype])
    if found.data.ndim == 0:
        raise ArgumentError("a scalar cannot be encoded: expected rows of values")
    bad = ~np.isfinite(found.float32())
    if bad.any():
        row, column = arrays.first_place(bad)
        raise NonFiniteError("NaN or infinity cannot be encoded", row=row, column=column)
    return found
