"""Gemma checkpoints of 2, 4 and 8 bits (``quant_method: "gemma"``), as transformers reads them.

A linear weight, or an embedding, ``[out, in]`` of ``b`` bits:

=======================================  ====  ======================  =========================================
plane                                    type  shape                   content
=======================================  ====  ======================  =========================================
weight, embedding_quantized              U8    [out, ceil(in * b / 8)] b = 2 or 4: code + 2^(b-1), the lowest
                                                                       bits first; fields past ``in`` are zero
weight, embedding_quantized              I8    [out, in]               b = 8: the code
weight_scale, embedding_scale            F32   [out, 1]
input_activation_scale,                  F32   []                      of the activations; 0 where they are not
output_activation_scale                                                quantized. No part of the weight
=======================================  ====  ======================  =========================================

w = code * scale, rounded to float32 once.

Settings: ``num_bits``, ``quantize_embeddings``, and ``module_quant_configs``, from a regular expression for the name of
a module to settings of its own; the first that is found in the name counts. A checkpoint does not say ``in``: it
follows from the sizes of the model in config.json, and for modules that those say nothing about, whole bytes are read.

Writer: scale = max|w| / (2^(b-1) - 1) of a row, code = clamp(round(w / scale), -2^(b-1), 2^(b-1) - 1), ties to even. A
row of zeros has scale 0. With ``quantize_embeddings`` the planes of an embedding are written, unless the parameter
``embedding`` is false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    optional_settings,
    setting_bool,
    setting_int,
    setting_shape,
)
from subbyte.formats.patterns import matches
from subbyte.forms import Affine, ByteCodes, ByteRowCodes, Codes, Form
from subbyte.io.safetensors import SafetensorsTensor
from subbyte.planes import Plane

LINEAR = ("weight", "weight_scale")
EMBEDDING = ("embedding_quantized", "embedding_scale")
_ACTIVATIONS = ("input_activation_scale", "output_activation_scale")


class Gemma(Format):
    """The format ``gemma``."""

    id = "gemma"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        weight, scale = EMBEDDING if EMBEDDING[0] in planes else LINEAR
        stored = _planes.get(planes, weight, ("U8", "I8"), (None, None))
        for name in _ACTIVATIONS:
            if (found := _planes.optional(planes, name, "F32")) is not None and found.data.size != 1:
                raise FormatError(f"plane '{name}' has shape {list(found.shape)}: expected a single value")
        bits = _bits(params, stored.kind)
        rows, packed = stored.shape
        shape = setting_shape(params, (rows, packed * 8 // bits))
        if shape[0] != rows or -(-shape[1] * bits // 8) != packed:
            raise FormatError(
                f"plane '{weight}' has shape {[rows, packed]}: a weight {list(shape)} of {bits} bits does not fit it"
            )
        scales = _planes.get(planes, scale, "F32", (rows, 1))
        codes: Codes = ByteCodes(stored.data, 8, 128) if bits == 8 else ByteRowCodes(stored.data, bits, shape)
        return Affine(shape, codes, scales, 1 << (bits - 1), shape[1])

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        bits = setting_int(optional_settings(params), "num_bits", allowed=(2, 4, 8))
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"Gemma stores matrices; the array has shape {list(source.shape)}")
        values, middle = source.float32(), 1 << (bits - 1)
        scales = np.abs(values).max(axis=1, keepdims=True, initial=0) / np.float32(middle - 1)
        divisors = np.where(scales == 0, np.float32(1), scales)
        codes = np.clip(np.rint(values / divisors), -middle, middle - 1) + middle
        packed = ByteCodes(codes.astype(np.uint8), bits)
        form = Affine(values.shape, packed, Plane(scales, "F32"), middle, values.shape[1])
        return encoded(self.id, self.write(form, params), values.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Affine) or len(form.shape) != 2:
            return super().write(form, params)
        config = optional_settings(params)
        bits = form.codes.bits
        if bits not in (2, 4, 8) or setting_int(config, "num_bits", bits) != bits:
            raise UnsupportedError(
                f"codes of {bits} bits cannot be stored as {config.get('num_bits', '2, 4 or 8')} bits"
            )
        if not form.symmetric:
            raise UnsupportedError("format 'gemma' has no zero points, but those of the weight are not in the middle")
        form = form.regrouped(form.columns).rescaled("F32")
        codes = form.codes.unpack()
        if bits == 8:
            stored = Plane((codes ^ np.uint8(128)).view(np.int8), "I8")
        else:
            stored = Plane(ByteRowCodes.pack(codes, bits), "U8")
        embedding = setting_bool(params, "embedding", setting_bool(config, "quantize_embeddings", False))
        return dict(zip(EMBEDDING if embedding else LINEAR, (stored, form.scales), strict=True))

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        for names in (LINEAR, EMBEDDING):
            for module, tensors in folder.modules(names, _ACTIVATIONS, marker=names[1]).items():
                stored = folder.source[tensors[names[0]]]
                if stored.dtype not in ("U8", "I8") or len(stored.shape) != 2:
                    raise FormatError(
                        f"is {stored.dtype} {list(stored.shape)} beside '{names[1]}': expected a matrix of U8 or I8",
                        tensor=stored.name,
                    )
                config = _module_settings(folder.settings, module)
                bits = _bits({"quantization_config": config}, stored.dtype)
                shape = (stored.shape[0], _columns(folder, module, stored, bits))
                params = {"quantization_config": config, "shape": shape, "embedding": names is EMBEDDING}
                found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


def _bits(params: Mapping[str, Any], kind: str) -> int:
    allowed = (8,) if kind == "I8" else (2, 4)
    bits = setting_int(optional_settings(params), "num_bits", 8 if kind == "I8" else None)
    if bits not in allowed:
        raise FormatError(f"setting 'num_bits' is {bits}, but the codes are {kind}, which holds {allowed} bits")
    return bits


def _module_settings(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """The settings with those of the first pattern that is found in the name of the module."""
    patterns = config.get("module_quant_configs") or {}
    if not isinstance(patterns, Mapping):
        raise FormatError(f"module_quant_configs is {patterns!r:.60}: expected a JSON object")
    for pattern, own in patterns.items():
        if matches(pattern, module, anywhere=True):
            own = {"num_bits": own} if isinstance(own, int) else own
            if not isinstance(own, Mapping):
                raise FormatError(f"module_quant_configs['{pattern:.60}'] is {own!r:.60}: expected a JSON object")
            return {**config, **own}
    return config


def _columns(folder: Folder, module: str, stored: SafetensorsTensor, bits: int) -> int:
    """Input features of a module: what config.json says, if it says so, else as many as the bytes hold.

    Raises:
        FormatError: the bytes hold another number.
    """
    room = stored.shape[1] * 8 // bits
    config = folder.config.get("text_config", folder.config)
    last = module.rpartition(".")[2]
    key = {"down_proj": "intermediate_size"}.get(last, "hidden_size" if last in _OF_HIDDEN else "")
    said = config.get(key) if isinstance(config, Mapping) and not any(part in module for part in _OTHER_SIZES) else None
    if isinstance(said, bool) or not isinstance(said, int):
        return room
    if -(-said * bits // 8) != stored.shape[1]:
        raise FormatError(
            f"has {stored.shape[1]} bytes a row, room for {room} codes of {bits} bits; {key} is {said} in config.json",
            tensor=stored.name,
        )
    return said


_OF_HIDDEN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head")
"""Modules whose input is the hidden state."""

_OTHER_SIZES = ("vision", "audio", "per_layer")
"""Parts of names of modules that have sizes of their own."""


FORMATS = {"gemma": Gemma()}
