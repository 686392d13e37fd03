"""Plans: exact sizes and classes from headers alone, budgets that are kept, plan files that can be edited."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte import cli
from subbyte.io.gguf import GgufFile
from test_arch_hugging import SYNTHETIC

TINY = GOLDEN / "convert" / "tiny-llama"
CHECKPOINTS = sorted(path.parent for path in (GOLDEN / "convert").glob("*/config.json"))
TARGETS = ("gguf", "gguf.f32", "gguf.bf16", "gguf.q8_0", "gguf.q4_k_m", "gguf.q2_k")


def model(name: str, folder: Path) -> Path:
    """A golden checkpoint, or one of another architecture with random values."""
    if name not in SYNTHETIC:
        return GOLDEN / "convert" / name
    data, config = SYNTHETIC[name]()
    return checkpoint(folder, data, **config)


MODELS = [path.name for path in CHECKPOINTS] + [name for name in SYNTHETIC if name not in ("llama_biases",)]


def test_enough_pairs_are_planned() -> None:
    assert len(MODELS) >= 13
    assert len(MODELS) * len(TARGETS) >= 60


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_the_planned_size_is_the_size(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, target: str
) -> None:
    source = model(name, tmp_path_factory.mktemp("model"))
    plan = subbyte.plan(source, tmp_path / "out.gguf", to=target, lossy=True)
    assert not list(tmp_path.iterdir())
    report = subbyte.convert(source, tmp_path / "out.gguf", to=target, lossy=True)
    assert plan.nbytes == report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert plan.table() == report.table()
    assert [(row.name, row.type, row.nbytes, row.kind) for row in plan.rows] == [
        (row.name, row.type, row.nbytes, row.kind) for row in report.tensors
    ]


@pytest.mark.parametrize("target", ["gguf", "gguf.q8_0", "hf.f16"])
def test_gguf_sources_have_their_planned_size(tmp_path: Path, target: str) -> None:
    sources = sorted((GOLDEN / "convert").glob("tiny-*.gguf"))
    assert len(sources) >= 8
    for source in sources:
        plan = subbyte.plan(source, to=target, lossy=True)
        report = subbyte.convert(source, tmp_path / source.stem, to=target, lossy=True)
        paths = [report.dst / name for name in report.files] or [report.dst]
        assert plan.nbytes == report.nbytes == sum(path.stat().st_size for path in paths)


def test_no_option_is_ignored_in_silence(tmp_path: Path) -> None:
    gguf = tmp_path / "m.gguf"
    subbyte.convert(SMALL_LLAMA, gguf, to="gguf.bf16")
    for source in (SMALL_LLAMA, gguf):
        with pytest.raises(subbyte.ArgumentError, match="pure is one type"):
            subbyte.plan(source, to="gguf", pure=True)
        types = {row.name: row.type for row in subbyte.plan(
            source, to="gguf", tensor_type=["ffn_up=q8_0"], output_tensor_type="q6_k", token_embedding_type="q4_0"
        ).rows}  # fmt: skip
        assert (types["output.weight"], types["token_embd.weight"]) == ("Q6_K", "Q4_0")
        assert {types[name] for name in types if "ffn_up" in name} == {"Q8_0"}
    assert GgufFile(gguf).metadata["tokenizer.ggml.pre"] != "qwen2"
    subbyte.convert(gguf, tmp_path / "other.gguf", to="gguf", pre="qwen2")
    assert GgufFile(tmp_path / "other.gguf").metadata["tokenizer.ggml.pre"] == "qwen2"
    bare = checkpoint(tmp_path / "bare")
    with pytest.raises(subbyte.ArgumentError, match="no vocabulary"):
        subbyte.plan(bare, to="gguf", pre="qwen2")
    (tmp_path / "plan.json").write_text(json.dumps(subbyte.plan(gguf, to="gguf.q8_0").to_json()))
    with pytest.raises(subbyte.ArgumentError, match="a plan names the type of every tensor"):
        subbyte.plan(gguf, plan=tmp_path / "plan.json", tensor_type=["a=q8_0"])


def test_an_imatrix_without_use_is_a_warning(tmp_path: Path) -> None:
    from subbyte.imatrix import Entry, ImportanceMatrix, save_imatrix

    entry = Entry(np.ones((1, 256), np.float32), np.ones(1, np.float32))
    entries = {"blk.0.attn_q.weight": entry}
    save_imatrix(tmp_path / "im.gguf", ImportanceMatrix.of(entries, datasets=("x",), chunk_count=1))
    plan = subbyte.plan(SMALL_LLAMA, to="gguf.q8_0", imatrix=tmp_path / "im.gguf")
    assert any("no tensor is encoded with it" in warning for warning in plan.plan.warnings)
    plan = subbyte.plan(SMALL_LLAMA, to="gguf.q4_0", imatrix=tmp_path / "im.gguf")
    assert not any("no tensor is encoded" in warning for warning in plan.plan.warnings)


def test_classes(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    subbyte.convert(SMALL_LLAMA, source, to="gguf.bf16", tensor_type=["attn_q=q8_0", "attn_k=f16"])
    options = ["attn_q=q4_0", "attn_k=f32", "attn_v=f16", "ffn_up=bf16"]
    plan = subbyte.plan(source, to="gguf.q6_k", tensor_type=options, lossy=True)
    kinds = {row.name: row.kind for row in plan.rows}
    assert kinds["blk.0.attn_q.weight"] == "requantized"
    assert kinds["blk.0.attn_k.weight"] == "exact-value"
    assert kinds["blk.0.attn_v.weight"] == "rounded"
    assert kinds["blk.0.ffn_up.weight"] == "exact"
    assert kinds["blk.0.ffn_down.weight"] == "quantized"
    with pytest.raises(subbyte.ArgumentError, match="would lose precision a second time"):
        subbyte.plan(source, to="gguf.q6_k", tensor_type=options)


def test_only_headers_are_read(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model", llama_tensors())
    weights = source / "model.safetensors"
    before = subbyte.plan(source, to="gguf.q4_0").to_json()
    data = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)  # NaN everywhere
    weights.write_bytes(data)
    after = subbyte.plan(source, to="gguf.q4_0").to_json()
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.parametrize("size", ["3.0MB", "4MiB", "5000000", 7_000_000])
def test_a_target_size_is_kept(tmp_path: Path, size: str | int) -> None:
    plan = subbyte.plan(SMALL_LLAMA, target_size=size)
    report = subbyte.convert(SMALL_LLAMA, tmp_path / "out.gguf", target_size=size)
    limit = {"3.0MB": 3_000_000, "4MiB": 4 << 20}.get(str(size), int(size) if str(size).isdigit() else 0)
    assert limit * 0.97 < report.nbytes == plan.nbytes <= limit
    assert subbyte.verify(tmp_path / "out.gguf", SMALL_LLAMA).ok
    assert len({row.type for row in report.tensors}) > 2


def test_a_target_of_bits_per_weight_is_kept() -> None:
    plan = subbyte.plan(SMALL_LLAMA, target_bpw=4.25)
    chosen = [row for row in plan.rows if len(row.shape) == 2]
    bits = 8 * sum(row.nbytes for row in chosen) / sum(int(np.prod(row.shape)) for row in chosen)
    assert 4.2 < bits <= 4.25


def test_bigger_files_lose_less(tmp_path: Path) -> None:
    errors = []
    for size in (3_000_000, 4_000_000, 6_000_000):
        subbyte.convert(SMALL_LLAMA, tmp_path / f"{size}.gguf", target_size=size)
        rows = subbyte.verify(tmp_path / f"{size}.gguf", SMALL_LLAMA).tensors
        errors.append(sum(row.relative_error**2 for row in rows))
    assert errors[0] > errors[1] > errors[2]


def test_rules_are_kept_within_a_budget() -> None:
    plan = subbyte.plan(SMALL_LLAMA, target_size=4_500_000, tensor_type=["ffn_up=q8_0"], output_tensor_type="q6_k")
    types = {row.name: row.type for row in plan.rows}
    assert {kind for name, kind in types.items() if "ffn_up" in name} == {"Q8_0"}
    assert types["output.weight"] == "Q6_K"
    assert plan.nbytes <= 4_500_000


def test_a_budget_that_cannot_be_kept_says_what_could() -> None:
    with pytest.raises(subbyte.ArgumentError, match=r"too small: the smallest types take [\d,]+ bytes: ") as caught:
        subbyte.plan(SMALL_LLAMA, target_size="1MB")
    least, *parts = (
        int(number.replace(",", "")) for number in re.findall(r"[\d,]+\d(?= bytes| in )", str(caught.value))
    )
    assert sum(parts) == least
    assert subbyte.plan(SMALL_LLAMA, target_size=least).nbytes == least
    with pytest.raises(subbyte.ArgumentError, match=f"the smallest types take {least:,} bytes"):
        subbyte.plan(SMALL_LLAMA, target_size=least - 1)


def test_bits_that_cannot_be_kept_say_what_could() -> None:
    with pytest.raises(subbyte.ArgumentError, match=r"too small: the smallest types take [\d.]+ bits") as caught:
        subbyte.plan(SMALL_LLAMA, target_bpw=1)
    least = re.findall(r"take ([\d.]+) bits", str(caught.value))[0]
    assert subbyte.plan(SMALL_LLAMA, target_bpw=float(least)).nbytes > 0
    with pytest.raises(subbyte.ArgumentError, match="too small"):
        subbyte.plan(SMALL_LLAMA, target_bpw=float(least) - 0.02)


def test_a_budget_for_a_quantized_file_counts_its_quantized_tensors(tmp_path: Path) -> None:
    source = tmp_path / "q8.gguf"
    subbyte.convert(SMALL_LLAMA, source, to="gguf.q8_0")
    with pytest.raises(subbyte.ArgumentError, match="quantized already; convert the original, or allow it with lossy"):
        subbyte.plan(source, target_bpw=4)
    plan = subbyte.plan(source, target_bpw=4, lossy=True)
    chosen = [row for row in plan.rows if len(row.shape) == 2]
    assert 3.9 < 8 * sum(row.nbytes for row in chosen) / sum(int(np.prod(row.shape)) for row in chosen) <= 4
    assert {row.kind for row in chosen} >= {"requantized"}
    report = subbyte.convert(source, tmp_path / "small.gguf", target_size="3MB", lossy=True)
    assert 2_900_000 < report.nbytes <= 3_000_000


@pytest.mark.parametrize("options", [{"token_embedding_type": "iq2_xxs"}, {"tensor_type": ["attn_q=iq1_s"]}])
@pytest.mark.parametrize("to", ["gguf.q8_0", "gguf.bf16", "gguf"])
def test_types_that_need_importance_are_refused_by_the_plan(to: str, options: dict[str, Any]) -> None:
    with pytest.raises(subbyte.ArgumentError, match=r"need importance data.*'(token_embd|blk\.0\.attn_q)"):
        subbyte.plan(SMALL_LLAMA, to=to, **options)


def test_importance_decides_what_matters(tmp_path: Path) -> None:
    from subbyte.imatrix import Entry, ImportanceMatrix, save_imatrix

    entries = {}
    for name, tensor in GgufFile(_bf16(tmp_path)).items():
        if len(tensor.shape) == 2:
            sums = np.ones((1, tensor.shape[1]), np.float32)
            entries[name] = Entry(sums, np.ones(1, np.float32))
    save_imatrix(tmp_path / "imatrix.gguf", ImportanceMatrix.of(entries, datasets=("x",), chunk_count=1))
    plan = subbyte.plan(SMALL_LLAMA, target_size="2.2MB", imatrix=tmp_path / "imatrix.gguf")
    assert plan.nbytes <= 2_200_000
    assert {"IQ2_XXS", "IQ2_XS", "IQ2_S"} & {row.type for row in plan.rows}


def _bf16(folder: Path) -> Path:
    subbyte.convert(SMALL_LLAMA, folder / "bf16.gguf", to="gguf.bf16")
    return folder / "bf16.gguf"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plan_file_can_be_edited_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst, file = tmp_path / "out.gguf", tmp_path / "plan.json"
    code, out, _ = run(capsys, "plan", SMALL_LLAMA, dst, "--to", "gguf.q4_k_m", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["free"] > 0
    for tensor in data["tensors"]:
        if "attn_v" in tensor["name"]:
            tensor["type"] = "q8_0"
    file.write_text(json.dumps(data))
    edited = json.loads(run(capsys, "convert", SMALL_LLAMA, dst, "--plan", file, "--dry-run", "--json")[1])
    assert edited["nbytes"] > data["nbytes"]
    assert not dst.exists()
    assert run(capsys, "convert", SMALL_LLAMA, dst, "--plan", file)[0] == 0
    assert dst.stat().st_size == edited["nbytes"]
    types = {name: tensor.type for name, tensor in GgufFile(dst).items()}
    assert types == {tensor["name"]: tensor["type"].upper() for tensor in data["tensors"]}
    # An unedited plan gives the bytes of the target it was made for.
    subbyte.convert(SMALL_LLAMA, tmp_path / "mix.gguf", to="gguf.q4_k_m")
    file.write_text(out)
    subbyte.convert(SMALL_LLAMA, tmp_path / "planned.gguf", plan=file)
    assert (tmp_path / "planned.gguf").read_bytes() == (tmp_path / "mix.gguf").read_bytes()


def _change(**changes: Any) -> Any:
    return lambda data: data.update(changes)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_change(subbyte_plan=2), "version 1"),
        (_change(to=None), "'to'"),
        (_change(tensors=[{"name": "a"}]), "one name and type"),
        (lambda data: data["tensors"].pop(), "not in the plan"),
        (lambda data: data["tensors"].append({"name": "more", "type": "f32"}), "not in the source"),
        (lambda data: data["tensors"].append(data["tensors"][0]), "one name and type"),
        (lambda data: data["tensors"][-1].update(type="q9"), "unknown tensor type 'q9'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, edit: Any, says: str) -> None:
    data = subbyte.plan(TINY, to="gguf.q8_0").to_json()
    edit(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(subbyte.Error, match=says):
        subbyte.plan(TINY, plan=tmp_path / "plan.json")


def test_the_plan_and_the_conversion_print_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = run(capsys, "plan", SMALL_LLAMA, tmp_path / "a.gguf", "--to", "gguf.q4_k_m")[1]
    done = run(capsys, "convert", SMALL_LLAMA, tmp_path / "a.gguf", "--to", "gguf.q4_k_m")[1]
    assert plan.splitlines()[:-1] == done.splitlines()[:-1]
    assert plan.splitlines()[-1].split(" tensors")[0] == done.splitlines()[-1].split(" tensors")[0]


_PEAK = """
import sys, subbyte
subbyte.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) << 10)
"""  # getrusage would count the peak of the process that started this one


def sparse_model(folder: Path, layers: int) -> Path:
    """A checkpoint of zeros that takes no space: 27 MB for each layer."""
    checkpoint(folder, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, vocab_size=8192,
               num_attention_heads=16, num_key_value_heads=4)  # fmt: skip
    shapes = {"model.embed_tokens": (8192, 1024), "model.norm": (1024,), "lm_head": (8192, 1024)}
    for n in range(layers):
        shapes |= {
            f"model.layers.{n}.input_layernorm": (1024,), f"model.layers.{n}.post_attention_layernorm": (1024,),
            f"model.layers.{n}.self_attn.q_proj": (1024, 1024), f"model.layers.{n}.self_attn.k_proj": (256, 1024),
            f"model.layers.{n}.self_attn.v_proj": (256, 1024), f"model.layers.{n}.self_attn.o_proj": (1024, 1024),
            f"model.layers.{n}.mlp.gate_proj": (4096, 1024), f"model.layers.{n}.mlp.up_proj": (4096, 1024),
            f"model.layers.{n}.mlp.down_proj": (1024, 4096),
        }  # fmt: skip
    file = folder / "model.safetensors"
    header = {}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["gguf.q8_0", "hf.f16"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, to: str) -> None:
    peaks = []
    for layers in (2, 8, 32):
        source, dst = sparse_model(tmp_path / f"model{layers}", layers), tmp_path / "out.gguf"
        command = [sys.executable, "-c", _PEAK, str(source), str(dst), to]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(int(done.stdout))
        plan = subbyte.plan(source, dst, to=to)
        largest = max(row.nbytes for row in plan.rows)
        assert peaks[-1] <= 2 * largest + (256 << 20)
        assert peaks[-1] <= plan.peak_memory
        for path in tmp_path.glob("out.gguf*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert max(peaks) < min(peaks) + (32 << 20), peaks  # what allocators and threads make of it varies


def _plan_file(folder: Path, source: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    data = subbyte.plan(source, **options).to_json()
    (folder / "plan.json").write_text(json.dumps(data))
    return folder / "plan.json", data


@pytest.mark.parametrize(
    "options", [{"target_size": "4MB"}, {"target_bpw": 7.9}, {"to": "gguf"}, {"to": "gguf.q4_k_m"}, {"to": "gguf.q8_0"}]
)
@pytest.mark.parametrize("gguf", [False, True])
def test_an_unedited_plan_gives_the_bytes_of_its_options(tmp_path: Path, gguf: bool, options: dict[str, Any]) -> None:
    source = SMALL_LLAMA
    if gguf:
        subbyte.convert(SMALL_LLAMA, tmp_path / "source.gguf", to="gguf.bf16")
        source = tmp_path / "source.gguf"
    file, _ = _plan_file(tmp_path, source, **options)
    subbyte.convert(source, tmp_path / "a.gguf", **options)
    subbyte.convert(source, tmp_path / "b.gguf", plan=file)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_plan_keeps_to_what_it_was_made_for(tmp_path: Path) -> None:
    imatrix = tmp_path / "im.gguf"
    shutil.copy(GOLDEN / "imatrix" / "tiny-llama.imatrix.gguf", imatrix)
    file, _ = _plan_file(tmp_path, TINY, to="gguf.q4_0", imatrix=imatrix)
    with pytest.raises(subbyte.ArgumentError, match=r"made with the importance data 'im\.gguf'.*none were given"):
        subbyte.plan(TINY, plan=file)
    other = tmp_path / "other.gguf"
    other.write_bytes(imatrix.read_bytes() + bytes(32))
    with pytest.raises(subbyte.ArgumentError, match=r"'other\.gguf' has"):
        subbyte.plan(TINY, plan=file, imatrix=other)
    subbyte.convert(TINY, tmp_path / "a.gguf", plan=file, imatrix=imatrix)
    subbyte.convert(TINY, tmp_path / "b.gguf", to="gguf.q4_0", imatrix=imatrix)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for to in ("gguf.q2_k", "gguf", "hf.bf16"):
        with pytest.raises(subbyte.ArgumentError, match=r"the plan is for 'gguf\.q4_0'"):
            subbyte.plan(TINY, plan=file, to=to, imatrix=imatrix)
    assert subbyte.plan(TINY, plan=file, to="gguf.Q4_0", imatrix=imatrix).nbytes
    file, _ = _plan_file(tmp_path, SMALL_LLAMA, to="gguf.f16", pre="qwen2")
    subbyte.convert(SMALL_LLAMA, tmp_path / "c.gguf", plan=file)
    assert GgufFile(tmp_path / "c.gguf").metadata["tokenizer.ggml.pre"] == "qwen2"


def test_an_edited_plan_is_called_what_it_is(tmp_path: Path) -> None:
    file, data = _plan_file(tmp_path, SMALL_LLAMA, to="gguf.q4_k_m")
    for tensor in data["tensors"]:
        if tensor["type"] in ("Q4_K", "Q6_K"):
            tensor["type"] = "Q8_0"
    data["tensors"][0]["type"] = data["tensors"][0]["type"].lower()
    file.write_text(json.dumps(data))
    assert subbyte.convert(SMALL_LLAMA, tmp_path / "a.gguf", plan=file).to == "gguf.q8_0"
    assert GgufFile(tmp_path / "a.gguf").metadata["general.file_type"] == 7


def test_a_plan_that_quantizes_norms_is_warned_about(tmp_path: Path) -> None:
    file, data = _plan_file(tmp_path, SMALL_LLAMA, to="gguf.q4_k_m")
    next(tensor for tensor in data["tensors"] if tensor["name"] == "output_norm.weight")["type"] = "Q8_0"
    file.write_text(json.dumps(data))
    warnings = subbyte.plan(SMALL_LLAMA, plan=file).plan.warnings
    assert any("'output_norm.weight': Q8_0, where programs expect floats" in warning for warning in warnings)


@pytest.mark.parametrize(("name", "to"), [("llama-q8_0", "hf.f32"), ("gptoss", "hf.f16"), ("phi3", "hf.f32")])
def test_decoded_blocks_are_counted_and_classed_as_they_are_stored(name: str, to: str, tmp_path: Path) -> None:
    source = GOLDEN / "convert" / f"tiny-{name}.gguf"
    if name == "phi3":
        subbyte.convert(source, tmp_path / "blocks.gguf", to="gguf.q8_0")
        source = tmp_path / "blocks.gguf"
    forecast = subbyte.plan(source, to=to)
    rows, left = forecast.rows, dict(forecast.plan.source.left_out)
    stored = [tensor for name, tensor in GgufFile(source).items() if name not in left]
    assert sum(row.source_nbytes for row in rows) == sum(tensor.nbytes for tensor in stored)
    assert {row.source_type for row in rows} == {tensor.type for tensor in stored}
    for row in rows:
        exact = "exact" if row.source_type == "F32" else "exact-value"
        assert row.kind == (exact if to == "hf.f32" else "rounded"), row.name
