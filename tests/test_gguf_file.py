"""GGUF files: golden files read right, files written byte for byte, both ways with gguf-py."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import mmap as system_mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from subbyte import _native
from subbyte.io import same_file
from subbyte.io.gguf import GgufFile, GgufValue, GgufWriter, StringArray, gguf_nbytes, write_gguf

GOLDEN = Path(__file__).parent / "golden" / "gguf"
CONTAINER = json.loads((GOLDEN / "container" / "expected.json").read_text())
REFUSED = {"nested_array"}
LATER_SHARDS = {name for name in CONTAINER if "split" in name and "-00001-" not in name}
FILES = sorted(
    path
    for folder in ("container", "convert", "imatrix", "quantized")
    for path in (GOLDEN / folder).glob("*.gguf")
    if path.stem not in REFUSED | LATER_SHARDS
)
SINGLE = [path for path in FILES if "split-0" not in path.stem and path.stem != "kv_be"]
TYPE_NAMES = {
    "uint8": "u8", "int8": "i8", "uint16": "u16", "int16": "i16", "uint32": "u32", "int32": "i32", "uint64": "u64",
    "int64": "i64", "float32": "f32", "float64": "f64", "bool": "bool", "string": "str",
}  # fmt: skip


def plain(value: Any) -> Any:
    """A metadata value as expected.json spells it."""
    if isinstance(value, StringArray | np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, float):
        return {"hex": struct.pack(">d", value).hex(), "repr": repr(value)}
    return value


def explicit(file: GgufFile) -> dict[str, GgufValue]:
    """Metadata with the stored types, to be written again."""
    return {key: GgufValue(file.metadata_types[key], value) for key, value in file.metadata.items()}


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", sorted(CONTAINER.keys() - REFUSED - LATER_SHARDS))
def test_golden_file(name: str, mmap: bool) -> None:
    shards = [CONTAINER[name]]
    if "split" in name:
        shards += [CONTAINER[name.replace("-00001-", f"-{i:05d}-")] for i in (2, 3)]
    with GgufFile(GOLDEN / "container" / f"{name}.gguf", mmap=mmap) as file:
        assert (file.version, file.byte_order, file.alignment) == tuple(
            shards[0][key] for key in ("version", "endian", "alignment")
        )
        assert len(file.paths) == len(shards)
        assert file.nbytes == sum(os.path.getsize(path) for path in file.paths)
        kinds = {
            key: TYPE_NAMES[types[0]] if types[0] != "array" else f"arr[{TYPE_NAMES[types[1]]}]"
            for key, types, _ in shards[0]["kv"]
        }
        assert list(file.metadata) == list(kinds)
        assert file.metadata_types == kinds
        assert {key: plain(value) for key, value in file.metadata.items()} == {k: v for k, _, v in shards[0]["kv"]}
        tensors = [(path, shard, t) for path, shard in zip(file.paths, shards, strict=True) for t in shard["tensors"]]
        assert list(file) == [t[0] for _, _, t in tensors]
        for path, shard, (tensor_name, kind, ne, offset, nbytes, digest) in tensors:
            tensor = file[tensor_name]
            assert (tensor.name, tensor.type, tensor.shape) == (tensor_name, kind, tuple(reversed(ne)))
            assert (tensor.nbytes, tensor.offset, tensor.path) == (nbytes, shard["data_offset"] + offset, path)
            raw = file.raw(tensor_name)
            assert raw.dtype == np.uint8
            assert not raw.flags.writeable
            assert raw.shape[:-1] == tensor.shape[:-1]
            assert hashlib.sha256(raw.tobytes()).hexdigest() == digest


def test_big_endian_values_equal_little_endian_ones() -> None:
    little, big = (GgufFile(GOLDEN / "container" / f"kv_{order}.gguf") for order in ("le", "be"))
    for name in little:
        np.testing.assert_array_equal(little.array(name), big.array(name))
        assert little.array(name).dtype == big.array(name).dtype


def test_big_endian_quantized_blocks(tmp_path: Path) -> None:
    """Blocks of a big-endian file come out in little-endian order, or not at all."""
    little = tmp_path / "little.gguf"
    kinds = ["Q4_K", "Q8_0", "MXFP4", "IQ2_XXS"]
    rng = np.random.default_rng(7)
    sizes = {name: (elements, nbytes) for name, _, elements, nbytes, *_ in _native.ggml_types()}
    blocks = {kind: rng.integers(0, 256, (2, sizes[kind][1]), dtype=np.uint8) for kind in kinds}
    write_gguf(little, {}, {kind: (kind, blocks[kind]) for kind in kinds})
    big = bytearray(b"GGUF" + struct.pack(">IQQ", 3, len(kinds), 0))
    with GgufFile(little) as file:
        start = file[kinds[0]].offset
        for tensor in file.values():
            name, dims = tensor.name.encode(), tuple(reversed(tensor.shape))
            kind = next(number for known, number, *_ in _native.ggml_types() if known == tensor.type)
            big += struct.pack(
                f">Q{len(name)}sI{len(dims)}QIQ", len(name), name, len(dims), *dims, kind, tensor.offset - start
            )
    big += bytes(start - len(big)) + little.read_bytes()[start:]
    swapped = {"Q4_K": [(0, 2), (2, 2)], "Q8_0": [(0, 2)], "MXFP4": []}
    path = tmp_path / "big.gguf"
    path.write_bytes(big)
    with GgufFile(path) as file:
        assert file.byte_order == "big"
        for kind, fields in swapped.items():
            expected = blocks[kind].copy()
            for at, size in fields:
                expected[:, at : at + size] = blocks[kind][:, at : at + size][:, ::-1]
            np.testing.assert_array_equal(file.raw(kind), expected)
        with pytest.raises(subbyte.UnsupportedError, match="IQ2_XXS") as caught:
            file.raw("IQ2_XXS")
        assert caught.value.tensor == "IQ2_XXS"


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_rewriting_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    with GgufFile(path) as file:
        plan = [(t.name, t.type, t.shape) for t in file.values()]
        with GgufWriter(copy, explicit(file), plan, alignment=file.alignment) as writer:
            assert writer.nbytes == path.stat().st_size
            for name in reversed(list(file)):
                writer.write(name, file.raw(name))
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_rewriting_from_plain_values_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    """As above, but through Python lists instead of the lazy arrays."""
    copy = tmp_path / "copy.gguf"
    with GgufFile(path) as file:
        metadata = {
            key: GgufValue(value.type, value.value.tolist() if value.type.startswith("arr") else value.value)
            for key, value in explicit(file).items()
        }
        tensors = {t.name: (t.type, file.raw(t.name)) for t in file.values() if t.shape}
        write_gguf(copy, metadata, tensors)
    assert copy.read_bytes() == path.read_bytes()


def gguf_py_reader(path: Path) -> Any:
    gguf = pytest.importorskip("gguf")
    return gguf.GGUFReader(path)


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "a.bool": True,
        "a.int": 7,
        "a.negative": -7,
        "a.big": 2**40,
        "a.float": 0.25,
        "a.numpy": np.int16(-3),
        "a.array": np.arange(5, dtype=np.float64),
        "a.ints": [1, 2, 3],
        "a.floats": [0.5, 2],
        "a.strings": ["x", "", "naïve \U0001d11e"],
        "a.bools": [True, False],
        "a.stated": GgufValue("arr[u8]", [1, 255]),
    }
    rng = np.random.default_rng(3)
    tensors = {
        "f32": rng.standard_normal((3, 4)).astype(np.float32),
        "f16": rng.standard_normal((2, 1, 5)).astype(np.float16),
        "i32": np.arange(6, dtype=np.int32),
        "q8_0": ("Q8_0", rng.integers(0, 255, (2, 68), dtype=np.uint8)),
    }
    write_gguf(path, metadata, tensors)
    ours = GgufFile(path)
    assert ours.alignment == 64
    assert ours.metadata_types == {
        "general.architecture": "str", "general.alignment": "u32", "a.bool": "bool", "a.int": "u32",
        "a.negative": "i32", "a.big": "u64", "a.float": "f32", "a.numpy": "i16", "a.array": "arr[f64]",
        "a.ints": "arr[u32]", "a.floats": "arr[f32]", "a.strings": "arr[str]",
        "a.bools": "arr[bool]", "a.stated": "arr[u8]",
    }  # fmt: skip
    theirs = gguf_py_reader(path)
    for key, value in ours.metadata.items():
        expected = value.tolist() if hasattr(value, "tolist") else value
        assert theirs.get_field(key).contents() == expected, key
    assert [t.name for t in theirs.tensors] == list(tensors)
    for tensor in theirs.tensors:
        given = tensors[tensor.name]
        raw = given[1] if isinstance(given, tuple) else given
        assert tensor.tensor_type.name == ours[tensor.name].type
        np.testing.assert_array_equal(np.asarray(tensor.data).reshape(raw.shape), raw)
        assert tensor.data_offset == ours[tensor.name].offset


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "c"])
    writer.add_float32("x", 1.5)
    array = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("t", array)
    writer.add_tensor(
        "q", gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(path) as file:
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "é", "c"]
        assert file.metadata["x"] == 1.5
        np.testing.assert_array_equal(file.array("t"), array)
        assert (file["q"].type, file["q"].shape, file.raw("q").shape) == ("Q8_0", (2, 32), (2, 34))


def test_alignment_stated_in_the_first_shard_only(tmp_path: Path) -> None:
    """gguf-py pads every shard to the alignment but states it in the first one only."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    writer.add_custom_alignment(256)
    arrays = {f"t{i}": np.arange(64 * (i + 1), dtype=np.float32) for i in range(3)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "m-00001-of-00003.gguf") as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.array(name), array)


def test_string_array(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    texts = [f"token {i}" for i in range(100)]
    write_gguf(path, {"s": texts, "empty": GgufValue("arr[str]", []), "bytes": ["\udcff\udc80", "ok"]}, {})
    file = GgufFile(path)
    strings = file.metadata["s"]
    assert isinstance(strings, StringArray)
    assert (len(strings), strings[0], strings[-1], strings[7]) == (100, texts[0], texts[-1], texts[7])
    assert (strings[3:9], strings[::-7], strings[90:200]) == (texts[3:9], texts[::-7], texts[90:200])
    assert list(strings) == strings.tolist() == texts
    assert strings == texts
    assert strings != texts[1:]
    assert ("token 5" in strings, strings.index("token 5"), strings.count("x")) == (True, 5, 0)
    assert repr(strings) == "StringArray(['token 0', 'token 1', 'token 2', 'token 3', 'token 4', …], length 100)"
    for index in (100, -101):
        with pytest.raises(IndexError):
            strings[index]
    assert len(file.metadata["empty"]) == 0
    # Bytes that are not UTF-8 survive a round trip.
    assert b"\xff\x80" in path.read_bytes()
    assert file.metadata["bytes"].tolist() == ["\udcff\udc80", "ok"]


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {"s": ["a"]}, {"t": np.arange(4, dtype=np.float32)})
    file = GgufFile(path)
    array = file.array("t")
    file.close()
    del file
    gc.collect()
    np.testing.assert_array_equal(array, np.arange(4))
    with GgufFile(path) as closed:
        assert closed["t"].shape == (4,)
    with pytest.raises(ValueError, match="closed"):
        closed.raw("t")


def test_raw_is_a_view_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {}, {"t": np.zeros(4, np.float32)})
    view, copy = GgufFile(path).array("t"), GgufFile(path, mmap=False).array("t")
    with path.open("r+b") as file, system_mmap.mmap(file.fileno(), 0) as memory:
        memory[-32:-28] = struct.pack("<f", 2.0)
    assert (view[0], copy[0]) == (2.0, 0.0)


@pytest.mark.parametrize("mmap", [True, False])
def test_file_that_shrinks(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {}, {"t": np.zeros(4, np.float32)})
    file = GgufFile(path, mmap=mmap)
    os.truncate(path, file["t"].offset + 3)
    with pytest.raises(subbyte.CorruptError, match="shrank") as caught:
        file.raw("t")
    assert caught.value.tensor == "t"


def test_shapes_and_plain_types(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    arrays = {
        "scalar": np.float32(3),
        "empty": np.zeros((2, 0), np.float16),
        "big endian": np.arange(3, dtype=">i4"),
        "strided": np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
        "ones": np.zeros((1, 1, 3), np.int8),
    }
    write_gguf(path, {}, {name: np.asarray(array) for name, array in arrays.items()})
    file = GgufFile(path)
    for name, array in arrays.items():
        assert file[name].shape == np.shape(array)
        np.testing.assert_array_equal(file.array(name), array)
    with pytest.raises(KeyError):
        file.array("missing")
    with pytest.raises(subbyte.UnsupportedError, match=r"subbyte\.decode"):
        GgufFile(GOLDEN / "container" / "all_types.gguf").array("t.Q4_K")


def test_ranges_of_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    blocks = np.arange(204, dtype=np.uint8).reshape(3, 68)
    write_gguf(path, {}, {"t": ("Q8_0", blocks)})
    for mmap in (True, False):
        file = GgufFile(path, mmap=mmap)
        np.testing.assert_array_equal(file.read("t", 68, 136), blocks[1:].reshape(-1))
        assert file.read("t", 204, 0).size == 0
        for start, count in [(0, 205), (204, 1), (205, 0), (2**63, 1), (1, 2**64 - 1)]:
            with pytest.raises(subbyte.ArgumentError, match="the tensor has 204"):
                file.read("t", start, count)


def test_planned_size(tmp_path: Path) -> None:
    metadata, plan = {"general.architecture": "test"}, [("a", "Q8_0", (3, 64)), ("b", "F32", (5,))]
    with GgufWriter(tmp_path / "x.gguf", metadata, plan) as writer:
        writer.write("a", bytes(204))
        writer.write("b", bytes(20))
    assert gguf_nbytes(metadata, plan) == writer.nbytes == (tmp_path / "x.gguf").stat().st_size


def test_data_that_is_not_aligned_to_its_elements(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for length in range(4):
        write_gguf(path, {"k": "x" * length}, {"t": np.arange(3, dtype=np.float32)}, alignment=1)
        array = GgufFile(path).array("t")
        assert array.flags.aligned
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, [0, 1, 2])


def test_bfloat16(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = tmp_path / "x.gguf"
    array = np.array([1, -2.5, 3e38], ml_dtypes.bfloat16)
    write_gguf(path, {}, {"t": array})
    file = GgufFile(path)
    assert (file["t"].type, file.array("t").dtype) == ("BF16", array.dtype)
    np.testing.assert_array_equal(file.array("t"), array)
    with GgufWriter(path, {}, [("t", "BF16", (3,))]) as writer:
        writer.write("t", array.view(np.uint16))
    np.testing.assert_array_equal(GgufFile(path).array("t"), array)


class TestWriter:
    """The contract of the streaming writer."""

    PLAN = (("a", "Q8_0", (3, 64)), ("b", "F32", (5,)))

    def test_chunks_in_any_order(self, tmp_path: Path) -> None:
        blocks = np.arange(204, dtype=np.uint8)
        with GgufWriter(tmp_path / "x.gguf", {}, self.PLAN) as writer:
            writer.write("b", np.arange(5, dtype=np.float32))
            for start in (100, 0, 60):
                writer.write("a", memoryview(blocks[start : start + 104].tobytes()), start)
            assert os.listdir(tmp_path) != ["x.gguf"]
            size = writer.nbytes
        assert os.listdir(tmp_path) == ["x.gguf"]
        assert (tmp_path / "x.gguf").stat().st_size == size
        np.testing.assert_array_equal(GgufFile(tmp_path / "x.gguf").raw("a").reshape(-1), blocks)
        writer.close()  # harmless the second time

    def test_missing_bytes(self, tmp_path: Path) -> None:
        writer = GgufWriter(tmp_path / "x.gguf", {}, self.PLAN)
        writer.write("a", bytes(204))
        writer.write("b", bytes(8))
        with pytest.raises(subbyte.ArgumentError, match="byte 8 of 20 was never written") as caught:
            writer.close()
        assert caught.value.tensor == "b"
        assert os.listdir(tmp_path) == []

    def test_exception_and_abort(self, tmp_path: Path) -> None:
        with contextlib.suppress(RuntimeError), GgufWriter(tmp_path / "x.gguf", {}, self.PLAN):
            raise RuntimeError
        assert os.listdir(tmp_path) == []
        writer = GgufWriter(tmp_path / "x.gguf", {}, self.PLAN)
        writer.abort()
        with pytest.raises(ValueError, match="closed"):
            writer.write("a", bytes(204))
        assert os.listdir(tmp_path) == []
        writer = GgufWriter(tmp_path / "x.gguf", {}, self.PLAN)
        del writer
        gc.collect()
        assert os.listdir(tmp_path) == []

    def test_what_does_not_fit(self, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            writer = GgufWriter(tmp_path / "x.gguf", {}, self.PLAN)
            stack.callback(writer.abort)
            for name, data, offset, words in [
                ("c", bytes(1), 0, "planned without"),
                ("a", bytes(205), 0, "do not fit"),
                ("a", bytes(4), 201, "do not fit"),
                ("a", bytes(4), 2**63, "do not fit"),
                ("a", bytes(4), -1, "negative"),
                ("b", np.zeros(5, np.int32), 0, "stored as F32"),
                ("a", np.zeros(51, np.float32), 0, "stored as Q8_0"),
            ]:
                with pytest.raises(subbyte.ArgumentError, match=words):
                    writer.write(name, data, offset)

    @pytest.mark.parametrize(
        ("metadata", "tensors", "words"),
        [
            ({}, [("a", "Q4_K", (2, 100))], "100 is not a multiple of 256"),
            ({}, [("a", "Q9_9", (2,))], "unknown ggml type 'Q9_9'"),
            ({}, [("a", "F32", (1,)), ("a", "F32", (1,))], "given twice"),
            ({}, [("a", "F32", (1, 1, 1, 1, 1))], "5 dimensions"),
            ({}, [("a", "F32", (2**62, 2**62))], "elements"),
            ({}, [("n" * 64, "F32", (1,))], "64 bytes"),
            ({}, [("", "F32", (1,))], "empty"),
            ({"": 1}, [], "empty"),
            ({"k\0": 1}, [], "control character"),
            ({"k": None}, [], "GgufValue"),
            ({"k": []}, [], "GgufValue"),
            ({"k": ["a", 1]}, [], "GgufValue"),
            ({"k": 2**64}, [], "no integer type"),
            ({"k": GgufValue("u8", 256)}, [], "does not fit u8"),
            ({"k": GgufValue("u8", -1)}, [], "does not fit u8"),
            ({"k": GgufValue("f32", 1e300)}, [], "does not fit F32|does not fit f32"),
            ({"k": GgufValue("bool", 1)}, [], "does not fit bool"),
            ({"k": GgufValue("u7", 1)}, [], "unknown metadata type 'u7'"),
            ({"k": GgufValue("str", 1)}, [], "not a string"),
            ({"k": GgufValue("arr[i8]", [200])}, [], "do not fit one row of i8"),
            ({"k": GgufValue("arr[u32]", [0.5])}, [], "do not fit one row of u32"),
            ({"k": GgufValue("arr[f32]", [1e300])}, [], "do not fit f32"),
            ({"k": GgufValue("arr[str]", ["a", 1])}, [], "not all elements are strings"),
            ({"k": GgufValue("arr[arr[u8]]", [[1]])}, [], "unknown element type"),
            ({"k": np.zeros((2, 2))}, [], "one row of f64"),
            ({"k": "\ud800"}, [], "lone surrogates"),
            ({"general.alignment": 48}, [], "power of two"),
            ({"general.alignment": GgufValue("u64", 32)}, [], "must be u32"),
            ({"general.alignment": "32"}, [], "must be a u32"),
        ],
    )
    def test_refused(self, tmp_path: Path, metadata: dict[str, Any], tensors: list[Any], words: str) -> None:
        with pytest.raises(subbyte.Error, match=words):
            GgufWriter(tmp_path / "x.gguf", metadata, tensors)
        assert os.listdir(tmp_path) == []

    def test_alignment_must_agree(self, tmp_path: Path) -> None:
        with pytest.raises(subbyte.ArgumentError, match=r"general\.alignment is 64, the alignment asked for 32"):
            GgufWriter(tmp_path / "x.gguf", {"general.alignment": 64}, [], alignment=32)
        with GgufWriter(tmp_path / "x.gguf", {}, [("a", "I8", (1,))], alignment=128) as writer:
            writer.write("a", b"x")
        file = GgufFile(tmp_path / "x.gguf")
        assert (file.alignment, file.metadata["general.alignment"], file["a"].offset % 128) == (128, 128, 0)
        assert file.metadata_types == {"general.alignment": "u32"}

    def test_system_errors(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            GgufWriter(tmp_path / "missing" / "x.gguf", {}, self.PLAN)
        assert isinstance(caught.value, subbyte.Error)
        with pytest.raises(subbyte.ArgumentError, match="folder"):
            GgufWriter(tmp_path, {}, self.PLAN)

    def test_disk_full(self, tmp_path: Path) -> None:
        def write() -> None:
            with GgufWriter(tmp_path / "x", {}, self.PLAN) as writer:
                writer.write("a", bytes(204))
                writer.write("b", bytes(20))

        for nth in range(1, 5):
            _native.fault_arm(nth, errno.ENOSPC)
            try:
                with pytest.raises(OSError, match="No space") as caught:
                    write()
            finally:
                _native.fault_disarm()
            assert isinstance(caught.value, subbyte.Error)
            assert caught.value.errno == errno.ENOSPC
            assert os.listdir(tmp_path) == []

    def test_replaces_its_own_source(self, tmp_path: Path) -> None:
        path = tmp_path / "x.gguf"
        array = np.arange(100_000, dtype=np.float32)
        write_gguf(path, {}, {"t": array})
        with GgufFile(path) as source, GgufWriter(path, {}, [("t", "F32", array.shape)]) as writer:
            writer.write("t", source.raw("t"))
        np.testing.assert_array_equal(GgufFile(path).array("t"), array)


def test_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    os.link(tmp_path / "a", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("a")
    assert same_file(tmp_path / "hard", tmp_path / "soft")
    assert not same_file(tmp_path / "a", tmp_path / "b")
    assert not same_file(tmp_path / "a", tmp_path / "missing")


def test_large_vocabulary(tmp_path: Path) -> None:
    """150,000 tokens, scores, types and merges come back; how fast is measured by ``benches/python/header.py``."""
    path = tmp_path / "vocabulary.gguf"
    count = 150_000
    tokens = [f"tok{i}" for i in range(count)]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(count, dtype=np.float32),
        "tokenizer.ggml.token_type": np.ones(count, np.int32),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in itertools.pairwise(tokens)],
    }
    write_gguf(path, metadata, {"t": np.zeros((4, 4), np.float32)})
    with GgufFile(path) as file:
        assert list(file.metadata["tokenizer.ggml.tokens"]) == tokens
        np.testing.assert_array_equal(file.metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.scores"])
        assert file.metadata["tokenizer.ggml.merges"][-1] == f"{tokens[-2]} {tokens[-1]}"
