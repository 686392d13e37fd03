"""GPTQ checkpoints (AutoGPTQ, GPTQModel, AutoRound), arXiv 2210.17323.

A weight ``[out, in]`` of ``b`` bits in groups of ``g`` input columns; G = ceil(in / g):

========  =====================  ========================  ========================================================
plane     type                   shape                     content
========  =====================  ========================  ========================================================
qweight   I32                    [ceil(in * b / 32), out]  codes, packed down the input axis for each output
qzeros    I32                    [G, ceil(out * b / 32)]   zero points, packed along the outputs
scales    F16 (BF16, F32 seen)   [G, out]
g_idx     I32                    [in]                      group of each input column; may be missing
========  =====================  ========================  ========================================================

w[o, i] = scales[g_idx[i], o] * (code[o, i] - zero[g_idx[i], o]). The difference is exact, the product is rounded once.

* Codes lie in one stream of bits (``gptq``, ``gptq_v2``); 5, 6, 7 bits always and 3 bits under ``gptq_p`` in planes.
* ``gptq_v2`` and ``gptq_p`` store the zero itself, ``gptq`` (v1, the default) zero - 1. A v1 field of all ones means 0
  for a writer that wraps, and more than the codes reach for one that does not; GPTQModel subtracts one from every field
  of a whole word at once, and adding it to the whole word restores all of them. A symmetric file tells the version by
  its zeros, whatever its label says. Because readers differ, a zero of 0 is written to v1 only where ``meta`` names
  GPTQModel.
* Act-order (``desc_act``): g_idx is not sorted; codes stay in the order of the inputs.
* ``checkpoint_format`` ``marlin`` (``is_marlin_format``): planes ``B`` and ``s``, see `subbyte.formats.integer.marlin`.

Settings: ``bits``, ``group_size`` (-1: one group), ``sym``, ``desc_act``, ``checkpoint_format`` or ``format``;
GPTQModel's ``dynamic`` (pattern at the beginning of a module's name: other settings, or with ``-:`` not quantized; the
first that matches counts); AutoRound's ``packing_format`` (``auto_round:auto_gptq`` is v1, ``auto_round`` and
``auto_round:gptqmodel`` are v2) and ``extra_config`` (settings by module name or pattern). Without settings, bits and
groups follow from the shapes. Tensors decide which modules are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    setting_bool,
    setting_group_size,
    setting_int,
    setting_text,
    settings,
)
from subbyte.formats.integer import marlin
from subbyte.formats.patterns import matches
from subbyte.forms import Affine, Form, PackedCodes
from subbyte.forms.codes import laid, pack, unpack, words_per_row
from subbyte.planes import FLOATS, Plane
from subbyte.quantize import Grid, quantized

BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths that exist."""

#: Layout by AutoRound's name for it.
_AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:gptqmodel": "gptq_v2", "auto_round": "gptq_v2"}


class Gptq(Format):
    """The format ``gptq``."""

    id = "gptq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        label = _label(config)
        if label == "marlin":
            return self._read_marlin(planes, config)
        order, v2 = _layout(label, bits)
        scales = _planes.get(planes, "scales", FLOATS, (None, None))
        groups, out = scales.shape
        qweight = _planes.get(planes, "qweight", ("I32", "U32"), (None, out))
        columns = _columns(qweight.shape[0], order, bits)
        qzeros = _planes.get(planes, "qzeros", ("I32", "U32"), (groups, words_per_row(order, bits, out)))
        g_idx = _planes.optional(planes, "g_idx", ("I32", "I64"), (columns,))
        group_size = setting_group_size(config, columns, groups)
        group_of = None
        if g_idx is not None:
            if not np.array_equal(g_idx.data, np.arange(columns) // group_size):
                if g_idx.data.min() < 0 or g_idx.data.max() >= groups:
                    raise FormatError(f"plane 'g_idx' names group {g_idx.data.max()}: plane 'scales' has {groups}")
                group_of = g_idx.data.astype(np.int32)
        elif groups > 1 and setting_bool(config, "desc_act", False):
            raise ArgumentError("plane 'g_idx' is missing: setting 'desc_act' says that columns are out of order")
        codes = PackedCodes(qweight.data, bits, (out, columns), order, down=True)
        zeros = _read_zeros(qzeros.data, config, bits, order, v2, out)
        turned = Plane(np.ascontiguousarray(scales.data.T), scales.kind)
        return Affine((out, columns), codes, turned, zeros, group_size, group_of)

    def _read_marlin(self, planes: Mapping[str, Any], config: Mapping[str, Any]) -> Form:
        setting_int(config, "bits", allowed=(4,))
        scales = _planes.get(planes, "s", FLOATS, (None, None))
        words = _planes.get(planes, "B", ("I32", "U32"), (None, 2 * scales.shape[1]))
        return marlin.read(words, scales, setting_group_size(config, words.shape[0] * 16, scales.shape[0]))

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"GPTQ stores matrices; the array has shape {list(source.shape)}")
        out, columns = source.shape
        group_size = setting_group_size(config, columns)
        symmetric = setting_bool(config, "sym", True)
        found = quantized(source, params, Grid(bits, group_size, symmetric), importance)
        if found is not None:
            return encoded(self.id, self.write(found, params), source.shape, params)
        codes, scales, zeros = round_to_nearest(source.float32(), bits, group_size, symmetric)
        packed = PackedCodes(pack("stream", bits, codes), bits, (out, columns))
        form = Affine((out, columns), packed, _planes.float_plane(scales, "F16"), zeros, group_size)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        return 32 if len(shape) == 2 else 0

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Affine):
            return super().write(form, params)
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        if bits != form.codes.bits or len(form.shape) != 2:
            raise UnsupportedError(
                f"a weight {list(form.shape)} of {form.codes.bits} bits cannot be stored as a matrix of {bits} bits"
            )
        form = form.regrouped(setting_group_size(config, form.columns))
        label = _label(config)
        if label == "marlin":
            tiles, scales = marlin.write(form)
            return {"B": tiles, "s": scales}
        if form.group_of is not None and not setting_bool(config, "desc_act", False):
            raise UnsupportedError("columns are out of order (act-order): setting 'desc_act' has to be true")
        order, v2 = _layout(label, bits)
        multiple = 32 // bits if bits in (2, 4, 8) else 32
        if form.rows % multiple or form.columns % multiple:
            raise UnsupportedError(f"a weight {list(form.shape)}: {bits} bits need sides that {multiple} divides")
        words = form.codes.stream() if order == "stream" else pack(order, bits, form.codes.unpack())
        group_of = form.group_of if form.group_of is not None else np.arange(form.columns) // form.group_size
        return {
            "qweight": Plane(laid(words, "down"), "I32"),
            "qzeros": _write_zeros(form, config, order, v2),
            "scales": Plane(np.ascontiguousarray(form.scales.data.T), form.scales.kind),
            "g_idx": Plane(np.ascontiguousarray(group_of, np.int32), "I32"),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        skipped = 0
        packed = folder.modules(("qweight", "qzeros", "scales"), ("g_idx",), marker="qweight")
        for module, tensors in packed.items():
            config, skip = module_settings(folder.settings, module)
            skipped += skip
            qweight = folder.source[tensors["qweight"]]
            if len(qweight.shape) != 2:
                raise FormatError(f"qweight has shape {list(qweight.shape)}: expected a matrix", tensor=qweight.name)
            if "bits" not in config:
                config = config | _guessed(folder, tensors)
            bits = setting_int(config, "bits", allowed=BITS)
            label = _label(config)
            if label == "marlin":
                raise FormatError("the settings say Marlin tiles (B, s), the tensor is none", tensor=qweight.name)
            shape = (qweight.shape[1], _columns(qweight.shape[0], _layout(label, bits)[0], bits))
            found.append(Layer(f"{module}.weight", shape, tensors, {"quantization_config": config}))
        for module, tensors in folder.modules(("B", "s"), marker="B").items():
            words = folder.source[tensors["B"]]
            config, _ = module_settings({"bits": 4} | dict(folder.settings), module)
            if (folder.settings and _label(config) != "marlin") or len(words.shape) != 2:
                raise FormatError(
                    f"Marlin tiles under the layout '{_label(config)}' of the settings", tensor=words.name
                )
            config = config | {"checkpoint_format": "marlin"}
            shape = (words.shape[1] // 2, words.shape[0] * 16)
            found.append(Layer(f"{module}.weight", shape, tensors, {"quantization_config": config}))
        _note(folder, skipped)
        return found


def module_settings(config: Mapping[str, Any], module: str) -> tuple[dict[str, Any], bool]:
    """The settings of one module, and whether it is listed as not quantized.

    Raises:
        FormatError: ``dynamic`` or ``extra_config`` is not what it has to be.
    """
    own = {key: value for key, value in config.items() if key not in ("dynamic", "extra_config")}
    dynamic, extra = (config.get(key) or {} for key in ("dynamic", "extra_config"))
    for key, rules in (("dynamic", dynamic), ("extra_config", extra)):
        if not isinstance(rules, Mapping) or not all(isinstance(v, Mapping | None) for v in rules.values()):
            raise FormatError(f"setting '{key}' is {rules!r:.60}: expected settings by pattern")
    if module in extra:
        return own | dict(extra[module] or {}), False
    for pattern, changes in (*dynamic.items(), *extra.items()):
        if matches(pattern[2:] if pattern[:2] in ("-:", "+:") else pattern, module):
            return own | dict(changes or {}), pattern.startswith("-:")
    return own, False


def _note(folder: Folder, skipped: int) -> None:
    if skipped:
        folder.notes.append(f"{skipped} modules are quantized although 'dynamic' excepts them")
    if setting_bool(folder.settings, "lm_head", False) and "lm_head.weight" in folder.source:
        folder.notes.append("lm_head is listed as quantized but stored dense")
    if not setting_bool(folder.settings, "sym", True) and _label(folder.settings) == "gptq":
        folder.notes.append("GPTQ v1 with zero points: writers differ in how they store 0, see the format")


def _guessed(folder: Folder, tensors: Mapping[str, str]) -> dict[str, Any]:
    """Bits of a module whose settings are missing, by its shapes."""
    if "g_idx" not in tensors:
        raise FormatError("setting 'bits' is missing, and there is no g_idx to tell it by", tensor=tensors["qweight"])
    qweight, g_idx = (folder.source[tensors[plane]].shape for plane in ("qweight", "g_idx"))
    columns = max(g_idx[0] if g_idx else 0, 1)
    return {"bits": qweight[0] * 32 // columns}


def _label(config: Mapping[str, Any]) -> str:
    """``gptq``, ``gptq_v2``, ``gptq_p`` or ``marlin``.

    Raises:
        FormatError: two settings contradict each other.
        UnsupportedError: another layout.
    """
    said = {key: setting_text(config, key) for key in ("checkpoint_format", "format") if config.get(key) is not None}
    if setting_bool(config, "is_marlin_format", False):
        said["is_marlin_format"] = "marlin"
    if config.get("packing_format") is not None:
        name = setting_text(config, "packing_format")
        said["packing_format"] = _AUTO_ROUND.get(name, name)
    labels = set(said.values())
    if len(labels) > 1:
        raise FormatError("the settings contradict each other: " + ", ".join(f"{k} is '{v}'" for k, v in said.items()))
    label = labels.pop() if labels else "gptq"
    if label not in ("gptq", "gptq_v2", "gptq_p", "marlin"):
        raise UnsupportedError(f"GPTQ files of layout '{label}' cannot be read")
    if setting_text(config, "pack_dtype", "int32") != "int32":
        raise UnsupportedError(f"codes packed into {config['pack_dtype']}: only int32 can be read")
    return label


def _layout(label: str, bits: int) -> tuple[str, bool]:
    """Order of the codes, and whether zeros are stored as they are."""
    return ("planar" if label == "gptq_p" or bits in (5, 6, 7) else "stream"), label != "gptq"


def _columns(words: int, order: str, bits: int) -> int:
    columns, rest = divmod(words * 32, bits)
    if rest or not words or (order == "planar" and words % bits):
        raise FormatError(f"plane 'qweight' has {words} rows of words: no whole number of codes of {bits} bits")
    return columns


def _wraps_words(config: Mapping[str, Any], bits: int) -> np.uint32 | None:
    """What GPTQModel subtracts from a word of zeros in v1; None for writers that work on fields."""
    if bits not in (2, 4, 8) or "gptqmodel" not in str(config.get("meta")):
        return None
    return np.uint32(sum(1 << at for at in range(0, 32, bits)))


def _read_zeros(
    words: NDArray[Any], config: Mapping[str, Any], bits: int, order: str, v2: bool, out: int
) -> NDArray[np.int16]:
    fields = unpack(order, bits, words, out)
    middle = 1 << (bits - 1)
    if setting_bool(config, "sym", True) and np.all((fields == middle) | (fields == middle - 1)):
        v2 = bool(np.all(fields == middle)) or (v2 and not np.all(fields == middle - 1))
    if not v2:
        ones = _wraps_words(config, bits)
        if ones is not None:
            fields = unpack(order, bits, np.ascontiguousarray(words).view(np.uint32) + ones, out)
        else:
            fields = fields + np.uint8(1) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(fields.T).astype(np.int16)


def _write_zeros(form: Affine, config: Mapping[str, Any], order: str, v2: bool) -> Plane:
    bits = form.codes.bits
    zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape).T
    if zeros.size and (zeros.min() < 0 or zeros.max() >> bits):
        raise UnsupportedError(f"a zero point is out of the range of {bits} bits")
    if setting_bool(config, "sym", True) and not form.symmetric:
        raise UnsupportedError(f"zero points other than {1 << (bits - 1)}: setting 'sym' has to be false")
    named = "gptqmodel" in str(config.get("meta"))
    if not v2 and not named and (zeros == 0).any():
        raise UnsupportedError("a zero point is 0, which readers of GPTQ v1 take differently: use gptq_v2")
    ones = None if v2 else _wraps_words(config, bits)
    fields = zeros if v2 or ones is not None else zeros - 1 & (1 << bits) - 1
    words = pack(order, bits, np.ascontiguousarray(fields, np.uint8))
    return Plane((words if ones is None else words - ones).view(np.int32), "I32")


def round_to_nearest(
    values: NDArray[np.float32], bits: int, group_size: int, symmetric: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int16]]:
    """Codes, float16-rounded scales as float32, and zeros by the minimum and maximum of each group.

    The rule of AutoGPTQ's quantizer: zero is always in the range; a symmetric range is as wide as its larger side.
    """
    rows, columns = values.shape
    groups = -(-columns // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :columns] = values
    cut = padded.reshape(rows, groups, group_size)
    low, high = np.minimum(cut.min(2), 0), np.maximum(cut.max(2), 0)
    if symmetric:
        high = np.maximum(np.abs(low), high)
        low = np.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = np.where(empty, np.float32(-1), low), np.where(empty, np.float32(1), high)
    scale = ((high - low) / np.float32((1 << bits) - 1)).astype(np.float32)
    middle = np.full(scale.shape, 1 << (bits - 1), np.float32)
    zero = middle if symmetric else np.rint(-low / scale)
    codes = np.clip(np.rint(cut / scale[..., None]) + zero[..., None], 0, (1 << bits) - 1)
    stored = _planes.rounded(scale, "F16")
    return codes.reshape(rows, -1)[:, :columns].astype(np.uint8), stored, zero.astype(np.int16)


FORMATS = {"gptq": Gptq()}
