"""llama.cpp's quantizer as a process of its own, with nothing else in it: ``SUBBYTE_BENCH_LLAMA`` names its library.

The parameters are those of llama.cpp as of ggml 0.25 (``llama_model_quantize_params`` in its ``llama.h``).
"""

from __future__ import annotations

import ctypes
import os
import sys


class Parameters(ctypes.Structure):
    """``llama_model_quantize_params``."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def quantize(src: str, dst: str, file_type: int, threads: int) -> None:
    """Quantizes a GGUF file."""
    library = ctypes.CDLL(os.environ["SUBBYTE_BENCH_LLAMA"])
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    library.llama_model_quantize.restype = ctypes.c_uint32
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(silent, None)
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    if not (parameters.quantize_output_tensor and not parameters.only_copy):
        raise SystemExit("this llama.cpp has other parameters")
    parameters.nthread, parameters.ftype = threads, file_type
    if library.llama_model_quantize(src.encode(), dst.encode(), ctypes.byref(parameters)):
        raise SystemExit("llama_model_quantize failed")


if __name__ == "__main__":
    quantize(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
