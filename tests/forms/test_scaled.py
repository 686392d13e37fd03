"""Scaled blocks: the same weight as FP8 blocks and as MXFP8."""

from __future__ import annotations

import numpy as np
import pytest

from subbyte.errors import UnsupportedError
from subbyte.formats import checkpoint_format
from subbyte.forms import BlockScaled, ByteCodes, Microscaled
from subbyte.planes import Plane

MXFP8 = {"quantization_config": {"quant_method": "mxfp8"}}


def blocks(scales, *, inverse=False, element="F8_E4M3", shape=(64, 96), block=(32, 64)):
    data = np.random.default_rng(0).integers(0, 120, shape).astype(np.uint8)
    return BlockScaled(shape, data, element, Plane(np.asarray(scales, np.float32), "F32"), block, inverse=inverse)


@pytest.mark.parametrize("inverse", [False, True])
def test_powers_of_two_are_mxfp8(inverse):
    form = blocks([[2.0**-9, 2.0**3], [2.0**-100, 1]], inverse=inverse)
    other = form.microscaled()
    assert np.array_equal(other.decode(), form.decode())
    assert np.array_equal(other.block_scaled().decode(), form.decode())
    for id, params in (
        ("mlx", {"quantization": {"mode": "mxfp8"}}),
        ("modelopt", {"quant_algo": "MXFP8"}),
        ("fp8", MXFP8),
    ):
        format = checkpoint_format(id)
        planes = format.write(other if id == "fp8" else form, params)
        assert np.array_equal(format.read(planes, params).decode(), form.decode())


@pytest.mark.parametrize(
    ("form", "match"),
    [
        (blocks([[1, 3], [1, 1]]), "no power of two"),
        (blocks([[1, 0], [1, 1]]), "no power of two"),
        (blocks([[1, np.inf], [1, 1]]), "no power of two"),
        (blocks([[1, 2.0**-140], [1, 1]]), "no power of two"),
        (blocks([[1, 1], [1, 1]], element="F8_E4M3FNUZ"), "no MXFP8"),
        (blocks([[1] * 4] * 2, block=(32, 24)), "no MXFP8"),
    ],
)
def test_other_scales_are_not(form, match):
    with pytest.raises(UnsupportedError, match=match):
        form.microscaled()


def test_fp4_is_no_fp8():
    form = Microscaled((1, 32), ByteCodes(np.zeros((1, 32), np.uint8), 4), "E2M1",
                       Plane(np.zeros((1, 1), np.uint8), "F8_E8M0"), "F8_E8M0", 32)  # fmt: skip
    with pytest.raises(UnsupportedError, match="no FP8"):
        form.block_scaled()


def test_smaller_blocks_repeat_scales():
    form = blocks([[1, 2], [3, 4]])
    finer = form.regrid((16, 32))
    assert finer is not None
    assert finer.data.tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4]]
    assert form.regrid((32, 96)) is None
    assert form.regrid((48, 64)) is None
