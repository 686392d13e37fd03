"""Models whose parts contradict each other: said or refused, never a hang, never a file that looks right and is not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, checkpoint, llama_tensors
from subbyte.convert.types import piece_columns
from subbyte.io.gguf import GgufFile, GgufValue, plan_gguf, write_gguf

TINY = GOLDEN / "convert" / "tiny-llama"
BF16 = GOLDEN / "convert" / "tiny-llama-bf16.gguf"
Q8_0 = GOLDEN / "convert" / "tiny-llama-q8_0.gguf"


def changed(path: Path, keys: dict[str, Any], drop: tuple[str, ...] = (), source: Path = BF16) -> Path:
    """A copy of a GGUF file with other metadata, and without some tensors."""
    file = GgufFile(source)
    metadata = {key: GgufValue(file.metadata_types[key], value) for key, value in file.metadata.items()}
    tensors = {name: (tensor.type, file.raw(name)) for name, tensor in file.items() if name not in drop}
    write_gguf(path, {key: value for key, value in (metadata | keys).items() if value is not None}, tensors)
    return path


@pytest.mark.parametrize("to", ["hf.f32", "hf.bf16", "hf", "gguf", "gguf.bf16"])
def test_nan_never_passes(tmp_path: Path, to: str) -> None:
    data = bytearray(BF16.read_bytes())
    data[-2:] = b"\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(subbyte.NonFiniteError, match="is NaN"):
        subbyte.convert(tmp_path / "nan.gguf", tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.gguf"]


def test_a_scale_that_is_nan_never_becomes_a_float(tmp_path: Path) -> None:
    data = bytearray(Q8_0.read_bytes())
    data[8992:8994] = b"\0\x7e"
    (tmp_path / "nan.gguf").write_bytes(data)
    for to in ("hf.f32", "hf.f16", "hf.bf16", "gguf.f32", "gguf"):
        with pytest.raises(subbyte.NonFiniteError):
            subbyte.convert(tmp_path / "nan.gguf", tmp_path / "out", to=to)


@pytest.mark.parametrize("arch", ["llama", "deepseek2", "gemma2", "gemma3", "qwen3moe", "bert", "gpt-oss", "phi3"])
@pytest.mark.parametrize("layers", [4097, 1_000_000, 4_000_000_000])
def test_layers_that_no_model_has(tmp_path: Path, arch: str, layers: int) -> None:
    file = GgufFile(BF16)
    keys: dict[str, Any] = {f"{arch}.{key.partition('.')[2]}": GgufValue(file.metadata_types[key], value)
            for key, value in file.metadata.items() if key.startswith("llama.")}  # fmt: skip
    keys |= {"general.architecture": arch, f"{arch}.block_count": GgufValue("u32", layers)}
    source = changed(tmp_path / "m.gguf", keys)
    start = time.monotonic()
    with pytest.raises(subbyte.FormatError, match=r"at most 4,096|below 2\^31"):
        subbyte.plan(source, to="hf.f32")
    subbyte.plan(source, to="gguf")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_settings_that_are_not_finite_are_left_out(tmp_path: Path, value: float) -> None:
    source = changed(tmp_path / "m.gguf", {"llama.attention.layer_norm_rms_epsilon": GgufValue("f32", value)})
    report = subbyte.convert(source, tmp_path / "out", to="hf.f32")
    assert any("rms_norm_eps is" in warning for warning in report.warnings)
    text = (tmp_path / "out" / "config.json").read_text()
    assert "rms_norm_eps" not in json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("to", ["hf.f32", "gguf", "gguf.f16"])
def test_missing_tensors_of_a_gguf_file_are_mentioned(tmp_path: Path, to: str) -> None:
    assert not [warning for warning in subbyte.plan(BF16, to=to).plan.warnings if "missing" in warning]
    source = changed(tmp_path / "m.gguf", {}, drop=("blk.1.ffn_up.weight",))
    warnings = subbyte.plan(source, to=to).plan.warnings
    assert "tensor 'blk.1.ffn_up.weight' is missing from the file" in warnings


@pytest.mark.parametrize("to", ["hf.f32", "gguf", "gguf.f16"])
def test_metadata_that_contradict_the_shapes_are_mentioned(tmp_path: Path, to: str) -> None:
    source = changed(tmp_path / "m.gguf", {"llama.embedding_length": GgufValue("u32", 4_000_000)})
    warnings = subbyte.plan(source, to=to).plan.warnings
    assert any("'token_embd.weight': shape (" in warning and "4000000" in warning for warning in warnings)


@pytest.mark.parametrize("key", ["embedding_length", "attention.head_count", "block_count"])
@pytest.mark.parametrize("value", [0, 1 << 31, 4_000_000_000])
def test_sizes_that_no_model_has(tmp_path: Path, key: str, value: int) -> None:
    source = changed(tmp_path / "m.gguf", {f"llama.{key}": GgufValue("u32", value)})
    with pytest.raises(subbyte.FormatError, match=f"llama.{key}: expected a positive number"):
        subbyte.plan(source, to="hf.f32")


def test_one_shard_of_several_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    shard = folder / "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(shard)
    for source in (folder, shard):
        for to in ("gguf.q8_0", "hf.bf16"):
            with pytest.raises(subbyte.FormatError, match="one of 2 files"):
                subbyte.convert(source, tmp_path / "out", to=to)
    shard.rename(folder / "model-00001-of-00001.safetensors")
    assert subbyte.plan(folder, to="gguf.q8_0").nbytes > 0


def test_experts_that_the_checkpoint_does_not_have(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", llama_tensors(), num_local_experts=1_000_000_000)
    warnings = subbyte.plan(folder, to="gguf.f16").plan.warnings
    assert "config.json: 1,000,000,000 experts, the checkpoint has none" in warnings


KINDS: dict[str, dict[str, Any]] = {
    "no layers": {"general.architecture": "sd"},
    "projector": {"general.architecture": "clip", "general.type": "mmproj"},
    "importance": {"general.type": "imatrix"},
    "nothing": {"general.name": "bare"},
}


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_gguf_files_that_are_no_language_model(tmp_path: Path, keys: dict[str, Any]) -> None:
    source = tmp_path / "m.gguf"
    values = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    write_gguf(source, keys, {"a.weight": values, "b": values[0]})
    assert subbyte.verify(source).ok
    assert [entry.name for entry in subbyte.report(source).tensors] == ["a.weight", "b"]
    subbyte.convert(source, tmp_path / "copy.gguf", to="gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()
    assert subbyte.verify(tmp_path / "copy.gguf", source).ok
    with pytest.raises(subbyte.UnsupportedError, match="only a copy can be made of it"):
        subbyte.convert(source, tmp_path / "q.gguf", to="gguf.q8_0")


@pytest.mark.parametrize("to", ["gguf.q4_0", "gguf.q8_0", "gguf"])
@pytest.mark.parametrize(
    "pattern", ["(.*)*(.*)*(.*)*$zzz", "(a|a)*$", "(x+x+)+y", ".*" * 20 + "zzz", r"(a)\1", "a" * 20_000, "(", "["]
)
def test_rules_that_could_run_for_long(to: str, pattern: str) -> None:
    start = time.monotonic()
    with pytest.raises(subbyte.ArgumentError, match=r"tensor_type: (the|a) pattern"):
        subbyte.plan(TINY, to=to, tensor_type=[f"{pattern}=q8_0"])
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "pattern", [r"blk\.(0|1)\.ffn_.*weight$", "attn_[qkv]", r"^blk\.\d+\.(?!attn_v).*down", "output"]
)
def test_rules_as_people_write_them(pattern: str) -> None:
    rows = subbyte.plan(TINY, to="gguf.q4_0", tensor_type={pattern: "q5_1"}).rows
    names = {row.name for row in rows if row.type == "Q5_1"}
    assert names
    weights = [name for name in GgufFile(BF16) if name.endswith(".weight") and "norm" not in name]
    assert names == {name for name in weights if re.search(pattern, name)}


_PEAK = """
import sys, subbyte
result = subbyte.convert(sys.argv[2], sys.argv[3], to=sys.argv[4]) if sys.argv[1] == "convert" else subbyte.verify(
    sys.argv[3], sys.argv[2])
assert sys.argv[1] == "convert" or result.ok, result.failures
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) << 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["gguf.f32", "gguf", "hf.f32"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, to: str) -> None:
    source, dst = tmp_path / "m.gguf", tmp_path / "out"
    sizes = {"block_count": 1, "embedding_length": 1 << 25, "attention.head_count": 1}
    keys = {"general.architecture": GgufValue("str", "llama")}
    keys |= {f"llama.{key}": GgufValue("u32", value) for key, value in sizes.items()}
    shapes = [("token_embd.weight", "BF16", (1, 1 << 25)), ("output_norm.weight", "BF16", (1 << 25,))]
    layout = plan_gguf(keys, shapes)
    with source.open("wb") as file:
        file.write(layout.header())
        file.truncate(layout.nbytes)
    peaks = []
    for what in ("convert", "verify"):
        command = [sys.executable, "-c", _PEAK, what, str(source), str(dst), to]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout))
    assert max(peaks) < 256 << 20, peaks
    plan = subbyte.plan(source, to=to)
    assert peaks[0] <= plan.peak_memory
    assert subbyte.report(dst).made["to"]


def test_places_in_rows_that_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["subbyte.convert.types"], "LONGEST_ROW", 10)
    piece_columns.cache_clear()
    data = bytearray(BF16.read_bytes())
    data[-2:] = b"\xc0\x7f"
    (tmp_path / "nan.gguf").write_bytes(data)
    try:
        for to in ("gguf.f32", "gguf", "hf.f32"):
            with pytest.raises(subbyte.NonFiniteError) as caught:
                subbyte.convert(tmp_path / "nan.gguf", tmp_path / "out", to=to)
            assert (caught.value.tensor, caught.value.row, caught.value.column) == ("output_norm.weight", 0, 63)
        for to in ("gguf.f32", "gguf.q8_0", "hf.bf16"):
            dst = tmp_path / to
            subbyte.convert(BF16, dst, to=to)
            assert subbyte.verify(dst, BF16).ok
            file = dst / "model.safetensors" if dst.is_dir() else dst
            raw = bytearray(file.read_bytes())
            raw[-3] ^= 1
            file.write_bytes(raw)
            assert any("hash" in failure for failure in subbyte.verify(dst).failures)
            piece_columns.cache_clear()
            with monkeypatch.context() as other:
                other.setattr(sys.modules["subbyte.convert.types"], "LONGEST_ROW", 1 << 21)
                subbyte.convert(BF16, tmp_path / "whole", to=to, overwrite=True)
                raw[-3] ^= 1
                file.write_bytes(raw)
                assert subbyte.verify(dst, BF16).ok  # in the pieces that the manifest names
                name = "model.safetensors" if dst.is_dir() else ""
                assert (tmp_path / "whole" / name).read_bytes() == bytes(raw)
                shutil.rmtree(tmp_path / "whole") if dst.is_dir() else (tmp_path / "whole").unlink()
            piece_columns.cache_clear()
    finally:
        piece_columns.cache_clear()


@pytest.mark.parametrize(
    ("columns", "types", "want"),
    [(1 << 21, ("F32",), 1 << 21), (150_000_000, ("BF16", "F32"), 2_000_000), (1 << 25, ("Q4_K", "F32"), 1 << 21),
     (2_097_169, ("F32",), 1), ((1 << 22) + 32, ("Q4_K", "F32"), (1 << 22) + 32), (256 * 8191, ("Q6_K",), 256 * 8191),
     (256 * 8209, ("Q6_K", "Q8_0"), 256)],
)  # fmt: skip
def test_pieces_of_rows(columns: int, types: tuple[str, ...], want: int) -> None:
    assert piece_columns(columns, *types) == want
