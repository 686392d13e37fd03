"""Safetensors files: read and written, both ways with the reference package."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from subbyte import _native
from subbyte.io.safetensors import SafetensorsFile, SafetensorsWriter, write_safetensors

GOLDEN = Path(__file__).parent / "golden" / "gguf"
FILES = sorted(GOLDEN.glob("*/*.safetensors")) + sorted(GOLDEN.glob("convert/*/*.safetensors"))


def arrays() -> dict[str, Any]:
    """One array of every dtype that NumPy and `ml_dtypes` have, and the awkward shapes."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(5)
    names = "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64 complex64 bool".split()
    found: dict[str, Any] = {name: rng.integers(0, 2, (2, 3)).astype(name) for name in names}
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"):
        found[name] = np.array([1, 2, 4], getattr(ml_dtypes, name))
    found |= {
        "scalar": np.float32(3), "empty": np.zeros((0, 4), np.int8), "big endian": np.arange(3, dtype=">i4"),
        "strided": np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2], "naïve \"✓\"\\": np.ones(1, np.uint8),
    }  # fmt: skip
    return found


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "x.safetensors"
    given = arrays()
    write_safetensors(path, given, {"format": "pt", "note": 'a "b"\n✓'})
    with SafetensorsFile(path, mmap=mmap) as file:
        assert file.keys() == given.keys()
        assert file.metadata == {"format": "pt", "note": 'a "b"\n✓'}
        assert file.nbytes == path.stat().st_size
        assert file.paths == [str(path)]
        for name, array in given.items():
            found = file.array(name)
            assert found.dtype == np.asarray(array).dtype.newbyteorder("<")
            assert not found.flags.writeable
            assert found.flags.aligned
            assert file[name].shape == found.shape == np.shape(array)
            assert file[name].nbytes == file.raw(name).size == found.nbytes
            np.testing.assert_array_equal(found, array)


def test_the_reference_package_reads_what_we_write(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors")
    reference_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    known = (
        "uint8",
        "int8",
        "int16",
        "uint32",
        "int64",
        "float16",
        "float32",
        "float64",
        "bool",
        "scalar",
        "empty",
        "strided",
    )
    given = {name: array for name, array in arrays().items() if name in known}
    write_safetensors(path, given, {"format": "np"})
    found = reference_numpy.load_file(path)
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(found[name], array)
    with reference.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "np"}
        # The reference lists tensors in the order of their data; so does our header.
        assert list(file.offset_keys()) == list(SafetensorsFile(path))


def test_we_read_what_the_reference_package_writes(tmp_path: Path) -> None:
    reference_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    given = {
        name: np.asarray(array) for name, array in arrays().items() if name in ("float32", "int8", "bool", "empty")
    }
    reference_numpy.save_file(given, path, metadata={"k": "v"})
    file = SafetensorsFile(path)
    assert file.metadata == {"k": "v"}
    assert file.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(file.array(name), array)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_files_equal_the_reference_reader(path: Path) -> None:
    reference = pytest.importorskip("safetensors")
    pytest.importorskip("ml_dtypes")
    file = SafetensorsFile(path)
    names = [name for name, _ in json_header(path)]
    assert list(file) == names
    with reference.safe_open(path, "np") as theirs:
        assert (theirs.metadata() or {}) == file.metadata
        for name in names:
            np.testing.assert_array_equal(file.array(name).view(np.uint8), theirs.get_tensor(name).view(np.uint8))


def json_header(path: Path) -> list[tuple[str, Any]]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return [(name, value) for name, value in header.items() if name != "__metadata__"]


def test_sharded_checkpoint(tmp_path: Path) -> None:
    shards = {
        "model-00002-of-00002.safetensors": {"c": np.full(2, 3.0), "a": np.full(2, 1.0)},
        "model-00001-of-00002.safetensors": {"b": np.full(2, 2.0), "extra": np.zeros(1)},
    }
    weight_map = {}
    for name, tensors in shards.items():
        write_safetensors(tmp_path / name, tensors, {"format": "pt", "last": name})
        weight_map |= dict.fromkeys(tensors, name)
    del weight_map["extra"]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 56}, "weight_map": weight_map}))
    for path in (tmp_path, index):
        with SafetensorsFile(path) as file:
            assert list(file) == ["b", "extra", "c", "a"]
            assert [Path(p).name for p in file.paths] == sorted(shards)
            assert file.nbytes == sum(os.path.getsize(p) for p in file.paths)
            assert file.metadata["last"] == "model-00002-of-00002.safetensors"
            assert Path(file["a"].path).name == "model-00002-of-00002.safetensors"
            np.testing.assert_array_equal(file.array("b"), [2.0, 2.0])


def test_folders(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter.safetensors", {"only": np.zeros(1)})
    assert list(SafetensorsFile(tmp_path)) == ["only"]
    write_safetensors(tmp_path / "other.safetensors", {"b": np.zeros(1)})
    with pytest.raises(subbyte.FormatError, match="name one"):
        SafetensorsFile(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {"c": np.zeros(1)})
    assert list(SafetensorsFile(tmp_path)) == ["c"]


def test_data_that_is_not_aligned_to_its_elements(tmp_path: Path) -> None:
    """Old writers did not pad the header."""
    path = tmp_path / "x.safetensors"
    data = np.arange(3, dtype=np.float64)
    text = b'{"t":{"dtype":"F64","shape":[3],"data_offsets":[0,24]}}'
    for spaces in range(8):
        header = text + b" " * spaces
        path.write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
        array = SafetensorsFile(path).array("t")
        assert array.flags.aligned
        np.testing.assert_array_equal(array, data)


def test_small_elements(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, [("f4", "F4", (2, 4)), ("f6", "F6_E2M3", (4,))]) as writer:
        writer.write("f4", bytes(range(4)))
        writer.write("f6", bytes(range(3)))
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file.raw("f4"), range(4))
    assert (file["f6"].nbytes, file["f4"].shape) == (3, (2, 4))
    with pytest.raises(subbyte.UnsupportedError, match="smaller than a byte"):
        file.array("f4")


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"t": np.arange(4)})
    with SafetensorsFile(path) as file:
        array = file.array("t")
    with pytest.raises(ValueError, match="closed"):
        file.raw("t")
    del file
    gc.collect()
    np.testing.assert_array_equal(array, np.arange(4))


@pytest.mark.parametrize("mmap", [True, False])
def test_file_that_shrinks(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"t": np.arange(4)})
    file = SafetensorsFile(path, mmap=mmap)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(subbyte.CorruptError, match="shrank") as caught:
        file.raw("t")
    assert (caught.value.tensor, caught.value.file) == ("t", str(path))


class TestWriter:
    """The contract of the streaming writer."""

    PLAN = (("a", "BF16", (3, 4)), ("b", "F32", (5,)))

    def test_chunks_in_any_order(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        with SafetensorsWriter(path, self.PLAN, metadata={"k": "v"}) as writer:
            writer.write("a", np.arange(12, dtype=np.uint16)[6:], 12)
            writer.write("b", np.arange(5, dtype=np.float32))
            writer.write("a", bytes(12))
            assert not path.exists()
        assert path.stat().st_size == writer.nbytes
        np.testing.assert_array_equal(SafetensorsFile(path).raw("a").view(np.uint16), [0] * 6 + list(range(6, 12)))

    def test_missing_bytes_and_exceptions(self, tmp_path: Path) -> None:
        writer = SafetensorsWriter(tmp_path / "x.safetensors", self.PLAN)
        with pytest.raises(subbyte.ArgumentError, match="byte 0 of 20 was never written"):
            writer.close()
        with contextlib.suppress(RuntimeError), SafetensorsWriter(tmp_path / "x.safetensors", self.PLAN):
            raise RuntimeError
        assert os.listdir(tmp_path) == []

    def test_every_call_failing_once(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        given = {"a": np.arange(4, dtype=np.float32), "b": np.arange(3, dtype=np.int8)}
        _native.fault_arm(2**40, 5)
        write_safetensors(path, given)
        calls = _native.fault_disarm()
        assert calls >= 7
        for nth in range(1, calls):
            path.unlink(missing_ok=True)
            _native.fault_arm(nth, 5)
            try:
                with pytest.raises(OSError, match=r"x\.safetensors.*Input/output error"):
                    write_safetensors(path, given)
            finally:
                _native.fault_disarm()
            assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("tensors", "metadata", "words"),
        [
            ([("a", "F31", (1,))], {}, "'F31'|\"F31\""),
            ([("a", "F32", (1,)), ("a", "F32", (1,))], {}, "given twice"),
            ([("", "F32", (1,))], {}, "empty"),
            ([("a\n", "F32", (1,))], {}, "control character"),
            ([("__metadata__", "F32", (1,))], {}, "reserved"),
            ([("a", "F4", (3,))], {}, "whole bytes"),
            ([("a", "F64", (2**62,))], {}, "exceed 2"),
            ([("a", "U8", (1,) * 65)], {}, "65 dimensions"),
        ],
    )
    def test_refused(self, tmp_path: Path, tensors: list[Any], metadata: dict[str, str], words: str) -> None:
        with pytest.raises(subbyte.Error, match=words):
            SafetensorsWriter(tmp_path / "x.safetensors", tensors, metadata=metadata)
        assert os.listdir(tmp_path) == []

    def test_arrays_without_a_dtype(self, tmp_path: Path) -> None:
        with pytest.raises(subbyte.ArgumentError, match="complex128"):
            write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(1, np.complex128)})
        with SafetensorsWriter(tmp_path / "x.safetensors", [("a", "F32", (1,))]) as writer:
            with pytest.raises(subbyte.ArgumentError, match="stored as F32"):
                writer.write("a", np.zeros(1, np.int32))
            writer.write("a", np.zeros(1, np.float32))


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    tensors = {"a": np.arange(4, dtype=np.float32)}
    empty = len(json.dumps({"__metadata__": {"pad": ""}, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}))
    head = json.dumps(
        {"__metadata__": {"pad": "x" * (640 - empty)}, "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    ).encode()
    raw = struct.pack("<Q", len(head)) + head + tensors["a"].tobytes()
    assert raw.startswith(b"\x80\x02")
    (tmp_path / "m.safetensors").write_bytes(raw)
    assert np.array_equal(SafetensorsFile(tmp_path / "m.safetensors").array("a"), tensors["a"])
