"""Verification: true errors, and failures for everything that can be wrong with a file."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte.io.gguf import GgufFile, GgufValue, write_gguf
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.layout import CODES

TINY = GOLDEN / "convert" / "tiny-llama"


def rewrite(path: Path, out: Path, change: dict[str, np.ndarray | None]) -> Path:
    """The GGUF file with raw bytes of some tensors replaced, or the tensors left out (None)."""
    file = GgufFile(path)
    metadata = {key: GgufValue(file.metadata_types[key], value) for key, value in file.metadata.items()}
    tensors = {name: (file[name].type, change.get(name, file.raw(name))) for name in file}
    write_gguf(out, metadata, {name: entry for name, entry in tensors.items() if entry[1] is not None})  # type: ignore[misc]
    return out


def test_errors_are_those_of_the_decoded_values(tmp_path: Path) -> None:
    tensors = llama_tensors()
    folder = checkpoint(tmp_path / "m", tensors)
    subbyte.convert(folder, tmp_path / "a.gguf", to="gguf.q4_0")
    result = subbyte.verify(tmp_path / "a.gguf", folder)
    assert result.ok
    (row,) = (row for row in result.tensors if row.name == "blk.1.ffn_down.weight")
    want = tensors["model.layers.1.mlp.down_proj.weight"].astype(np.float64)
    raw = GgufFile(tmp_path / "a.gguf").raw(row.name)
    got = subbyte.decode("gguf.q4_0", {"blocks": raw}).astype(np.float64)
    noise, signal = np.square(got - want).sum(), np.square(want).sum()
    assert row.kind == "quantized"
    assert row.max_error == np.abs(got - want).max()
    assert row.rms_error == pytest.approx(math.sqrt(noise / want.size))
    assert row.relative_error == pytest.approx(math.sqrt(noise / signal))
    assert row.sqnr == pytest.approx(10 * math.log10(signal / noise))
    assert row.cosine == pytest.approx((got * want).sum() / math.sqrt(np.square(got).sum() * signal))
    exact = next(row for row in result.tensors if row.name == "output_norm.weight")
    assert (exact.max_error, exact.relative_error, exact.sqnr, exact.cosine) == (0, 0, math.inf, pytest.approx(1))


@pytest.mark.parametrize(
    "target", ["f32", "f16", "bf16", "q8_0", "q5_k_s", "q3_k_l", "iq4_xs", "q2_k", "tq1_0", "tq2_0"]
)
def test_what_is_converted_verifies(tmp_path: Path, target: str) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "a.gguf", to=f"gguf.{target}")
    assert subbyte.verify(tmp_path / "a.gguf", SMALL_LLAMA).failures == ()


def test_permuted_heads_are_undone(tmp_path: Path) -> None:
    subbyte.convert(TINY, tmp_path / "a.gguf", to="gguf.bf16")
    result = subbyte.verify(tmp_path / "a.gguf", TINY)
    assert result.ok
    assert {row.max_error for row in result.tensors} == {0.0}


def test_a_gguf_source(tmp_path: Path) -> None:
    result = subbyte.verify(
        GOLDEN / "quantized" / "tiny-llama.Q4_K_M.gguf", GOLDEN / "convert" / "tiny-llama-bf16.gguf"
    )
    assert result.ok
    assert len(result.tensors) == 22


def test_structure_alone() -> None:
    result = subbyte.verify(GOLDEN / "convert" / "tiny-llama-q8_0.gguf")
    assert result.ok
    assert "q_proj" not in result.table()
    assert math.isnan(result.tensors[0].max_error)


@pytest.fixture
def q8(tmp_path: Path) -> Path:
    subbyte.convert(TINY, tmp_path / "q8.gguf", to="gguf.q8_0")
    return tmp_path / "q8.gguf"


def test_swapped_rows_fail(q8: Path, tmp_path: Path) -> None:
    raw = GgufFile(q8).raw("blk.0.attn_q.weight")
    bad = rewrite(q8, tmp_path / "bad.gguf", {"blk.0.attn_q.weight": raw[::-1].copy()})
    result = subbyte.verify(bad, TINY)
    assert not result.ok
    assert len(result.failures) == 1
    assert "'blk.0.attn_q.weight': relative error" in result.failures[0]


@pytest.mark.parametrize("target", ["tq1_0", "q1_0"])
def test_types_of_one_bit_have_a_limit_too(tmp_path: Path, target: str) -> None:
    good, bad, name = tmp_path / "a.gguf", tmp_path / "b.gguf", "blk.3.ffn_up.weight"
    subbyte.convert(SMALL_LLAMA, good, to=f"gguf.{target}")
    raw = GgufFile(good).raw(name)
    for wrong in (raw[::-1].copy(), np.zeros_like(raw)):
        result = subbyte.verify(rewrite(good, bad, {name: wrong}), SMALL_LLAMA)
        assert len(result.failures) == 1
        assert f"'{name}': relative error" in result.failures[0]


def test_only_checkpoints_are_verified(tmp_path: Path) -> None:
    with pytest.raises(subbyte.IoError):
        subbyte.verify(tmp_path / "nothing.gguf")
    with pytest.raises(subbyte.UnsupportedError, match="expected a GGUF file, a checkpoint folder"):
        subbyte.verify(TINY / "config.json")
    for path in (TINY, TINY / "model.safetensors"):
        assert subbyte.verify(path, TINY).ok


def test_one_wrong_value_of_an_exact_tensor_fails(q8: Path, tmp_path: Path) -> None:
    norm = GgufFile(q8).raw("output_norm.weight").copy()
    norm[..., 0] ^= 1
    result = subbyte.verify(rewrite(q8, tmp_path / "bad.gguf", {"output_norm.weight": norm}), TINY)
    assert "1 elements differ, equal values are expected" in result.failures[0]


@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_rounding_is_allowed_half_a_unit_and_no_more(tmp_path: Path, target: str) -> None:
    tensors = llama_tensors()
    tensors["lm_head.weight"] = np.geomspace(1e-9, 6e4, 32 * 64, dtype=np.float32).reshape(32, 64)
    folder = checkpoint(tmp_path / "m", tensors)
    subbyte.convert(folder, tmp_path / "a.gguf", to=f"gguf.{target}")
    assert subbyte.verify(tmp_path / "a.gguf", folder).ok
    raw = GgufFile(tmp_path / "a.gguf").raw("output.weight").copy()
    raw.view("<u2")[31, 60] += 1
    result = subbyte.verify(rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", {"output.weight": raw}), folder)
    assert "1 elements differ by more than rounding" in result.failures[0]


def test_a_scale_that_is_not_finite_fails(q8: Path, tmp_path: Path) -> None:
    raw = GgufFile(q8).raw("blk.1.ffn_up.weight").copy()
    raw[5, 34:36] = (0x00, 0x7C)
    for against in (None, TINY):
        result = subbyte.verify(rewrite(q8, tmp_path / "bad.gguf", {"blk.1.ffn_up.weight": raw}), against)
        assert "'blk.1.ffn_up.weight': NaN or infinite at row 5, column 32" in result.failures[0]


def test_missing_extra_and_reshaped_tensors_fail(q8: Path, tmp_path: Path) -> None:
    bad = rewrite(q8, tmp_path / "bad.gguf", {"blk.1.ffn_up.weight": None})
    assert subbyte.verify(bad, TINY).failures == ("tensor 'blk.1.ffn_up.weight': missing, the source has it",)
    assert "the source has no such tensor" in subbyte.verify(q8, bad).failures[0]
    raw = GgufFile(q8).raw("blk.1.ffn_up.weight")
    bad = rewrite(q8, tmp_path / "bad2.gguf", {"blk.1.ffn_up.weight": raw[:-1].copy()})
    assert "shape (95, 64), the source has (96, 64)" in subbyte.verify(bad, TINY).failures[0]


def test_chunks_do_not_change_the_result(q8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subbyte.verify(q8, TINY)
    monkeypatch.setattr(sys.modules["subbyte.convert.verification"], "CHUNK", 64 * 5)
    for a, b in zip(whole.tensors, subbyte.verify(q8, TINY).tensors, strict=True):
        assert (a.max_error, a.failure) == (b.max_error, b.failure)
        assert a.relative_error == pytest.approx(b.relative_error)


def test_json_has_no_infinities(q8: Path) -> None:
    text = json.dumps(subbyte.verify(q8, TINY).to_json(), allow_nan=False)
    assert json.loads(text)["ok"] is True


def clipped_share(folder: Path, kind: str, values: np.ndarray, blocks: np.ndarray) -> float:
    """Clipped share of a tensor of type ``kind`` with these blocks against these values."""
    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    write_gguf(folder / "source.gguf", metadata, {"a": values})
    write_gguf(folder / "target.gguf", metadata, {"a": (kind, blocks)})
    (row,) = subbyte.verify(folder / "target.gguf", folder / "source.gguf").tensors
    return row.clipped


def test_clipped_share_counts_what_lies_beyond_the_codes(tmp_path: Path) -> None:
    block = np.zeros((1, 34), np.uint8)
    block[0, :2] = np.array([0.5], "<f2").view(np.uint8)  # codes -128 to 127: from -64 to 63.5
    block[0, 2:] = 127
    values = np.full((1, 32), 63.5, np.float32)
    assert clipped_share(tmp_path, "Q8_0", values, block) == 0
    values[0, :4] = [63.7, 63.76, 1000, -64.3]  # half a step is 0.25
    assert clipped_share(tmp_path, "Q8_0", values, block) == 3 / 32
    block[0, :2] = 0  # every value but 0 is beyond
    assert clipped_share(tmp_path, "Q8_0", values, block) == 1
    assert clipped_share(tmp_path, "Q8_0", np.zeros((1, 32), np.float32), block) == 0


def test_clipped_share_of_a_negative_scale(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 32, dtype=np.float32)[None]
    values[0, -1] = 2  # becomes code -8 of a negative scale: the other end is -1.75
    values[0, 0] = -1.87
    blocks = subbyte.encode("gguf.q4_0", values)["blocks"]
    assert clipped_share(tmp_path, "Q4_0", values, blocks) == 0  # half a step is 0.125
    values[0, 0] = -1.88
    assert clipped_share(tmp_path, "Q4_0", values, blocks) == 1 / 32


@pytest.mark.parametrize("kind", sorted(CODES))
def test_few_values_are_clipped_by_our_encoders(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    blocks = subbyte.encode(f"gguf.{kind.lower()}", values)["blocks"]
    share = clipped_share(tmp_path, kind, values, blocks)
    assert 0 <= share < (0.15 if kind == "Q1_0" else 0.08)
    assert clipped_share(tmp_path, kind, values * 100, blocks) > 0.6


def test_clipped_share_where_it_has_no_meaning(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    assert math.isnan(clipped_share(tmp_path, "IQ3_S", values, subbyte.encode("gguf.iq3_s", values)["blocks"]))
    assert math.isnan(clipped_share(tmp_path, "F32", values, values.view(np.uint8)))
    half = values.astype(np.float16)
    half[0, 0] = 65504
    values[0, 0] = 66000
    assert clipped_share(tmp_path, "F16", values, half.view(np.uint8)) == 1 / values.size


@pytest.mark.parametrize("through", ["gguf.q4_0", "gguf.q8_0", "gptq", "mxfp4"])
@pytest.mark.parametrize("to", ["hf.f32", "hf.bf16"])
def test_floats_that_were_decoded_are_judged_as_quantized(tmp_path: Path, through: str, to: str) -> None:
    middle = tmp_path / ("m.gguf" if through.startswith("gguf") else "m")
    subbyte.convert(SMALL_LLAMA, middle, to=through)
    subbyte.convert(middle, tmp_path / "out", to=to)
    assert subbyte.verify(tmp_path / "out", middle).ok
    found = subbyte.verify(tmp_path / "out", SMALL_LLAMA)
    assert found.failures == ()
    kinds = {row.name: row.kind for row in found.tensors}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "quantized"
    assert kinds["model.norm.weight"] in ("exact", "exact-value", "rounded")
    other = llama_tensors()
    assert not subbyte.verify(tmp_path / "out", checkpoint(tmp_path / "other", other)).ok


def test_decoded_floats_against_other_codes_or_a_stranger(tmp_path: Path) -> None:
    for name, to in (("four", "gguf.q4_0"), ("eight", "gguf.q8_0")):
        subbyte.convert(TINY, tmp_path / f"{name}.gguf", to=to)
    subbyte.convert(tmp_path / "four.gguf", tmp_path / "floats", to="hf.f32")
    found = subbyte.verify(tmp_path / "floats", tmp_path / "eight.gguf")
    assert found.ok
    assert "requantized" in {row.kind for row in found.tensors}
    tensors = {name: SafetensorsFile(TINY).array(name) for name in SafetensorsFile(TINY)}
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][::-1].copy()
    shutil.copytree(TINY, tmp_path / "swapped")
    write_safetensors(tmp_path / "swapped" / "model.safetensors", tensors)
    (failure,) = subbyte.verify(tmp_path / "floats", tmp_path / "swapped").failures
    assert f"'{name}': relative error" in failure
