"""A weight in the planes of a codec of the registry, which knows by itself how to decode them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import arrays
from subbyte.arrays import Array
from subbyte.codec import Codec
from subbyte.errors import FormatError
from subbyte.forms.base import Form
from subbyte.ggml import PLANE, GgmlCodec


@dataclass(frozen=True, eq=False)
class Coded(Form):
    """What a codec decodes.

    Attributes:
        shape: dense shape.
        codec: the codec.
        planes: its planes; of a ggml type ``blocks``, uint8 (rows, bytes of a row).
    """

    shape: tuple[int, ...]
    codec: Codec
    planes: Mapping[str, Array]

    @staticmethod
    def read(codec: Codec, planes: Mapping[str, Array], shape: tuple[int, ...]) -> Coded:
        """The form of planes as they are stored.

        Raises:
            ArgumentError: a plane is missing.
            FormatError: the blocks are not those of a weight of this shape.
        """
        if not isinstance(codec, GgmlCodec):
            return Coded(shape, codec, planes)
        blocks = arrays.load_plane(planes, PLANE)
        block = codec.type.block
        expected = (*shape[:-1], shape[-1] // block * codec.type.block_bytes)
        if shape[-1] % block or blocks.shape != expected:
            raise FormatError(
                f"plane '{PLANE}' has shape {list(blocks.shape)}: a weight {list(shape)} of {codec.type.name} has "
                f"blocks of {block} elements in {codec.type.block_bytes} bytes"
            )
        return Coded(shape, codec, {PLANE: blocks.reshape(-1, expected[-1])})

    @property
    def ggml_type(self) -> str | None:
        """The ggml type of the blocks; None for another codec."""
        return self.codec.type.name if isinstance(self.codec, GgmlCodec) else None

    @property
    def blocks(self) -> NDArray[np.uint8]:
        """The blocks of a ggml type: uint8, (rows, bytes of a row)."""
        found: NDArray[np.uint8] = self.planes[PLANE]
        return found

    def first(self, rows: int, shape: tuple[int, ...]) -> Coded:
        """The first rows of blocks of a ggml type, as a weight of another shape."""
        return replace(self, shape=shape, planes={PLANE: self.blocks[:rows]})

    def values(self, rows: slice) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.decode_rows(rows)
        return found

    def decode_rows(self, rows: slice, dtype: Any = "float32", out: Array | None = None) -> Array:
        if self.ggml_type is not None:
            return self.codec.decode(self.planes, rows=rows, dtype=dtype, out=out)
        found = self.codec.decode(self.planes, dtype=dtype)
        if found.shape != self.shape:
            raise FormatError(f"{self.codec.id} decodes to shape {list(found.shape)}: expected {list(self.shape)}")
        values = found.reshape(self.rows, self.columns)[rows]
        if out is None:
            return values
        result = arrays.destination(out, values.shape, values.dtype)
        result.view(values.dtype)[...] = values
        return result
