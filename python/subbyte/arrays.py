"""Arrays in and out: what callers pass becomes contiguous NumPy memory, and results are allocated aligned.

Accepted are NumPy arrays (strided, unaligned and read-only ones included; masked ones not), anything with the buffer
protocol, and anything with DLPack in host memory (a bfloat16 torch tensor too; torch is not imported). bfloat16 and
float8 elements are `ml_dtypes` arrays where that package is installed, and raw ``uint16`` bits (bfloat16) otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from subbyte import _native
from subbyte.errors import ArgumentError, NonFiniteError, UnsupportedError

Array = npt.NDArray[Any]

#: The element types that decoding produces.
FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")
#: Results begin at a multiple of this, so that wide stores past the caches are possible.
ALIGNMENT = 64
_HOST_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost


@dataclass(frozen=True, slots=True)
class Floats:
    """Values to encode: C-contiguous ``float32``, ``float16``, or bfloat16 bits as ``uint16``."""

    data: Array
    dtype: str

    @property
    def bytes(self) -> Array:
        """The memory as one row of bytes."""
        return as_bytes(self.data)

    def to_float32(self) -> Array:
        """The values as C-contiguous ``float32``, exactly."""
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.data.astype(np.float32, copy=False)


@cache
def small_float(name: str) -> np.dtype[Any] | None:
    """The `ml_dtypes` type of this name (``"bfloat16"``, ``"float8_e4m3fn"`` …), or None without that package."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    found = getattr(ml_dtypes, name, None)
    return None if found is None else np.dtype(found)


def dtype_name(dtype: Any) -> str:
    """The name of a float element type given as a name, a NumPy type or an `ml_dtypes` type.

    Raises:
        ArgumentError: it is none of float32, float16, bfloat16 and float64.
    """
    name = dtype
    if not isinstance(dtype, str):
        try:
            name = None if dtype is None else np.dtype(dtype).name  # NumPy takes None for float64
        except (TypeError, ValueError):
            name = str(dtype).removeprefix("torch.")
    if name not in FLOAT_DTYPES:
        raise ArgumentError(f"dtype {dtype!r}: expected one of {', '.join(FLOAT_DTYPES)}")
    return str(name)


def result_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of results of this name; ``uint16`` bits for bfloat16 where `ml_dtypes` is not installed."""
    if name == "bfloat16":
        return small_float(name) or np.dtype(np.uint16)
    return np.dtype(name)


def load(array: Any) -> tuple[Array, str]:
    """``array`` as a NumPy view (a copy only where there is no other way) and the name of its element type.

    Raises:
        ArgumentError: it is no array, is masked, holds Python objects, or lies in the memory of a GPU.
    """
    if isinstance(array, np.ndarray) and hasattr(array, "mask"):
        raise ArgumentError("a masked array: masks cannot be stored, pass array.filled(value)")
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        return _load_dlpack(array)
    try:
        a = np.frombuffer(array, np.uint8) if isinstance(array, bytes | bytearray) else np.asarray(array)
    except (TypeError, ValueError, BufferError, RuntimeError) as e:
        raise ArgumentError(f"{type(array).__name__} cannot be read as an array: {e}") from e
    if a.dtype.kind not in "fiubcV" or a.dtype.fields is not None:
        raise ArgumentError(f"an array of {a.dtype}, from {type(array).__name__}: expected numbers")
    return (a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))), a.dtype.name


def _load_dlpack(array: Any) -> tuple[Array, str]:
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    try:
        if array.__dlpack_device__()[0] not in _HOST_DEVICES:
            raise ArgumentError(f"the {kind} is not in host memory: copy it to the CPU first")
        try:
            capsule = array.__dlpack__(max_version=(1, 1))
        except TypeError:  # a producer of the time before versions
            capsule = array.__dlpack__()
        memory = _native.from_dlpack(capsule)
    except (AttributeError, TypeError, ValueError, BufferError, RuntimeError) as e:
        if isinstance(e, ArgumentError):
            raise
        raise ArgumentError(f"the {kind} cannot be read through DLPack: {e}") from e
    bits = np.asarray(memory)
    name = memory.dtype
    if name == "bfloat16" or name.startswith("float8"):
        small = small_float(name)
        return (bits if small is None else bits.view(small)), name
    return bits.view(name), name


def load_floats(array: Any, what: str = "the array") -> Floats:
    """``array`` as values to encode. float64 is rounded to float32 once; float8 is widened exactly.

    Raises:
        ArgumentError: integers, booleans or complex numbers, and what `load` refuses.
        NonFiniteError: a finite value that float32 cannot hold.
        UnsupportedError: float8 without `ml_dtypes`.
    """
    a, name = load(array)
    if name in ("float32", "float16"):
        return Floats(np.require(a, requirements=("C", "A")), name)
    if name == "bfloat16":
        return Floats(np.require(a, requirements=("C", "A")).view(np.uint16), name)
    if name in ("float64", "longdouble", "float128"):
        return Floats(_narrowed(a, what), "float32")
    if name.startswith("float"):
        if small_float(name) is None:
            raise UnsupportedError(f"{name} needs the package ml_dtypes: install it, or pass float32")
        return Floats(a.astype(np.float32, order="C"), "float32")
    bits = "; if they are the bits of bfloat16, pass array.view(ml_dtypes.bfloat16)" if name == "uint16" else ""
    raise ArgumentError(
        f"{what} holds {name}: expected floats. If these are the values, pass array.astype(numpy.float32){bits}"
    )


def _narrowed(a: Array, what: str) -> Array:
    """``a`` rounded to float32. NaN and infinity stay, for the encoder to say where they are."""
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return a.astype(np.float32, order="C")
    except FloatingPointError:
        with np.errstate(over="ignore", invalid="ignore"):
            lost = np.isinf(a.astype(np.float32)) & np.isfinite(a)
        row, column = first_place(lost)
        value = a.reshape(-1)[np.argmax(lost)]
        message = f"{what} holds {value}, too large for float32, through which {a.dtype} is encoded"
        raise NonFiniteError(message, row=row, column=column) from None


def first_place(found: Array) -> tuple[int, int]:
    """Row and column of the first element that is true."""
    row, column = divmod(int(np.argmax(found)), found.shape[-1] if found.ndim else 1)
    return row, column


def get_plane(planes: Any, name: str) -> Any:
    """The plane ``name`` of ``planes``, as it was given.

    Raises:
        ArgumentError: there is no such plane.
    """
    try:
        return planes[name]
    except (KeyError, TypeError, IndexError, ValueError) as e:
        found = ", ".join(map(repr, planes)) if hasattr(planes, "keys") else type(planes).__name__
        raise ArgumentError(f"plane '{name}' is missing: found {found or 'none'}") from e


def load_plane(planes: Any, name: str) -> Array:
    """The byte plane ``name`` of ``planes``: ``uint8``, of any strides.

    Raises:
        ArgumentError: there is no such plane, or it does not hold bytes.
    """
    a, found = load(get_plane(planes, name))
    if found != "uint8":
        raise ArgumentError(f"plane '{name}' holds {found}: expected uint8, the bytes of the blocks")
    return a


def as_bytes(array: Array) -> Array:
    """C-contiguous memory as one row of ``uint8``, shared."""
    return array.reshape(-1).view(np.uint8)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised C-contiguous array that begins at a multiple of 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    address: int = memory.__array_interface__["data"][0]
    start = -address % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def destination(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str = "out") -> Array:
    """``out`` as a NumPy array to write into, or a new one where it is None.

    Raises:
        ArgumentError: ``out`` has another shape or element type, is strided, unaligned or read-only, or cannot be
            shared.
    """
    if out is None:
        return empty(shape, dtype)
    shared = out.dtype.isnative if isinstance(out, np.ndarray) else hasattr(out, "__dlpack__")
    if not shared:
        raise ArgumentError(f"{what} is a {type(out).__name__}: expected a NumPy array of native byte order")
    a, name = load(out)
    bits = {name, dtype.name} == {"uint16", "bfloat16"}
    if name != dtype.name and not bits:
        raise ArgumentError(f"{what} holds {name}: expected {dtype.name}")
    if a.shape != shape:
        raise ArgumentError(f"{what} has shape {a.shape}: expected {shape}")
    if not a.flags.carray:
        raise ArgumentError(f"{what} must be C-contiguous, aligned to its elements and writable")
    return a


def check_separate(source: Array, result: Array) -> None:
    """Refuses a result that lies in the memory of its source, as the native functions do.

    Raises:
        ArgumentError: they share memory.
    """
    if np.may_share_memory(source, result):
        raise ArgumentError("source and destination share memory: pass a separate destination")
