"""GPTQ: every width, layout and zero-point convention, and what checkpoints say about themselves."""

from __future__ import annotations

import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip

import subbyte
from checkpoints import checkpoint
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.integer.gptq import BITS, Gptq, module_settings
from subbyte.forms.codes import pack

NAME = "model.layers.0.self_attn.q_proj"


def config(bits=4, group_size=32, **more):
    return {"bits": bits, "group_size": group_size, "desc_act": False, "sym": True, "checkpoint_format": "gptq"} | more


def layer(rng, bits, group_size=32, shape=(64, 96), *, layout="gptq", low=1, actorder=False, word_borrow=False):
    """Random planes and the codes, zeros and groups in them."""
    out, columns = shape
    order = "planar" if layout == "gptq_p" or bits in (5, 6, 7) else "stream"
    groups = -(-columns // group_size)
    codes = rng.integers(0, 1 << bits, shape).astype(np.uint8)
    zeros = rng.integers(low, 1 << bits, (groups, out))
    g_idx = np.arange(columns, dtype=np.int32) // group_size
    if actorder:
        rng.shuffle(g_idx)
    fields = zeros if layout != "gptq" or word_borrow else zeros - 1 & (1 << bits) - 1
    qzeros = pack(order, bits, fields.astype(np.uint8))
    if word_borrow:
        qzeros = qzeros - np.uint32(sum(1 << at for at in range(0, 32, bits)))
    scales = rng.uniform(0.001, 0.1, (groups, out)).astype(np.float16)
    planes = {
        "qweight": np.ascontiguousarray(pack(order, bits, codes).T).view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": scales,
        "g_idx": g_idx,
    }
    difference = codes.astype(np.int64) - zeros[g_idx].T
    return planes, (difference * scales[g_idx].T.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("actorder", [False, True])
@pytest.mark.parametrize(("shape", "group_size"), [((64, 96), 32), ((32, 160), 64), ((96, 64), -1)])
def test_random_layers(bits, layout, actorder, shape, group_size):
    rng = np.random.default_rng([bits, actorder, shape[1]])
    size = shape[1] if group_size == -1 else group_size
    low = 0 if layout != "gptq" else 1
    planes, values = layer(rng, bits, size, shape, layout=layout, low=low, actorder=actorder and size < shape[1])
    params = {"quantization_config": config(bits, group_size, sym=False, desc_act=actorder, checkpoint_format=layout)}
    form = check_round_trip("gptq", planes, params)
    assert np.array_equal(form.decode(), values)
    half = subbyte.decode("gptq", planes, params=params, dtype="float16")
    assert np.array_equal(half, values.astype(np.float16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zeros_of_words(bits):
    rng = np.random.default_rng(bits)
    planes, values = layer(rng, bits, low=0, word_borrow=bits != 3)
    params = {"quantization_config": config(bits, sym=False, meta={"quantizer": ["gptqmodel:7.3.4"]})}
    assert np.array_equal(check_round_trip("gptq", planes, params).decode(), values)


def test_zero_of_zero_is_not_written_where_readers_differ():
    planes, _ = layer(np.random.default_rng(0), 4, layout="gptq_v2", low=0)
    params = {"quantization_config": config(sym=False, checkpoint_format="gptq_v2")}
    form = Gptq().read(planes, params)
    with pytest.raises(UnsupportedError, match="zero point is 0"):
        Gptq().write(form, {"quantization_config": config(sym=False)})


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", [7, 8])
def test_symmetric_zeros_outweigh_the_label(label, stored):
    planes, _ = layer(np.random.default_rng(1), 4)
    planes["qzeros"] = np.full_like(planes["qzeros"], int(str(stored) * 8, 16) - (1 << 32 if stored == 8 else 0))
    form = Gptq().read(planes, {"quantization_config": config(checkpoint_format=label)})
    assert form.symmetric


@pytest.mark.parametrize(("out", "columns", "group_size"), [(256, 128, 128), (256, 256, 128), (512, 384, -1)])
def test_marlin(out, columns, group_size):
    rng = np.random.default_rng(columns)
    groups = 1 if group_size == -1 else columns // group_size
    planes = {
        "B": rng.integers(0, 1 << 32, (columns // 16, 2 * out), dtype=np.uint32).view(np.int32),
        "s": rng.uniform(0.001, 0.1, (groups, out)).astype(np.float16),
    }
    params = {"quantization_config": {"bits": 4, "group_size": group_size, "sym": True, "is_marlin_format": True}}
    check_round_trip("gptq", planes, params)
    check_damage("gptq", planes, params)


def test_damage():
    planes, _ = layer(np.random.default_rng(2), 4)
    check_damage("gptq", planes, {"quantization_config": config()}, harmless=("g_idx missing",))
    check_hostile_settings("gptq", planes, config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 64}, "which makes 2 groups of 96 columns; the scales have 3"),
        ({"format": "gptq_v2"}, "contradict each other: checkpoint_format is 'gptq', format is 'gptq_v2'"),
        ({"is_marlin_format": True}, "is_marlin_format is 'marlin'"),
        ({"checkpoint_format": "bitblas"}, "layout 'bitblas'"),
        ({"pack_dtype": "int16"}, "int16"),
        ({"group_size": 0}, "'group_size' is 0"),
    ],
)
def test_contradictions(changes, message):
    planes, _ = layer(np.random.default_rng(3), 4)
    with pytest.raises(subbyte.Error, match=message):
        subbyte.decode("gptq", planes, params={"quantization_config": config() | changes})


def test_group_out_of_range():
    planes, _ = layer(np.random.default_rng(3), 4)
    planes["g_idx"] = planes["g_idx"] + 1
    with pytest.raises(FormatError, match="g_idx"):
        subbyte.decode("gptq", planes, params={"quantization_config": config()})


def test_act_order_without_groups():
    planes, _ = layer(np.random.default_rng(3), 4)
    del planes["g_idx"]
    with pytest.raises(subbyte.Error, match="g_idx"):
        subbyte.decode("gptq", planes, params={"quantization_config": config(desc_act=True)})


@pytest.mark.parametrize(("packing", "layout"), [("auto_round:auto_gptq", "gptq"), ("auto_round", "gptq_v2")])
def test_auto_round(tmp_path, packing, layout):
    planes, values = layer(np.random.default_rng(4), 4, layout=layout)
    settings = {"quant_method": "auto-round", "packing_format": packing, "bits": 2, "group_size": 128, "sym": False}
    settings["extra_config"] = {NAME: {"bits": 4, "group_size": 32}}
    found = open_folder(tmp_path, planes, settings)
    assert np.array_equal(found[f"{NAME}.weight"].decode(), values)


def open_folder(path, planes, settings, dense=()):
    tensors = {f"{NAME}.{plane}": data for plane, data in planes.items()}
    tensors |= {name: np.zeros((4, 4), np.float32) for name in dense}
    return subbyte.open(checkpoint(path / "model", tensors, quantization_config=settings))


@pytest.mark.parametrize("bits", BITS)
def test_without_settings(tmp_path, bits):
    planes, values = layer(np.random.default_rng(5), bits, actorder=True)
    found = open_folder(tmp_path, planes, None)
    assert found.format == "gptq"
    assert np.array_equal(found[f"{NAME}.weight"].decode(), values)


def test_stale_settings_are_noted(tmp_path):
    planes, values = layer(np.random.default_rng(6), 4)
    settings = config(quant_method="gptq", sym=False, lm_head=True, dynamic={"-:.*q_proj$": {}})
    found = open_folder(tmp_path, planes, settings, dense=["lm_head.weight"])
    assert np.array_equal(found[f"{NAME}.weight"].decode(), values)
    assert any("lm_head" in note for note in found.notes)
    assert any("dynamic" in note for note in found.notes)
    assert any("zero points" in note for note in found.notes)


@pytest.mark.parametrize("missing", ["qzeros", "scales"])
def test_half_a_module(tmp_path, missing):
    planes, _ = layer(np.random.default_rng(7), 4)
    del planes[missing]
    with pytest.raises(FormatError, match=f"{NAME}.{missing}"):
        open_folder(tmp_path, planes, config(quant_method="gptq"))


def test_dynamic_takes_the_first_match():
    rules = {"-:model.visual.*": {}, "+:.*q_proj": {"bits": 8}, ".*proj": {"bits": 2}}
    assert module_settings({"bits": 4, "dynamic": rules}, NAME) == ({"bits": 8}, False)
    assert module_settings({"bits": 4, "dynamic": rules}, "a.k_proj") == ({"bits": 2}, False)
    assert module_settings({"bits": 4, "dynamic": rules}, "model.visual.0") == ({"bits": 4}, True)
    assert module_settings({"bits": 4, "dynamic": rules}, "a.norm") == ({"bits": 4}, False)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", ".*.*.*.*.*.*.*.*x", r"(a)\1", "("])
def test_hostile_patterns(pattern):
    with pytest.raises(subbyte.Error, match="pattern"):
        module_settings({"dynamic": {pattern: {}}}, "a" * 40)
