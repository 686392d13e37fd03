"""The extension's decoders of packed codes against the NumPy definitions of the forms."""

import numpy as np
import pytest

from subbyte import planes
from subbyte.errors import ArgumentError
from subbyte.formats.integer.awq import FastCodes, GemmCodes
from subbyte.formats.integer.marlin import MarlinCodes
from subbyte.forms import Affine, Biased, BlockScaled, ByteCodes, FloatZero, Microscaled, PackedCodes, Ternary
from subbyte.forms.codes import ByteRowCodes, laid, words_per_row
from subbyte.forms.flat import NibbleCodes, SlabCodes
from subbyte.planes import Plane

RANDOM = np.random.default_rng(5)


def integers(kind, shape):
    info = np.iinfo(kind)
    return RANDOM.integers(info.min, info.max, shape, kind, endpoint=True)


def floats(shape, kind):
    return planes.float_plane(RANDOM.normal(0, 1, shape).astype(np.float32), kind)


CODES = {
    "down": lambda: PackedCodes(integers(np.uint32, (words_per_row("stream", 3, 160), 96)), 3, (96, 160), down=True),
    "rows": lambda: PackedCodes(integers(np.uint32, (70, 20)), 4, (70, 160)),
    "across": lambda: GemmCodes(integers(np.int32, (1200, 50))),
    "across, small": lambda: GemmCodes(integers(np.int32, (24, 3))),
    "fours": lambda: FastCodes(integers(np.int16, (33, 192))),
    "tiles": lambda: MarlinCodes(integers(np.int32, (9, 384))),
    "bytes": lambda: ByteCodes(integers(np.uint8, (50, 70))),
    "signed bytes": lambda: ByteCodes(integers(np.int8, (50, 70)), offset=128),
    "nibbles": lambda: NibbleCodes(integers(np.uint8, 66 * 15), (66, 30)),
    "slabs": lambda: SlabCodes(integers(np.uint8, (25, 64)), 4, (40, 80), 2, 4),
    "slabs, low first": lambda: SlabCodes(integers(np.uint8, (13, 64)), 2, (40, 80), 4, 2, low_first=True),
    "slabs of words": lambda: SlabCodes(integers(np.int32, (5, 64)), 3, (40, 80), 10, 3),
    "rows of bytes": lambda: ByteRowCodes(integers(np.uint8, (40, 21)), 2, (40, 82)),
}


def check(form, rows=None):
    """Every type of result, with and without a destination, bit for bit."""
    assert form.native("F32") is not None
    for part in (slice(0, form.rows), slice(1, 2), slice(min(7, form.rows), form.rows)):
        for name in ("float32", "float16", "bfloat16"):
            kind = planes.dtype_kind(name)
            values = form.values(part) if kind == "F32" else form.rounded_values(part, kind)
            expected = planes.result(values, name).view(np.uint8)
            out = np.empty_like(form.decode_rows(part, name))
            assert form.decode_rows(part, name, out) is out
            np.testing.assert_array_equal(out.view(np.uint8), expected)


@pytest.mark.parametrize("name", CODES)
def test_layouts(name):
    codes = CODES[name]()
    rows, columns = codes.shape
    zeros = RANDOM.integers(0, 1 << codes.bits, (rows, -(-columns // 16)), np.int16)
    check(Affine((rows, columns), codes, floats(zeros.shape, "F16"), zeros, 16))
    check(Affine((rows, columns), codes, floats((rows, 1), "F32"), 3, columns))
    if columns * codes.bits % 32 == 0:
        stream = PackedCodes(codes.stream(), codes.bits, codes.shape)
        np.testing.assert_array_equal(stream.unpack(), codes.unpack())
        np.testing.assert_array_equal(codes.stream(slice(3, 9)), codes.stream()[3:9])


@pytest.mark.parametrize("compute", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("group_size", [8, 32, 80])
def test_steps_are_rounded(compute, group_size):
    codes = PackedCodes(integers(np.uint32, (40, 20)), 4, (40, 160))
    scales, offsets = (floats((40, -(-160 // group_size)), compute) for _ in range(2))
    check(Biased((40, 160), codes, scales, offsets, group_size, compute=compute))
    check(FloatZero((40, 160), codes, scales, offsets, group_size, compute))


def test_groups_of_the_flattened_weight():
    codes = SlabCodes(integers(np.uint8, (25, 64)), 4, (40, 80), 2, 4)
    check(FloatZero((40, 80), codes, floats(50, "F16"), floats(50, "F16"), 64, "F16"))


@pytest.mark.parametrize(("element", "bits"), [("E2M1", 4), ("E2M3", 6), ("E3M2", 6), ("F8_E4M3", 8), ("F8_E5M2", 8)])
def test_small_floats(element, bits):
    codes = PackedCodes(integers(np.uint32, (40, 160 * bits // 32)), bits, (40, 160))
    scales = Plane(RANDOM.integers(100, 150, (40, 5)).astype(np.uint8), "F8_E8M0")
    check(Microscaled((40, 160), codes, element, scales, "F8_E8M0", 32, multiplier=np.float32(0.3)))


@pytest.mark.parametrize("element", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "I8"])
def test_rectangles(element):
    data = integers(np.int8 if element == "I8" else np.uint8, (80, 130))
    check(BlockScaled((2, 40, 130), data, element, floats((4, 3), "F32"), (32, 48), rounds_scale=True))


def test_trits():
    codes = RANDOM.integers(0, 3, (40, 160)).astype(np.uint8)
    form = Ternary((40, 160), SlabCodes(SlabCodes.pack(codes, 160, 4, 2, "U8"), 2, (40, 160), 4, 2),
                   floats((1, 1), "BF16"), 160, inverse=True)  # fmt: skip
    check(form)


@pytest.mark.parametrize("shape", [(256, 1152), (136, 40), (1032, 520)])
def test_words_are_laid_as_they_are_read(shape):
    words = integers(np.uint32, (shape[0], shape[1] // 8))
    codes = PackedCodes(words, 4, shape)
    np.testing.assert_array_equal(GemmCodes(laid(words, "across")).unpack(), codes.unpack())
    down = laid(words, "down")
    np.testing.assert_array_equal(down, words.T.view(np.int32))
    np.testing.assert_array_equal(PackedCodes(down, 4, shape, down=True).stream(), words)
    with pytest.raises(ArgumentError, match="cannot be laid"):
        laid(words[:12], "across")
