"""What callers may pass wrongly: every refusal is a `subbyte.Error` that says what was expected."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import subbyte
from subbyte.io.gguf import GgufFile, GgufValue, GgufWriter, gguf_nbytes, write_gguf
from subbyte.io.safetensors import SafetensorsFile, SafetensorsWriter, write_safetensors

W = np.random.default_rng(4).standard_normal((4, 256), dtype=np.float32)
Q8 = subbyte.get_codec("gguf.q8_0")
PACKED = Q8.encode(W)
F32 = np.ones((1, 2), np.float32)


def unaligned(array):
    """The same values at an odd address."""
    shifted = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    assert not shifted.flags.aligned
    return shifted


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_unaligned_arrays_are_copied(dtype):
    w, weights = W.astype(dtype), np.linspace(1, 2, 256).astype(dtype)
    expected = subbyte.encode("gguf.q4_k", w, importance=weights)["blocks"].tobytes()
    assert subbyte.encode("gguf.q4_k", unaligned(w), importance=unaligned(weights))["blocks"].tobytes() == expected
    out = np.zeros(w.nbytes + 1, np.uint8)[1:].view(dtype).reshape(w.shape)
    with pytest.raises(subbyte.ArgumentError, match="out must be C-contiguous, aligned"):
        Q8.decode(PACKED, dtype=dtype, out=out)


def test_masked_arrays_are_refused(tmp_path):
    masked = np.ma.masked_greater(W, 1)
    for call in (
        lambda: subbyte.encode("gguf.q8_0", masked),
        lambda: write_gguf(tmp_path / "x", {}, {"a": masked}),
        lambda: write_safetensors(tmp_path / "x", {"a": masked}),
    ):
        with pytest.raises(subbyte.ArgumentError, match="filled"):
            call()
    assert subbyte.encode("gguf.q8_0", masked.filled(0))["blocks"].shape == (4, 272)


def test_encoded_by_another_codec():
    with pytest.raises(subbyte.ArgumentError, match=r"encoded as gguf\.q4_0.*as gguf\.iq4_nl"):
        subbyte.decode("gguf.iq4_nl", subbyte.encode("gguf.q4_0", W))


@pytest.mark.parametrize("id", [None, 3, ["gguf.q8_0"]])
def test_ids_are_strings(id):
    for call in (subbyte.get_codec, lambda i: subbyte.encode(i, W), lambda i: subbyte.decode(i, PACKED)):
        with pytest.raises(subbyte.ArgumentError, match=r"id is .*: expected a string"):
            call(id)


@pytest.mark.parametrize("out", [{}, np.zeros((4, 272), np.uint8), [], 3])
def test_out_is_a_mapping_of_planes(out):
    with pytest.raises(subbyte.ArgumentError, match="plane 'blocks' is missing"):
        Q8.encode(W, out=out)


@pytest.mark.parametrize(
    "rows", [slice(None, None, 0), slice(1.5, 2), slice("a"), np.arange(2), "x", 2, None, [0, 1], ..., (slice(1),)]
)
def test_rows_are_a_slice(rows, tmp_path):
    with pytest.raises(subbyte.ArgumentError, match="rows is"):
        Q8.decode(PACKED, rows=rows)
    write_safetensors(tmp_path / "x", {"plain": np.arange(6).reshape(2, 3), "vector": W[0]})
    for weight in subbyte.open(tmp_path / "x").values():
        with pytest.raises(subbyte.ArgumentError, match="rows is"):
            weight.decode(rows=rows)


@pytest.mark.parametrize("shape", [5, None, "ab", (-1, 256), (4.0, 256), (None, 256), (2**64, 256), b"\x20"])
def test_shapes_are_checked(shape):
    for size in (Q8.nbytes, Q8.bits_per_weight, lambda s: gguf_nbytes({}, [("a", "Q8_0", s)])):
        with pytest.raises(subbyte.ArgumentError, match="shape"):
            size(shape)
    assert Q8.nbytes((np.int64(4), np.uint8(128))) == 4 * 4 * 34


def test_none_is_no_dtype():
    with pytest.raises(subbyte.ArgumentError, match="dtype None"):
        Q8.decode(PACKED, dtype=None)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_integers_are_refused_with_fitting_advice(dtype):
    with pytest.raises(subbyte.ArgumentError, match=r"importance holds .*astype\(numpy\.float32\)") as caught:
        subbyte.encode("gguf.q4_k", W, importance=np.ones(256, dtype))
    assert ("bfloat16" in str(caught.value)) == (dtype is np.uint16)


def test_float64_too_large_for_float32():
    w = W.astype(np.float64)
    w[2, 7] = -1e300
    with pytest.raises(subbyte.NonFiniteError, match=r"holds -1e\+300, too large for float32") as caught:
        subbyte.encode("gguf.f32", w)
    assert (caught.value.row, caught.value.column) == (2, 7)
    with pytest.raises(subbyte.NonFiniteError, match="importance holds 1e"):
        subbyte.encode("gguf.q4_k", W, importance=np.full(256, 1e300))


@pytest.mark.filterwarnings("error")
def test_signalling_nan_decodes_to_float64(tmp_path):
    bits = np.array([[0x7FA00000, 0x3F800000]], np.uint32)
    wide = subbyte.decode("gguf.f32", {"blocks": bits.view(np.uint8)}, dtype="float64")
    assert np.isnan(wide[0, 0])
    assert wide[0, 1] == 1
    write_safetensors(tmp_path / "x", {"scalar": bits.view(np.float32)[0, 0]})
    assert np.isnan(subbyte.open(tmp_path / "x")["scalar"].decode("float64"))


def test_float64_in_its_own_memory_is_refused():
    w = np.ones((2, 4))
    for call in (
        lambda: subbyte.get_codec("gguf.f64").decode({"blocks": w.view(np.uint8)}, dtype="float64", out=w),
        lambda: subbyte.get_codec("gguf.f64").encode(w, out={"blocks": w.view(np.uint8)}),
        lambda: subbyte.get_codec("gguf.f32").encode(F32, out={"blocks": F32.view(np.uint8)}),
    ):
        with pytest.raises(subbyte.ArgumentError, match="share memory"):
            call()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_ranges_of_vectors(tmp_path, dtype):
    block = Q8.encode(W[0])["blocks"]
    write_gguf(tmp_path / "x", {}, {"f32": W[0], "q8": ("Q8_0", block), "i8": np.arange(64, dtype=np.int8)})
    for weight in subbyte.open(tmp_path / "x").values():
        for rows in (slice(3, 9), slice(None, None, -2), slice(400, None)):
            expected = weight.decode(dtype)[rows]
            found = weight.decode(dtype, rows)
            assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())
            out = np.zeros_like(found)
            assert weight.decode(dtype, rows, out) is out
            assert out.tobytes() == expected.tobytes()
    write_safetensors(tmp_path / "y", {"scalar": np.float32(1)})
    with pytest.raises(subbyte.ArgumentError, match="no rows"):
        subbyte.open(tmp_path / "y")["scalar"].decode(rows=slice(1))


ENTRIES = [
    ((3, "F32", (1,)), "name is 3"),
    (("\ud800", "F32", (1,)), "surrogates"),
    ((None, "F32", (1,)), "name is None"),
    (("a", None, (1,)), "type of tensor 'a' is None"),
    (("a", "F32", None), "shape of tensor 'a' is None"),
    (("a", "F32", (2.5,)), r"2\.5: expected an integer"),
    (("a", "F32", (-2,)), "-2"),
    (("a", "F32", (2**65,)), "not negative and below"),
    (("a", "F32"), "name, type and shape"),
    ("abc", "name, type and shape"),
    (3, "name, type and shape"),
]


@pytest.mark.parametrize("writer", [lambda path, plan: GgufWriter(path, {}, plan), SafetensorsWriter])
@pytest.mark.parametrize(("entry", "words"), ENTRIES)
def test_planned_tensors(tmp_path: Path, writer, entry, words) -> None:
    with pytest.raises(subbyte.ArgumentError, match=words):
        writer(tmp_path / "x", [entry])
    with pytest.raises(subbyte.ArgumentError, match="expected a sequence of tensors"):
        writer(tmp_path / "x", 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("metadata", "tensors", "options", "words"),
    [
        ({3: 1}, {}, {}, "metadata key is 3"),
        ({"\ud800": 1}, {}, {}, "surrogates"),
        ({"k": GgufValue(3, 1)}, {}, {}, "type of metadata 'k' is 3"),
        ({"k": GgufValue("f32", 1e300)}, {}, {}, r"'k': 1e300 does not fit f32"),
        ({"k": GgufValue("u8", -1)}, {}, {}, r"'k': -1 does not fit u8"),
        ({"split.count": 2}, {}, {}, "split keys"),
        ({"split.count": np.uint16(2)}, {}, {}, "split keys"),
        ({}, {"a": (3, F32)}, {}, "type of tensor 'a' is 3"),
        ({}, {"a": ("F32", F32, 1)}, {}, "tuple of 3"),
        ({}, {"\ud800": F32}, {}, "surrogates"),
        ({}, {3: F32}, {}, "name is 3"),
        ({}, {"a": "text"}, {}, "expected numbers"),
        ({}, {}, {"alignment": -8}, "alignment is -8"),
        ({}, {}, {"alignment": "x"}, "alignment is 'x'"),
    ],
)
def test_gguf_contents(tmp_path: Path, metadata, tensors, options, words) -> None:
    with pytest.raises(subbyte.ArgumentError, match=words):
        write_gguf(tmp_path / "x", metadata, tensors, **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [3, [("a", 1)], "text"])
def test_what_is_no_mapping(tmp_path: Path, wrong) -> None:
    for call in (
        lambda: write_gguf(tmp_path / "x", wrong, {}),
        lambda: write_gguf(tmp_path / "x", {}, wrong),
        lambda: write_safetensors(tmp_path / "x", wrong),
        lambda: write_safetensors(tmp_path / "x", {"a": F32}, wrong),
    ):
        with pytest.raises(subbyte.ArgumentError, match="expected a mapping"):
            call()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"\ud800": "a"}])
def test_safetensors_metadata(tmp_path: Path, metadata) -> None:
    with pytest.raises(subbyte.ArgumentError, match="metadata"):
        write_safetensors(tmp_path / "x", {"a": F32}, metadata)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "data", "offset", "words"),
    [
        ("a", bytes(4), 2**64, "offset is 18446744073709551616"),
        ("a", bytes(4), 0.5, r"offset is 0\.5"),
        ("a", [1.0, 2.0], 0, "list is no contiguous buffer"),
        ("a", "text", 0, "str is no contiguous buffer"),
        ("a", None, 0, "NoneType is no contiguous buffer"),
        ("a", memoryview(bytes(16))[::2], 0, "no contiguous buffer"),
        (3, bytes(4), 0, "name is 3"),
        ("\ud800", bytes(4), 0, "surrogates"),
    ],
)
def test_what_is_written(tmp_path: Path, name, data, offset, words) -> None:
    with SafetensorsWriter(tmp_path / "x", [("a", "F32", (2,))]) as writer:
        with pytest.raises(subbyte.ArgumentError, match=words):
            writer.write(name, data, offset)
        writer.write("a", memoryview(np.ones(2, np.float32)))
    assert SafetensorsFile(tmp_path / "x").array("a").tolist() == [1, 1]


def test_writers_that_ended(tmp_path: Path) -> None:
    plan = [("a", "F32", (1,))]
    closed = SafetensorsWriter(tmp_path / "closed", plan)
    closed.write("a", bytes(4))
    closed.close()
    closed.abort()
    closed.close()
    with SafetensorsWriter(tmp_path / "aborted", plan) as aborted:
        aborted.abort()
    incomplete = SafetensorsWriter(tmp_path / "incomplete", plan)
    with pytest.raises(subbyte.ArgumentError, match="never written"):
        incomplete.close()
    for writer in (closed, aborted, incomplete):
        with pytest.raises(subbyte.ArgumentError, match="the file is closed"):
            writer.write("a", bytes(4))
    for writer in (aborted, incomplete):
        with pytest.raises(subbyte.ArgumentError, match="discarded"):
            writer.close()
    assert os.listdir(tmp_path) == ["closed"]


def test_reading(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {}, {"a": F32})
    write_safetensors(tmp_path / "x.safetensors", {"a": F32})
    for file in (GgufFile(tmp_path / "x.gguf"), SafetensorsFile(tmp_path / "x.safetensors")):
        for start, count, words in ((-1, 3, "start is -1"), (0, 2**64, "count is"), (0, 2.0, r"count is 2\.0")):
            with pytest.raises(subbyte.ArgumentError, match=words):
                file.read("a", start, count)
        with pytest.raises(subbyte.ArgumentError, match="1099511627776 bytes from 4 were asked for, the tensor has 8"):
            file.read("a", 4, 2**40)
        file.close()
        with pytest.raises(subbyte.ArgumentError, match="tensor 'a': the file is closed"):
            file.raw("a")
    with subbyte.open(tmp_path / "x.gguf") as checkpoint:
        weight = checkpoint["a"]
    with pytest.raises(subbyte.ArgumentError, match="closed"):
        weight.decode()


@pytest.mark.parametrize("path", ["a\0", None, 5, "a\0.gguf", "\ud800"])
def test_paths(path) -> None:
    for call in (
        subbyte.open,
        GgufFile,
        SafetensorsFile,
        lambda p: write_gguf(p, {}, {}),
        lambda p: write_safetensors(p, {"a": F32}),
    ):
        with pytest.raises(subbyte.ArgumentError, match="path"):
            call(path)
