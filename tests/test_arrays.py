"""Arrays in: the buffer protocol and DLPack, from producers that NumPy cannot import by itself too."""

from __future__ import annotations

import array as stdlib_array
import ctypes
import gc
import weakref
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

import subbyte
from subbyte import _native, arrays

CPU, CUDA, CUDA_HOST = 1, 2, 3
INT, UINT, FLOAT, BFLOAT = 0, 1, 2, 4


class DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DlTensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DlTensor),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Producer:
    """A foreign tensor over the memory of a NumPy array, as a torch CPU tensor would offer it."""

    exported: ClassVar[list[object]] = []  # structures have to live until their deleter was called

    def __init__(self, memory, code, bits, *, device=CPU, version=None, read_only=False, lanes=1, strides=True, **more):
        self.memory, self.code, self.bits, self.lanes = memory, code, bits, lanes
        self.device, self.version, self.read_only, self.strides = device, version, read_only, strides
        self.offset, self.shape = more.get("offset", 0), more.get("shape", memory.shape)
        self.deleted = 0

    def __dlpack_device__(self):
        return (self.device, 0)

    def __dlpack__(self, **options):
        if self.version is None and options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        dims = len(self.shape)
        item = self.memory.itemsize
        dims_and_strides = (
            (ctypes.c_int64 * dims)(*self.shape),
            (ctypes.c_int64 * dims)(*(s // item for s in self.memory.strides)) if self.strides else None,
        )
        data = self.memory.__array_interface__["data"][0] - self.offset
        tensor = DlTensor(data, self.device, 0, dims, self.code, self.bits, self.lanes, *dims_and_strides, self.offset)
        callback = DELETER(self.delete)
        if self.version is None:
            name, managed = b"dltensor", Managed(tensor, None, callback)
        else:
            major, minor = self.version
            flags = int(self.read_only)
            name, managed = b"dltensor_versioned", ManagedVersioned(major, minor, None, callback, flags, tensor)
        self.exported.append((self, dims_and_strides, callback, managed))
        return new_capsule(ctypes.addressof(managed), name, None)

    def delete(self, _):
        self.deleted += 1


def bf16(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(ml_dtypes.bfloat16)


def encode(array):
    return subbyte.encode("gguf.q8_0", array)["blocks"].tobytes()


@pytest.mark.parametrize("version", [None, (1, 0), (1, 3)])
def test_bfloat16_tensor(version):
    w = bf16(6, 64)
    producer = Producer(w.view(np.uint16), BFLOAT, 16, version=version)
    assert encode(producer) == encode(w) == encode(w.astype(np.float32))
    gc.collect()
    assert producer.deleted == 1


def test_bfloat16_tensor_without_ml_dtypes(monkeypatch):
    w = bf16(6, 64)
    expected = encode(w)
    monkeypatch.setattr(arrays, "small_float", lambda name: None)
    producer = Producer(w.view(np.uint16), BFLOAT, 16)
    loaded, name = arrays.load(producer)
    assert (name, loaded.dtype) == ("bfloat16", np.uint16)
    assert encode(producer) == expected
    with pytest.raises(subbyte.UnsupportedError, match="ml_dtypes"):
        encode(Producer(np.zeros((1, 32), np.uint8), 10, 8))


def test_strided_offset_and_read_only_tensors():
    w = bf16(8, 128)
    view = w.view(np.uint16)[::-2, 64:]
    assert encode(Producer(view, BFLOAT, 16)) == encode(w[::-2, 64:])
    assert encode(Producer(view, BFLOAT, 16, offset=10, version=(1, 0), read_only=True)) == encode(w[::-2, 64:])
    assert encode(Producer(w.view(np.uint16), BFLOAT, 16, strides=False)) == encode(w)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (np.float16, FLOAT),
        (np.float32, FLOAT),
        (np.float64, FLOAT),
        (ml_dtypes.float8_e4m3fn, 10),
        (ml_dtypes.float8_e5m2, 12),
        (ml_dtypes.float8_e8m0fnu, 14),
    ],
)
def test_other_floats(dtype, code):
    w = np.abs(bf16(2, 32)).astype(dtype)
    bits = w.view(f"u{w.itemsize}")
    assert encode(Producer(bits, code, 8 * w.itemsize)) == encode(w) == encode(w.astype(np.float32))


def test_planes_through_dlpack():
    blocks = subbyte.encode("gguf.q8_0", bf16(2, 64))["blocks"]
    expected = subbyte.decode("gguf.q8_0", {"blocks": blocks})
    got = subbyte.decode("gguf.q8_0", {"blocks": Producer(blocks, UINT, 8)})
    assert got.tobytes() == expected.tobytes()
    out = np.zeros(expected.shape, np.float32)
    subbyte.get_codec("gguf.q8_0").decode({"blocks": blocks}, out=Producer(out, FLOAT, 32))
    assert out.tobytes() == expected.tobytes()
    read_only = Producer(out, FLOAT, 32, version=(1, 0), read_only=True)
    with pytest.raises(subbyte.ArgumentError, match="writable"):
        subbyte.get_codec("gguf.q8_0").decode({"blocks": blocks}, out=read_only)


def test_memory_outlives_the_producer():
    memory = bf16(4, 32)
    alive = weakref.ref(memory)
    producer = Producer(memory.view(np.uint16), BFLOAT, 16)
    view, _ = arrays.load(producer)
    assert producer.deleted == 0
    assert view.astype(np.float32).tobytes() == memory.astype(np.float32).tobytes()
    del view
    gc.collect()
    assert producer.deleted == 1
    assert alive() is memory


@pytest.mark.parametrize(
    ("producer", "why"),
    [
        (Producer(np.zeros((2, 32), np.float32), FLOAT, 32, device=CUDA), "CPU"),
        (Producer(np.zeros((2, 32), np.int32), INT, 32), "int32"),
        (Producer(np.zeros((2, 32), np.uint8), 6, 8), "bool"),
        (Producer(np.zeros((2, 32), np.complex64), 5, 64), "element type 5"),
        (Producer(np.zeros((2, 32), np.float32), FLOAT, 32, lanes=4), "4 lanes"),
        (Producer(np.zeros((2, 32), np.float32), FLOAT, 32, version=(2, 0)), "version 2"),
        (Producer(np.zeros((2, 32), np.float32), FLOAT, 32, shape=(2, -32)), "shape"),
        (Producer(np.zeros((2, 32), np.float32), FLOAT, 32, shape=(2**40, 2**40)), "shape"),
        (Producer(np.zeros((2, 32), np.uint8), 17, 4), "element type 17"),
    ],
)
def test_unusable_tensors_are_refused(producer, why):
    with pytest.raises(subbyte.Error, match=why):
        encode(producer)


def test_capsules_that_were_used():
    producer = Producer(np.zeros((2, 32), np.float32), FLOAT, 32)
    capsule = producer.__dlpack__()
    _native.from_dlpack(capsule)
    with pytest.raises(subbyte.ArgumentError, match="used"):
        _native.from_dlpack(capsule)
    with pytest.raises(TypeError):
        _native.from_dlpack("no capsule")


def test_producer_that_raises():
    class Broken:
        def __dlpack_device__(self):
            return (CPU, 0)

        def __dlpack__(self, **_):
            raise RuntimeError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(subbyte.ArgumentError, match="detach"):
        encode(Broken())


def test_buffer_protocol():
    w = np.random.default_rng(5).standard_normal(64).astype(np.float32)
    assert encode(stdlib_array.array("f", w.tolist())) == encode(w)
    assert encode(w.tolist()) == encode(w)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 32), np.int8),
        np.zeros((2, 32), np.uint16),
        np.zeros((2, 32), bool),
        np.zeros((2, 32), np.complex64),
        np.zeros((2, 32), ml_dtypes.int4),
        np.array([["a"] * 32]),
        np.array([[None] * 32]),
        np.zeros(32, [("a", "f4")]),
        np.zeros(32, "M8[s]"),
        [[1.0], [1.0, 2.0]],
        "text",
        None,
        object(),
        {},
    ],
    ids=lambda a: str(getattr(a, "dtype", type(a).__name__)),
)
def test_what_is_no_array_of_floats(array):
    with pytest.raises(subbyte.ArgumentError):
        encode(array)


def test_native_checks_its_buffers():
    blocks, out = np.zeros(34, np.uint8), np.zeros(128, np.uint8)
    with pytest.raises(subbyte.ArgumentError, match="read-only"):
        _native.decode("Q8_0", blocks, 32, "float32", bytes(128))
    with pytest.raises(subbyte.ArgumentError, match="contiguous"):
        _native.decode("Q8_0", np.zeros(68, np.uint8)[::2], 32, "float32", out)
    with pytest.raises(subbyte.ArgumentError, match="aligned"):
        _native.decode("Q8_0", blocks, 32, "float32", np.zeros(132, np.uint8)[1:129])
    with pytest.raises(subbyte.ArgumentError, match="share memory"):
        _native.decode("Q8_0", out[:34], 32, "float32", out)
    with pytest.raises(subbyte.ArgumentError, match="no ggml type"):
        _native.decode("Q9_0", blocks, 32, "float32", out)
    with pytest.raises(subbyte.ArgumentError, match="dtype"):
        _native.decode("Q8_0", blocks, 32, "int8", out)
    with pytest.raises(subbyte.ArgumentError, match="bytes"):
        _native.decode("Q8_0", blocks[:33], 32, "float32", out)
    with pytest.raises(subbyte.ArgumentError):
        _native.decode("Q8_0", blocks, 0, "float32", out)
    with pytest.raises(subbyte.ArgumentError, match="groups"):
        _native.encode("Q8_0", out, "float32", 32, 3, None, blocks)
    with pytest.raises(subbyte.ArgumentError, match="groups"):
        _native.encode("Q4_0", out, "float32", 32, 1, np.zeros(32, np.uint8), np.zeros(18, np.uint8))


def test_results_are_aligned():
    for n in (1, 3, 100, 5000):
        assert arrays.empty((n, 7), np.dtype(np.float32)).ctypes.data % 64 == 0
