"""What stands beside quantized layers: scales of activations and of the cache, biases, side files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import CONFIG, HIDDEN, INNER
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
KEY = "model.layers.0.self_attn.k_proj"


def source(folder: Path, format: str, params: dict[str, Any], config: dict[str, Any], **beside: np.ndarray) -> Path:
    """A checkpoint of two quantized layers, a bias, a dense head, and further tensors."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    tensors = {"lm_head.weight": rng.standard_normal((32, HIDDEN)).astype(np.float32),
               f"{UP}.bias": rng.standard_normal(INNER).astype(np.float32)}  # fmt: skip
    for module, shape in ((UP, (INNER, HIDDEN)), (DOWN, (HIDDEN, INNER)), (KEY, (HIDDEN, HIDDEN))):
        planes = subbyte.encode(format, rng.standard_normal(shape).astype(np.float32), params=params)
        tensors |= {f"{module}.{name}": planes[name] for name in planes}
    write_safetensors(folder / "model.safetensors", tensors | beside)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


@pytest.fixture
def nvfp4(tmp_path: Path) -> Path:
    settings = {"quant_algo": "NVFP4", "group_size": 16}
    return source(
        tmp_path / "nvfp4", "modelopt", {"quant_algo": "NVFP4"},
        {"quantization_config": {"quant_method": "modelopt", **settings}},
        **{f"{UP}.input_scale": np.array(0.0123, np.float32), f"{DOWN}.input_scale": np.array(0.25, np.float32),
           f"{KEY}.k_scale": np.array(0.5, np.float32)},
    )  # fmt: skip


def tensors(folder: Path) -> dict[str, np.ndarray]:
    with SafetensorsFile(folder) as file:
        return {name: file.array(name) for name in file}


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def test_scales_of_activations_are_turned_over_for_compressed_tensors(nvfp4: Path, tmp_path: Path) -> None:
    report = subbyte.convert(nvfp4, tmp_path / "ct", to="compressed-tensors")
    found = tensors(tmp_path / "ct")
    assert found[f"{UP}.input_global_scale"] == np.float32(1) / np.float32(0.0123)
    assert found[f"{DOWN}.input_global_scale"] == 4
    assert f"{UP}.input_scale" not in found
    kinds = {row.name: row.kind for row in report.tensors}
    assert kinds[f"{UP}.input_global_scale"] == "rounded"
    assert kinds[f"{DOWN}.input_global_scale"] == "exact"
    groups = settings(tmp_path / "ct")["config_groups"]
    # The layer without a scale of its activations is a group of its own.
    assert sorted(len(group["targets"]) for group in groups.values()) == [1, 2]
    inputs = [group["input_activations"] for group in groups.values() if group["input_activations"]]
    assert [one["strategy"] for one in inputs] == ["tensor_group"]
    assert settings(tmp_path / "ct")["ignore"] == ["lm_head"]


def test_scales_of_the_cache_move_to_where_the_target_has_them(nvfp4: Path, tmp_path: Path) -> None:
    subbyte.convert(nvfp4, tmp_path / "ct", to="compressed-tensors")
    assert tensors(tmp_path / "ct")["model.layers.0.self_attn.k_scale"] == 0.5
    assert settings(tmp_path / "ct")["kv_cache_scheme"]["num_bits"] == 8
    subbyte.convert(tmp_path / "ct", tmp_path / "back", to="modelopt")
    found, before = tensors(tmp_path / "back"), tensors(nvfp4)
    assert set(found) == set(before)
    for name in set(found) - {f"{UP}.input_scale", f"{UP}.weight_scale_2"}:
        if name.endswith("weight_scale_2"):
            assert np.allclose(found[name], before[name], rtol=1e-6, atol=0)
        else:
            assert found[name].tobytes() == before[name].tobytes(), name
    assert json.loads((tmp_path / "back" / "hf_quant_config.json").read_text())["quantization"]["kv_cache_quant_algo"]


def test_what_has_no_place_is_listed(nvfp4: Path, tmp_path: Path) -> None:
    report = subbyte.convert(nvfp4, tmp_path / "mlx", to="mlx")
    assert {name for name, _ in report.left_out} == {f"{UP}.input_scale", f"{DOWN}.input_scale", f"{KEY}.k_scale"}
    found, before = tensors(tmp_path / "mlx"), tensors(nvfp4)
    assert found[f"{UP}.bias"].tobytes() == before[f"{UP}.bias"].tobytes()
    assert not any("scale_2" in name or "input_scale" in name for name in found)


def test_static_fp8(tmp_path: Path) -> None:
    src = source(
        tmp_path / "fp8", "modelopt", {"quant_algo": "FP8"},
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        **{f"{module}.input_scale": np.array(0.5, np.float32) for module in (UP, DOWN, KEY)},
    )  # fmt: skip
    subbyte.convert(src, tmp_path / "ct", to="compressed-tensors")
    (group,) = settings(tmp_path / "ct")["config_groups"].values()
    assert group["weights"]["strategy"] == "tensor"
    assert group["input_activations"]["dynamic"] is False
    subbyte.convert(tmp_path / "ct", tmp_path / "vllm", to="fp8")
    assert settings(tmp_path / "vllm")["activation_scheme"] == "static"
    subbyte.convert(tmp_path / "vllm", tmp_path / "back", to="modelopt")
    found, before = tensors(tmp_path / "back"), tensors(src)
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in before.items()
    }


def test_side_files_of_quantizers_do_not_go_along(tmp_path: Path) -> None:
    planes = {"quantization_map": {"x": {"weights": "qint8", "activations": "none"}}}
    src = source(tmp_path / "quanto", "quanto", planes, {"quantization_config": {"quant_method": "quanto",
                                                                                 "weights": "int8"}})  # fmt: skip
    (src / "quanto_qmap.json").write_text(json.dumps({m: {"weights": "qint8"} for m in (UP, DOWN, KEY)}))
    subbyte.convert(src, tmp_path / "torchao", to="torchao")
    assert not (tmp_path / "torchao" / "quanto_qmap.json").exists()
    subbyte.convert(tmp_path / "torchao", tmp_path / "back", to="quanto")
    types = json.loads((tmp_path / "back" / "quanto_qmap.json").read_text())
    assert types == {m: {"weights": "qint8", "activations": "none"} for m in (UP, DOWN, KEY)}
    assert {n: v.tobytes() for n, v in tensors(tmp_path / "back").items()} == {
        n: v.tobytes() for n, v in tensors(src).items()
    }


def test_layers_that_need_settings_of_their_own(tmp_path: Path) -> None:
    """One layer of 8 bits among others of 4: groups of settings, or a refusal that names the layer."""
    src = source(tmp_path / "src", "gptq", {"quantization_config": config(4)}, {"quantization_config": config(4)})
    rng = np.random.default_rng(6)
    stored = tensors(src)
    wider = subbyte.encode("gptq", rng.standard_normal((HIDDEN, INNER)).astype(np.float32),
                           params={"quantization_config": config(8)})  # fmt: skip
    stored |= {f"{DOWN}.{name}": wider[name] for name in wider}
    write_safetensors(src / "model.safetensors", stored)
    mixed = config(4) | {"dynamic": {r"model\.layers\.0\.mlp\.down_proj": {"bits": 8}}}
    (src / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": mixed}))
    for to in ("compressed-tensors", "mlx", "torchao", "hqq", "gptq", "sinq"):
        subbyte.convert(src, tmp_path / to, to=to)
        check = subbyte.verify(tmp_path / to, src)
        assert check.ok, (to, check.failures)
    assert len(settings(tmp_path / "compressed-tensors")["config_groups"]) == 2
    with pytest.raises(subbyte.ArgumentError, match=r"down_proj.*lose precision|lose precision.*down_proj"):
        subbyte.convert(src, tmp_path / "awq", to="awq")


def config(bits: int) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": False, "sym": True,
            "checkpoint_format": "gptq_v2"}  # fmt: skip
