"""SpQR: 3-bit integers with quantized scales and zeros, and sparse outliers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.forms import ByteCodes
from subbyte.forms.vector import Bilevel, Ordered, Outliers
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import Plane

RNG = np.random.default_rng(25)


def layer(rows, columns, sparse="csr", outliers=0.02, perm=False):
    """Planes of a random layer."""

    def codes(*shape):
        return ByteCodes(RNG.integers(0, 8, shape).astype(np.uint8), 3)

    def second(low, high):
        return Plane(RNG.uniform(low, high, (rows // 16, columns // 16)).astype(np.float16), "F16")

    dense = Bilevel(
        (rows, columns), codes(rows, columns), codes(rows, columns // 16), codes(rows, columns // 16),
        second(0.001, 0.01), second(-8, 0), second(0.5, 1), second(-2, 2),
    )  # fmt: skip
    mask = RNG.random((rows, columns)) < outliers
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1))])
    added = Plane(RNG.normal(0, 1, mask.sum()).astype(np.float16), "F16")
    form = Outliers((rows, columns), dense, offsets, np.nonzero(mask)[1], added, "F16")
    if perm:
        form = Ordered((rows, columns), form, RNG.permutation(columns))
    return checkpoint_format("spqr").write(form, {"sparse": sparse})


def scalar_decode(planes, rows, columns):
    """The weight without outliers and order, number by number in float16."""
    words = planes["dense_weights"].data.view(np.uint64)
    out = np.empty((rows, columns), np.float16)
    for tile_row in range(rows // 16):
        for tile in range(columns // 16):
            chosen = [int(word) for word in words[(tile_row * (columns // 16) + tile) * 16 :][:16]]
            raw = bytes(chosen[2 * at] >> 54 & 255 for at in range(8))
            ss, zs, sz, zz = np.frombuffer(raw, np.float16)
            for row, word in enumerate(chosen):
                scale = np.float16(ss * np.float16(np.float16(word & 7) - sz))
                zero = np.float16(zs * np.float16(np.float16(word >> 3 & 7) - zz))
                for at in range(16):
                    code = np.float16(word >> (6 + 3 * at) & 7)
                    out[tile_row * 16 + row, tile * 16 + at] = scale * np.float16(code - zero)
    return out


@pytest.mark.parametrize("sparse", ["csr", "ptcsr"])
@pytest.mark.parametrize("perm", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (48, 64), (32, 160)])
@pytest.mark.parametrize("outliers", [0.0, 0.05])
def test_round_trip(rows, columns, sparse, perm, outliers):
    planes = layer(rows, columns, sparse, outliers, perm)
    params = {"shape": [rows, columns], "sparse": sparse}
    form = check_round_trip("spqr", planes, params)
    inner = form.inner if perm else form
    np.testing.assert_array_equal(inner.inner.decode("float16"), scalar_decode(planes, rows, columns))
    dense = inner.inner.values(slice(0, rows))
    dense[np.repeat(np.arange(rows), np.diff(inner.row_offsets)), inner.columns_of] += inner.added.float32()
    want = np.empty_like(dense)
    want[:, form.order if perm else np.arange(columns)] = dense.astype(np.float16)
    np.testing.assert_array_equal(subbyte.decode("spqr", planes, params=params), want)


def test_damage():
    planes = layer(48, 64, "csr", perm=True)
    params = {"shape": [48, 64], "bits": 3}
    check_damage("spqr", planes, params, {"in_perm missing", "in_perm empty"})
    for key, value in (("bits", 4), ("beta1", 8), ("beta2", None), ("sparse", "ptcsr"), ("shape", [64, 48]),
                       ("shape", [48, 10**30]), ("shape", None)):  # fmt: skip
        with pytest.raises(subbyte.Error):
            subbyte.decode("spqr", planes, params=params | {key: value})
    for name, at, value, what in (
        ("row_offsets", 1, -1, "row_offsets"), ("row_offsets", 0, 1, "row_offsets"),
        ("col_vals", 0, 64, "col_vals"), ("col_vals", 0, 0x7C00 << 16, "col_vals"),
        ("in_perm", 0, 0, "in_perm"), ("in_perm", 0, -1, "in_perm"),
        ("dense_weights", 3, 1 << 62, "dense_weights"), ("dense_weights", 3, 0, "dense_weights"),
    ):  # fmt: skip
        bad = planes[name].data.copy()
        bad[at] = value
        with pytest.raises(subbyte.FormatError, match=what):
            subbyte.decode("spqr", planes | {name: Plane(bad, planes[name].kind)}, params=params)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_encoded_weights_are_near(scale):
    weight = (RNG.normal(0, scale, (32, 64))).astype(np.float32)
    weight[:, :16] = 0
    weight[3, 16:32] = scale
    found = subbyte.encode("spqr", weight, params={"outlier_threshold": None})
    back = subbyte.decode("spqr", found, params={"shape": [32, 64]})
    assert np.linalg.norm(back - weight) < 0.3 * np.linalg.norm(weight)
    with pytest.raises(subbyte.UnsupportedError, match="outlier_threshold"):
        subbyte.encode("spqr", weight, params={"outlier_threshold": 0.2})
    with pytest.raises(subbyte.NonFiniteError):
        subbyte.encode("spqr", weight * np.float32(1e7 / scale))


def checkpoint(folder, planes, config):
    tensors = {f"model.layers.0.mlp.down_proj.{name}": one.data for name, one in planes.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))


@pytest.mark.parametrize("sparse", ["csr", "ptcsr"])
@pytest.mark.parametrize("perm", [False, True])
def test_sides_come_from_the_model(tmp_path, sparse, perm):
    planes = layer(256, 256, sparse, perm=perm)
    want = subbyte.decode("spqr", planes, params={"shape": [256, 256]})
    settings = {"quantization_config": {"quant_method": "spqr", "bits": 3, "shapes": {}}}
    checkpoint(tmp_path, planes, {"hidden_size": 256, "intermediate_size": 256, **settings})
    with subbyte.open(tmp_path) as found:
        np.testing.assert_array_equal(found["model.layers.0.mlp.down_proj.weight"].decode(), want)
    checkpoint(tmp_path, planes, {"hidden_size": 512, "intermediate_size": 256, **settings})
    with pytest.raises(subbyte.FormatError, match="fit no weight"):
        subbyte.open(tmp_path)
    settings["quantization_config"]["shapes"] = {"model.layers.0.mlp.down_proj.col_vals.shape": 1}
    checkpoint(tmp_path, planes, {"hidden_size": 256, "intermediate_size": 256, **settings})
    with pytest.raises(subbyte.FormatError, match="'shapes' says 1"):
        subbyte.open(tmp_path)


def test_ambiguous_sides_are_refused(tmp_path):
    checkpoint(tmp_path, layer(256, 256), {})
    with pytest.raises(subbyte.UnsupportedError, match="does not say which"):
        subbyte.open(tmp_path)
