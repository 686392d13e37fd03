"""Looking into a tensor: scales of every type against what their blocks decode to, statistics, histograms, memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, quantized_checkpoint
from subbyte import cli
from subbyte.convert.types import WEIGHTS
from subbyte.convert.values import to_float32
from subbyte.ggml import TYPES
from subbyte.inspection import Scheme
from subbyte.inspection import tensor as module
from subbyte.io.gguf import write_gguf
from subbyte.io.safetensors import write_safetensors
from subbyte.layout import CODES, SCALES, as_blocks

BLOCKS = [name for name, facts in TYPES.items() if facts.block > 1]
GRID_TOPS = {"IQ2_XXS": 43, "IQ2_XS": 43, "IQ2_S": 43, "IQ3_XXS": 62, "IQ3_S": 15, "IQ1_S": 1.125, "IQ1_M": 1.125}


def random_blocks(name: str, count: int = 300) -> np.ndarray:
    """Encoded noise of many magnitudes."""
    facts = TYPES[name]
    rng = np.random.default_rng(5)
    values = rng.standard_normal((count, facts.block)) * np.exp2(rng.integers(-6, 6, (count, 1)))
    values[0] = 0
    importance = np.ones(facts.block, np.float32) if facts.importance == "required" else None
    encoded = subbyte.encode(f"gguf.{name.lower()}", values.astype(np.float32), importance=importance)
    return as_blocks(name, encoded["blocks"])


def read(name: str, blocks: np.ndarray) -> dict[str, np.ndarray]:
    """Every kind of scale of blocks, one row for each block."""
    return {field.name: field.read(blocks).reshape(len(blocks), -1).astype(np.float64) for field in SCALES[name]}


def test_every_block_type_has_its_scales() -> None:
    assert set(SCALES) == set(BLOCKS)
    grids = {name for name in BLOCKS if name.startswith(("IQ1", "IQ2", "IQ3"))}
    assert set(CODES) == set(BLOCKS) - grids - {"Q8_1"}
    for name, fields in SCALES.items():
        blocks = np.zeros((3, TYPES[name].block_bytes), np.uint8)
        assert all(field.read(blocks).size % 3 == 0 for field in fields)


@pytest.mark.parametrize("name", sorted(CODES))
def test_scales_are_the_steps_between_the_ends_of_the_codes(name: str) -> None:
    blocks, codes = random_blocks(name), CODES[name]
    ends = []
    for code in (codes.lowest, codes.highest):
        changed = blocks.copy()
        changed[:, codes.start : codes.stop] = code
        ends.append(to_float32(name, changed, TYPES[name].block))
    found = read(name, blocks)
    span = ends[1].astype(np.float64) - ends[0]
    factor = {"MXFP4": 12, "NVFP4": 12, "IQ4_NL": 240, "IQ4_XS": 240}.get(name) or round(0.5 / codes.below)
    scale = found.get("block scale", np.ones((len(blocks), 1)))
    if "sub-block scale" in found:
        scale = scale * found["sub-block scale"]
    factor *= 2 if name == "Q1_0" else 1
    scale = np.repeat(scale, span.shape[1] // scale.shape[1], axis=1)
    np.testing.assert_allclose(span, factor * scale, rtol=1e-5, atol=1e-30)
    if "block minimum" in found:
        low = found["block minimum"] * -found.get("sub-block minimum", -1)
        np.testing.assert_allclose(ends[0], np.repeat(low, span.shape[1] // low.shape[1], axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(GRID_TOPS))
def test_scales_of_the_grid_types(name: str) -> None:
    """The largest magnitudes of sub-blocks, divided by their scales, are the largest number of the grid."""
    blocks = random_blocks(name)
    found = read(name, blocks)
    sub = found["sub-block scale"]
    scale = {"IQ2": (0.5 + sub) / 4, "IQ1": 1 + 2 * sub, "IQ3": 1 + 2 * sub}[name[:3]]
    scale = (0.5 + sub) / 2 if name == "IQ3_XXS" else scale
    scale = np.abs(found["block scale"]) * scale
    values = np.abs(to_float32(name, blocks, 256)).reshape(*scale.shape, -1).max(axis=2)
    used = scale > 0
    ratio = values[used] / scale[used]
    assert ratio.max() == pytest.approx(GRID_TOPS[name], rel=1e-6)
    assert np.unique(np.round(ratio, 3)).size <= 8  # a scale that was read wrongly would give any number


def test_float_scales_at_their_corners() -> None:
    nan = np.zeros((3, 17), np.uint8)
    nan[:, 0] = [255, 0, 254]
    found = read("MXFP4", nan)["block scale"].ravel()
    assert math.isnan(found[0])
    assert list(found[1:]) == [2.0**-127, 2.0**127]
    block = np.zeros((1, 36), np.uint8)
    block[0, :4] = [0x7F, 0x7E, 1, 0x38]
    scales = read("NVFP4", block)["sub-block scale"].ravel()
    assert math.isnan(scales[0])
    assert list(scales[1:]) == [448, 2.0**-9, 1]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file with the tensor ``w`` of Q4_K and tensors of plain types."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((64, 512)).astype(np.float32)
    values[3, :256] = 0
    plain = np.array([0, -0.0, 1e-40, -3, np.inf, np.nan, 5], np.float32)
    tensors = {
        "w": ("Q4_K", subbyte.encode("gguf.q4_k", values)["blocks"]),
        "plain": plain,
        "integers": np.arange(-5, 6, dtype=np.int32),
        "zero": np.zeros(8, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "activations": ("Q8_1", subbyte.encode("gguf.q8_1", values[:2])["blocks"]),
    }
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", "llama.block_count": 1}, tensors)
    return tmp_path / "m.gguf"


def test_statistics_of_a_tensor(mixed: Path) -> None:
    found = subbyte.inspect(mixed, "w")
    values = subbyte.open(mixed)["w"].decode().astype(np.float64)
    assert found.values is not None
    assert (found.values.count, found.values.zeros) == (values.size, np.count_nonzero(values == 0))
    assert (found.values.min, found.values.max) == (values.min(), values.max())
    assert found.values.mean == pytest.approx(values.mean())
    assert found.values.std == pytest.approx(values.std())
    assert [(row.name, row.type, row.count) for row in found.scales] == [
        ("block scale", "f16", 128), ("block minimum", "f16", 128), ("sub-block scale", "u6", 1024),
        ("sub-block minimum", "u6", 1024),
    ]  # fmt: skip
    assert found.scales[0].zeros == 1  # of the block of zeros
    assert found.scales[2].max == 63
    assert found.scheme == "gguf.q4_k, blocks of 256 elements in 144 bytes, 4.5 bits per weight"
    assert found.tensor == next(tensor for tensor in subbyte.inspect(mixed).tensors if tensor.name == "w")


def test_numbers_that_are_not_ordinary(mixed: Path) -> None:
    plain = subbyte.inspect(mixed, "plain").values
    assert plain is not None
    assert (plain.count, plain.zeros, plain.non_finite, plain.subnormal) == (7, 2, 2, 1)
    assert (plain.min, plain.max) == (-3, 5)
    integers = subbyte.inspect(mixed, "integers").values
    assert integers is not None
    assert (integers.min, integers.max, integers.zeros, integers.subnormal) == (-5, 5, 1, 0)
    zero = subbyte.inspect(mixed, "zero")
    assert zero.values is not None
    assert (zero.values.zeros, zero.values.subnormal) == (8, 0)
    assert zero.histogram is not None
    assert zero.histogram.counts == (8,)
    empty = subbyte.inspect(mixed, "empty")
    assert empty.histogram is None
    assert empty.to_json()["values"]["mean"] is None
    activations = subbyte.inspect(mixed, "activations")
    assert activations.values is None
    assert "cannot be decoded" in activations.text()
    assert [row.name for row in activations.scales] == ["block scale", "block sum"]


@pytest.mark.parametrize("scale", [1.0, 1e-38, 5e37, 1e-45])
def test_the_histogram_counts_every_value_in_its_bin(tmp_path: Path, scale: float) -> None:
    rng = np.random.default_rng(2)
    values = (rng.standard_normal(5000) * scale).astype(np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"a": values})
    found = subbyte.inspect(tmp_path / "a.safetensors", "a").histogram
    assert found is not None
    edges = found.start + found.width * np.arange(len(found.counts) + 1)
    assert math.frexp(found.width)[0] == 0.5
    assert list(np.histogram(values.astype(np.float64), edges)[0]) == list(found.counts)
    assert sum(found.counts) == 5000
    assert 1 <= len(found.counts) <= 24
    assert found.counts[0]
    assert found.counts[-1]


@pytest.mark.parametrize("name", ["w", "plain", "integers"])
def test_the_size_of_the_pieces_does_not_matter(mixed: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subbyte.inspect(mixed, name).to_json()
    monkeypatch.setattr(module, "_CHUNK", 256)
    pieces = subbyte.inspect(mixed, name).to_json()
    for data in (whole, pieces):
        for key in ("mean", "std"):
            data["values"][key] = pytest.approx(data["values"][key])
            for row in data["scales"]:
                row[key] = pytest.approx(row[key])
    assert pieces["histogram"] == whole["histogram"]
    assert pieces["values"]["count"] == whole["values"]["count"]
    assert pieces["scales"][:1] == whole["scales"][:1]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint8", "bool", "complex64"])
def test_types_of_safetensors(tmp_path: Path, dtype: str) -> None:
    array = np.array([0, 1, 1, 0]).astype(dtype)
    write_safetensors(tmp_path / "a.safetensors", {"a": array})
    values = subbyte.inspect(tmp_path / "a.safetensors", "a").values
    if dtype == "complex64":
        assert values is None
    else:
        assert values is not None
        assert (values.count, values.zeros, values.max) == (4, 2, 1)


def test_float8_needs_its_package(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([0, 1.5, -448, np.nan], ml_dtypes.float8_e4m3fn)
    write_safetensors(tmp_path / "a.safetensors", {"a": array})
    values = subbyte.inspect(tmp_path / "a.safetensors", "a").values
    assert values is not None
    assert (values.min, values.max, values.non_finite, values.zeros) == (-448, 1.5, 1, 1)


def test_the_command(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(mixed), "w"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("w: gguf.q4_k, blocks of 256 elements")
    assert "sub-block minimum" in out
    assert "####" in out
    assert cli.main(["inspect", str(mixed), "w", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sorted(data) == ["histogram", "path", "scales", "scheme", "tensor", "values", "version"]
    assert data["scales"][2]["type"] == "u6"
    assert sum(data["histogram"]["counts"]) == data["values"]["count"]
    assert cli.main(["inspect", str(SMALL_LLAMA), "model.norm.weight"]) == 0
    assert "bf16, one by one" in capsys.readouterr().out


def test_a_name_that_is_not_there(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(mixed), "plan"]) == 2
    assert "no tensor is named 'plan': did you mean 'plain'" in capsys.readouterr().err
    with pytest.raises(subbyte.ArgumentError, match="no tensor is named 7"):
        subbyte.inspect(mixed, 7)  # type: ignore[call-overload]


def test_a_large_tensor_takes_little_memory(tmp_path: Path) -> None:
    """A sparse file with a tensor of 256 MiB."""
    rows = 1 << 18
    file = tmp_path / "large.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [rows, 1024], "data_offsets": [0, rows * 1024]}}).encode()
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + rows * 1024)
    script = """
import resource, sys, subbyte
subbyte.inspect(sys.argv[2], "a")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(subbyte.inspect(sys.argv[1], "a").values.zeros, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    small = tmp_path / "small.safetensors"
    write_safetensors(small, {"a": np.zeros(4 << 20, np.uint8)})
    arguments = [sys.executable, "-c", script, str(file), str(small)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    zeros, grown = map(int, done.stdout.split())
    assert zeros == rows * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    assert grown * unit < 64 << 20


@pytest.mark.parametrize("name", [name for name in WEIGHTS if TYPES[name].block > 1])
def test_every_written_type_can_be_looked_into(tmp_path: Path, name: str) -> None:
    blocks = random_blocks(name, 20)
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"a": (name, blocks.reshape(2, -1))})
    found = subbyte.inspect(tmp_path / "a.gguf", "a")
    assert found.values is not None
    assert found.values.non_finite == 0
    assert len(found.scales) == len(SCALES[name])
    assert all(row.count and row.non_finite == 0 for row in found.scales)


def test_golden_files_of_other_programs() -> None:
    file = GOLDEN / "quantized" / "tiny-llama.Q4_K_M.gguf"
    found = subbyte.inspect(file, "token_embd.weight")
    assert found.values is not None
    assert found.values.count == found.scales[0].count * 32


def test_a_quantized_folder(tmp_path: Path) -> None:
    folder = quantized_checkpoint(tmp_path / "gptq", "gptq", sym=False)
    found = subbyte.inspect(folder)
    assert found.quantization == "gptq"
    assert found.parameters == subbyte.inspect(SMALL_LLAMA).parameters
    assert len(found.layers) == 42
    layer = next(layer for layer in found.layers if layer.name == "model.layers.0.mlp.up_proj.weight")
    assert layer.shape == (768, 256)
    assert layer.scheme == Scheme("integer", 4, "128", "F16", symmetric=False, act_order=False)
    assert layer.nbytes == sum(tensor.nbytes for tensor in found.tensors if tensor.name in layer.planes)
    assert found.dense == ["lm_head.weight", "model.embed_tokens.weight"]
    text = found.text(tensors=True)
    assert "integer, 4 bits, groups of 128, scales F16, asymmetric" in text
    assert "not quantized: lm_head.weight, model.embed_tokens.weight" in text
    assert json.loads(json.dumps(found.to_json()))["layers"][0]["scheme"]["bits"] == 4


def test_a_layer_of_a_quantized_folder(tmp_path: Path) -> None:
    folder = quantized_checkpoint(tmp_path / "mlx", "mlx")
    name = "model.layers.0.mlp.up_proj.weight"  # also the name of one of its tensors
    found = subbyte.inspect(folder, name)
    weight = subbyte.open(folder)[name]
    values = weight.decode()
    assert found.values is not None
    assert (found.values.count, found.values.min, found.values.max) == (values.size, values.min(), values.max())
    assert found.tensor.shape == (768, 256)
    assert found.scheme == "mlx: integer + bias, 4 bits, groups of 64, scales BF16, 4.5 bits per weight"
    assert [row.name for row in found.scales] == ["scales", "biases"]
    assert found.histogram is not None
    assert sum(found.histogram.counts) == values.size


def test_settings_that_cannot_be_read_are_a_note(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", quantization_config={"quant_method": "unheard-of"})
    (note,) = subbyte.inspect(folder).notes
    assert "unheard-of" in note
