"""Moving the codes of quantized checkpoints into another format, against ``cp`` and ``sync`` of the source.

Synthetic checkpoints: a Llama in GPTQ (4 bits, groups of 128, symmetric), and a gpt-oss in MXFP4. Conversions hash
everything they write and wait until it is on the disk. Every run is a process of its own: wall time, CPU time of all
threads, peak memory (mapped files included). Everyone takes turns and the fastest of several runs counts, which finds
the checkpoint in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import measured, record, today

import subbyte
from subbyte.arrays import small_float
from subbyte.io.safetensors import write_safetensors

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, GROUP = 2048, 5632, 32_000, 16, 128
EXPERTS, EXPERT = 32, 2880
#: What is to be at most 2: our time over that of ``cp`` and ``sync``.
MUST = 2.0

#: Source and target of each conversion.
JOBS = {
    "GPTQ → compressed-tensors": ("gptq", "compressed-tensors"),
    "GPTQ → GGUF": ("gptq", "gguf.q4_0"),
    "GPTQ → AWQ": ("gptq", "awq"),
    "MXFP4 → GGUF": ("mxfp4", "gguf.mxfp4"),
}

Tensors = dict[str, Any]


def llama_gptq(layers: int) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and config.json of the GPTQ checkpoint."""
    random = np.random.default_rng(0)
    tensors = _embeddings(random, HIDDEN)

    def quantized(name: str, rows: int, columns: int) -> None:
        groups = columns // GROUP
        tensors[f"{name}.qweight"] = _codes(random, (columns // 8, rows), np.int32)
        tensors[f"{name}.qzeros"] = np.full((groups, rows // 8), 0x77777777, np.int32)
        tensors[f"{name}.scales"] = (random.random((groups, rows)) * 0.01 + 0.001).astype(np.float16)
        tensors[f"{name}.g_idx"] = (np.arange(columns) // GROUP).astype(np.int32)

    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = tensors["model.norm.weight"]
        for name in "qkvo":
            quantized(f"{layer}self_attn.{name}_proj", HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            quantized(f"{layer}mlp.{name}_proj", INTERMEDIATE, HIDDEN)
        quantized(f"{layer}mlp.down_proj", HIDDEN, INTERMEDIATE)
    return tensors, {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY,
        "dtype": "bfloat16", "tie_word_embeddings": True,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    }  # fmt: skip


def gpt_oss(layers: int) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and config.json of the MXFP4 checkpoint."""
    random = np.random.default_rng(0)
    tensors = _embeddings(random, EXPERT)
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = tensors["model.norm.weight"]
        for name, rows, columns in (("q", 4096, EXPERT), ("k", 512, EXPERT), ("v", 512, EXPERT), ("o", EXPERT, 4096)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = _weights(random, rows, columns)
            tensors[f"{layer}self_attn.{name}_proj.bias"] = _weights(random, rows)
        tensors[f"{layer}self_attn.sinks"] = _weights(random, 64)
        tensors[f"{layer}mlp.router.weight"] = _weights(random, EXPERTS, EXPERT)
        tensors[f"{layer}mlp.router.bias"] = _weights(random, EXPERTS)
        for name, rows in (("gate_up_proj", 2 * EXPERT), ("down_proj", EXPERT)):
            blocks = EXPERT // 32
            tensors[f"{layer}mlp.experts.{name}_blocks"] = _codes(random, (EXPERTS, rows, blocks, 16), np.uint8)
            tensors[f"{layer}mlp.experts.{name}_scales"] = random.integers(110, 125, (EXPERTS, rows, blocks), np.uint8)
            tensors[f"{layer}mlp.experts.{name}_bias"] = _weights(random, EXPERTS, rows)
    return tensors, {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": EXPERT,
        "intermediate_size": EXPERT, "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "num_local_experts": EXPERTS, "num_experts_per_tok": 4, "sliding_window": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000, "vocab_size": VOCABULARY,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": 4096},
        "dtype": "bfloat16", "tie_word_embeddings": True, "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip


def _codes(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, dtype, endpoint=True)


def _weights(random: np.random.Generator, *shape: int) -> np.ndarray:
    return (random.standard_normal(shape, np.float32) * np.float32(0.02)).astype(small_float("bfloat16"))


def _embeddings(random: np.random.Generator, hidden: int) -> Tensors:
    return {
        "model.embed_tokens.weight": _weights(random, VOCABULARY, hidden),
        "model.norm.weight": _weights(random, hidden),
    }


WRITERS = {"gptq": llama_gptq, "mxfp4": gpt_oss}
#: Layers that make checkpoints of about 1 GB.
LAYERS = {"gptq": 32, "mxfp4": 2}


def write(kind: str, folder: Path, layers: int) -> None:
    """Writes a checkpoint."""
    folder.mkdir()
    tensors, config = WRITERS[kind](layers)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Writes the checkpoints, converts them, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default=",".join(JOBS), help="conversions, separated by commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the fastest counts")
    parser.add_argument("--layers", type=int, help="layers of the checkpoints (default: what makes about 1 GB)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--record", action="store_true", help="store the figures in benches/record")
    options = parser.parse_args()
    here = [sys.executable, __file__, "--job"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.jobs.split(","):
            kind, target = JOBS[name]
            src = Path(folder) / kind
            if not src.exists():
                # In another process: what this one had in memory would count as the peak of those it starts.
                measured([*here, "write", kind, str(src), str(options.layers or LAYERS[kind])], options.threads)
            size = (src / "model.safetensors").stat().st_size
            dst = Path(folder) / "converted"
            copy = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(src / "model.safetensors"), str(dst)]
            commands = {"subbyte": [*here, "convert", str(src), str(dst), target], "cp + sync": copy}
            runs: dict[str, list[dict[str, float]]] = {one: [] for one in commands}
            for _ in range(options.runs):
                for one, command in commands.items():
                    if dst.is_dir():
                        shutil.rmtree(dst)
                    dst.unlink(missing_ok=True)
                    os.sync()
                    runs[one].append(measured(command, options.threads))
            best = {one: min(found, key=lambda run: run["wall_s"]) for one, found in runs.items()}
            ratio = round(best["subbyte"]["wall_s"] / best["cp + sync"]["wall_s"], 2)
            facts = {"versions": {"subbyte": subbyte.__version__, "cp + sync": platform.system()}}
            row = {"date": today(), **facts, **best, "ratio": ratio, "verdict": "must" if ratio <= MUST else "below"}
            print(f"{name:28}{ratio:5.2f} × cp + sync  {json.dumps(best)}", flush=True)
            if options.record:
                record("repack", f"{options.threads} threads", {f"{name}, {size / 1e9:.1f} GB": row})


def job(name: str, *arguments: str) -> None:
    """What a process of its own does."""
    if name == "write":
        kind, folder, layers = arguments
        write(kind, Path(folder), int(layers))
    else:
        src, dst, target = arguments
        subbyte.convert(src, dst, to=target)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        job(*sys.argv[2:])
    else:
        main()
