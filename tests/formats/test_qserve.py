"""QServe and QQQ: 4-bit weights for 8-bit activations."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import plane

RNG = np.random.default_rng(14)
SHAPES = [(32, 32), (64, 128), (96, 256), (128, 64)]


def integers(low, high, shape, dtype):
    return RNG.integers(low, high, shape).astype(dtype)


def qserve(rows, columns, groups):
    planes = {
        "qweight": integers(-128, 128, (rows, columns // 2), np.int8),
        "s1_scales": RNG.uniform(1e-3, 1, rows).astype(np.float16),
    }
    if groups is None:
        return planes | {"s1_szeros": RNG.normal(0, 1, rows).astype(np.float16)}
    both = {name: integers(-128, 128, (groups, rows), np.int8) for name in ("s2_scales", "s2_zeros")}
    return planes | both


def qqq(rows, columns, groups):
    return {
        "B": integers(-(2**31), 2**31, (columns // 16, 2 * rows), np.int32),
        "s_channel": RNG.uniform(1e-3, 1, (1, rows)).astype(np.float32),
        "s_group": RNG.uniform(0, 20, (groups, rows) if groups else (0,)).astype(np.float16),
    }


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_qserve_round_trip(rows, columns, groups):
    planes = qserve(rows, columns, groups)
    check_round_trip("qserve", planes, {})
    check_damage("qserve", planes, {})


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (128, 128), (64, 256), (192, 16)])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_qqq_round_trip(rows, columns, groups):
    planes = qqq(rows, columns, groups)
    check_round_trip("qqq", planes, {})
    # An empty plane of scales of groups says that there are none.
    check_damage("qqq", planes, {}, {"s_group empty"} if groups is None else ())


@pytest.mark.parametrize("id", ["qserve", "qqq"])
@pytest.mark.parametrize("groups", [None, 2])
def test_every_place_is_read_once(id, groups):
    """Bytes with a single nibble set to something else change a single weight."""
    make = qserve if id == "qserve" else qqq
    planes = make(64, 64, groups)
    name = "qweight" if id == "qserve" else "B"
    format = checkpoint_format(id)
    base = format.read(planes | {name: np.zeros_like(planes[name])}, {}).codes.unpack()
    assert len(np.unique(base)) == 1
    seen = np.zeros((64, 64), np.int64)
    for at in RNG.permutation(planes[name].nbytes * 2)[:200]:
        data = np.zeros(planes[name].nbytes, np.uint8)
        data[at // 2] = 5 << (4 * (at % 2))
        changed = {**planes, name: data.view(planes[name].dtype).reshape(planes[name].shape)}
        seen += format.read(changed, {}).codes.unpack() != base
    assert seen.max() == 1
    assert seen.sum() == 200


@pytest.mark.parametrize(("id", "config"), [("qserve", "config"), ("qqq", "quantization_config")])
@pytest.mark.parametrize("group_size", [-1, 32, 64])
def test_encoding_is_near(id, config, group_size):
    weight = RNG.normal(0, 0.02, (64, 128)).astype(np.float32)
    weight[5] = 0
    params = {config: {"group_size": group_size}}
    planes = subbyte.encode(id, weight, params=params)
    found = subbyte.decode(id, planes, params=params)
    assert np.linalg.norm(found - weight) < 0.15 * np.linalg.norm(weight)
    assert not found[5].any()
    with pytest.raises(subbyte.Error):
        subbyte.encode(id, weight[:, :40], params=params)
    with pytest.raises(subbyte.UnsupportedError):
        subbyte.encode(id, weight[0], params=params)


@pytest.mark.parametrize("id", ["qserve", "qqq"])
def test_first_level(id):
    planes = (qserve if id == "qserve" else qqq)(64, 64, 2)
    found = subbyte.decode(f"{id}.int8", planes)
    assert found.min() >= -128
    assert found.max() <= 127
    form = checkpoint_format(id).read(planes, {})
    scales = plane(form.row_scales).float32()
    np.testing.assert_array_equal(subbyte.decode(id, planes), found * scales)
    alone = (qserve if id == "qserve" else qqq)(64, 64, None)
    with pytest.raises(subbyte.UnsupportedError, match="first level"):
        subbyte.decode(f"{id}.int8", alone)
    with pytest.raises(subbyte.UnsupportedError):
        subbyte.encode(f"{id}.int8", found)


def test_settings():
    check_hostile_settings("qserve", qserve(32, 64, 2), {"w_bit": 4, "group_size": 32}, "config")
    check_hostile_settings("qqq", qqq(64, 64, 2), {"wbits": 4, "group_size": 32})
    for id, key, planes in (
        ("qserve", "config", qserve(32, 64, 2)),
        ("qserve", "config", qserve(32, 64, None)),
        ("qqq", "quantization_config", qqq(64, 64, 2)),
        ("qqq", "quantization_config", qqq(64, 64, None)),
    ):
        with pytest.raises(subbyte.FormatError, match="group_size"):
            subbyte.decode(id, planes, params={key: {"group_size": 16}})
    with pytest.raises(subbyte.FormatError, match="s1_szeros"):
        subbyte.decode("qserve", qserve(32, 64, 2) | qserve(32, 64, None))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_not_finite(value):
    for groups, name in ((2, "s_group"), (None, "s_channel")):
        planes = qqq(64, 64, groups)
        planes[name] = np.full_like(planes[name], value)
        with pytest.raises(subbyte.FormatError, match=name):
            subbyte.decode("qqq", planes)


def test_symmetric_rows_move_from_gptq_to_qqq():
    config = {"quantization_config": {"bits": 4, "group_size": -1, "sym": True}}
    weight = RNG.normal(0, 0.02, (64, 128)).astype(np.float32)
    form = checkpoint_format("gptq").read(subbyte.encode("gptq", weight, params=config), config)
    moved = checkpoint_format("qqq").write(form, {})
    np.testing.assert_array_equal(subbyte.decode("qqq", moved), form.decode())
    grouped = {"quantization_config": {"bits": 4, "group_size": 32, "sym": True}}
    form = checkpoint_format("gptq").read(subbyte.encode("gptq", weight, params=grouped), grouped)
    for id in ("qqq", "qserve"):
        with pytest.raises(subbyte.UnsupportedError):
            checkpoint_format(id).write(form, {})


@pytest.mark.parametrize("id", ["qserve", "qqq"])
def test_checkpoints_are_known_by_their_tensors(tmp_path, id):
    planes = (qserve if id == "qserve" else qqq)(64, 64, 2)
    tensors = {f"a.{name}": array for name, array in planes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors | {"norm.weight": np.ones(3, np.float32)})
    with subbyte.open(tmp_path / "model.safetensors") as found:
        assert found.format == id
        np.testing.assert_array_equal(found["a.weight"].decode(), subbyte.decode(id, planes))
