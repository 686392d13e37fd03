"""SVDQuant as Nunchaku loads it."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip, same_planes
from subbyte.formats import checkpoint_format
from subbyte.forms import LowRank
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.planes import Plane, float_plane

RNG = np.random.default_rng(25)


def halves(shape, kind="BF16"):
    return float_plane(RNG.uniform(0.5, 2, shape).astype(np.float32), kind)


def int4(rows, columns, kind="BF16"):
    return {
        "qweight": RNG.integers(-128, 128, (rows, columns // 2)).astype(np.int8),
        "wscales": halves((columns // 64, rows), kind),
    }


def fp4(rows, columns, kind="F8_E4M3"):
    scales = RNG.integers(0, 127, (columns // 16, rows)).astype(np.uint8)
    return int4(rows, columns) | {"wscales": Plane(scales, kind), "wtscale": halves((1,))}


def beside(rows, columns, rank, naming="lora"):
    names = ("smooth", "lora_down", "lora_up") if naming == "lora" else ("smooth_factor", "proj_down", "proj_up")
    return dict(zip(names, (halves(columns), halves((columns, rank)), halves((rows, rank))), strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (256, 384), (128, 256)])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_integers(rows, columns, kind):
    planes = int4(rows, columns, kind)
    check_round_trip("nunchaku", planes, {"element": "int4", "group_size": 64})
    check_damage("nunchaku", planes, {})


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (256, 384)])
@pytest.mark.parametrize("kind", ["F8_E4M3", "U8"])
def test_small_floats(rows, columns, kind):
    planes = fp4(rows, columns, kind)
    check_round_trip("nunchaku", planes, {"element": "fp4_e2m1"})
    check_damage("nunchaku", planes, {}, {"wtscale missing"})
    planes["wcscales"] = halves(rows)
    form = check_round_trip("nunchaku", planes, {})
    scales = subbyte.decode("nunchaku.bias", {"bias": planes["wcscales"]})
    alone = subbyte.decode("nunchaku", {name: planes[name] for name in ("qweight", "wscales", "wtscale")})
    np.testing.assert_array_equal(form.decode(), alone * scales[:, None])


@pytest.mark.parametrize("naming", ["lora", "proj"])
@pytest.mark.parametrize("make", [int4, fp4])
def test_the_whole_weight(naming, make):
    extra = beside(128, 256, 32, naming)
    planes = make(128, 256) | extra
    form = check_round_trip("nunchaku", planes, {"naming": naming})
    assert isinstance(form, LowRank)
    check_damage("nunchaku", planes, {}, {"wtscale missing", f"{next(iter(extra))} missing"})
    smooth, down, up = (
        subbyte.decode(f"nunchaku.{name}", {name: plane})
        for name, plane in zip(("smooth", "lora_down", "lora_up"), extra.values(), strict=True)
    )
    want = form.inner.decode().astype(np.float64) / smooth + up.astype(np.float64) @ down
    np.testing.assert_allclose(form.decode(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "group"), [(64, 256, 64), (8, 64, 64), (4, 128, 128), (12, 2048, 64)])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_modulation(rows, columns, group, kind):
    weight = RNG.normal(0, 1, (rows, columns)).astype(np.float32)
    weight = float_plane(weight, kind).array()
    params = {"layout": "W4A16", "group_size": group}
    planes = dict(subbyte.encode("nunchaku", weight, params=params))
    check_round_trip("nunchaku", planes, params)
    check_damage("nunchaku", planes, params)
    found = subbyte.decode("nunchaku", planes, params=params)
    assert np.linalg.norm(found - weight.astype(np.float32)) < 0.15 * np.linalg.norm(weight.astype(np.float32))
    for changed in ({"out_features": rows + 4}, {"group_size": 0}, {"group_size": 1}, {"in_features": "x"}):
        with pytest.raises(subbyte.Error):
            subbyte.decode("nunchaku", planes, params=params | changed)


@pytest.mark.parametrize("element", ["int4", "fp4_e2m1"])
@pytest.mark.parametrize(("rows", "columns"), [(100, 128), (1, 5), (130, 200)])
def test_encoding_pads(element, rows, columns):
    weight = RNG.normal(0, 0.02, (rows, columns)).astype(np.float32)
    params = {"element": element, "out_features": rows, "in_features": columns}
    planes = dict(subbyte.encode("nunchaku", weight, params=params))
    assert planes["qweight"].shape == (-(-rows // 128) * 128, -(-columns // 128) * 64)
    check_round_trip("nunchaku", planes, params)
    found = subbyte.decode("nunchaku", planes, params=params)
    assert np.linalg.norm(found - weight) < 0.15 * np.linalg.norm(weight)


@pytest.mark.parametrize("name", ["bias", "smooth", "lora_down", "lora_up"])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_tensors_beside_the_weight(name, kind):
    shape = {"lora_down": (32, 200), "lora_up": (200, 32)}.get(name, (200,))
    params = {"in_features": 200, "out_features": 200}
    tensor = halves(shape, kind)
    planes = dict(subbyte.encode(f"nunchaku.{name}", tensor.array(), params=params))
    form = checkpoint_format(f"nunchaku.{name}").read(planes, params)
    same_planes(checkpoint_format(f"nunchaku.{name}").write(form, params), planes)
    np.testing.assert_array_equal(form.decode(), tensor.float32())
    check_damage(f"nunchaku.{name}", planes, params)


def test_golden_layers_are_written_as_they_were(root):
    folder = root / "tests" / "golden" / "nunchaku_svdquant"
    for name, kinds in (
        ("int4_100x128_g64_r32_pad", ("bias", "smooth", "lora_down", "lora_up")),
        ("int4_128x256_g64_r16", ("bias", "smooth", "lora_down", "lora_up")),
        ("nvfp4_128x128_g16_r16", ("bias", "smooth", "lora_down", "lora_up")),
        ("w4a16_64x256_g64", ()),
    ):
        with SafetensorsFile(folder / f"{name}.safetensors") as file:
            tensors = {key: file.array(key) for key in file}
            settings = dict(file.metadata)
        params = {key: int(value) for key, value in settings.items() if value.isdecimal()}
        weights = {key: tensors[key] for key in ("qweight", "wscales", "wzeros", "wtscale") if key in tensors}
        check_round_trip("nunchaku", weights, params)
        for kind in kinds:
            format = checkpoint_format(f"nunchaku.{kind}")
            planes = {kind: tensors[f"{kind}_packed"]}
            same_planes(format.write(format.read(planes, params), params), planes)


def test_contradictions_are_refused():
    planes = int4(128, 128)
    for params, message in (
        ({"element": "fp4_e2m1"}, "int4, not fp4"),
        ({"group_size": 32}, "group_size"),
        ({"out_features": 129}, "out_features"),
        ({"in_features": 0}, "in_features"),
        ({"in_features": 10**30}, "in_features"),
        ({"in_features": None}, "in_features"),
    ):
        with pytest.raises(subbyte.FormatError, match=message):
            subbyte.decode("nunchaku", planes, params=params)
    both = planes | beside(128, 128, 16) | {"proj_down": halves((128, 16))}
    with pytest.raises(subbyte.FormatError, match="older and newer"):
        subbyte.decode("nunchaku", both)
    ranks = planes | beside(128, 128, 16) | {"lora_up": halves((128, 32))}
    with pytest.raises(subbyte.FormatError, match="rank"):
        subbyte.decode("nunchaku", ranks)


@pytest.mark.parametrize("naming", ["lora", "proj"])
def test_checkpoint(tmp_path, naming):
    planes = int4(128, 256, "F16") | beside(128, 256, 16, naming)
    planes = {name: plane if isinstance(plane, np.ndarray) else plane.float32().astype(np.float16)
              for name, plane in planes.items()}  # fmt: skip
    bias = RNG.normal(0, 1, 128).astype(np.float16)
    tensors = {f"block.0.{name}": plane for name, plane in (planes | {"bias": bias}).items()}
    tensors["norm.weight"] = np.ones(3, np.float32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with subbyte.open(tmp_path / "model.safetensors") as found:
        assert found.format == "nunchaku"
        assert sorted(found) == ["block.0.bias", "block.0.weight", "norm.weight"]
        np.testing.assert_array_equal(found["block.0.weight"].decode(), subbyte.decode("nunchaku", planes))
        want = subbyte.decode("nunchaku.bias", {"bias": bias})
        np.testing.assert_array_equal(found["block.0.bias"].decode(), want)
        layer = found["block.0.weight"].layer
        same_planes(checkpoint_format("nunchaku").write(found["block.0.weight"].form(), layer.params), planes)
