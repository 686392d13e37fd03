# The extension module. Buffers are C-contiguous bytes (`numpy.uint8`); `subbyte.arrays` makes them from arrays.

from typing import Any

__version__: str

def ggml_types() -> list[tuple[str, int, int, int, str, bool, bool]]:
    """Name, id, elements and bytes per block, what importance weights do, has a decoder, has an encoder."""

def decode(name: str, blocks: Any, columns: int, dtype: str, out: Any) -> None:
    """Decodes rows of `columns` elements stored as `name` into `out`, whose elements are of type `dtype`."""

def encode(name: str, array: Any, dtype: str, columns: int, groups: int, importance: Any | None, out: Any) -> None:
    """Encodes `groups` equal parts of `array` as `name` into `out`; `importance` holds float32 weights per group."""

def first_invalid_block(name: str, blocks: Any) -> int | None:
    """The first block that ggml's own check refuses (a scale or value that is not finite), if there is one."""

def level() -> str:
    """The SIMD level in use."""

def levels() -> list[tuple[str, bool]]:
    """Every SIMD level, lowest first, and whether this processor can run it."""

def num_threads() -> int:
    """Threads that long calls use."""

class DlpackMemory:
    """Memory of a DLPack producer, as unsigned integers through the buffer protocol (strides included)."""

    @property
    def dtype(self) -> str:
        """What the elements are: ``"bfloat16"``, ``"float32"`` …"""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def from_dlpack(capsule: Any) -> DlpackMemory:
    """Takes the tensor out of the capsule that ``__dlpack__`` returned."""
