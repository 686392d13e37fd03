"""Opening a GGUF file with a 150,000-entry vocabulary, against gguf-py's reader (goal: 50 times faster).

Two rows: opening, after which both know every key and can index the vocabulary, and opening plus all tokens as strings.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from common import interleaved, record, today

from subbyte.io.gguf import GgufFile

TOKENS = "tokenizer.ggml.tokens"


def write(path: Path, entries: int) -> None:
    """A model header as converters write it: gguf-py itself makes the file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}" for i in range(entries)])
    writer.add_token_scores([float(-i) for i in range(entries)])
    writer.add_token_types([1] * entries)
    writer.add_token_merges([f"a{i} b{i}" for i in range(entries)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(path: Path, *, strings: bool) -> list[str]:
    """Through subbyte."""
    with GgufFile(path) as file:
        tokens = file.metadata[TOKENS]
        return tokens.tolist() if strings else [tokens[-1]]


def theirs(path: Path, *, strings: bool) -> list[str]:
    """Through gguf-py."""
    field = gguf.GGUFReader(path).fields[TOKENS]
    return field.contents() if strings else [field.contents(-1)]


def main() -> None:
    """Measures both readers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=150_000, help="tokens in the vocabulary")
    parser.add_argument("--seconds", type=float, default=3, help="CPU time for each reader")
    parser.add_argument("--record", action="store_true", help="store the figures in benches/record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write(path, options.entries)
        for what, strings in (("open", False), ("open, all tokens", True)):
            if ours(path, strings=strings) != theirs(path, strings=strings):
                raise SystemExit(f"{what}: the readers disagree")
            calls = {
                "subbyte": lambda strings=strings: ours(path, strings=strings),
                "gguf-py": lambda strings=strings: theirs(path, strings=strings),
            }
            best = {name: time.best / 1e6 for name, time in interleaved(calls, options.seconds).items()}
            ratio = best["gguf-py"] / best["subbyte"]
            print(f"{what}: subbyte {best['subbyte']:.2f} ms, gguf-py {best['gguf-py']:.0f} ms, {ratio:.0f}×")
            if options.record:
                row = {"date": today(), "gguf-py": version("gguf"), "ms": best, "ratio": round(ratio, 1)}
                record("header", f"{options.entries} entries", {what: row})


if __name__ == "__main__":
    main()
