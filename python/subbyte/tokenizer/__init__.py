"""Vocabularies of Hugging Face checkpoints as GGUF metadata.

:func:`tokenizer_keys` reads whichever of ``tokenizer.model`` (SentencePiece) and ``tokenizer.json`` (byte-level BPE, or
BPE with byte fallback) a checkpoint has and returns the ``tokenizer.*`` keys.
"""

from __future__ import annotations

from subbyte.tokenizer.vocabulary import Vocabulary, tokenizer_keys

__all__ = ["Vocabulary", "tokenizer_keys"]
