"""Checkpoint files: `subbyte.io.gguf` and `subbyte.io.safetensors`, hardened, lazy and memory-mapped."""

from subbyte.io.source import load_json, same_file

__all__ = ["load_json", "same_file"]
