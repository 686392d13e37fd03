"""Tensors of BitNet's fork of ggml in GGUF files: I2_S, TL1, TL2."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from hostile import builders
from subbyte.io.gguf import GgufFile

RNG = np.random.default_rng(36)


def file(tmp_path, tensors, architecture=b"bitnet-b1.58"):
    """A file of tensors given as name, id, shape in NumPy's order, and bytes."""
    infos, data = [], b""
    for name, id, shape, content in tensors:
        infos.append(builders.info(name.encode(), shape[::-1], id, len(data)))
        data += content + bytes(-len(content) % 32)
    entries = [builders.entry(b"general.architecture", 8, builders.string(architecture))]
    return builders.written(tmp_path, "model.gguf", builders.gguf(entries, infos, data))


def i2_s(rows, columns):
    weight = RNG.integers(-1, 2, (rows, columns)).astype(np.float32) * np.float32(0.021)
    return weight, subbyte.encode("bitnet.i2_s", weight)["packed"].tobytes()


def f32(values):
    return np.asarray(values, "<f4").tobytes()


@pytest.mark.parametrize("architecture", [b"bitnet", b"bitnet-25", b"bitnet-b1.58"])
def test_i2_s(tmp_path, architecture):
    first, packed = i2_s(8, 640)
    second, other = i2_s(4, 128)
    tensors = [("a", 36, (8, 640), packed), ("norm", 0, (3,), f32([1, 2, 3])), ("b", 36, (4, 128), other)]
    with subbyte.open(file(tmp_path, tensors, architecture)) as found:
        assert found["a"].format == "bitnet.i2_s"
        assert found["a"].shape == (8, 640)
        assert found["a"].nbytes == 8 * 640 // 4 + 32
        np.testing.assert_array_equal(found["a"].decode(), first)
        np.testing.assert_array_equal(found["b"].decode(rows=slice(1, 3)), second[1:3])
        np.testing.assert_array_equal(found["norm"].decode(), [1, 2, 3])


@pytest.mark.parametrize("tail", [0, 32])
@pytest.mark.parametrize("last", [False, True])
def test_types_for_lookup_kernels(tmp_path, tail, last):
    weight = RNG.integers(-1, 2, (64, 576)).astype(np.int8)
    sizes = {"TL1": {"BM": 32, "BK": 64, "bm": 32}, "TL2": {"BM": 64, "BK": 96, "bm": 32}}
    tensors = []
    for id, name in ((38, "TL1"), (39, "TL2")):
        packed = subbyte.encode(f"bitnet.{name.lower()}", weight, params=sizes[name])["packed"].tobytes()
        tensors.append((name, id, weight.shape, packed + bytes(-len(packed) % 32) + bytes(tail) if tail else packed))
    if not last:
        tensors.append(("norm", 0, (1,), f32([1])))
    with subbyte.open(file(tmp_path, tensors)) as found:
        for name, _, _, content in tensors[:2]:
            raw = found.source.raw(name)
            assert raw.tobytes() == content
            with pytest.raises(subbyte.UnsupportedError, match="BM, BK, bm"):
                found[name].decode()
            params = sizes[name] | {"shape": list(weight.shape)}
            kept = raw[: len(raw) - tail] if name == "TL1" else raw[:8362]
            np.testing.assert_array_equal(
                subbyte.decode(f"bitnet.{name.lower()}", {"packed": kept}, params=params), weight
            )


@pytest.mark.parametrize(("id", "shape"), [(36, (8, 128)), (38, (64, 128))])
def test_other_architectures_have_no_such_types(tmp_path, id, shape):
    path = file(tmp_path, [("a", id, shape, bytes(1 << 14))], b"llama")
    with pytest.raises(subbyte.UnsupportedError, match="begins with 'bitnet'"):
        subbyte.open(path)


def test_39_is_mxfp4_elsewhere(tmp_path):
    with subbyte.open(file(tmp_path, [("a", 39, (2, 64), bytes(68))], b"llama")) as found:
        assert found["a"].format == "gguf.mxfp4"
        assert not found["a"].decode().any()


@pytest.mark.parametrize("id", [36, 38, 39])
@pytest.mark.parametrize(
    "shape", [(), (7,), (3, 5), (2, 2, 128), (1 << 40, 1 << 40), (1 << 62, 4), (1 << 31, 1 << 31), (4, 1 << 40)]
)
def test_impossible_tensors_are_refused(tmp_path, id, shape):
    with pytest.raises(subbyte.Error) as caught:
        GgufFile(file(tmp_path, [("a", id, shape, bytes(64))]))
    assert "a" in str(caught.value.tensor)


def test_invalid_codes_are_refused(tmp_path):
    with (
        subbyte.open(file(tmp_path, [("a", 36, (4, 128), b"\xff" * 128 + bytes(32))])) as found,
        pytest.raises(subbyte.FormatError, match="tensor 'a'"),
    ):
        found["a"].decode()


def test_conversion_is_refused_with_the_type(tmp_path):
    _, packed = i2_s(8, 128)
    path = file(tmp_path, [("a", 36, (8, 128), packed)])
    with pytest.raises(subbyte.UnsupportedError, match="I2_S"):
        subbyte.convert(path, tmp_path / "out.gguf", to="gguf.q8_0", lossy=True)
