"""What every codec promises, codec by codec. Bytes are compared with the original programs in tests/conformance."""

import ml_dtypes
import numpy as np
import pytest

import subbyte
from subbyte import _native

IDS = [id for id in subbyte.codec_ids() if id.startswith("gguf.")]
FACTS = {f"gguf.{name.lower()}": rest for name, *rest in _native.ggml_types()}
COLUMNS = 768


@pytest.fixture(params=IDS)
def codec(request):
    return subbyte.get_codec(request.param)


@pytest.fixture(params=[id for id in IDS if FACTS[id][4]])
def decoder(request):
    """A codec that decodes: all but gguf.q8_1."""
    return subbyte.get_codec(request.param)


@pytest.fixture(params=[id for id in IDS if FACTS[id][3] != "ignored"])
def weighted(request):
    """A codec that uses importance weights."""
    return subbyte.get_codec(request.param)


def weights(*shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def importance(codec, *shape):
    """Weights for the codecs that use them, None for the others."""
    use = FACTS[codec.id][3]
    return None if use == "ignored" else np.random.default_rng(1).random(shape or COLUMNS).astype(np.float32) + 0.25


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_ids():
    assert len(IDS) == 31
    assert {id.removeprefix("gguf.").upper() for id in IDS} == {t[0] for t in _native.ggml_types() if t[6]}


def test_sizes_and_config(codec):
    encoded = codec.encode(weights(3, COLUMNS), importance=importance(codec))
    assert isinstance(codec, subbyte.Codec)
    assert encoded.shape == (3, COLUMNS)
    assert encoded.config == codec.config() == {"id": codec.id}
    assert encoded.nbytes == codec.nbytes((3, COLUMNS)) == encoded["blocks"].nbytes
    _, block, size, *_ = FACTS[codec.id]
    assert codec.bits_per_weight((3, COLUMNS)) == codec.bits_per_weight((0, COLUMNS)) == size * 8 / block
    assert list(encoded) == ["blocks"]
    assert encoded["blocks"].shape == (3, COLUMNS // block * size)
    assert codec.id in repr(encoded)


def test_every_kind_of_source_gives_the_same_bytes(codec):
    w = weights(4, COLUMNS).astype(ml_dtypes.bfloat16).astype(np.float32).clip(-4, 4)
    w = w.astype(np.float16).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    imp = importance(codec)
    expected = codec.encode(w, importance=imp)["blocks"]
    strided = np.zeros((8, 2 * COLUMNS), np.float32)
    strided[::2, ::2] = w
    frozen = w.copy()
    frozen.flags.writeable = False
    sources = {
        "strided": strided[::2, ::2],
        "fortran": np.asfortranarray(w),
        "reversed": w[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": frozen,
        "big-endian": w.astype(">f4"),
        "float64": w.astype(np.float64),
        "bfloat16": w.astype(ml_dtypes.bfloat16),
        "memoryview": memoryview(w),
    }
    if np.array_equal(w.astype(np.float16).astype(np.float32), w):
        sources["float16"] = w.astype(np.float16)
    for kind, source in sources.items():
        assert same(codec.encode(source, importance=imp)["blocks"], expected), kind


def test_float16_source(codec):
    half = weights(2, COLUMNS).astype(np.float16)
    imp = importance(codec)
    assert same(
        codec.encode(half, importance=imp)["blocks"], codec.encode(half.astype(np.float32), importance=imp)["blocks"]
    )


def test_encode_into_given_planes(codec):
    w, imp = weights(3, COLUMNS), importance(codec)
    expected = codec.encode(w, importance=imp)["blocks"]
    plane = np.full_like(expected, 0xAA)
    assert codec.encode(w, importance=imp, out={"blocks": plane})["blocks"] is plane
    assert same(plane, expected)
    for bad in (plane[:2], plane.astype(np.int8), np.asfortranarray(plane), b"x" * plane.nbytes):
        with pytest.raises(subbyte.ArgumentError, match="plane 'blocks'"):
            codec.encode(w, importance=imp, out={"blocks": bad})


def test_one_weight_vector_per_expert(weighted):
    w = weights(3, 2, COLUMNS)
    imp = importance(weighted, 3, COLUMNS)
    parts = [weighted.encode(w[e], importance=imp[e])["blocks"] for e in range(3)]
    assert same(weighted.encode(w, importance=imp)["blocks"], np.stack(parts))
    shared = weighted.encode(w, importance=imp[0])["blocks"]
    assert same(shared, np.stack([weighted.encode(w[e], importance=imp[0])["blocks"] for e in range(3)]))


def test_importance_is_checked(codec):
    w = weights(2, COLUMNS)
    use = FACTS[codec.id][3]
    if use == "required":
        with pytest.raises(subbyte.ArgumentError, match="importance"):
            codec.encode(w)
    if use == "ignored":
        assert same(codec.encode(w, importance=np.ones(3))["blocks"], codec.encode(w)["blocks"])
        return
    good = importance(codec)
    for bad in (good[:-1], good[None], np.stack([good, good]), good * np.nan, -good):
        with pytest.raises(subbyte.ArgumentError, match="importance"):
            codec.encode(w, importance=bad)


def test_not_finite_is_refused_with_its_place(codec):
    w = weights(2, 2, COLUMNS)
    imp = importance(codec)
    for bad in (np.nan, np.inf, -np.inf):
        w[1, 0, 300] = bad
        with pytest.raises(subbyte.NonFiniteError) as e:
            codec.encode(w, importance=imp)
        assert (e.value.row, e.value.column) == (2, 300)
    if imp is not None:
        with pytest.raises(subbyte.NonFiniteError) as e:
            codec.encode(w, importance=np.stack([imp, imp]))
        assert (e.value.row, e.value.column) == (2, 300)


def test_decode_dtypes(decoder):
    encoded = decoder.encode(weights(3, COLUMNS), importance=importance(decoder))
    full = decoder.decode(encoded)
    assert full.dtype == np.float32
    assert full.shape == (3, COLUMNS)
    assert full.ctypes.data % 64 == 0
    assert same(decoder.decode(encoded, dtype="float16"), full.astype(np.float16))
    assert same(decoder.decode(encoded, dtype=ml_dtypes.bfloat16), full.astype(ml_dtypes.bfloat16))
    assert same(decoder.decode(encoded, dtype=np.float64).astype(np.float32), full)
    for bad in ("int8", np.int32, "float8_e4m3fn", object()):
        with pytest.raises(subbyte.ArgumentError, match="dtype"):
            decoder.decode(encoded, dtype=bad)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_decode_rows_and_out(decoder, dtype):
    encoded = decoder.encode(weights(9, COLUMNS), importance=importance(decoder))
    full = decoder.decode(encoded, dtype=dtype)
    for rows in (slice(2, 5), slice(None, None, 2), slice(-3, None), slice(None, None, -1), slice(4, 4), slice(5, 99)):
        part = decoder.decode(encoded, rows=rows, dtype=dtype)
        assert same(part, full[rows])
        out = np.zeros_like(part)
        assert decoder.decode(encoded, rows=rows, dtype=dtype, out=out) is out
        assert same(out, full[rows])


def test_decode_rejects_unfit_destinations(decoder):
    encoded = decoder.encode(weights(3, COLUMNS), importance=importance(decoder))
    good = np.zeros((3, COLUMNS), np.float32)
    frozen = good.copy()
    frozen.flags.writeable = False
    for bad, why in [
        (good[:2], "shape"),
        (good.astype(np.float64), "float64"),
        (np.empty((3, COLUMNS), np.uint32), "uint32"),
        (np.empty((3, 2 * COLUMNS), np.float32)[:, ::2], "contiguous"),
        (frozen, "writable"),
        (good.astype(">f4"), "byte order"),
        (good.tolist(), "list"),
    ]:
        with pytest.raises(subbyte.ArgumentError, match=why):
            decoder.decode(encoded, out=bad)


def test_decode_planes_of_any_kind(decoder):
    encoded = decoder.encode(weights(4, COLUMNS), importance=importance(decoder))
    full, blocks = decoder.decode(encoded), encoded["blocks"]
    wide = np.zeros((8, blocks.shape[1] * 2), np.uint8)
    wide[::2, ::2] = blocks
    assert same(decoder.decode({"blocks": wide[::2, ::2]}), full)
    assert same(decoder.decode({"blocks": blocks.reshape(2, 2, -1)}), full.reshape(2, 2, -1))
    assert same(decoder.decode({"blocks": blocks.tobytes()}), full.reshape(-1))
    assert same(decoder.decode({"blocks": memoryview(blocks[0])}), full[0])


def test_decode_rejects_unfit_planes(decoder):
    encoded = decoder.encode(weights(2, COLUMNS), importance=importance(decoder))
    blocks = encoded["blocks"]
    bad = [{}, {"qweight": blocks}, {"blocks": blocks.astype(np.int8)}, {"blocks": None}, {"blocks": np.uint8(1)}, None]
    if FACTS[decoder.id][2] > 1:
        bad.append({"blocks": blocks[:, :-1]})
    bad.append(subbyte.Encoded({"blocks": blocks}, config=decoder.config(), shape=(2, COLUMNS + 256)))
    for planes in bad:
        with pytest.raises(subbyte.ArgumentError):
            decoder.decode(planes)
    with pytest.raises(subbyte.ArgumentError, match="one dimension"):
        decoder.decode({"blocks": blocks[0]}, rows=slice(0, 1))


def test_empty_and_odd_shapes(codec):
    imp = importance(codec)
    for shape in [(0, COLUMNS), (2, 0, COLUMNS), (3, 0), (0,)]:
        use = None if imp is None else imp[: shape[-1]]
        encoded = codec.encode(np.empty(shape, np.float32), importance=use)
        assert encoded.shape == shape
        assert encoded.nbytes == codec.nbytes(shape) == 0
        if FACTS[codec.id][4]:
            assert codec.decode(encoded).shape == shape
    with pytest.raises(subbyte.ArgumentError, match="scalar"):
        codec.encode(np.float32(1))
    block = FACTS[codec.id][1]
    if block > 1:
        with pytest.raises(subbyte.ArgumentError, match="multiple"):
            codec.encode(weights(2, block + 1))
        with pytest.raises(subbyte.ArgumentError, match="multiple"):
            codec.nbytes((2, block - 1))


def test_activations_have_no_decoder():
    encoded = subbyte.encode("gguf.q8_1", weights(2, 64))
    with pytest.raises(subbyte.UnsupportedError, match="decoder"):
        subbyte.decode("gguf.q8_1", encoded)


def test_float64_codec_keeps_float64():
    w = np.random.default_rng(3).standard_normal((2, 3, 5)) * 1e-300
    encoded = subbyte.encode("gguf.f64", w)
    assert same(subbyte.decode("gguf.f64", encoded, dtype="float64"), w)
    w[1, 2, 4] = np.nan
    with pytest.raises(subbyte.NonFiniteError) as e:
        subbyte.encode("gguf.f64", w)
    assert (e.value.row, e.value.column) == (5, 4)


def test_values_too_large_are_refused():
    w = weights(3, 64)
    w[1, 40] = 1e30
    with pytest.raises(subbyte.NonFiniteError, match="too large") as e:
        subbyte.encode("gguf.q8_0", w)
    assert (e.value.row, e.value.column) == (1, 32)
    with pytest.raises(subbyte.NonFiniteError):
        subbyte.encode("gguf.f16", w)
    with pytest.raises(subbyte.NonFiniteError):
        subbyte.encode("gguf.q8_0", np.full((1, 32), 1e300))


def test_bfloat16_without_ml_dtypes(run_python):
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, subbyte
w = np.random.default_rng(0).standard_normal((2, 64)).astype("f4")
packed = subbyte.encode("gguf.q8_0", w)
bits = subbyte.decode("gguf.q8_0", packed, dtype="bfloat16")
assert bits.dtype == np.uint16 and bits.shape == (2, 64)
exact = subbyte.decode("gguf.q8_0", packed)
wide = (bits.astype(np.uint32) << 16).view(np.float32)
assert np.abs(wide - exact).max() <= 2.0**-8 * np.abs(exact).max()
assert subbyte.decode("gguf.bf16", {"blocks": bits.view(np.uint8)}).tobytes() == wide.tobytes()
out = np.zeros_like(bits)
assert subbyte.get_codec("gguf.q8_0").decode(packed, dtype="bfloat16", out=out) is out and (out == bits).all()
print("done")
"""
    assert run_python(code) == "done\n"
