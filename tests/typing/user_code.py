"""What a user writes; `test_typing.py` checks it with ``mypy --strict``. It is not run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import subbyte

Array = npt.NDArray[Any]


def pack(weight: npt.NDArray[np.float32], importance: npt.NDArray[np.float32] | None = None) -> subbyte.Encoded:
    encoded = subbyte.encode("gguf.q4_k", weight, importance=importance)
    assert_type(encoded["blocks"], Array)
    assert_type(encoded.shape, tuple[int, ...])
    return encoded


def unpack(planes: Mapping[str, Array]) -> Array:
    try:
        return subbyte.decode("gguf.q4_k", planes, dtype="bfloat16")
    except subbyte.UnsupportedError as e:
        assert_type(e.tensor, str | None)
        return subbyte.get_codec("gguf.q8_0").decode(planes, rows=slice(0, 4), dtype=np.float16)


def largest(path: Path) -> str:
    checkpoint = subbyte.open(path)
    assert_type(checkpoint, subbyte.Checkpoint)
    weight = max(checkpoint.values(), key=lambda w: w.nbytes)
    assert_type(weight, subbyte.Weight)
    assert_type(weight.decode(dtype="float32", rows=slice(0, 1)), Array)
    return weight.name


class Raw:
    """A codec of one's own."""

    id = "mine.raw"

    def encode(self, array: Any, *, importance: Any = None, out: Mapping[str, Array] | None = None) -> subbyte.Encoded:
        values = np.asarray(array, np.float32)
        return subbyte.Encoded({"values": values}, config=self.config(), shape=values.shape)

    def decode(
        self,
        encoded: Mapping[str, Array],
        *,
        out: Array | None = None,
        rows: slice = slice(None),
        dtype: Any = "float32",
    ) -> Array:
        return encoded["values"][rows].astype(dtype)

    def nbytes(self, shape: Sequence[int]) -> int:
        return 4 * int(np.prod(shape))

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        return 32.0

    def config(self) -> dict[str, Any]:
        return {"id": self.id}


subbyte.register_codec(Raw())
