"""llama.cpp through the bindings of llama-cpp-python (``LLAMA_CPP_LIB_PATH``: a folder with another libllama)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from subbyte.io.gguf import GgufFile

llama = pytest.importorskip("llama_cpp.llama_cpp")

_messages: list[str] = []


@llama.llama_log_callback
def _log(level: int, text: bytes, _: Any) -> None:
    if level >= 3:  # GGML_LOG_LEVEL_WARN
        _messages.append(text.decode("utf-8", "replace"))


llama.llama_log_set(_log, None)
llama.llama_backend_init()


class Model:
    """A model that llama.cpp has loaded."""

    def __init__(self, path: Path, *, embeddings: bool = False) -> None:
        _messages.clear()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.check_tensors = True
        # Repacked weights use other kernels, chosen by type: without them equal bytes give equal logits.
        parameters.use_extra_bufts = False
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp does not load {path.name}: {''.join(_messages)}"
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32: nothing is rounded on the way
        settings.flash_attn_type = 0
        settings.embeddings = embeddings
        self._context = llama.llama_init_from_model(self._model, settings)
        assert self._context, f"no context for {path.name}: {''.join(_messages)}"
        self._vocabulary = llama.llama_model_get_vocab(self._model)
        self.vocabulary_size = llama.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, with what the model puts around it."""
        raw = text.encode()
        out = (llama.llama_token * (len(raw) + 16))()
        n = llama.llama_tokenize(self._vocabulary, raw, len(raw), out, len(out), True, True)
        assert n >= 0
        return list(out[:n])

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        buffer = ctypes.create_string_buffer(256)
        pieces = []
        for token in tokens:
            n = llama.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
            pieces.append(buffer.raw[:n])
        return b"".join(pieces).decode("utf-8", "replace")

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after the last token, float32 [vocabulary]."""
        self._decode(tokens)
        found = llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self.vocabulary_size,)).copy()

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[list[int], np.ndarray]:
        """The ``count`` most likely next tokens, one after the other, and the logits that each was chosen from."""
        self._forget()
        chosen, all_logits, new = [], [], list(tokens)
        for _ in range(count):
            all_logits.append(self.logits(new))
            new = [int(all_logits[-1].argmax())]
            chosen += new
        return chosen, np.stack(all_logits)

    def embedding(self, tokens: Sequence[int]) -> np.ndarray:
        """The pooled embedding of the tokens, of length one."""
        self._forget()
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        assert llama.llama_decode(self._context, batch) == 0
        llama.llama_batch_free(batch)
        width = llama.llama_model_n_embd(self._model)
        vector = np.ctypeslib.as_array(llama.llama_get_embeddings_seq(self._context, 0), (width,)).copy()
        return vector / np.linalg.norm(vector)

    def _forget(self) -> None:
        memory = llama.llama_get_memory(self._context)
        if memory:
            llama.llama_memory_clear(memory, True)

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        assert llama.llama_decode(self._context, llama.llama_batch_get_one(array, len(tokens))) == 0


def quantize(src: Path, dst: Path, file_type: int, importance: Mapping[str, np.ndarray] | None = None) -> None:
    """llama.cpp's own quantizer."""
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.allow_requantize = file_type, 2, True
    if importance is not None:
        vectors = {name: np.ascontiguousarray(v, np.float32).reshape(-1) for name, v in importance.items()}
        entries = (llama.llama_model_imatrix_data * (len(vectors) + 1))()
        for entry, (name, vector) in zip(entries, vectors.items(), strict=False):
            entry.name, entry.size = name.encode(), vector.size
            entry.data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = ctypes.cast(entries, ctypes.POINTER(llama.llama_model_imatrix_data))
    _messages.clear()
    status = llama.llama_model_quantize(str(src).encode(), str(dst).encode(), ctypes.byref(parameters))
    assert status == 0, "".join(_messages)


def differing(ours: Path, theirs: Path) -> list[str]:
    """The tensors of two files that differ in type or bytes; they have to have the same names."""
    with GgufFile(ours) as a, GgufFile(theirs) as b:
        assert a.keys() == b.keys()
        return [
            f"{name} {a[name].type} {b[name].type}"
            for name in a
            if a[name].type != b[name].type or a.raw(name).tobytes() != b.raw(name).tobytes()
        ]
