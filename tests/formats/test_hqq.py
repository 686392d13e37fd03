"""HQQ: random layers of every width, axis and group, and the half-quadratic encoder."""

import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.io.safetensors import write_safetensors
from subbyte.quantize.half_quadratic import half_quadratic

PACKING = {1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 5: "8bit_u8", 6: "8bit_u8", 8: "8bit_u8"}
FIELDS = {"1bit_u8": 8, "2bit_u8": 4, "3bit_32": 10, "4bit_u8": 2, "8bit_u8": 1}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def text(value):
    return np.frombuffer(value.encode(), np.uint8)


def layer(rng, nbits, shape, group, axis, dtype="float16", view_as_float=False):
    """Planes of a random layer, the settings, and the codes of the grouped matrix."""
    bits = 2 if nbits == 1.58 else nbits
    groups = shape[0] * shape[1] // group
    matrix = (groups, group) if axis == 1 else (group, groups)
    codes = rng.integers(0, 3 if nbits == 1.58 else 1 << bits, matrix)
    fields = FIELDS[PACKING[bits]]
    padded = np.zeros((-(-matrix[0] // fields) * fields, matrix[1]), np.int64)
    padded[: matrix[0]] = codes
    width = 8 if bits in (5, 6) else bits
    slabs = padded.reshape(fields, -1, matrix[1])
    items = sum(slabs[field] << (width * (fields - 1 - field)) for field in range(fields))
    items = items.astype(np.int32 if bits == 3 else np.uint8)
    if view_as_float:
        items = items.view(DTYPES[dtype])
    flat = (groups, 1) if axis == 1 else (1, groups)
    planes = {
        "W_q": items,
        "scale": rng.random(flat, dtype=np.float32).astype(DTYPES[dtype]),
        "zero": (rng.random(flat, dtype=np.float32) * (1 << bits)).astype(DTYPES[dtype]),
        "shape": np.array(shape, np.int64),
        "nbits": np.array(nbits, np.float32 if nbits == 1.58 else np.int32),
        "group_size": np.array(group, np.int32),
        "axis": np.array(axis, np.int32),
        "packing": text(PACKING[bits]),
        "compute_dtype": text(f"torch.{dtype}"),
        "unpack_view_dtype": text("torch.int32" if bits == 3 else "torch.uint8"),
    }
    flags = ("quant_scale", "quant_zero", "offload_meta", "channel_wise", "optimize", "round_zero")
    for name in (*flags, "encoded_state_dict", "stores_quant_config", "view_as_float"):
        set_ = name in ("channel_wise", "optimize", "encoded_state_dict", "stores_quant_config")
        planes[name] = np.array(set_ or (name == "view_as_float" and view_as_float), np.uint8)
    weights = {"nbits": nbits, "group_size": group, "axis": axis, "view_as_float": view_as_float, "round_zero": False}
    return planes, {"quant_config": {"weight_quant_params": weights}}, codes


def whole_bytes(nbits, axis, shape, group):
    """Whether the rows of the grouped matrix fill their bytes; words are padded."""
    rows = shape[0] * shape[1] // group if axis == 1 else group
    return nbits == 3 or rows % FIELDS[PACKING[round(nbits)]] == 0


CASES = [
    (nbits, axis, shape, group)
    for nbits in (1, 1.58, 2, 3, 4, 5, 6, 8)
    for axis in (0, 1)
    for shape, group in (((24, 32), 16), ((40, 24), 24), ((8, 48), 32))
    if whole_bytes(nbits, axis, shape, group)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("nbits", "axis", "shape", "group"), CASES)
def test_layers_come_back(nbits, axis, dtype, shape, group):
    planes, config, codes = layer(np.random.default_rng(3), nbits, shape, group, axis, dtype)
    form = check_round_trip("hqq", planes, {"quantization_config": config})
    np.testing.assert_array_equal(form.codes.unpack().reshape(codes.shape), codes)
    scale, zero = (planes[name].astype(np.float32) for name in ("scale", "zero"))
    expected = (codes.astype(np.float32) - zero) * scale
    np.testing.assert_array_equal(subbyte.decode("hqq", planes), expected.reshape(shape))


@pytest.mark.parametrize(("nbits", "dtype"), [(4, "float16"), (3, "bfloat16"), (8, "float32"), (2, "bfloat16")])
def test_codes_stored_as_floats(nbits, dtype):
    planes, config, _ = layer(np.random.default_rng(4), nbits, (32, 64), 32, 1, dtype, view_as_float=True)
    check_round_trip("hqq", planes, {"quantization_config": config})


def test_malformed():
    planes, config, _ = layer(np.random.default_rng(0), 4, (8, 64), 32, 1)
    optional = [name for name in planes if name == "unpack_view_dtype" or planes[name].ndim == 0]
    optional = [name for name in optional if name not in ("nbits", "group_size", "axis")]
    damages = ("missing", "type", "cut", "empty", "axis")
    harmless = [f"{name} {what}" for name in optional for what in damages if name[:6] != "quant_" or what == "missing"]
    check_damage("hqq", planes, {"quantization_config": config}, harmless)
    check_hostile_settings("hqq", planes, config)
    for name, value in [
        ("packing", text("os.system")), ("packing", text("3bit_32")), ("compute_dtype", text("torch.int8")),
        ("nbits", np.array(7, np.int32)), ("group_size", np.array(0, np.int32)), ("axis", np.array(2, np.int32)),
        ("group_size", np.array(-64, np.int32)), ("shape", np.array([1 << 62, 1 << 62])),
        ("shape", np.array([-8, -64])), ("quant_scale", np.array(1, np.uint8)), ("quant_zero", np.array(1, np.uint8)),
    ]:  # fmt: skip
        with pytest.raises(subbyte.Error):
            subbyte.decode("hqq", {**planes, name: value})


def test_settings_that_contradict_the_planes():
    planes, config, _ = layer(np.random.default_rng(0), 4, (8, 64), 32, 1)
    config["quant_config"]["weight_quant_params"]["nbits"] = 3
    with pytest.raises(subbyte.FormatError, match=r"'nbits' says 4, .* says 3"):
        subbyte.decode("hqq", planes, params={"quantization_config": config})


def test_a_module_without_its_metadata_is_refused(tmp_path):
    planes, config, _ = layer(np.random.default_rng(0), 4, (8, 64), 32, 1)
    config = {"quantization_config": {"quant_method": "hqq", **config}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {f"model.q_proj.{name}": value for name, value in planes.items() if name != "shape"}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(subbyte.FormatError, match=r"q_proj\.shape', .* is missing"):
        subbyte.open(tmp_path)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("nbits", [1, 1.58, 2, 3, 4, 5, 6, 8])
def test_the_solver_beats_the_range_alone(nbits, axis):
    rng = np.random.default_rng(1)
    weight = rng.standard_t(4, (64, 128)).astype(np.float32)
    params = {"nbits": nbits, "group_size": 64, "axis": axis}
    errors = []
    for optimize in (True, False):
        planes = subbyte.encode("hqq", weight, params={**params, "optimize": optimize, "round_zero": False})
        errors.append(np.abs(subbyte.decode("hqq", planes) - weight).mean())
    assert errors[0] <= errors[1]


def test_encoding_is_idempotent_enough_and_survives_odd_groups():
    flat = np.full((4, 64), 0.25, np.float32)
    planes = subbyte.encode("hqq", flat, params={"nbits": 4, "group_size": 64})
    np.testing.assert_allclose(subbyte.decode("hqq", planes), flat, atol=1e-4)
    with pytest.raises(subbyte.NonFiniteError, match="too large"):
        subbyte.encode("hqq", np.array([[3e38, -3e38] * 4] * 2, np.float32), params={"group_size": 8})
    with pytest.raises(subbyte.UnsupportedError, match="do not divide"):
        subbyte.encode("hqq", flat, params={"group_size": 48})
    scales, zeros = half_quadratic(np.array([[0, 1, 2, 3]], np.float32), 3)
    assert (scales.item(), zeros.item()) == (1, 0)
