"""Gemma's packed checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.io.safetensors import write_safetensors

RNG = np.random.default_rng(20)


def pack(codes, bits):
    if bits == 8:
        return (codes.astype(np.int16) - 128).astype(np.int8)
    fields = 8 // bits
    rows, columns = codes.shape
    padded = np.zeros((rows, -(-columns // fields) * fields), np.uint8)
    padded[:, :columns] = codes
    return sum(padded[:, at::fields] << (at * bits) for at in range(fields)).astype(np.uint8)


def layer(rows, columns, bits, embedding=False):
    codes = RNG.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scales = RNG.uniform(1e-3, 1, (rows, 1)).astype(np.float32)
    names = ("embedding_quantized", "embedding_scale") if embedding else ("weight", "weight_scale")
    return dict(zip(names, (pack(codes, bits), scales), strict=True)), codes.astype(np.float32) - 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [1, 40, 66, 67, 69])
@pytest.mark.parametrize("embedding", [False, True])
def test_round_trip(bits, columns, embedding):
    planes, codes = layer(6, columns, bits, embedding)
    config = {"quant_method": "gemma", "num_bits": bits, "quantize_embeddings": embedding}
    params = {"quantization_config": config, "shape": [6, columns]}
    check_round_trip("gemma", planes, params)
    check_damage("gemma", planes, params)
    want = codes.astype(np.float32) * next(plane for name, plane in planes.items() if "scale" in name)
    np.testing.assert_array_equal(subbyte.decode("gemma", planes, params=params), want)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_encoding(bits):
    weight = RNG.normal(0, 0.02, (5, 33)).astype(np.float32)
    weight[2] = 0
    params = {"quantization_config": {"num_bits": bits}, "shape": [5, 33]}
    planes = subbyte.encode("gemma", weight, params=params)
    found = subbyte.decode("gemma", planes, params=params)
    assert np.all(np.abs(found - weight) <= planes["weight_scale"] * np.float32(0.500001))
    assert not found[2].any()


def test_hostile_settings():
    planes, _ = layer(4, 8, 4)
    check_hostile_settings("gemma", planes, {"num_bits": 4, "quantize_embeddings": False})
    for shape in ([4, 7], [4, 9], [3, 8], [4], "x", [4, -8], [4, 10**30], [4, 8.0]):
        params = {"quantization_config": {"num_bits": 4}, "shape": shape}
        if shape == [4, 7]:
            assert subbyte.decode("gemma", planes, params=params).shape == (4, 7)
            continue
        with pytest.raises(subbyte.Error):
            subbyte.decode("gemma", planes, params=params)


def folder(tmp_path, settings, tensors, **config):
    config |= {"quantization_config": {"quant_method": "gemma", "num_bits": 4, **settings}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path


def test_checkpoint_with_settings_of_modules(tmp_path):
    wide, wide_codes = layer(4, 30, 8)
    narrow, narrow_codes = layer(30, 7, 2)
    embedding, embedding_codes = layer(9, 30, 4, True)
    tensors = {f"m.0.up_proj.{name}": plane for name, plane in wide.items()}
    tensors |= {f"m.0.down_proj.{name}": plane for name, plane in narrow.items()}
    tensors |= {f"m.embed_tokens.{name}": plane for name, plane in embedding.items()}
    tensors["m.norm.weight"] = np.ones(30, np.float32)
    settings = {"quantize_embeddings": True, "module_quant_configs": {"up_proj$": {"num_bits": 8}, "down": 2}}
    path = folder(tmp_path, settings, tensors, text_config={"hidden_size": 30, "intermediate_size": 7})
    with subbyte.open(path) as found:
        np.testing.assert_array_equal(found["m.0.up_proj.weight"].decode(), wide_codes * wide["weight_scale"])
        np.testing.assert_array_equal(found["m.0.down_proj.weight"].decode(), narrow_codes * narrow["weight_scale"])
        want = embedding_codes * embedding["embedding_scale"]
        np.testing.assert_array_equal(found["m.embed_tokens.weight"].decode(), want)
        assert found["m.norm.weight"].layer is None


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        ({}, {"hidden_size": 40}, "hidden_size is 40"),
        ({"num_bits": 8}, {}, "num_bits"),
        ({"module_quant_configs": {"(": 2}}, {}, "regular expression"),
        ({"module_quant_configs": 7}, {}, "module_quant_configs"),
        ({"module_quant_configs": {"up": "x"}}, {}, "module_quant_configs"),
    ],
)
def test_contradictions_are_refused(tmp_path, settings, config, message):
    planes, _ = layer(4, 30, 4)
    tensors = {f"m.up_proj.{name}": plane for name, plane in planes.items()}
    with pytest.raises(subbyte.FormatError, match=message):
        subbyte.open(folder(tmp_path, settings, tensors, **config))


def test_costly_patterns_are_refused(tmp_path):
    planes, _ = layer(4, 30, 4)
    tensors = {f"m.up_proj.{name}": plane for name, plane in planes.items()}
    for pattern in ("(a+)+$", ".*" * 30 + "x"):
        with pytest.raises(subbyte.LimitError):
            subbyte.open(folder(tmp_path, {"module_quant_configs": {pattern: 2}}, tensors))
