"""The ggml types as codecs ``gguf.<type>``: one plane, ``blocks``, of ``uint8`` ``[..., row bytes]``.

Layouts, decoders and encoders follow the GGUF specification; decoding gives ggml's bits, encoding the bytes of ggml's
reference quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from subbyte import _native, arguments, arrays, environment
from subbyte.arrays import Array
from subbyte.codec import Codec, Encoded
from subbyte.errors import ArgumentError, NonFiniteError, UnsupportedError

PLANE = "blocks"


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A ggml tensor type: the facts of the core's table."""

    name: str  #: as ggml spells it: ``Q4_K``
    number: int  #: as stored in GGUF files
    block: int  #: elements of a block
    block_bytes: int
    importance: str  #: what the encoder does with importance weights: ``ignored``, ``optional`` or ``required``
    decodes: bool  #: to floats
    encodes: bool  #: from floats

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row.

        Raises:
            ArgumentError: the row is not a whole number of blocks.
        """
        if columns % self.block:
            raise ArgumentError(
                f"{self.name} stores rows in blocks of {self.block} elements: a row of {columns} is not a multiple of "
                f"{self.block}"
            )
        return columns // self.block * self.block_bytes


#: Every ggml type by its name.
TYPES = {facts[0]: GgmlType(*facts) for facts in _native.ggml_types()}


class GgmlCodec:
    """Codec of one ggml type."""

    def __init__(self, type: GgmlType) -> None:
        self.type = type
        self.id = f"gguf.{type.name.lower()}"

    def __repr__(self) -> str:
        return f"<codec {self.id}>"

    def config(self) -> dict[str, Any]:
        """The id is all there is to know."""
        return {"id": self.id}

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of the blocks of an array of this shape; `ArgumentError` if its rows are not whole blocks."""
        *rows, columns = _at_least_1d(shape)
        return prod(rows) * self.type.row_bytes(columns)

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """Bits per element; of a block where the array is empty."""
        elements = prod(_at_least_1d(shape))
        return self.nbytes(shape) * 8 / elements if elements else self.type.block_bytes * 8 / self.type.block

    def encode(self, array: Any, *, importance: Any = None, out: Mapping[str, Array] | None = None) -> Encoded:
        """Encodes floats ``[..., columns]``: the bytes of ggml's reference quantizer, see `Codec.encode`.

        ``importance`` is ``[columns]``, or one such row for each matrix of a tensor of three or more dimensions
        (``[experts, columns]``); types that have no use for it ignore it, as in ggml.
        """
        environment.check()
        source = arrays.load_floats(array)
        *rows, columns = _at_least_1d(source.data.shape)
        shape = (*rows, self.type.row_bytes(columns))
        plane = _plane(out, shape)
        weights, groups = self._importance(importance, source.data.shape)
        _native.encode(self.type.name, source.bytes, source.dtype, columns, groups, weights, arrays.as_bytes(plane))
        return Encoded({PLANE: plane}, config=self.config(), shape=source.data.shape)

    def _importance(self, importance: Any, shape: tuple[int, ...]) -> tuple[Array | None, int]:
        """The weights as bytes of float32, and the number of groups of rows that have their own."""
        if importance is None or self.type.importance == "ignored":
            return None, 1
        loaded = arrays.load_floats(importance, "importance")
        if loaded.data.shape not in ((shape[-1],), (*shape[:-2], shape[-1])):
            per_matrix = f" or {(*shape[:-2], shape[-1])}" if len(shape) > 2 else ""
            raise ArgumentError(
                f"importance has shape {loaded.data.shape}: expected {(shape[-1],)}{per_matrix}, one weight per column"
            )
        groups = prod(shape[:-2]) if loaded.data.ndim > 1 else 1
        return arrays.as_bytes(loaded.to_float32()), groups

    def decode(
        self,
        encoded: Mapping[str, Array],
        *,
        out: Array | None = None,
        rows: slice = slice(None),
        dtype: Any = "float32",
    ) -> Array:
        """Decodes ``uint8`` blocks ``[..., row bytes]`` to floats ``[..., columns]``, see `Codec.decode`.

        float16 and bfloat16 are rounded once from float32; float64 is the float32 value (of gguf.f64: the stored one).
        """
        environment.check()
        name = arrays.dtype_name(dtype)
        if not self.type.decodes:
            raise UnsupportedError(f"{self.type.name} holds activations: ggml has no decoder for it, nor has subbyte")
        blocks, shape = self._blocks(encoded, rows)
        result = arrays.destination(out, shape, arrays.result_dtype(name))
        if name == "float64":
            arrays.check_separate(blocks, result)
            with np.errstate(invalid="ignore"):  # signalling NaN becomes quiet
                result[...] = self._decode_wide(blocks, shape)
        else:
            _native.decode(self.type.name, arrays.as_bytes(blocks), shape[-1], name, arrays.as_bytes(result))
        return result

    def _decode_wide(self, blocks: Array, shape: tuple[int, ...]) -> Array:
        values = arrays.empty(shape, np.dtype(np.float32))
        _native.decode(self.type.name, arrays.as_bytes(blocks), shape[-1], "float32", arrays.as_bytes(values))
        return values

    def _blocks(self, encoded: Mapping[str, Array], rows: slice) -> tuple[Array, tuple[int, ...]]:
        """The contiguous blocks of the rows, and the shape that they decode to."""
        if isinstance(encoded, Encoded) and encoded.config.get("id", self.id) != self.id:
            raise ArgumentError(f"this was encoded as {encoded.config['id']}: it cannot be decoded as {self.id}")
        rows = arguments.row_range(rows)
        plane = arrays.load_plane(encoded, PLANE)
        *lead, row_bytes = _at_least_1d(plane.shape)
        if row_bytes % self.type.block_bytes:
            raise ArgumentError(
                f"plane '{PLANE}' has rows of {row_bytes} bytes: {self.type.name} needs a multiple of "
                f"{self.type.block_bytes}, the bytes of a block of {self.type.block} elements"
            )
        shape = (*lead, row_bytes // self.type.block_bytes * self.type.block)
        if isinstance(encoded, Encoded) and encoded.shape != shape:
            raise ArgumentError(f"plane '{PLANE}' holds an array of shape {shape}: its Encoded says {encoded.shape}")
        if rows != slice(None):
            if not lead:
                raise ArgumentError("an array of one dimension is a single row: slice the decoded array instead")
            plane = plane[rows]
        return np.ascontiguousarray(plane), (*plane.shape[:-1], shape[-1])


class _F64Codec(GgmlCodec):
    """gguf.f64, which keeps float64 as it is; other types go through float32."""

    def encode(self, array: Any, *, importance: Any = None, out: Mapping[str, Array] | None = None) -> Encoded:
        loaded, name = arrays.load(array)
        if name != "float64":
            return super().encode(array, importance=importance, out=out)
        finite = np.isfinite(loaded)
        if not finite.all():
            row, column = arrays.first_place(~finite)
            raise NonFiniteError("only finite values can be encoded", row=row, column=column)
        shape = (*loaded.shape[:-1], self.type.row_bytes(_at_least_1d(loaded.shape)[-1]))
        plane = _plane(out, shape)
        arrays.check_separate(loaded, plane)
        plane.view("<f8")[...] = loaded
        return Encoded({PLANE: plane}, config=self.config(), shape=loaded.shape)

    def _decode_wide(self, blocks: Array, shape: tuple[int, ...]) -> Array:
        return blocks.view("<f8").reshape(shape)


def _plane(out: Mapping[str, Array] | None, shape: tuple[int, ...]) -> Array:
    """The plane to encode into."""
    given = None if out is None else arrays.get_plane(out, PLANE)
    return arrays.destination(given, shape, np.dtype(np.uint8), f"plane '{PLANE}'")


def _at_least_1d(shape: Sequence[int]) -> tuple[int, ...]:
    dims = arguments.dimensions(shape)
    if not dims:
        raise ArgumentError("a scalar has no rows to store in blocks: pass an array of one dimension or more")
    return dims


#: The codec of every type that floats can be encoded to.
CODECS: dict[str, Codec] = {
    codec.id: codec for codec in ((_F64Codec if t.name == "F64" else GgmlCodec)(t) for t in TYPES.values() if t.encodes)
}
