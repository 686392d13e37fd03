"""Opening a GGUF file with a 150,000-entry vocabulary (tokens, scores, types, merges), against gguf-py's reader.

Prints the ratio; every key is known and the vocabulary can be indexed after opening in both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
from common import record

from subbyte.io.gguf import GgufFile


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


def best(call, runs: int) -> float:
    """Shortest of several runs in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measures both readers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=150_000)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write(path, args.entries)

        def ours() -> None:
            with GgufFile(path) as f:
                tokens = f.metadata["tokenizer.ggml.tokens"]
                assert len(tokens) == args.entries and tokens[args.entries - 1] == f"token{args.entries - 1}"

        def theirs() -> None:
            field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
            assert len(field.data) == args.entries

        a, b = best(ours, 20), best(theirs, 3)
        print(
            f"{args.entries} entries: subbyte {1000 * a:.2f} ms, gguf-py {1000 * b:.0f} ms, ratio {b / a:.0f}× (goal ≥ 50×)"
        )
        if args.record:
            record("header", str(args.entries), {"subbyte_ms": 1000 * a, "gguf_py_ms": 1000 * b, "ratio": b / a})


if __name__ == "__main__":
    main()
