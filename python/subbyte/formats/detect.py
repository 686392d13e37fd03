"""Which format a checkpoint is in: by its settings, then by the names of its tensors.

The order is that of ``quantization_config`` in config.json (perhaps below ``text_config``), the ``quip_params`` of
QuIP# and QTIP, MLX's ``quantization``, the side files of GPTQ, AWQ and ModelOpt, and last the suffixes of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from subbyte.errors import FormatError, UnsupportedError
from subbyte.io.safetensors import SafetensorsFile

#: Format id by ``quant_method``.
METHODS = {
    "gptq": "gptq", "awq": "awq", "compressed-tensors": "compressed-tensors", "bitsandbytes": "bitsandbytes",
    "hqq": "hqq", "torchao": "torchao", "quanto": "quanto", "fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp8": "fp8",
    "mxfp4": "mxfp4", "modelopt": "modelopt", "bitnet": "bitnet", "sinq": "sinq", "gemma": "gemma",
    "metal": "mlx", "matgptq_quant": "matquant", "qqq": "qqq", "subbyte": "subbyte",
    "aqlm": "aqlm", "vptq": "vptq", "spqr": "spqr", "higgs": "higgs", "squeezellm": "squeezellm",
    "exl3": "exl3",
}  # fmt: skip

#: Side file, key of the settings in it ("" for the whole file), format id.
_SIDE_FILES = (
    ("quantize_config.json", "", "gptq"),
    ("quant_config.json", "", "awq"),
    ("hf_quant_config.json", "quantization", "modelopt"),
)

SideFile = Callable[[str], Any]


def identify(
    config: Mapping[str, Any], source: SafetensorsFile, side_file: SideFile
) -> tuple[str, Mapping[str, Any]] | None:
    """Format id and settings of a checkpoint; None for one that is not quantized.

    Args:
        config: config.json; empty where there is none.
        source: its tensors.
        side_file: a JSON file beside the weights by name; None where there is none.

    Raises:
        FormatError: the settings are not what they have to be.
        UnsupportedError: a method that is not known.
    """
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping) and (found := _from_config(holder)) is not None:
            return found
    for file, key, id in _SIDE_FILES:
        found_file = side_file(file)
        if isinstance(found_file, Mapping):
            settings = found_file.get(key) if key else found_file
            if isinstance(settings, Mapping):
                return id, settings
    id_by_name = by_names(source)
    return None if id_by_name is None else (id_by_name, {})


def _from_config(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    settings = config.get("quantization_config")
    if settings is not None and not isinstance(settings, Mapping):
        raise FormatError(f"quantization_config is {settings!r:.60}: expected a JSON object")
    method = (settings or {}).get("quant_method")
    if method is None:
        quip = config.get("quip_params")
        if isinstance(quip, Mapping):
            return "qtip" if quip.get("codebook") == "bitshift" else "quip", quip
        mlx = config.get("quantization")
        return ("mlx", mlx) if isinstance(mlx, Mapping) else None
    if method == "auto-round":
        packing = str((settings or {}).get("packing_format"))
        ids = {"awq": "awq", "llm_compressor": "compressed-tensors"}
        return next((id for part, id in ids.items() if part in packing), "gptq"), settings or {}
    if not isinstance(method, str):
        raise FormatError(f"setting 'quant_method' is {method!r:.60}: expected a string")
    if method not in METHODS:
        raise UnsupportedError(f"quantized with '{method}', which subbyte does not know")
    return METHODS[method], settings or {}


def by_names(source: SafetensorsFile) -> str | None:
    """The format that the names and types of the tensors speak for; None where they speak for none."""
    for name, tensor in source.items():
        module, _, last = name.rpartition(".")
        if last == "qweight":
            if f"{module}.g_idx" in source:
                return "gptq"
            if tensor.dtype == "I8" and f"{module}.s1_scales" in source:
                return "qserve"
            if f"{module}.wscales" in source:
                return "nunchaku"
            if tensor.dtype == "U8":
                return "matquant"
            if tensor.dtype in ("I32", "I16"):
                return "awq"
        elif last == "B" and f"{module}.s_channel" in source:
            return "qqq"
        elif last == "B" and f"{module}.s" in source:
            return "gptq"  # Marlin
        elif last == "lut" and f"{module}.scales_and_zeros" in source:
            return "any4"
        elif last == "codebooks" and f"{module}.codes" in source:
            return "aqlm"
        elif last == "lookup_table":
            return "squeezellm"
        elif last == "dense_weights" and f"{module}.col_vals" in source:
            return "spqr"
        elif last == "trellis" and (f"{module}.suh" in source or f"{module}.su" in source):
            return "exl3"
        elif last == "Qidxs":
            return "quip"
        elif last == "tables2":
            return "higgs"
        elif last == "weight_packed" or (last == "bitmask" and f"{module}.compressed" in source):
            return "compressed-tensors"
        elif last == "absmax" or (last == "SCB" and f"{module}.weight" in source):
            return "bitsandbytes"
        elif last == "_data" and module.endswith(".weight"):
            return "quanto"
        elif name.endswith("._weight_qdata"):
            return "torchao"
        elif last == "W_q":
            return "hqq" if f"{module}.nbits" in source else "sinq"
        elif name.endswith("_blocks") and name.replace("_blocks", "_scales") in source:
            return "mxfp4"
        elif last == "weight":
            if tensor.dtype.startswith("F8_") and any(
                f"{module}.{scale}" in source for scale in ("weight_scale_inv", "weight_scale", "scale")
            ):
                return "fp8"
            if tensor.dtype == "U8" and f"{module}.weight_scale_2" in source:
                return "modelopt"
            if tensor.dtype == "U32" and f"{module}.scales" in source:
                return "mlx"
            scale = source.get(f"{module}.weight_scale")
            if tensor.dtype == "U8" and scale is not None and scale.shape in ((), (1,)):
                return "bitnet"
    return None
