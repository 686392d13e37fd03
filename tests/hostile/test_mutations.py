"""Mutated files through the Python API: whatever happens is one of our errors.

The parsers themselves meet a million such files in ``rust/core/tests/mutation.rs``; here it is about what lies above.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import U64_BOUNDARIES, written

import subbyte
from subbyte.io.gguf import GgufFile, GgufValue, write_gguf
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

COUNT = 3000
SEED = 20260511
CONTAINER = Path(__file__).parent.parent / "golden" / "gguf" / "container"


def use_gguf(path: Path) -> None:
    with GgufFile(path) as file:
        for value in file.metadata.values():
            repr(value)
            list(value) if isinstance(value, list | str) else None
        for tensor in file.values():
            try:
                assert file.raw(tensor.name).nbytes == tensor.nbytes
                file.array(tensor.name)
            except subbyte.UnsupportedError:
                continue


def use_safetensors(path: Path) -> None:
    with SafetensorsFile(path) as file:
        for tensor in file.values():
            assert file.raw(tensor.name).nbytes == file.array(tensor.name).nbytes == tensor.nbytes


def seed_gguf(path: Path) -> None:
    metadata = {
        "general.architecture": "llama",
        "a.i8": np.int8(-3),
        "a.numbers": np.arange(3, dtype=np.float64),
        "a.bools": [True, False],
        "tokenizer.ggml.tokens": ["a", "é", ""],
        "tokenizer.ggml.token_type": GgufValue("arr[i32]", [1, 2, 3]),
    }
    tensors = {
        "q": ("Q8_0", np.zeros((2, 34), np.uint8)),
        "e": np.zeros((3, 0), np.float64),
        "f": np.zeros(3, np.float16),
    }
    write_gguf(path, metadata, tensors)


def seed_big_endian(path: Path) -> None:
    path.write_bytes((CONTAINER / "kv_be.gguf").read_bytes())


def seed_safetensors(path: Path) -> None:
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((0, 7), np.int64), "c": np.zeros(2, np.bool_)}
    write_safetensors(path, tensors, {"format": "pt"})


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(U64_BOUNDARIES))
            case 3:
                del data[at : at + rng.randint(1, 8)]
            case 4:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                del data[at + 1 :]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize(
    ("seed", "use"), [(seed_gguf, use_gguf), (seed_big_endian, use_gguf), (seed_safetensors, use_safetensors)]
)
def test_only_our_errors(tmp_path: Path, seed: Callable[[Path], None], use: Callable[[Path], None]) -> None:
    path = tmp_path / "seed"
    seed(path)
    use(path)
    content = path.read_bytes()
    rng = random.Random(SEED)
    refused = 0
    for number in range(COUNT):
        mutated = mutate(content, rng)
        try:
            use(written(tmp_path, str(number), mutated))
        except subbyte.Error:
            refused += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} for mutation {number} of seed {SEED}: {mutated.hex()}")
    assert COUNT // 10 < refused < COUNT


def test_huge_dimensions_beside_a_zero(tmp_path: Path) -> None:
    """NumPy computes the size of an array from all its dimensions but the zero ones."""
    for dims in ((2**61, 0), (0, 2**62)):
        header = b'{"a":{"dtype":"F64","shape":[%d,%d],"data_offsets":[0,0]}}' % dims
        with pytest.raises(subbyte.CorruptError, match="exceed"):
            SafetensorsFile(written(tmp_path, "x", struct.pack("<Q", len(header)) + header))
    header = b'{"a":{"dtype":"F64","shape":[0,%d],"data_offsets":[0,0]}}' % 2**59
    file = SafetensorsFile(written(tmp_path, "x", struct.pack("<Q", len(header)) + header))
    assert file.array("a").shape == (0, 2**59)
