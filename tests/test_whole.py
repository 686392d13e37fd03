"""Whole quantized checkpoints: converted, verified against their source, inspected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import CONFIG, SMALL_LLAMA, Model, checkpoint, gemma3, llama_tensors, quantized_checkpoint, qwen3_moe
from server import serve
from subbyte.convert.manifest import manifest_path
from subbyte.io.gguf import GgufFile
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.planning import folder as folder_module

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


FORMATS = {
    "gptq": {"group_size": 32, "sym": False}, "awq": {"group_size": 32}, "compressed-tensors": {"group_size": 32},
    "fp8": {}, "mxfp4": {}, "modelopt": {}, "bitsandbytes": {}, "mlx": {"group_size": 32}, "hqq": {"group_size": 32},
    "torchao": {"group_size": 32}, "quanto": {},
}  # fmt: skip
TARGETS = ("gguf", "gguf.q8_0", "hf.bf16", "gptq", "awq", "mlx", "compressed-tensors")


def vision() -> Model:
    """A language model of tied embeddings beside a vision tower."""
    data, text = gemma3()
    data = {f"language_model.{name}": array for name, array in data.items()}
    data["vision_tower.encoder.layers.0.mlp.fc1.weight"] = np.ones((64, 64), np.float32)
    return data, {"model_type": "gemma3", "text_config": CONFIG | text | {"tie_word_embeddings": True}}


MODELS = {"llama": lambda: (llama_tensors(), {}), "experts": qwen3_moe, "fused experts": lambda: qwen3_moe(fused=True),
          "vision": vision}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_every_format_becomes_every_other(
    tmp_path: Path, model: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small shards: every checkpoint has several files and an index."""
    monkeypatch.setattr(folder_module, "SHARD", 20_000)
    data, config = MODELS[model]()
    source = checkpoint(tmp_path / "floats", data, **config)
    quantized = quantized_checkpoint(tmp_path / format, format, source, **FORMATS[format])
    assert (quantized / "model.safetensors.index.json").is_file()
    opened = subbyte.open(quantized)
    layers = [weight for weight in opened.values() if weight.layer is not None]
    assert layers
    assert not any("embed" in layer.name or "vision" in layer.name or "lm_head" in layer.name for layer in layers)
    for to in TARGETS:
        if to == format:
            continue
        dst = tmp_path / (f"{to}.gguf" if to.startswith("gguf") else to)
        plan = subbyte.plan(quantized, to=to, lossy=True)
        again = any(row.kind == "requantized" for row in plan.rows)
        if again:
            with pytest.raises(subbyte.ArgumentError, match="lossy"):
                subbyte.convert(quantized, dst, to=to)
        report = subbyte.convert(quantized, dst, to=to, lossy=again)
        written = dst.stat().st_size if dst.is_file() else sum(plan.plan.sizes.values())
        assert plan.nbytes == report.nbytes == written
        found = subbyte.verify(dst, quantized)
        assert found.ok, (to, found.failures)
        if dst.is_dir():
            for name, array in SafetensorsFile(source).items():
                if name.startswith("vision"):
                    assert SafetensorsFile(dst)[name].shape == array.shape


def rewritten(folder: Path, change: Any, **config: Any) -> Path:
    """A checkpoint of one file with ``change`` applied to its tensors, and other settings of quantization."""
    file = SafetensorsFile(folder)
    data = {name: np.array(file.array(name)) for name in file}
    change(data)
    write_safetensors(folder / "model.safetensors", data, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_columns_out_of_order_are_quantized_again(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "floats")
    folder = quantized_checkpoint(tmp_path / "gptq", "gptq", source, group_size=32)

    def shuffle(data: dict[str, np.ndarray]) -> None:
        for name in data:
            if name.endswith("g_idx"):
                data[name] = np.random.default_rng(0).permutation(data[name])

    rewritten(folder, shuffle, desc_act=True)
    (scheme,) = {str(layer.scheme) for layer in subbyte.inspect(folder).layers}
    assert scheme.endswith("act-order")
    with pytest.raises(subbyte.ArgumentError, match="act-order"):
        subbyte.convert(folder, tmp_path / "awq", to="awq")
    again = subbyte.convert(folder, tmp_path / "awq", to="awq", lossy=True)
    assert {row.kind for row in again.tensors if row.layer} == {"requantized"}
    assert subbyte.verify(tmp_path / "awq", folder).ok
    kept = subbyte.convert(folder, tmp_path / "v1", to="gptq.v1")
    assert {row.kind for row in kept.tensors if row.layer} == {"exact"}
    assert subbyte.verify(tmp_path / "v1", folder).ok


def test_biases_of_zeros_and_modules_listed_as_quantized(tmp_path: Path) -> None:
    data, config = vision()
    source = checkpoint(tmp_path / "floats", data, **config)
    folder = quantized_checkpoint(tmp_path / "awq", "awq", source, group_size=32)
    prefix = "language_model.model.layers"

    def change(data: dict[str, np.ndarray]) -> None:
        data |= {f"{prefix}.{n}.mlp.gate_proj.bias": np.zeros(96, np.float16) for n in (0, 1)}
        data |= {f"{prefix}.{n}.mlp.down_proj.bias": np.full(64, n, np.float16) for n in (0, 1)}
        for plane in ("qweight", "qzeros", "scales"):
            del data[f"{prefix}.1.mlp.up_proj.{plane}"]
        data[f"{prefix}.1.mlp.up_proj.weight"] = np.ones((96, 64), np.float16)

    rewritten(folder, change, modules_to_not_convert=["lm_head"])
    report = subbyte.convert(folder, tmp_path / "out.gguf", to="gguf")
    left = [name for name, why in report.left_out if "bias of zeros" in why]
    assert left == [f"{prefix}.{n}.mlp.gate_proj.bias" for n in (0, 1)]
    types = {row.name: row.type for row in report.tensors}
    assert types["blk.1.ffn_up.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q5_0"
    assert subbyte.verify(tmp_path / "out.gguf", folder).ok
    assert f"{prefix}.1.mlp.up_proj.weight" in subbyte.inspect(folder).dense
    subbyte.convert(folder, tmp_path / "gptq", to="gptq")
    assert subbyte.verify(tmp_path / "gptq", folder).ok


def test_a_layer_that_the_target_has_no_groups_for_stays_floats(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "floats")  # down_proj has 96 columns
    with pytest.warns(subbyte.SubbyteWarning, match=r"down_proj\.weight' stays floats"):
        report = subbyte.convert(source, tmp_path / "mlx", to="mlx", group_size=64)
    kinds = {row.name: row.kind for row in report.tensors}
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "exact"
    assert kinds["model.layers.0.mlp.up_proj.scales"] == "quantized"
    assert subbyte.verify(tmp_path / "mlx", source).ok


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, gptq: Path) -> None:
    subbyte.convert(gptq, tmp_path / "whole", to="mlx")
    calls = iter(range(100))
    with pytest.raises(subbyte.CancelledError):
        subbyte.convert(gptq, tmp_path / "part", to="mlx", cancel=lambda: next(calls) > 40)
    report = subbyte.convert(gptq, tmp_path / "part", to="mlx")
    assert report.resumed > 0
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("to", ["gguf", "compressed-tensors", "hf.bf16"])
def test_remote_checkpoints_are_planned_without_their_codes(tmp_path: Path, to: str) -> None:
    """Rows are so long that the groups of the columns are not looked at either, which are in order."""
    data = llama_tensors()
    for n in (0, 1):
        for part, shape in (("gate", (2048, 64)), ("up", (2048, 64)), ("down", (64, 2048))):
            data[f"model.layers.{n}.mlp.{part}_proj.weight"] = np.ones(shape, np.float32)
    data["model.embed_tokens.weight"] = np.ones((2048, 64), np.float32)  # no code is near the header
    source = checkpoint(tmp_path / "floats", data, intermediate_size=2048)
    folder = quantized_checkpoint(tmp_path / "gptq", "gptq", source, group_size=32)
    stored = SafetensorsFile(folder)
    with serve({f"m/{file.name}": file.read_bytes() for file in folder.iterdir()}) as server:
        plan = subbyte.plan(f"{server.url}m/model.safetensors", to=to)
        scheme = {str(layer.scheme) for layer in subbyte.inspect(f"{server.url}m/model.safetensors").layers}
        asked = [wanted.removeprefix("bytes=").split("-") for path, wanted in server.requests if wanted]
    assert scheme == {"integer, 4 bits, groups of 32, scales F16"}
    local = {row.name: row.kind for row in subbyte.plan(folder, to=to).rows}
    assert {row.name: row.kind for row in plan.rows} == local
    long = [tensor for tensor in stored.values() if tensor.name.endswith(("qweight", "g_idx")) and tensor.nbytes > 4096]
    beginning = 1 << 18  # is fetched with the header
    for tensor in long:
        for first, last in asked:
            if int(first) > 0:
                assert int(last) < tensor.offset or int(first) >= tensor.offset + tensor.nbytes, tensor.name
    assert any(tensor.offset > beginning for tensor in long)
