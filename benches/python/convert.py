"""Converting a synthetic bfloat16 Llama checkpoint to GGUF, against llama.cpp's quantizer, gguf-py and ``cp``.

Every conversion runs in a process of its own: wall time, CPU time of all threads, peak memory (mapped files included).
Everyone takes turns and the fastest of several runs counts, which finds the checkpoint in the page cache. llama.cpp
(``SUBBYTE_BENCH_LLAMA``: path of its libllama) starts from an F16 GGUF file, which its users have to make first; ``cp``
copies the checkpoint's safetensors file and waits until it is on the disk, as a conversion does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import measured, record, today

import subbyte
from subbyte.arrays import small_float
from subbyte.io.safetensors import write_safetensors
from subbyte.planning.mix import file_type

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS = 2048, 5632, 32_000, 16
TARGETS = ("gguf.bf16", "gguf.f16", "gguf.q8_0", "gguf.q4_0", "gguf.q6_k", "gguf.q4_k_m")
GGUF_PY = {"gguf.f16": "F16", "gguf.q8_0": "Q8_0", "gguf.q4_0": "Q4_0"}
LLAMA_QUANTIZE = ("gguf.q8_0", "gguf.q4_0", "gguf.q6_k", "gguf.q4_k_m")


def write_checkpoint(folder: Path, layers: int) -> None:
    """Writes the checkpoint."""
    random = np.random.default_rng(0)
    bfloat16 = small_float("bfloat16")

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape, np.float32) * np.float32(0.02)).astype(bfloat16)

    tensors = {
        "model.embed_tokens.weight": weights(VOCABULARY, HIDDEN),
        "lm_head.weight": weights(VOCABULARY, HIDDEN),
        "model.norm.weight": weights(HIDDEN),
    }
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = weights(HIDDEN)
        for name in "qkvo":
            tensors[f"{layer}self_attn.{name}_proj.weight"] = weights(HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            tensors[f"{layer}mlp.{name}_proj.weight"] = weights(INTERMEDIATE, HIDDEN)
        tensors[f"{layer}mlp.down_proj.weight"] = weights(HIDDEN, INTERMEDIATE)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY,
        "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def with_gguf_py(src: Path, dst: Path, kind: str) -> None:
    """What a script around gguf-py does: read, quantize, write; names and layouts of heads left as they are."""
    import gguf
    from safetensors.numpy import load_file

    small_float("bfloat16")  # makes NumPy know the type that load_file asks for
    writer = gguf.GGUFWriter(dst, "llama")
    qtype = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(src / "model.safetensors").items():
        values = tensor.astype(np.float32)
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def competitors(src: Path, dst: Path, f16: Path, target: str, threads: int) -> dict[str, tuple[str, list[str]]]:
    """Version and command of everyone who has the target."""

    def own(name: str) -> list[str]:
        return [sys.executable, __file__, "--job", name, str(src), str(dst), target]

    found = {"subbyte": (subbyte.__version__, own("subbyte"))}
    if target in GGUF_PY:
        found["gguf-py"] = version("gguf"), own("gguf-py")
    if target in LLAMA_QUANTIZE and "SUBBYTE_BENCH_LLAMA" in os.environ:
        script = Path(__file__).parent / "llama_quantize.py"
        numbers = str(file_type(target.removeprefix("gguf.")).number), str(threads)
        found["llama-quantize"] = "ggml 0.25", [sys.executable, str(script), str(f16), str(dst), *numbers]
    if target == "gguf.bf16":
        copy = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(src / "model.safetensors"), str(dst)]
        found["cp + sync"] = platform.system(), copy
    return found


def main() -> None:
    """Writes the checkpoint, converts it with everyone, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=14, help="layers of 51 million weights; 131 million beside them")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of ours and of llama.cpp")
    parser.add_argument("--runs", type=int, default=3, help="runs of each conversion; the fastest counts")
    parser.add_argument("--targets", default=",".join(TARGETS), help="targets, separated by commas")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--record", action="store_true", help="store the figures in benches/record")
    options = parser.parse_args()
    targets = options.targets.split(",")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        src, dst, f16 = (Path(folder) / name for name in ("checkpoint", "model.gguf", "f16.gguf"))
        src.mkdir()
        # In another process: what this one had in memory would count as the peak of those it starts.
        here = [sys.executable, __file__, "--job"]
        measured([*here, "write", str(src), str(options.layers)], options.threads)
        if "SUBBYTE_BENCH_LLAMA" in os.environ and set(targets) & set(LLAMA_QUANTIZE):
            measured([*here, "subbyte", str(src), str(f16), "gguf.f16"], options.threads)
        millions = (src / "model.safetensors").stat().st_size // 2_000_000
        for target in targets:
            jobs = competitors(src, dst, f16, target, options.threads)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
            for _ in range(options.runs):
                for name, (_, command) in jobs.items():
                    dst.unlink(missing_ok=True)
                    runs[name].append(measured(command, options.threads))
            rows = {}
            for name, (found, _) in jobs.items():
                best = min(runs[name], key=lambda run: run["wall_s"])
                rows[name] = {"date": today(), "version": found, **best}
                times = best["wall_s"] / rows["subbyte"]["wall_s"]
                facts = "  ".join(f"{key} {value:g}" for key, value in best.items())
                print(f"{target:12}{name:16}{facts}  {times:.2f} × ours", flush=True)
            if options.record:
                what = f"{millions} million bfloat16 weights, {options.threads} threads, {os.cpu_count()} cores"
                record("convert", what, {target: rows})


def job(name: str, src: str, *arguments: str) -> None:
    """What a process of its own does."""
    if name == "write":
        write_checkpoint(Path(src), int(arguments[0]))
    elif name == "gguf-py":
        dst, target = arguments
        with_gguf_py(Path(src), Path(dst), GGUF_PY[target])
    else:
        dst, target = arguments
        subbyte.convert(src, dst, to=target, overwrite=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(*sys.argv[2:])
    else:
        main()
