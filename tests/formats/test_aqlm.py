"""AQLM: sums of vectors from several codebooks."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from formats.common import check_damage, check_hostile_settings, check_round_trip
from subbyte.formats import checkpoint_format
from subbyte.io.safetensors import write_safetensors
from subbyte.planes import FLOATS, float_plane, plane, rounded

RNG = np.random.default_rng(21)
TYPES = {8: np.int8, 16: np.int16, 32: np.int32}


def layer(down, across, count, bits, height, width, kind="F16"):
    dtype = next(dtype for most, dtype in TYPES.items() if bits <= most)
    half = 1 << (bits - 1)
    return {
        "codes": RNG.integers(-half, half, (down, across, count)).astype(dtype),
        "codebooks": float_plane(RNG.normal(0, 0.3, (count, 1 << bits, height, width)).astype(np.float32), kind),
        "scales": float_plane(RNG.uniform(0.5, 2, (down, 1, 1, 1)).astype(np.float32), kind),
    }


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("sizes", [(4, 6, 1, 8, 1, 8), (3, 5, 2, 8, 1, 8), (5, 4, 3, 5, 2, 4), (2, 7, 1, 9, 3, 1),
                                   (3, 3, 8, 1, 1, 2), (3, 4, 1, 17, 1, 2)])  # fmt: skip
def test_round_trip(sizes, kind):
    planes = layer(*sizes, kind)
    down, across, count, bits, height, width = sizes
    params = {"num_codebooks": count, "nbits_per_codebook": bits, "out_group_size": height, "in_group_size": width}
    check_round_trip("aqlm", planes, params)
    check_round_trip("aqlm", planes, {"quantization_config": params})
    check_round_trip("aqlm", planes, {})
    tables, scales = planes["codebooks"].float32(), planes["scales"].float32()
    want = np.zeros((down * height, across * width), np.float32)
    for p in range(down):
        for q in range(across):
            total = np.zeros((height, width), np.float32)
            for m in range(count):
                total = total + tables[m, int(planes["codes"][p, q, m]) % (1 << bits)]
            block = rounded(rounded(total, kind) * scales[p, 0], kind)
            want[p * height : (p + 1) * height, q * width : (q + 1) * width] = block
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    found = subbyte.decode("aqlm", planes, params=params, dtype=dtype)
    np.testing.assert_array_equal(found.astype(np.float32), want)


def test_damage():
    planes = layer(4, 6, 2, 8, 2, 4)
    config = {"num_codebooks": 2, "nbits_per_codebook": 8, "out_group_size": 2, "in_group_size": 4}
    check_damage("aqlm", planes, config)
    check_hostile_settings("aqlm", planes, config)
    for name in ("codebooks", "scales"):
        bad = planes[name].float32().copy()
        bad.flat[3] = np.nan
        with pytest.raises(subbyte.FormatError, match=name):
            subbyte.decode("aqlm", planes | {name: float_plane(bad, "F16")})
    narrow = layer(4, 6, 2, 5, 2, 4)
    narrow["codes"][1, 1, 1] = 16
    with pytest.raises(subbyte.FormatError, match="index is 16"):
        subbyte.decode("aqlm", narrow)


def test_checkpoint(tmp_path):
    planes = layer(4, 6, 2, 8, 1, 8)
    tensors = {f"a.{name}": plane(one).data for name, one in planes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors | {"a.bias": np.ones(4, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with subbyte.open(tmp_path) as found:
        assert found.format == "aqlm"
        np.testing.assert_array_equal(found["a.weight"].decode(), subbyte.decode("aqlm", planes))
        assert found["a.bias"].shape == (4,)
    config = {"quant_method": "aqlm", "linear_weights_not_to_quantize": ["a.weight", "lm_head.weight"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    with subbyte.open(tmp_path) as found:
        assert any("a.weight" in note for note in found.notes)


def test_what_cannot_be_written():
    aqlm, gptvq = (checkpoint_format(id) for id in ("aqlm", "gptvq"))
    form = aqlm.read(layer(4, 6, 2, 8, 1, 8), {})
    with pytest.raises(subbyte.UnsupportedError, match="another layer"):
        aqlm.write(form, {"num_codebooks": 1})
    with pytest.raises(subbyte.UnsupportedError):
        gptvq.write(form, {})
