"""optimum-quanto: random layers of every type, shapes that are not stored, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.io.safetensors import write_safetensors

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32)
FLOAT8 = {"qfloat8_e4m3fn": ml_dtypes.float8_e4m3fn, "qfloat8_e5m2": ml_dtypes.float8_e5m2}


def packed(rng, bits, shape, width, dtype, shift=None):
    """Planes of a layer with random codes, and the codes."""
    rows, per = shape[0] * shape[1] // width, 8 // bits
    codes = rng.integers(0, 1 << bits, (rows, width)).astype(np.uint8)
    padded = np.zeros((-(-rows // per) * per, width), np.uint8)
    padded[:rows] = codes
    slabs = padded.reshape(per, -1, width)
    shifts = rng.standard_normal((rows, 1)).astype(dtype) if shift is None else rng.integers(0, 1 << bits, (rows, 1))
    return {
        "weight._data._data": sum(slabs[i] << np.uint8(bits * i) for i in range(per)).astype(np.uint8),
        "weight._scale": rng.random((rows, 1), dtype=np.float32).astype(dtype),
        "weight._shift": shifts.astype(shift or dtype),
    }, codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("shape", "width"), [((7, 96), 32), ((33, 20), 20), ((6, 256), 128), ((1, 64), 16)])
def test_packed_layers_come_back(bits, dtype, shape, width):
    planes, codes = packed(np.random.default_rng(1), bits, shape, width, dtype)
    params = {"shape": list(shape), "quantization_config": {"weights": f"int{bits}"}}
    form = check_round_trip("quanto", planes, params)
    np.testing.assert_array_equal(form.codes.unpack().reshape(codes.shape), codes)
    scale, shift = (planes[name].astype(np.float32) for name in ("weight._scale", "weight._shift"))
    expected = (codes * scale - shift).reshape(shape)
    np.testing.assert_array_equal(subbyte.decode("quanto", planes, params=params), expected)
    rounded = (codes.astype(dtype) * planes["weight._scale"]) - planes["weight._shift"]
    if dtype != np.float32:
        name = np.dtype(dtype).name
        np.testing.assert_array_equal(
            subbyte.decode("quanto", planes, params=params, dtype=name).ravel(), rounded.ravel()
        )


def test_integer_zero_points_come_back():
    planes, codes = packed(np.random.default_rng(1), 4, (8, 64), 32, np.float16, shift=np.uint8)
    params = {"shape": [8, 64]}
    check_round_trip("quanto", planes, params)
    expected = (codes - planes["weight._shift"].astype(np.float32)) * planes["weight._scale"].astype(np.float32)
    np.testing.assert_array_equal(subbyte.decode("quanto", planes, params=params), expected.reshape(8, 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["qint8", *FLOAT8])
@pytest.mark.parametrize("along", [0, 1])
def test_layers_of_bytes_come_back(name, dtype, along):
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (5, 12), dtype=np.uint8)
    shape = (5, 1) if along == 0 else (1, 12)
    planes = {
        "weight._data": data.view(FLOAT8.get(name, np.int8)),
        "weight._scale": rng.random(shape, dtype=np.float32).astype(dtype),
    }
    check_round_trip("quanto", planes, {"quantization_map": {"m": {"weights": name, "activations": "none"}}})
    other = {"quantization_config": {"weights": "int4"}}
    with pytest.raises(subbyte.FormatError, match="said to be qint4"):
        subbyte.decode("quanto", planes, params=other)


def test_malformed():
    planes, _ = packed(np.random.default_rng(0), 4, (8, 64), 32, np.float16)
    params = {"shape": [8, 64], "quantization_config": {"weights": "int4"}}
    check_damage("quanto", planes, params)
    for shape in ([8, 65], [0, 64], [1 << 50, 1 << 50], [8], "8", [8.0, 64.0], [16, 32.5], None, [64, 8]):
        with pytest.raises(subbyte.Error):
            subbyte.decode("quanto", planes, params={**params, "shape": shape})
    with pytest.raises(subbyte.ArgumentError, match="'shape'"):
        subbyte.decode("quanto", planes)
    with pytest.raises(subbyte.FormatError, match="qint2"):
        subbyte.decode("quanto", planes, params={"shape": [8, 64], "quantization_config": {"weights": "int2"}})
    check_hostile_settings("quanto", planes, {"weights": "int4", "activations": None})


@pytest.mark.parametrize("source", ["bias", "config"])
def test_shape_from_bias_or_settings(tmp_path, source):
    planes, _ = packed(np.random.default_rng(0), 4, (12, 64), 32, np.float16)
    tensors = {f"model.q_proj.{name}": value for name, value in planes.items()}
    tensors |= {"model.q_proj.input_scale": np.ones((), np.float16), "model.k_proj.weight": np.ones((2, 2), np.float16)}
    config = {"quantization_config": {"quant_method": "quanto", "weights": "int4"}}
    if source == "bias":
        tensors["model.q_proj.bias"] = np.zeros(12, np.float16)
    else:
        config["hidden_size"] = 64
    types = {f"model.{name}": {"weights": "qint4", "activations": "none"} for name in ("q_proj", "k_proj")}
    (tmp_path / "quantization_map.json").write_text(json.dumps(types))
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    expected = subbyte.decode("quanto", planes, params={"shape": [12, 64]})
    with subbyte.open(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["model.q_proj.weight"].decode(), expected)
        assert "model.q_proj.input_scale" not in checkpoint
        assert any("k_proj" in note for note in checkpoint.notes)
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 65}))
    if source == "config":
        with pytest.raises(subbyte.FormatError, match="65 columns"):
            subbyte.open(tmp_path)


@pytest.mark.parametrize("weights", ["int2", "int4", "int8", "float8", "float8_e5m2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding(weights, dtype):
    rng = np.random.default_rng(7)
    source = rng.standard_normal((6, 192)).astype(dtype)
    source[0] = 0
    params = {"quantization_config": {"weights": weights}, "shape": [6, 192]}
    planes = subbyte.encode("quanto", source, params=params)
    decoded = subbyte.decode("quanto", planes, params=params)
    step = np.ptp(source.astype(np.float32), axis=1).max() / {"int2": 3, "int4": 15, "int8": 127}.get(weights, 8)
    assert np.abs(decoded - source.astype(np.float32)).max() <= 1.1 * step
    with pytest.raises(subbyte.NonFiniteError):
        subbyte.encode(
            "quanto",
            np.array([[3e38, -3e38] * 16], ml_dtypes.bfloat16),
            params={"quantization_config": {"weights": "int4"}},
        )
