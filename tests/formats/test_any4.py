"""any4: a table of values for every row."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import FLOATS, float_plane, rounded

RNG = np.random.default_rng(16)


def layer(rows, columns, groups, bits, kind, name, zeros=True, shared=False):
    codes = RNG.integers(0, 1 << bits, (rows, columns))
    both = RNG.normal(0, 0.1, (groups, rows, 2)).astype(np.float32)
    both[..., 1] = both[..., 1] if zeros else 0
    table = RNG.uniform(0, 15, (1 << bits,) if shared else (rows, 1 << bits)).astype(np.float32)
    return {
        name: codes.astype(np.int32 if name == "weight" else np.int8),
        "lut": float_plane(table, kind),
        "scales_and_zeros": float_plane(both, kind),
    }


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("name", ["weight", "assign"])
@pytest.mark.parametrize("scale_only", [False, True])
@pytest.mark.parametrize(("columns", "size"), [(128, 64), (70, 32), (5, 5)])
def test_round_trip(bits, kind, name, scale_only, columns, size):
    groups = -(-columns // size)
    planes = layer(6, columns, groups, bits, kind, name, not scale_only)
    settings = {"n_bit": bits, "group_size": size, "scale_only": scale_only}
    params = {"meta": settings} if name == "weight" else {**settings, "bits": bits}
    check_round_trip("any4", planes, params)
    check_damage("any4", planes, params, {f"{name} cut"})  # a shorter last group
    tables, both = planes["lut"].float32(), planes["scales_and_zeros"].float32()
    if name == "assign" and not scale_only:
        tables = rounded(tables - np.float32(2 ** (bits - 1)), kind)
    entries = np.take_along_axis(tables, planes[name].astype(np.int64), axis=1)
    scales, zeros = (np.repeat(both[..., at].T, size, axis=1)[:, :columns] for at in range(2))
    want = rounded(rounded(entries * scales, kind) + zeros, kind)
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    found = subbyte.decode("any4", planes, params=params, dtype=dtype)
    np.testing.assert_array_equal(found.astype(np.float32), want)


def test_one_table_for_all_rows():
    planes = layer(6, 32, 2, 4, "F32", "weight", shared=True)
    check_round_trip("any4", planes, {})


def test_contradictions_are_refused():
    planes = layer(6, 32, 2, 4, "F32", "weight")
    check_hostile_settings("any4", planes, {"n_bit": 4, "group_size": 16, "scale_only": False}, "meta")
    for params, message in (
        ({"bits": 3}, "'bits' is 3"),
        ({"group_size": 8}, "group_size"),
        ({"scale_only": True}, "zeros other than 0"),
    ):
        with pytest.raises(subbyte.FormatError, match=message):
            subbyte.decode("any4", planes, params=params)
    for code in (-1, 16, 2**31 - 1):
        bad = planes["weight"].copy()
        bad[2, 3] = code
        with pytest.raises(subbyte.FormatError, match="out of the range"):
            subbyte.decode("any4", planes | {"weight": bad})


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("params", [{"scale_only": True}, {"scale_only": False}, {"meta": {}}])
def test_learned_tables_are_better_than_even_ones(bits, params):
    weight = RNG.standard_t(4, (8, 256)).astype(np.float32)
    settings = {"bits": bits, "group_size": 64}
    params = {"meta": settings} if "meta" in params else settings | params
    planes = dict(subbyte.encode("any4", weight, params=params))
    found = subbyte.decode("any4", planes, params=params)
    low, high = (f(weight.reshape(8, 4, 64), axis=2, keepdims=True) for f in (np.min, np.max))
    step = (high - low) / (2**bits - 1)
    even = (np.rint((weight.reshape(8, 4, 64) - low) / step) * step + low).reshape(8, 256)
    assert np.linalg.norm(found - weight) < np.linalg.norm(even - weight)


def test_important_columns_are_nearer():
    weight = RNG.normal(0, 1, (8, 256)).astype(np.float32)
    importance = np.where(np.arange(256) < 32, 100, 0.01).astype(np.float32)
    params = {"bits": 4, "group_size": 256}
    errors = []
    for weights in (None, importance):
        found = subbyte.decode("any4", subbyte.encode("any4", weight, params=params, importance=weights), params=params)
        errors.append(np.linalg.norm((found - weight)[:, :32]))
    assert errors[1] < errors[0]


def test_checkpoint(tmp_path):
    planes = layer(6, 32, 2, 4, "F32", "weight")
    tensors = {f"a.{name}": np.asarray(getattr(plane, "data", plane)) for name, plane in planes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors | {"norm.weight": np.ones(3, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with subbyte.open(tmp_path) as found:
        assert found.format == "any4"
        np.testing.assert_array_equal(found["a.weight"].decode(), subbyte.decode("any4", planes))


def test_what_cannot_be_written():
    form = checkpoint_format("any4").read(layer(6, 32, 2, 4, "F32", "assign"), {})
    with pytest.raises(subbyte.UnsupportedError):
        checkpoint_format("llm-fp4").write(form, {"config": {"w_bit": 4, "w_exponent_bit": 2, "w_mantissa_bit": 1}})
