"""`subbyte.open`: the same mapping over GGUF files, safetensors files and folders."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from subbyte.io.gguf import write_gguf
from subbyte.io.safetensors import write_safetensors

RNG = np.random.default_rng(21)
DENSE = {
    "f32": RNG.standard_normal((4, 6)).astype(np.float32),
    "f16": RNG.standard_normal((3, 2, 6)).astype(np.float16),
    "bf16": RNG.standard_normal((4, 6)).astype(ml_dtypes.bfloat16),
    "f64": RNG.standard_normal((2, 3)),
    "vector": RNG.standard_normal(5).astype(np.float32),
    "scalar": np.array(1.5, ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float16),
    "i64": np.array([[1, -(2**40)], [3, 2**53 + 1]]),
    "u8": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "bool": np.array([True, False]),
    "f8_e4m3": np.arange(-8, 8).reshape(4, 4).astype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.arange(-8, 8).reshape(4, 4).astype(ml_dtypes.float8_e5m2),
}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def folder(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", DENSE)
    (tmp_path / "config.json").write_text('{"model_type": "demo"}')
    return tmp_path


@pytest.fixture
def gguf(tmp_path):
    w = RNG.standard_normal((8, 512)).astype(np.float32)
    packed = subbyte.encode("gguf.q4_k", w)["blocks"]
    path = tmp_path / "m.gguf"
    plain = {k: DENSE[k] for k in ("f32", "f16", "bf16", "f64", "vector", "i64")}
    write_gguf(path, {"general.architecture": "demo"}, {"q": ("Q4_K", packed), **plain})
    return path


@pytest.mark.parametrize("name", DENSE)
def test_plain_tensors(folder, name):
    checkpoint = subbyte.open(folder)
    weight, stored = checkpoint[name], DENSE[name]
    assert (weight.name, weight.shape, weight.nbytes) == (name, stored.shape, stored.nbytes)
    assert weight.format == {"vector": "f32", "scalar": "bf16", "empty": "f16"}.get(name, name)
    single = stored.astype(np.float32)
    assert same(weight.decode(), single)
    with np.errstate(over="ignore"):
        assert same(weight.decode("float16"), single.astype(np.float16))
    assert same(weight.decode(dtype="bfloat16"), single.astype(ml_dtypes.bfloat16))
    assert same(weight.decode("float64"), stored.astype(np.float64))
    out = np.zeros(stored.shape, np.float32)
    assert weight.decode(out=out) is out
    assert same(out, single)
    if stored.ndim > 1:
        assert same(weight.decode(rows=slice(1, 3)), single[1:3])
    with pytest.raises(subbyte.ArgumentError, match=rf"tensor '{name}'"):
        weight.decode("int8")
    with pytest.raises(subbyte.ArgumentError, match="shape"):
        weight.decode(out=np.zeros((*stored.shape, 2), np.float32))


def test_folder_and_file(folder):
    checkpoint = subbyte.open(folder)
    assert set(checkpoint) == set(DENSE)
    assert len(checkpoint) == len(DENSE)
    assert checkpoint.config == {"model_type": "demo"}
    alone = subbyte.open(folder / "model.safetensors")
    assert alone.config == {"model_type": "demo"}  # it stands beside the file
    assert same(alone["f32"].decode(), DENSE["f32"])
    (folder / "config.json").unlink()
    assert subbyte.open(str(folder)).config == {}
    with pytest.raises(KeyError):
        checkpoint["missing"]
    with subbyte.open(folder) as opened:
        kept = opened["f32"].decode()
    assert same(kept, DENSE["f32"])
    with pytest.raises(ValueError, match="closed"):
        opened["f32"].decode()


def test_gguf(gguf):
    checkpoint = subbyte.open(gguf)
    weight = checkpoint["q"]
    assert (weight.format, weight.shape, weight.nbytes) == ("gguf.q4_k", (8, 512), 8 * 2 * 144)
    assert weight.file == str(gguf)
    full = weight.decode()
    assert same(full, subbyte.decode("gguf.q4_k", {"blocks": checkpoint.source.raw("q")}))
    assert same(weight.decode("bfloat16", rows=slice(2, 6)), full[2:6].astype(ml_dtypes.bfloat16))
    for name in ("f32", "f16", "bf16", "f64", "vector", "i64"):
        assert same(checkpoint[name].decode(), DENSE[name].astype(np.float32))
        assert same(checkpoint[name].decode("float64"), DENSE[name].astype(np.float64))
    assert checkpoint["i64"].format == "gguf.i64"
    renamed = gguf.rename(gguf.with_suffix(".bin"))
    assert set(subbyte.open(renamed)) == set(checkpoint)


def test_quantized_folders_are_refused_until_supported(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "eetq", "bits": 4}}))
    with pytest.raises(subbyte.UnsupportedError, match="eetq"):
        subbyte.open(folder)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": ' * 100_000, "\xff"])
def test_unusable_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(subbyte.Error, match=r"config\.json"):
        subbyte.open(folder)


def test_missing_files(tmp_path):
    for name in ("none", "none.gguf", "none.safetensors"):
        with pytest.raises(FileNotFoundError) as e:
            subbyte.open(tmp_path / name)
        assert isinstance(e.value, subbyte.Error)
        assert name in str(e.value)
    with pytest.raises(subbyte.FormatError):
        subbyte.open(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(subbyte.Error):
        subbyte.open(tmp_path / "text")


def test_without_ml_dtypes(folder, run_python):
    code = f"""
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, subbyte
c = subbyte.open({str(folder)!r})
assert c["scalar"].decode().item() == 1.5
bits = c["bf16"].decode("bfloat16")
assert bits.dtype == np.uint16
assert ((bits.astype(np.uint32) << 16).view(np.float32) == c["bf16"].decode()).all()
assert c["i64"].decode("bfloat16").dtype == np.uint16
print(c["f8_e4m3"].decode("float64").tolist(), c["f8_e5m2"].decode("float64").tolist())
"""
    values = np.arange(-8.0, 8).reshape(4, 4).tolist()
    assert run_python(code) == f"{values} {values}\n"
