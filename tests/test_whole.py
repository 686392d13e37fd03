"""Whole quantized checkpoints: converted, verified against their source, inspected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import SMALL_LLAMA, quantized_checkpoint
from subbyte.convert.manifest import manifest_path
from subbyte.io.gguf import GgufFile
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPTQ checkpoint of 4 bits without symmetry."""
    return quantized_checkpoint(tmp_path_factory.mktemp("gptq") / "gptq", "gptq", sym=False)


def changed(folder: Path, name: str, change: Any) -> None:
    """Rewrite the file that holds a tensor, with ``change`` applied to its array."""
    file = Path(SafetensorsFile(folder)[name].path)
    data = {key: np.array(SafetensorsFile(file).array(key)) for key in SafetensorsFile(file)}
    data[name] = change(data[name])
    write_safetensors(file, data, metadata=SafetensorsFile(file).metadata)


def kinds(found: subbyte.Verification) -> dict[str, str]:
    return {row.name: row.kind for row in found.tensors}


@pytest.mark.parametrize(
    ("to", "kind"),
    [("mlx", "exact"), ("compressed-tensors", "exact"), ("gguf", "exact-value"), ("gguf.q4_1", "rounded"),
     ("hf.bf16", "rounded"), ("hf.f32", "exact-value")],
)  # fmt: skip
@pytest.mark.parametrize("kept", [True, False])
def test_conversions_are_verified_by_their_class(tmp_path: Path, gptq: Path, to: str, kind: str, kept: bool) -> None:
    dst = tmp_path / ("out.gguf" if to.startswith("gguf") else "out")
    report = subbyte.convert(gptq, dst, to=to)
    if not kept:
        manifest_path(dst).unlink()
    found = subbyte.verify(dst, gptq)
    assert found.ok, found.failures
    assert subbyte.verify(dst).ok
    name = "blk.0.ffn_up.weight" if to.startswith("gguf") else UP
    assert kinds(found)[name] == (kind if kept or to in ("gguf", "gguf.q4_1") or to.startswith("hf") else "exact-value")
    (row,) = (row for row in found.tensors if row.name == name)
    assert row.max_error == 0 or kind == "rounded"
    assert {row.kind for row in report.tensors if name in (row.layer, row.name)} == {kind}


def test_changes_are_found(tmp_path: Path, gptq: Path) -> None:
    dst = tmp_path / "out"
    subbyte.convert(gptq, dst, to="gptq.v1", lossy=False)
    plane = UP.replace("weight", "scales")
    changed(dst, plane, lambda scales: np.where(np.arange(scales.size).reshape(scales.shape) == 5, np.inf, scales))
    (failure,) = [text for text in subbyte.verify(dst, gptq).failures if "tensor" in text]
    assert UP in failure
    assert "hash" in failure
    manifest_path(dst).unlink()
    (failure,) = subbyte.verify(dst).failures
    assert failure.startswith(f"tensor '{UP}': NaN or infinite at row 5")
    changed(dst, plane, lambda scales: np.ones_like(scales))
    (failure,) = subbyte.verify(dst, gptq).failures
    assert "relative error" in failure


def test_a_changed_code_in_gguf_is_found_without_a_manifest(tmp_path: Path, gptq: Path) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(gptq, dst, to="gguf")
    manifest_path(dst).unlink()
    tensor = GgufFile(dst)["blk.0.ffn_up.weight"]
    data = bytearray(dst.read_bytes())
    data[tensor.offset + 10] ^= 1
    dst.write_bytes(data)
    (failure,) = subbyte.verify(dst, gptq).failures
    assert "blk.0.ffn_up.weight': 1 elements differ, equal values are expected" in failure


def test_planes_that_contradict_each_other_are_failures(tmp_path: Path, gptq: Path) -> None:
    dst = tmp_path / "out"
    subbyte.convert(gptq, dst, to="mlx")
    manifest_path(dst).unlink()
    changed(dst, UP.replace("weight", "scales"), lambda scales: scales[:-1])
    with pytest.raises(subbyte.FormatError, match="up_proj"):
        subbyte.verify(dst)


def test_errors_against_floats(gptq: Path) -> None:
    found = subbyte.verify(gptq, SMALL_LLAMA)
    assert found.ok
    (row,) = (row for row in found.tensors if row.name == UP)
    assert (row.kind, row.type) == ("quantized", "GPTQ")
    want = np.asarray(subbyte.open(SMALL_LLAMA)[UP].decode(), np.float64)
    difference = subbyte.open(gptq)[UP].decode() - want
    assert row.max_error == np.abs(difference).max()
    assert row.relative_error == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(want))
    entries = {entry.name: entry for entry in subbyte.report(gptq, SMALL_LLAMA).tensors}
    assert entries[UP].type == "GPTQ"
    assert entries[UP].relative_error == row.relative_error
    assert entries[UP].bits_per_weight == pytest.approx(4 + 20 / 128 + 32 / 768)
    assert json.dumps(found.to_json(), allow_nan=False)
