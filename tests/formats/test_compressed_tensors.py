"""compressed-tensors: every format, strategy and width, the groups of the settings, and what checkpoints say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from common import check_damage, check_hostile_settings, check_round_trip, same_planes

import subbyte
from checkpoints import checkpoint
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.compressed_tensors import CompressedTensors
from subbyte.formats.compressed_tensors.scheme import group_of, ignored, schemes
from subbyte.forms import Affine, PackedCodes
from subbyte.forms.codes import pack
from subbyte.planes import Plane, float8_values

ID = "compressed-tensors"
NAME = "model.layers.0.mlp.up_proj"
INT = {"type": "int", "num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32}
FLOAT = {"type": "float", "num_bits": 8, "symmetric": True}
FP8 = FLOAT | {"strategy": "channel"}
BLOCKS = [
    ("nvfp4-pack-quantized", FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    ("mxfp4-pack-quantized", FLOAT | {"num_bits": 4, "strategy": "group", "group_size": 32}),
    ("mxfp6-pack-quantized", FLOAT | {"num_bits": 6, "strategy": "group", "group_size": 32}),
    ("mxfp8-quantized", FLOAT | {"strategy": "group", "group_size": 32}),
]


def config(format, weights, version="0.20.0", **more):
    group = {"targets": ["Linear"], "weights": weights, "format": format}
    return {"format": format, "version": version, "ignore": ["lm_head"], "config_groups": {"group_0": group}} | more


def params(*arguments, **more):
    return {"quantization_config": config(*arguments, **more)}


def integer_form(rng, shape, bits, step, *, symmetric, kind=np.float16, group_of=None):
    """A random weight in blocks of ``step``."""
    rows = int(np.prod(shape[:-1]))
    codes = rng.integers(0, 1 << bits, (rows, shape[-1])).astype(np.uint8)
    groups = -(-shape[-1] // step[1])
    down = -(-shape[-2] // step[0])
    scales = rng.uniform(0.001, 0.1, (*shape[:-2], down, groups)).astype(kind)
    zeros = rng.integers(0, 1 << bits, scales.shape).astype(np.int16)
    spread = [np.repeat(p, step[0], axis=-2)[..., : shape[-2], :].reshape(rows, groups) for p in (scales, zeros)]
    packed = PackedCodes(pack("stream", bits, codes), bits, codes.shape)
    plane = Plane(spread[0], {"float16": "F16", "float32": "F32"}[np.dtype(kind).name])
    return Affine(shape, packed, plane, 1 << (bits - 1) if symmetric else spread[1], step[1], group_of)


STRATEGIES = [
    ({"strategy": "tensor"}, lambda shape: shape[-2:]),
    ({"strategy": "channel"}, lambda shape: (1, shape[-1])),
    ({"strategy": "group", "group_size": 32}, lambda shape: (1, 32)),
    ({"strategy": "block", "block_structure": "16x32"}, lambda shape: (16, 32)),
]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("version", ["0.17.2", "0.18.0"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(40, 96), (7, 64), (2, 24, 32)])
@pytest.mark.parametrize("strategy", range(len(STRATEGIES)))
def test_packed_integers(bits, version, symmetric, shape, strategy):
    rng = np.random.default_rng([bits, *shape])
    changes, step = STRATEGIES[strategy]
    weights = {"type": "int", "num_bits": bits, "symmetric": symmetric} | changes
    form = integer_form(rng, shape, bits, step(shape), symmetric=symmetric)
    planes = CompressedTensors().write(form, params("pack-quantized", weights, version))
    found = check_round_trip(ID, planes, params("pack-quantized", weights, version))
    assert np.array_equal(found.decode(), form.decode())
    assert np.array_equal(found.codes.unpack(), form.codes.unpack())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("columns", [50, 53, 77])
def test_ragged_columns(bits, columns):
    """The width tells the packing where it differs, the version where it does not."""
    weights = {"type": "int", "num_bits": bits, "symmetric": False, "strategy": "channel"}
    form = integer_form(np.random.default_rng(bits), (19, columns), bits, (1, columns), symmetric=False)
    for version in ("0.12.2", "0.20.0"):
        planes = CompressedTensors().write(form, params("pack-quantized", weights, version))
        found = check_round_trip(ID, planes, params("pack-quantized", weights, version))
        assert np.array_equal(found.decode(), form.decode())


@pytest.mark.parametrize("format", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", range(len(STRATEGIES)))
def test_whole_integers(format, bits, symmetric, strategy):
    shape = (40, 96)
    changes, step = STRATEGIES[strategy]
    weights = {"type": "int", "num_bits": bits, "symmetric": symmetric} | changes
    form = integer_form(np.random.default_rng(bits), shape, bits, step(shape), symmetric=symmetric, kind=np.float32)
    planes = CompressedTensors().write(form, params(format, weights))
    assert planes["weight"].kind == "I8"
    assert np.array_equal(check_round_trip(ID, planes, params(format, weights)).decode(), form.decode())


def test_act_order():
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.arange(96) // 32).astype(np.int32)
    form = integer_form(rng, (24, 96), 4, (1, 32), symmetric=True, group_of=groups)
    known = params("pack-quantized", INT | {"actorder": "group"}, "0.12.2")
    planes = CompressedTensors().write(form, known)
    assert np.array_equal(check_round_trip(ID, planes, known).decode(), form.decode())
    with pytest.raises(UnsupportedError, match="actorder"):
        CompressedTensors().write(form, params("pack-quantized", INT))
    with pytest.raises(FormatError, match="weight_g_idx"):
        subbyte.decode(ID, {n: p for n, p in planes.items() if n != "weight_g_idx"}, params=known)
    unused = planes | {"weight_g_idx": Plane(np.full(96, -1, np.int32), "I32")}
    in_order = Affine(form.shape, form.codes, form.scales, form.zeros, 32)
    assert np.array_equal(subbyte.decode(ID, unused, params=known), in_order.decode())


def test_zero_points_of_old_versions():
    """Bytes that are not packed."""
    weights = INT | {"symmetric": False}
    form = integer_form(np.random.default_rng(2), (24, 96), 4, (1, 32), symmetric=False)
    planes = CompressedTensors().write(form, params("pack-quantized", weights))
    old = planes | {"weight_zero_point": Plane((form.zeros - 8).astype(np.int8), "I8")}
    assert np.array_equal(subbyte.decode(ID, old, params=params("pack-quantized", weights)), form.decode())
    with pytest.raises(FormatError, match="symmetric"):
        subbyte.decode(ID, old, params=params("pack-quantized", INT))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("strategy", range(len(STRATEGIES)))
@pytest.mark.parametrize("shape", [(40, 96), (3, 24, 64)])
def test_fp8(kind, strategy, shape):
    rng = np.random.default_rng([strategy, *shape])
    changes, step = STRATEGIES[strategy]
    rows, columns = step(shape)
    grid = (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))
    scales = rng.integers(1 << 10, 1 << 14, grid).astype(np.uint16)
    stored = {"F32": scales.astype(np.float32), "F16": scales.view(np.float16), "BF16": scales}[kind]
    planes = {
        "weight": Plane(rng.integers(0, 256, shape).astype(np.uint8), "F8_E4M3"),
        "weight_scale": Plane(stored.reshape(-1) if stored.size == 1 else stored, kind),
    }
    known = params("float-quantized", FLOAT | changes)
    found = check_round_trip(ID, planes, known)
    full = np.repeat(np.repeat(Plane(stored, kind).float32(), rows, -2), columns, -1)[..., : shape[-2], : shape[-1]]
    with np.errstate(all="ignore"):
        expected = float8_values("F8_E4M3")[planes["weight"].data] * full
    assert np.array_equal(found.decode(), expected, equal_nan=True)
    check_round_trip(ID, planes, params("naive-quantized", FLOAT | changes))


@pytest.mark.parametrize(("format", "weights"), BLOCKS)
@pytest.mark.parametrize("shape", [(24, 96), (3, 8, 64)])
def test_blocks(format, weights, shape):
    rng = np.random.default_rng(len(format))
    nvidia = format.startswith("nv")
    block = weights["group_size"]
    data = rng.integers(0, 256, (*shape[:-1], shape[-1] * weights["num_bits"] // 8)).astype(np.uint8)
    scales = rng.integers(0, 127 if nvidia else 255, (*shape[:-1], shape[-1] // block)).astype(np.uint8)
    planes = {
        "weight" if weights["num_bits"] == 8 else "weight_packed": Plane(
            data, "F8_E4M3" if weights["num_bits"] == 8 else "U8"
        ),
        "weight_scale": Plane(scales, "F8_E4M3" if nvidia else "U8"),
    }
    if nvidia:
        divisors = rng.uniform(100, 1000, shape[0] if len(shape) == 3 else 1).astype(np.float32)
        planes["weight_global_scale"] = Plane(divisors, "F32")
    found = check_round_trip(ID, planes, params(format, weights))
    assert found.shape == shape
    if nvidia and len(shape) == 3:
        one = {name: Plane(plane.data[1:2].reshape(plane.shape[1:] or 1), plane.kind) for name, plane in planes.items()}
        assert np.array_equal(found.decode()[1], subbyte.decode(ID, one, params=params(format, weights)))
    if len(shape) == 2:
        check_damage(
            ID, planes, params(format, weights), harmless=("weight_global_scale cut", "weight_global_scale axis")
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("format", "weights"),
    [*BLOCKS, ("float-quantized", FP8), ("pack-quantized", INT), ("int-quantized", INT | {"symmetric": False})],
)
def test_encoding_is_close_and_keeps_zeros(dtype, format, weights):
    rng = np.random.default_rng(7)
    values = rng.standard_normal((16, 64)).astype(dtype)
    values[3] = 0
    encoded = subbyte.encode(ID, values, params=params(format, weights))
    again = subbyte.decode(ID, encoded, params=params(format, weights))
    assert not again[3].any()
    close = {4: 0.2, 6: 0.06, 8: 0.05}[weights["num_bits"]]
    error = np.linalg.norm(again - values.astype(np.float32)) / np.linalg.norm(values.astype(np.float32))
    assert error < close


@pytest.mark.parametrize(("format", "weights"), [*BLOCKS, ("pack-quantized", INT | {"symmetric": False})])
def test_encoding_zeros(format, weights):
    encoded = subbyte.encode(ID, np.zeros((4, 64), np.float16), params=params(format, weights))
    assert not subbyte.decode(ID, encoded, params=params(format, weights)).any()
    if "weight_zero_point" in encoded:
        assert (encoded["weight_packed"].view(np.uint32) == 0x88888888).all()


@pytest.mark.parametrize("format", ["sparse-bitmask", "sparse-24-bitmask"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_sparse(format, dtype):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((12, 72)).astype(dtype)
    values.reshape(-1, 4)[:, rng.permutation(4)[:2]] = 0
    values[2] = 0
    known = {"sparsity_config": {"format": format}}
    planes = subbyte.encode(ID, values, params=known)
    decoded = subbyte.decode(ID, planes, params=known)
    assert np.array_equal(decoded, values.astype(np.float32))
    check_round_trip(ID, dict(planes), known)
    check_damage(ID, dict(planes), known)
    flipped = dict(planes)
    mask = next(name for name in flipped if name.endswith("bitmask"))
    flipped[mask] = flipped[mask] ^ np.uint8(1)
    with pytest.raises(FormatError, match="bitmask"):
        subbyte.decode(ID, flipped, params=known)


def test_sparse_fp8():
    rng = np.random.default_rng(3)
    weight = np.where(rng.random((16, 40)) < 0.5, rng.integers(1, 127, (16, 40)), 0).astype(np.uint8)
    mask = weight != 0
    counts = mask.sum(1)
    planes = {
        "weight.shape": np.array([16, 40]),
        "weight.compressed": Plane(weight[mask], "F8_E4M3"),
        "weight.bitmask": np.packbits(mask, axis=1, bitorder="little"),
        "weight.row_offsets": np.cumsum(counts) - counts,
        "weight_scale": np.full((16, 1), 0.5, np.float32),
    }
    found = subbyte.decode(
        ID, planes, params=params("float-quantized", FP8, sparsity_config={"format": "sparse-bitmask"})
    )
    assert np.array_equal(found, float8_values("F8_E4M3")[weight] * np.float32(0.5))


def test_matrices_that_are_not_sparse():
    with pytest.raises(UnsupportedError, match="2:4"):
        subbyte.encode(ID, np.ones((4, 8), np.float32), params={"sparsity_config": {"format": "sparse-24-bitmask"}})


def layer(rng=None):
    form = integer_form(rng or np.random.default_rng(5), (24, 96), 4, (1, 32), symmetric=False)
    return form, CompressedTensors().write(form, params("pack-quantized", INT | {"symmetric": False}))


def test_damage():
    _, planes = layer()
    check_damage(ID, planes, params("pack-quantized", INT | {"symmetric": False}))
    check_hostile_settings(ID, planes, config("pack-quantized", INT | {"symmetric": False}))


@pytest.mark.parametrize("shape", [[24], [24, 10**18], [-24, 96], [24, 0], [24, 96, 1], [25, 96], [24, 97]])
def test_hostile_shapes(shape):
    _, planes = layer()
    with pytest.raises(subbyte.Error, match=r"weight_shape|weight_packed"):
        subbyte.decode(
            ID, planes | {"weight_shape": np.array(shape)}, params=params("pack-quantized", INT | {"symmetric": False})
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ({"sparsity_config": {"format": "marlin-24"}}, "marlin-24"),
        ({"config_groups": {"g": {"weights": INT, "format": "float-quantized"}}}, "floats of 8 bits.*integers"),
        ({"config_groups": {"g": {"weights": FP8, "format": "pack-quantized"}}}, "holds integers.*'float'"),
        ({"config_groups": {"g": {"weights": INT | {"group_size": 40}}}}, "no whole groups"),
        ({"config_groups": {"g": {"weights": INT | {"strategy": "token"}}}}, "token"),
        ({"config_groups": {"g": {"weights": INT | {"strategy": "block"}}}}, "block_structure"),
        ({"config_groups": {"g": {"weights": INT | {"num_bits": 9}}}}, "'num_bits' is 9"),
        ({"config_groups": {}}, "0 groups"),
        ({"config_groups": {"NOPE": ["Linear"]}}, "'NOPE'"),
    ],
)
def test_contradictions(changes, message):
    _, planes = layer()
    with pytest.raises(subbyte.Error, match=message):
        subbyte.decode(ID, planes, params=params("pack-quantized", INT, **changes))


def test_presets_and_matching():
    groups = schemes(
        {"config_groups": {
            "FP8_BLOCK": ["re:.*self_attn.*"],
            "W4A16": ["Linear"],
            "exact": {"targets": ["model.layers.0.self_attn.q_proj"], "weights": INT, "format": "pack-quantized"},
            "acts": {"targets": ["Linear"], "input_activations": {}},
        }}
    )  # fmt: skip
    assert list(groups) == ["FP8_BLOCK", "W4A16", "exact"]
    assert groups["FP8_BLOCK"][0].block == (128, 128)
    assert groups["W4A16"][0].group_size == 128
    assert list(schemes({"config_groups": {"unquantized": ["lm_head"], "W8A16": ["Linear"]}})) == ["W8A16"]
    assert group_of("model.layers.0.self_attn.q_proj", groups) == "exact"
    assert group_of("model.layers.1.self_attn.q_proj", groups) == "FP8_BLOCK"
    assert group_of("model.layers.1.mlp.up_proj", groups) == "W4A16"
    assert group_of("model.embed_tokens", groups) is None
    assert ignored({"ignore": ["lm_head", "re:.*gate$"]}, "model.layers.0.mlp.gate")
    assert not ignored({"ignore": ["lm_head", "Linear"]}, "model.layers.0.mlp.up_proj")


def test_group_by_planes():
    form, planes = layer()
    two = config("mixed-precision", INT)
    two["config_groups"] = {
        "a": {"targets": ["re:.*self_attn.*"], "weights": FP8, "format": "float-quantized"},
        "b": {"targets": ["Linear"], "weights": INT | {"symmetric": False}, "format": "pack-quantized"},
    }
    assert np.array_equal(subbyte.decode(ID, planes, params={"quantization_config": two}), form.decode())
    two["config_groups"]["c"] = {"targets": ["x"], "weights": INT | {"num_bits": 8}, "format": "pack-quantized"}
    with pytest.raises(ArgumentError, match="'group'"):
        subbyte.decode(ID, planes, params={"quantization_config": two})
    named = {"quantization_config": two, "group": "b"}
    assert np.array_equal(subbyte.decode(ID, planes, params=named), form.decode())


def open_folder(path, tensors, settings):
    stored = {name: plane.array() if isinstance(plane, Plane) else plane for name, plane in tensors.items()}
    return subbyte.open(checkpoint(path / "model", stored, quantization_config=settings))


def test_checkpoint_of_groups(tmp_path):
    rng = np.random.default_rng(6)
    form, planes = layer(rng)
    weight = rng.integers(0, 120, (16, 24)).astype(np.uint8)
    tensors = {f"{NAME}.{plane}": data for plane, data in planes.items()}
    tensors |= {
        "model.layers.0.self_attn.q_proj.weight": Plane(weight, "F8_E4M3"),
        "model.layers.0.self_attn.q_proj.weight_scale": np.ones((16, 1), np.float32),
        "model.layers.0.mlp.gate_proj.weight": np.ones((4, 4), np.float32),
        "lm_head.weight": np.ones((4, 4), np.float32),
    }
    settings = config("mixed-precision", INT, quant_method=ID, ignore=["lm_head", NAME])
    settings["config_groups"] = {
        "a": {"targets": ["re:.*self_attn.*"], "weights": FP8, "format": "float-quantized"},
        "b": {"targets": ["Linear"], "weights": INT | {"symmetric": False}, "format": "pack-quantized"},
    }
    found = open_folder(tmp_path, tensors, settings)
    assert found.format == ID
    assert np.array_equal(found[f"{NAME}.weight"].decode(), form.decode())
    assert np.array_equal(found["model.layers.0.self_attn.q_proj.weight"].decode(), float8_values("F8_E4M3")[weight])
    assert any("'ignore'" in note and NAME in note for note in found.notes)
    assert any("dense" in note and "gate_proj" in note for note in found.notes)


@pytest.mark.parametrize("missing", ["weight_scale"])
def test_half_a_module(tmp_path, missing):
    _, planes = layer()
    tensors = {f"{NAME}.{plane}": data for plane, data in planes.items() if plane != missing}
    with pytest.raises(FormatError, match=f"{NAME}.{missing}"):
        open_folder(tmp_path, tensors, config("pack-quantized", INT, quant_method=ID))


@pytest.mark.parametrize("shape", [(24, 96), (19, 50)])
def test_packed_without_settings(tmp_path, shape):
    step = (1, 32 if shape[1] == 96 else 50)
    form = integer_form(np.random.default_rng(5), shape, 4, step, symmetric=False)
    weights = INT | {"symmetric": False} | ({"strategy": "channel"} if step[1] == 50 else {})
    planes = CompressedTensors().write(form, params("pack-quantized", weights))
    found = open_folder(tmp_path, {f"{NAME}.{plane}": data for plane, data in planes.items()}, None)
    assert np.array_equal(found[f"{NAME}.weight"].decode(), form.decode())


@pytest.mark.parametrize(("format", "weights"), BLOCKS[:3])
def test_blocks_without_settings(tmp_path, format, weights):
    values = np.random.default_rng(8).standard_normal((8, 64)).astype(np.float32)
    planes = subbyte.encode(ID, values, params=params(format, weights))
    found = open_folder(tmp_path, {f"{NAME}.{plane}": data for plane, data in planes.items()}, None)
    expected = subbyte.decode(ID, planes, params=params(format, weights))
    assert np.array_equal(found[f"{NAME}.weight"].decode(), expected)


def test_tensor_scales_without_axes():
    """A scale of the whole tensor is stored as [] or [1]."""
    weight = Plane(np.arange(64, dtype=np.uint8).reshape(4, 16), "F8_E4M3")
    known = params("float-quantized", FLOAT | {"strategy": "tensor"})
    one, none = (
        CompressedTensors().read({"weight": weight, "weight_scale": np.full(shape, 0.5, np.float32)}, known)
        for shape in ((1,), ())
    )
    assert np.array_equal(one.decode(), none.decode())
    same_planes(CompressedTensors().write(none, known), CompressedTensors().write(one, known))
