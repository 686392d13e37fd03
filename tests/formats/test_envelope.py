"""subbyte's own checkpoints: the frozen one, any format and codec, and settings that lie."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
from common import same_planes

import subbyte
from checkpoints import TESTS
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats import checkpoint_format
from subbyte.ggml import TYPES
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

GOLDEN = TESTS / "golden" / "subbyte"
FILE = GOLDEN / "every_kind.safetensors"
FROZEN = "15e61ffa4c3dd1113402e8f5a28ed20ffcde3abb5f153c9f9554af26a9e143c3"
CONFIG = json.loads((GOLDEN / "cases.json").read_text())["cases"][0]["checks"][0]["config"]
LAYERS = CONFIG["quantization_config"]["layers"]
FIRST = "model.layers.0.self_attn.q_proj.weight"
BITS = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}


def folder(path, tensors, settings):
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return path


def stored():
    file = SafetensorsFile(FILE)
    return {name: file.array(name) for name in file if not name.startswith("expected.")}


def opened(path, change):
    """The frozen checkpoint with changed settings."""
    settings = copy.deepcopy(CONFIG["quantization_config"])
    change(settings)
    return subbyte.open(folder(path, stored(), settings))


def test_the_frozen_checkpoint_decodes_to_the_same_bits(tmp_path):
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == FROZEN
    checkpoint = opened(tmp_path, lambda settings: None)
    assert checkpoint.format == "subbyte"
    assert not checkpoint.notes
    assert set(checkpoint) == {*LAYERS, "model.embed_tokens.weight", "model.norm.weight"}
    expected = SafetensorsFile(FILE)
    for name, entry in LAYERS.items():
        weight = checkpoint[name]
        assert weight.format == entry.get("format", "gguf.q4_k")
        assert weight.shape == tuple(entry["shape"])
        values = weight.decode()
        assert values.tobytes() == expected.array(f"expected.{name}").tobytes(), name
        assert np.array_equal(weight.decode(rows=slice(1, 2)), values[1:2])
    assert {weight.format for weight in checkpoint.values()} >= {"gguf.q4_k", "gguf.iq4_nl", "gptq", "hqq", "f16"}


@pytest.mark.parametrize(
    "type", [facts for facts in TYPES.values() if facts.decodes and facts.encodes], ids=lambda t: t.name
)
def test_every_ggml_type(tmp_path, type):
    rng = np.random.default_rng(type.number)
    shape = (3, 2 * type.block)
    values = rng.standard_normal(shape).astype(np.float32)
    importance = np.ones(shape[1], np.float32)
    scheme = {"format": f"gguf.{type.name.lower()}", "planes": ["blocks"]}
    made = subbyte.encode("subbyte", values, params=scheme, importance=importance)
    same_planes(made, subbyte.encode(scheme["format"], values, importance=importance))
    decoded = subbyte.decode("subbyte", made, params=scheme)
    settings = {"quant_method": "subbyte", "version": 1, "layers": {"a.weight": {"shape": list(shape), **scheme}}}
    weight = subbyte.open(folder(tmp_path, {"a.blocks": made["blocks"]}, settings))["a.weight"]
    assert np.array_equal(weight.decode(), decoded)
    assert np.array_equal(weight.decode("bfloat16"), subbyte.decode("subbyte", made, params=scheme, dtype="bfloat16"))
    form = weight.form()
    same_planes(checkpoint_format("subbyte").write(form, scheme), made)


class Halves:
    """A codec as another package has it: float16, in two planes of bytes."""

    id = "test.halves"

    def encode(self, array, *, importance=None, out=None):
        data = np.asarray(array, np.float16).view(np.uint8).reshape(*array.shape, 2)
        planes = {"low": np.ascontiguousarray(data[..., 0]), "high": np.ascontiguousarray(data[..., 1])}
        return subbyte.Encoded(planes, config=self.config(), shape=array.shape)

    def decode(self, encoded, *, out=None, rows=slice(None), dtype="float32"):
        pairs = np.stack((encoded["low"][rows], encoded["high"][rows]), axis=-1)
        return pairs.view(np.float16)[..., 0].astype(dtype)

    def nbytes(self, shape):
        return 2 * int(np.prod(shape))

    def bits_per_weight(self, shape):
        return 16.0

    def config(self):
        return {"id": self.id}


def test_a_codec_of_another_package(tmp_path, monkeypatch):
    monkeypatch.setattr(subbyte.codec, "_registered", {"test.halves": Halves()})
    values = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    made = subbyte.encode("test.halves", values)
    scheme = {"format": "test.halves", "planes": ["low", "high"]}
    settings = {"quant_method": "subbyte", "version": 1, "default": scheme, "layers": {"a": {"shape": [2, 3, 5]}}}
    checkpoint = subbyte.open(folder(tmp_path, {f"a.{name}": made[name] for name in made}, settings))
    assert np.array_equal(checkpoint["a"].decode(), values.astype(np.float16))
    assert np.array_equal(checkpoint["a"].form().decode_rows(slice(1, 4)), checkpoint["a"].decode().reshape(6, 5)[1:4])
    settings["layers"]["a"]["shape"] = [3, 2, 5]
    with pytest.raises(FormatError, match=r"decodes to shape \[2, 3, 5\]: expected \[3, 2, 5\]"):
        subbyte.open(folder(tmp_path, {f"a.{name}": made[name] for name in made}, settings))["a"].decode()


def set_entry(**changes):
    return lambda settings: settings["layers"][FIRST].update(changes)


def change(key, value):
    return lambda settings: settings.update({key: value})


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        (change("version", 2), UnsupportedError, "layout 2"),
        (change("version", "1"), FormatError, "version"),
        (change("version", None), FormatError, "version"),
        (change("layers", []), FormatError, "layers"),
        (change("layers", {"a": 3}), FormatError, r"layers\['a'\]"),
        (change("default", None), FormatError, "no default"),
        (change("default", {"format": "gguf.q4_k"}), FormatError, "planes of default"),
        (change("default", {"format": "gguf.q4_k", "planes": []}), FormatError, "planes of default"),
        (change("default", {"format": "gguf.q4_k", "planes": ["a", "a"]}), FormatError, "twice"),
        (change("default", {"format": 4, "planes": ["blocks"]}), FormatError, "format"),
        (change("default", {"format": "gguf.q5_z", "planes": ["blocks"]}), UnsupportedError, "gguf.q5_z"),
        (change("default", {"format": "gguf.q4_2", "planes": ["blocks"]}), UnsupportedError, "removed"),
        (change("default", {"format": "subbyte", "planes": ["blocks"]}), UnsupportedError, "inside"),
        (change("default", {"format": "gguf.q4_k", "planes": ["blocks"], "params": 1}), FormatError, "params"),
        (change("dense", [FIRST]), FormatError, "which one counts"),
        (change("dense", FIRST), FormatError, "dense"),
        (set_entry(shape=None), FormatError, "shape"),
        (set_entry(shape=[]), FormatError, "shape"),
        (set_entry(shape=[0, 256]), FormatError, "shape"),
        (set_entry(shape=[16.0, 256]), FormatError, "shape"),
        (set_entry(shape=[16, 1 << 60]), FormatError, "shape"),
        (set_entry(planes=["blocks"]), FormatError, "names no format"),
        (set_entry(params={}), FormatError, "names no format"),
        (set_entry(transposed=1), FormatError, "transposed"),
        (set_entry(transposed=True, shape=[4096]), FormatError, "transposed"),
        (set_entry(format="gguf.q4_k", planes=["blocks", "more"]), FormatError, "q_proj.more"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, how, kind, words):
    with pytest.raises(kind, match=words):
        opened(tmp_path, how)


@pytest.mark.parametrize(
    "changes",
    [{"shape": [16, 512]}, {"shape": [256, 16]}, {"shape": [1 << 40, 1 << 40]}, {"shape": [4096]}, {"transposed": True},
     {"format": "gguf.q6_k", "planes": ["blocks"]}, {"format": "gptq", "planes": ["blocks"], "params": {}},
     {"format": "gptq", "planes": ["blocks"], "params": {"quantization_config": BITS}}],
)  # fmt: skip
def test_lies_about_a_layer_are_refused_when_it_is_read(tmp_path, changes):
    checkpoint = opened(tmp_path, set_entry(**changes))
    with pytest.raises(subbyte.Error) as caught:
        checkpoint[FIRST].decode()
    assert caught.value.tensor == FIRST


def test_what_is_stored_dense_is_read_dense(tmp_path):
    tensors = stored()
    del tensors["model.layers.0.self_attn.q_proj.blocks"]
    tensors[FIRST] = np.ones((16, 256), np.float16)
    checkpoint = subbyte.open(folder(tmp_path, tensors, CONFIG["quantization_config"]))
    assert checkpoint[FIRST].format == "f16"
    assert checkpoint.notes == ["1 weights are listed as quantized but stored dense"]
    del tensors[FIRST]
    with pytest.raises(FormatError, match=r"q_proj\.blocks'.* is missing"):
        subbyte.open(folder(tmp_path, tensors, CONFIG["quantization_config"]))


def test_parameters_of_a_layer():
    planes = {"blocks": np.zeros((2, 144), np.uint8)}
    with pytest.raises(ArgumentError, match="format"):
        subbyte.decode("subbyte", planes)
    with pytest.raises(ArgumentError, match="no codec"):
        subbyte.decode("subbyte", planes, params={"format": "gguf.q9"})
    with pytest.raises(ArgumentError, match="shape"):
        checkpoint_format("subbyte").read(planes, {"format": "gguf.q4_k"})
