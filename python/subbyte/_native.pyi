# The extension module. Buffers are C-contiguous bytes (`numpy.uint8`); `subbyte.arrays` makes them from arrays.

from typing import Any

__version__: str

SIDE_FILE_BYTES: int
"""Largest file beside the weights that is read into memory."""

def ggml_types() -> list[tuple[str, int, int, int, str, bool, bool]]:
    """Name, id, elements and bytes per block, what importance weights do, has a decoder, has an encoder."""

def decode(name: str, blocks: Any, columns: int, dtype: str, out: Any) -> None:
    """Decodes rows of `columns` elements stored as `name` into `out`, whose elements are of type `dtype`."""

def encode(name: str, array: Any, dtype: str, columns: int, groups: int, importance: Any | None, out: Any) -> None:
    """Encodes `groups` equal parts of `array` as `name` into `out`; `importance` holds float32 weights per group."""

def first_invalid_block(name: str, blocks: Any) -> int | None:
    """The first block that ggml's own check refuses (a scale or value that is not finite), if there is one."""

def unpack(order: str, bits: int, words: Any, columns: int, codes: Any) -> None:
    """Unpacks rows of `columns` codes from little-endian 32-bit words (`order`: stream, aligned, planar) into bytes."""

def pack_codes(order: str, bits: int, codes: Any, columns: int, words: Any) -> None:
    """The reverse of `unpack`; unused bits become zero."""

def lay_words(layout: str, rows: int, words: Any, out: Any) -> None:
    """Lays rows of whole 32-bit words, each a stream of bits, "down" or (4 bits) "across" into `out`."""

class PackedLayer:
    """A weight of packed codes of `bits` bits, `signed` where their upper bit is flipped.

    The layouts are those of `subbyte_core::pack::layout`: rows (with `row_bytes`, `high_first`), down, across, fours,
    tiles, slabs (with `item_bytes` and, where the first field is the highest, their number `fields`).
    """

    def __init__(
        self,
        words: Any,
        bits: int,
        rows: int,
        columns: int,
        layout: str,
        *,
        row_bytes: int = 0,
        high_first: bool = False,
        item_bytes: int = 1,
        fields: int | None = None,
        signed: bool = False,
    ) -> None: ...
    def decode(
        self,
        op: str,
        steps: str,
        first: int,
        dtype: str,
        out: Any,
        *,
        group: int,
        flat: bool,
        group_of: Any | None,
        scales: Any,
        offsets: Any | None,
        table: Any | None,
    ) -> None:
        """Decodes rows from `first` on into `out`, with float32 scales and offsets.

        `op` is affine, biased or table; each step is rounded to the type `steps`.
        """
    def assemble(
        self, ty: str, first: int, out: Any, *, group: int, zeros: Any | None, scales: Any, minima: Any | None
    ) -> None:
        """ggml blocks of rows from `first` on, from int16 zero points and 16-bit scales and minima of the blocks."""
    def stream(self, first: int, out: Any) -> None:
        """Rows from `first` on as rows of whole words, each one stream of bits."""

def stream_fill(out: Any, x: float) -> None:
    """Fills a float32 buffer with `x` past the caches: the write limit that benches compare decoders with."""

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

class FileBytes:
    """A read-only buffer over bytes of an open file."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class FilePlan:
    """A file to be written, known in full."""

    @property
    def nbytes(self) -> int: ...
    def create(self, path: str) -> FileWriter: ...
    def create_partial(self, path: str, partial: str, resume: bool) -> tuple[FileWriter, bool]:
        """Like `create`, into a file that stays until it is committed or discarded; whether it was there already."""
    def header(self) -> bytes: ...

class FileWriter:
    """A planned file being filled in."""

    def write(self, name: str, data: Any, offset: int) -> None: ...
    def mark(self, name: str, offset: int, count: int) -> None:
        """Counts bytes as written: an earlier run did."""
    def read(self, name: str, offset: int, count: int) -> bytes: ...
    def sync(self) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...
    def discard(self) -> None: ...

class Journal:
    """A file of lines, locked against a second run."""

    @staticmethod
    def open(path: str) -> Journal | None:
        """The journal, created where there is none; None when another run has it."""
    def read(self, most: int) -> bytes: ...
    def truncate(self, length: int) -> None: ...
    def append(self, data: bytes) -> None: ...
    def remove(self) -> None: ...
    def close(self) -> None: ...

class GgufReader:
    """All files of an open GGUF model."""

    def __init__(self, path: str, mapped: bool) -> None: ...
    @staticmethod
    def remote(object: Any, name: str) -> GgufReader:
        """Over a `subbyte.io.remote.RemoteFile` called ``name``."""
    def facts(self) -> tuple[int, bool, int]:
        """Version, whether big-endian, alignment."""
    def files(self) -> list[tuple[str, int]]:
        """Path and size of each file."""
    def metadata(self) -> list[tuple[str, str]]:
        """Key and type name of each entry."""
    def value(self, index: int) -> int | float | bool | str | bytes | GgufStrings: ...
    def tensors(self) -> list[tuple[str, str, list[int], int | None, int, int, int, int]]:
        """Name, type, dimensions (fastest first), bytes of a row or None, bytes, offset, file, number in the file."""
    def raw(self, shard: int, index: int, start: int = 0, count: int | None = None) -> FileBytes: ...

class GgufStrings:
    """A string array of the metadata."""

    def __len__(self) -> int: ...
    def get(self, index: int) -> str: ...
    def range(self, start: int, stop: int) -> list[str]: ...

class GgufBuilder:
    """Metadata of a GGUF file to be written."""

    def __init__(self) -> None: ...
    def scalar(self, key: str, type_name: str, value: float) -> None: ...
    def text(self, key: str, value: str) -> None: ...
    def numbers(self, key: str, type_name: str, data: Any) -> None: ...
    def strings(self, key: str, values: list[str]) -> None: ...
    def copy_strings(self, key: str, values: GgufStrings) -> None: ...
    def finish(self, tensors: list[tuple[str, str, list[int]]], alignment: int | None) -> FilePlan: ...

class SafetensorsReader:
    """An open safetensors file."""

    def __init__(self, path: str, mapped: bool) -> None: ...
    @staticmethod
    def remote(object: Any) -> SafetensorsReader:
        """Over a `subbyte.io.remote.RemoteFile`."""
    @property
    def nbytes(self) -> int: ...
    def metadata(self) -> list[tuple[str, str]]: ...
    def tensors(self) -> list[tuple[str, str, list[int], int, int]]:
        """Name, dtype, shape, bytes, offset."""
    def raw(self, index: int, start: int = 0, count: int | None = None) -> FileBytes: ...

def safetensors_plan(tensors: list[tuple[str, str, list[int]]], metadata: list[tuple[str, str]]) -> FilePlan: ...
def same_file(a: str, b: str) -> bool: ...
def read_json(path: str, most: int) -> bytes: ...
def write_file(path: str, data: bytes) -> None: ...
def place_folder(folder: str, name: str) -> None:
    """Gives a complete folder its name; a folder that had it has the other name afterwards."""

def remove_file(path: str) -> None: ...
def fault_arm(nth: int, errno: int) -> None: ...
def fault_disarm() -> int: ...
