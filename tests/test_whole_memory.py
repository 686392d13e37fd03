"""Memory of conversions of quantized checkpoints: bounded by the largest tensor, whatever the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest

from checkpoints import CONFIG

HIDDEN, INNER = 2048, 8192
_PEAK = """
import sys, subbyte
subbyte.convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(int(peak) << 10)
"""  # mapped pages are counted; getrusage would count the peak of the process that started this one


def layer_shapes(format: str, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of the tensors of a layer."""
    if format == "gptq":
        groups = columns // 128
        return {
            "qweight": ("I32", (columns // 8, rows)), "qzeros": ("I32", (groups, rows // 8)),
            "scales": ("F16", (groups, rows)),
        }  # fmt: skip
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (rows // 128, columns // 128))}


def sparse_checkpoint(folder: Path, format: str, layers: int) -> Path:
    """A quantized checkpoint of zeros that takes no space on the disk."""
    settings: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if format == "gptq":
        settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": False,
                    "checkpoint_format": "gptq_v2"}  # fmt: skip
    config = CONFIG | {
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers, "vocab_size": 4096,
        "num_attention_heads": 16, "num_key_value_heads": 16, "quantization_config": settings,
    }  # fmt: skip
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("F16", shape)
        for name, shape in (("model.embed_tokens.weight", (4096, HIDDEN)), ("model.norm.weight", (HIDDEN,)),
                            ("lm_head.weight", (4096, HIDDEN)))
    }  # fmt: skip
    for n in range(layers):
        prefix = f"model.layers.{n}."
        shapes |= {f"{prefix}{part}layernorm.weight": ("F16", (HIDDEN,)) for part in ("input_", "post_attention_")}
        sizes = {f"self_attn.{x}_proj": (HIDDEN, HIDDEN) for x in "qkvo"}
        sizes |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
        for module, size in sizes.items():
            shapes |= {f"{prefix}{module}.{plane}": found for plane, found in layer_shapes(format, *size).items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, (kind, shape) in shapes.items():
        size = prod(shape) * {"I32": 4, "F16": 2, "F32": 4, "F8_E4M3": 1}[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["gguf", "compressed-tensors", "hf.bf16"])
@pytest.mark.parametrize(("format", "layers"), [("gptq", 6), ("fp8", 3)])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path, format: str, layers: int, to: str) -> None:
    source = sparse_checkpoint(tmp_path / "source", format, layers)
    command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / ("out" + ".gguf" * (to == "gguf"))), to]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    largest = INNER * HIDDEN * (2 if to == "hf.bf16" else 1)
    assert int(done.stdout) <= 2 * largest + (256 << 20)
