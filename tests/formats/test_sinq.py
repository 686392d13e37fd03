"""SINQ: random layers of every width, table and tiling, the side file, and the dual scales of the encoder."""

import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats.integer.sinq import NF3, SIDE_FILE
from subbyte.formats.table.bitsandbytes import NF4
from subbyte.io.safetensors import write_safetensors
from subbyte.quantize.sinkhorn import balance

PACKING = {1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 5: "5bit_32", 6: "6bit_32", 8: "8bit_u8"}
FIELDS = {1: 8, 2: 4, 3: 10, 4: 2, 5: 6, 6: 5, 8: 1}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def layer(
    rng, bits, shape, group, *, method="sinq_hf", dtype="float16", compute="bfloat16", auxiliary=False, tiled=False
):
    """Planes of a random layer, its side file's entry, and the codes of the grouped matrix."""
    rows, fields = shape[0] * shape[1] // group, FIELDS[bits]
    codes = rng.integers(0, 1 << bits, (rows, group))
    padded = np.zeros((-(-rows // fields) * fields, group), np.int64)
    padded[:rows] = codes
    slabs = padded.reshape(fields, -1, group)
    items = sum(slabs[field] << (bits * (fields - 1 - field)) for field in range(fields))
    planes = {"W_q": items.astype(np.int32 if PACKING[bits].endswith("32") else np.uint8)}
    tiles = rows // group
    flat = (tiles, group, 1) if tiled else (rows, 1)
    meta = {"nbits": bits, "group_size": group, "shape": list(shape), "awq_scale": None, "axis": 1,
            "packing": PACKING[bits], "method": method, "compute_dtype": f"torch.{compute}"}  # fmt: skip
    for name, columns in (("scale", rows // 32), ("zero", 1)):
        if auxiliary:
            planes[f"meta.{name}.x"] = rng.integers(0, 256, (rows // columns, columns), dtype=np.uint8)
            for part in "sm":
                planes[f"meta.{name}.{part}"] = rng.random((1, columns)).astype(np.float16)
            meta[f"{name}.shape"] = list(flat)
        else:
            planes[f"meta.{name}"] = rng.random(flat, dtype=np.float32).astype(DTYPES[dtype])
    second = (tiles, 1, group) if tiled else (1, shape[1])
    planes["meta.scale2"] = rng.random(second, dtype=np.float32).astype(DTYPES[dtype])
    return planes, {"meta": meta}, codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("bits", PACKING)
@pytest.mark.parametrize(
    ("shape", "group", "tiled"), [((32, 64), 16, False), ((32, 64), 16, True), ((64, 64), 64, False)]
)
def test_layers_come_back(bits, auxiliary, dtype, shape, group, tiled):
    options = {"auxiliary": auxiliary, "tiled": tiled, "dtype": dtype}
    planes, params, codes = layer(np.random.default_rng(bits), bits, shape, group, **options)
    form = check_round_trip("sinq", planes, params)
    np.testing.assert_array_equal(form.codes.unpack().reshape(codes.shape), codes)
    if auxiliary:
        return
    scale, zero, second = (planes[f"meta.{name}"].astype(np.float32) for name in ("scale", "zero", "scale2"))
    values = codes.reshape(shape).astype(np.float32)
    if tiled:
        expected = np.empty(shape, np.float32)
        for tile in range(len(scale)):
            down, across = divmod(tile, shape[1] // group)
            place = np.s_[down * group : (down + 1) * group, across * group : (across + 1) * group]
            expected[place] = ((values[place] - zero[tile]) * scale[tile]) * second[tile]
    else:
        expected = ((codes.astype(np.float32) - zero) * scale).reshape(shape) * second
    np.testing.assert_array_equal(subbyte.decode("sinq", planes, params=params), expected)


@pytest.mark.parametrize(("name", "table", "bits"), [("nf4", NF4, 4), ("nf3", NF3, 3)])
def test_tables(name, table, bits):
    planes, params, codes = layer(np.random.default_rng(1), bits, (32, 64), 16, method=f"sinq_{name}")
    check_round_trip("sinq", planes, params)
    scale, zero, second = (planes[f"meta.{part}"] for part in ("scale", "zero", "scale2"))
    expected = ((table.astype(np.float16)[codes] - zero) * scale).reshape(32, 64) * second
    np.testing.assert_array_equal(subbyte.decode("sinq", planes, params=params, dtype="float16"), expected)
    params["meta"]["nbits"] = 2
    with pytest.raises(subbyte.FormatError):
        subbyte.decode("sinq", planes, params=params)


def test_all_float16_rounds_after_every_step():
    planes, params, codes = layer(np.random.default_rng(2), 4, (32, 64), 16, compute="float16")
    scale, zero, second = (planes[f"meta.{part}"] for part in ("scale", "zero", "scale2"))
    expected = ((codes.astype(np.float16) - zero) * scale).reshape(32, 64) * second
    np.testing.assert_array_equal(subbyte.decode("sinq", planes, params=params, dtype="float16"), expected)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_malformed(auxiliary):
    planes, params, _ = layer(np.random.default_rng(0), 4, (32, 64), 16, auxiliary=auxiliary)
    check_damage("sinq", planes, params)
    check_hostile_settings("sinq", planes, params["meta"], key="meta")
    for key, value in [
        ("shape", [64, 64]), ("shape", [1 << 60, 1 << 60]), ("group_size", 0), ("packing", "7bit_u8"),
        ("awq_scale", [1.0]), ("axis", 0), ("compute_dtype", "torch.int8"), ("nbits", 7), ("nbits", 8),
        ("packing", "8bit_u8"), ("scale.shape", [1 << 40, 1]),
    ]:  # fmt: skip
        if auxiliary or key != "scale.shape":
            with pytest.raises(subbyte.Error):
                subbyte.decode("sinq", planes, params={"meta": {**params["meta"], key: value}})
    with pytest.raises(subbyte.ArgumentError, match="'meta'"):
        subbyte.decode("sinq", planes)


def folder(path, planes, side, **settings):
    (path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "sinq", **settings}}))
    if side is not None:
        (path / SIDE_FILE).write_text(json.dumps(side))
    write_safetensors(path / "model.safetensors", {f"model.v_proj.{name}": value for name, value in planes.items()})
    return path


def test_checkpoints(tmp_path):
    planes, params, _ = layer(np.random.default_rng(0), 4, (32, 64), 16, auxiliary=True)
    with subbyte.open(folder(tmp_path, planes, {"model.v_proj": params}, nbits=4)) as checkpoint:
        expected = subbyte.decode("sinq", planes, params=params)
        np.testing.assert_array_equal(checkpoint["model.v_proj.weight"].decode(), expected)


@pytest.mark.parametrize(
    ("side", "words"), [(None, "is missing"), ({}, "'meta'"), ({"model.v_proj": {"meta": 3}}, "JSON")]
)
def test_checkpoints_without_their_side_file_are_refused(tmp_path, side, words):
    planes, _, _ = layer(np.random.default_rng(0), 4, (32, 64), 16)
    with pytest.raises(subbyte.Error, match=words):
        subbyte.open(folder(tmp_path, planes, side))


def test_settings_that_contradict_the_side_file(tmp_path):
    planes, params, _ = layer(np.random.default_rng(0), 4, (32, 64), 16)
    with pytest.raises(subbyte.FormatError, match=r"says nbits 4, the settings 3"):
        subbyte.open(folder(tmp_path, planes, {"model.v_proj": params}, nbits=3))


METHODS = [(bits, f"sinq_{name}") for bits in (2, 3, 4, 5, 6, 8) for name in ("hf", "quantAux", "2d", "2d_quantAux")]


@pytest.mark.parametrize(("bits", "method"), [*METHODS, (4, "sinq_nf4"), (3, "sinq_nf3_quantAux")])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_dual_scales_beat_scales_of_groups_alone(bits, method, size):
    rng = np.random.default_rng(3)
    weight = size * rng.standard_normal((64, 128)) * rng.lognormal(0, 0.7, 128)  # columns of unlike size
    weight = weight.astype(np.float32)
    planes = subbyte.encode("sinq", weight, params={"nbits": bits, "group_size": 64, "method": method})
    check_round_trip("sinq", planes, planes.config)
    ours = np.linalg.norm(subbyte.decode("sinq", planes, params=planes.config) - weight)
    plain = subbyte.encode(
        "hqq", weight, params={"nbits": bits, "group_size": 64, "optimize": False, "round_zero": False}
    )
    assert ours < 0.9 * np.linalg.norm(subbyte.decode("hqq", plain) - weight)


def test_odd_weights_are_encoded():
    for weight in (np.zeros((32, 64)), np.full((32, 64), 0.5), np.eye(32, 64)):
        planes = subbyte.encode("sinq", weight.astype(np.float32), params={"group_size": 32})
        np.testing.assert_allclose(subbyte.decode("sinq", planes, params=planes.config), weight, atol=0.04)
    with pytest.raises(subbyte.NonFiniteError, match="too large"):
        subbyte.encode("sinq", np.array([[3e38, -3e38] * 32] * 2, np.float32), params={"group_size": 64})
    for params in ({"group_size": 48}, {"group_size": 64, "tiling_mode": "2D"}):
        with pytest.raises(subbyte.UnsupportedError, match="do not divide"):
            subbyte.encode("sinq", np.zeros((32, 64), np.float32), params=params)


def test_balance_makes_deviations_alike():
    rng = np.random.default_rng(9)
    tile = rng.standard_normal((40, 24)) * rng.lognormal(0, 1, (40, 1)) * rng.lognormal(0, 1, (1, 24))
    of_rows, of_columns = balance(tile.astype(np.float32), steps=24)
    normal = tile / of_rows / of_columns

    def imbalance(values):
        deviations = np.concatenate([values.std(axis=0), values.std(axis=1)])
        return deviations.max() / deviations.min()

    assert imbalance(normal) < imbalance(tile) / 5
