"""bitsandbytes: random layers of every variant, and what is refused."""

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats.table.bitsandbytes import TABLES, dynamic_map
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import result

STATE = "weight.quant_state.bitsandbytes__"


def layer(rng, kind, shape, block, nested, dtype="bfloat16", storage="uint8"):
    """Planes with random codes and scales, and the settings."""
    elements = int(np.prod(shape))
    weight = rng.integers(0, 256, (elements + 1) // 2, dtype=np.uint8)
    if elements % 2:
        weight[-1] = weight[-1] & 0xF0 | {"nf4": 7, "fp4": 0}[kind]
    blocks = -(-elements // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(shape)}
    view = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}[storage]
    planes = {"weight": weight.view(view).reshape(-1, 1), "weight.quant_map": TABLES[kind]}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(np.float32(rng.random()))}
        planes["weight.absmax"] = rng.integers(0, 256, blocks, dtype=np.uint8)
        planes["weight.nested_absmax"] = rng.random(-(-blocks // 256), dtype=np.float32)
        planes["weight.nested_quant_map"] = dynamic_map()
    else:
        planes["weight.absmax"] = rng.random(blocks, dtype=np.float32)
    planes[STATE + kind] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return planes, {"quantization_config": {"bnb_4bit_quant_type": kind, "bnb_4bit_quant_storage": storage}}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(7, 33), (3, 64), (2, 5, 24), (300, 70)])
def test_four_bits_come_back(kind, shape, nested, seed):
    rng = np.random.default_rng(seed)
    planes, params = layer(rng, kind, shape, int(2 ** rng.integers(5, 13)), nested)
    form = check_round_trip("bitsandbytes", planes, params)
    # the definition, written out
    data = planes["weight"].reshape(-1)
    codes = np.stack((data >> 4, data & 15), 1).reshape(-1)[: form.rows * form.columns]
    scales = np.repeat(form.scales, form.block)[: codes.size]
    expected = (TABLES[kind][codes] * scales).reshape(shape)
    for dtype in ("float32", "float16", "bfloat16"):
        found = subbyte.decode("bitsandbytes", planes, params=params, dtype=dtype)
        assert found.tobytes() == result(expected, dtype).tobytes()
    if form.rows > 2:
        assert form.decode_rows(slice(1, 3)).tobytes() == expected.reshape(form.rows, -1)[1:3].tobytes()


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_storage_types(storage):
    check_round_trip("bitsandbytes", *layer(np.random.default_rng(1), "nf4", (8, 64), 64, True, storage=storage))


def test_int8_comes_back():
    rng = np.random.default_rng(0)
    planes = {
        "weight": rng.integers(-128, 128, (5, 17)).astype(np.int8),
        "SCB": rng.random(5, dtype=np.float32),
        "weight_format": np.zeros((), np.uint8),
    }
    check_round_trip("bitsandbytes", planes, {})
    # any number of columns may be stored, and the layout is one number of any shape
    harmless = ["weight cut", "weight empty", *(f"weight_format {what}" for what in ("missing", "axis", "cut"))]
    check_damage("bitsandbytes", planes, {}, harmless=harmless)
    with pytest.raises(subbyte.UnsupportedError, match="col_ampere"):
        subbyte.decode("bitsandbytes", {**planes, "weight_format": np.array(3, np.uint8)})


@pytest.mark.parametrize("nested", [False, True])
def test_malformed(nested):
    planes, params = layer(np.random.default_rng(0), "nf4", (6, 64), 64, nested)
    check_damage("bitsandbytes", planes, params)
    check_hostile_settings("bitsandbytes", planes, params["quantization_config"])
    state = json.loads(bytes(planes[f"{STATE}nf4"]))
    for key, value in [
        ("shape", [1 << 40, 1 << 40]), ("shape", [6, -64]), ("shape", "6"), ("shape", [6, 65]), ("blocksize", 48),
        ("blocksize", 1 << 80), ("quant_type", "fp4"), ("quant_type", "nf5"), ("dtype", "os.system"),
        ("nested_offset", 1e300), ("nested_blocksize", 0),
    ]:  # fmt: skip
        if nested or not key.startswith("nested_o"):
            spoiled = np.frombuffer(json.dumps({**state, key: value}).encode(), np.uint8)
            with pytest.raises(subbyte.Error):
                subbyte.decode("bitsandbytes", {**planes, f"{STATE}nf4": spoiled}, params=params)


def test_facts_that_contradict_each_other():
    planes, _ = layer(np.random.default_rng(0), "nf4", (6, 64), 64, False)
    with pytest.raises(subbyte.FormatError, match=r"says nf4.*says fp4"):
        subbyte.decode("bitsandbytes", planes, params={"quantization_config": {"bnb_4bit_quant_type": "fp4"}})
    eight = {"quantization_config": {"load_in_8bit": True, "load_in_4bit": False}}
    with pytest.raises(subbyte.FormatError, match=r"4 bits.*load_in_8bit"):
        subbyte.decode("bitsandbytes", planes, params=eight)


def test_names_of_gptqmodel(tmp_path):
    planes, params = layer(np.random.default_rng(0), "nf4", (6, 64), 64, True)
    renamed = {
        "weight_quant_state" if name.startswith(STATE) else name.replace("weight.", "weight_"): value
        for name, value in planes.items()
    }
    expected = subbyte.decode("bitsandbytes", planes, params=params)
    np.testing.assert_array_equal(subbyte.decode("bitsandbytes", renamed), expected)
    tensors = {f"model.k_proj.{name}": value for name, value in renamed.items()}
    tensors["model.q_proj.weight"] = np.zeros((2, 2), np.float16)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    with subbyte.open(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["model.k_proj.weight"].decode(), expected)
        assert checkpoint["model.q_proj.weight"].format == "f16"
        assert any("q_proj" in note for note in checkpoint.notes)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_of_decoded_values_stay(kind):
    rng = np.random.default_rng(5)
    planes, params = layer(rng, kind, (16, 64), 64, False, dtype="float32")
    planes["weight"][::32] = 0xF0 if kind == "nf4" else 0x30  # the largest magnitude in every block
    if kind == "fp4":  # both of its zeros have one value
        data = planes["weight"]
        data[data >> 4 == 8] &= 0x0F
        data[data & 15 == 8] &= 0xF0
    values = subbyte.decode("bitsandbytes", planes, params=params)
    again = subbyte.encode("bitsandbytes", values, params=params)
    for name, value in planes.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_int8_of_zeros_and_odd_shapes():
    config = {"quantization_config": {"load_in_8bit": True}}
    planes = subbyte.encode("bitsandbytes", np.zeros((2, 3), np.float32), params=config)
    np.testing.assert_array_equal(subbyte.decode("bitsandbytes", planes), np.zeros((2, 3)))
    with pytest.raises(subbyte.UnsupportedError):
        subbyte.encode("bitsandbytes", np.zeros(3, np.float32), params=config)
