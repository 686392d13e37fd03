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
  its zeros, whatever its label says.
* Act-order (``desc_act``): g_idx is not sorted; codes stay in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int, setting_text, settings
from subbyte.forms import Affine, Form, PackedCodes
from subbyte.forms.codes import pack, unpack
from subbyte.planes import FLOATS, Plane

BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths that exist."""


class Gptq(Format):
    """The format ``gptq``."""

    id = "gptq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        scales = _planes.get(planes, "scales", FLOATS, (None, None))
        groups, out = scales.shape
        qweight = _planes.get(planes, "qweight", ("I32", "U32"), (None, out))
        order, v2 = _layout(config, bits)
        columns = _columns(qweight.shape[0], order, bits)
        g_idx = _planes.optional(planes, "g_idx", ("I32", "I64"), (columns,))
        group_size = setting_int(config, "group_size")
        group_size = columns if group_size == -1 else group_size
        codes = PackedCodes(qweight.data, bits, (out, columns), order, down=True)
        zeros = self._zeros(planes, config, bits, order, v2, out, groups)
        group_of = None
        if g_idx is not None:
            group_of = g_idx.data.astype(np.int32)
            if np.array_equal(group_of, np.arange(columns) // max(group_size, 1)):
                group_of = None
        turned = Plane(np.ascontiguousarray(scales.data.T), scales.kind)
        return Affine((out, columns), codes, turned, zeros, group_size, group_of)

    def _zeros(
        self,
        planes: Mapping[str, Any],
        config: Mapping[str, Any],
        bits: int,
        order: str,
        v2: bool,
        out: int,
        groups: int,
    ) -> NDArray[np.int16]:
        words = _planes.get(planes, "qzeros", ("I32", "U32"), (groups, None)).data
        fields = unpack(order, bits, words, out)
        middle = 1 << (bits - 1)
        if setting_bool(config, "sym", True) and np.all((fields == middle) | (fields == middle - 1)):
            v2 = bool(np.all(fields == middle)) or (v2 and not np.all(fields == middle - 1))
        if not v2:
            if (fields == (1 << bits) - 1).any() and "gptqmodel" in str(config.get("meta")) and bits in (2, 4, 8):
                one = np.uint32(sum(1 << at for at in range(0, 32, bits)))
                fields = unpack(order, bits, words.view(np.uint32) + one, out)
            else:
                fields = fields + np.uint8(1) & np.uint8((1 << bits) - 1)
        return np.ascontiguousarray(fields.T).astype(np.int16)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"GPTQ stores matrices; the array has shape {list(source.shape)}")
        out, columns = source.shape
        group_size = setting_int(config, "group_size")
        group_size = columns if group_size == -1 else group_size
        codes, scales, zeros = round_to_nearest(source.float32(), bits, group_size, setting_bool(config, "sym", True))
        form = Affine((out, columns), _stream_codes(codes, bits), _planes.float_plane(scales, "F16"), zeros, group_size)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Affine):
            return super().write(form, params)
        config = settings(params)
        bits = setting_int(config, "bits", allowed=BITS)
        if bits != form.codes.bits:
            raise UnsupportedError(f"codes of {form.codes.bits} bits cannot be stored as {bits} bits")
        order, v2 = _layout(config, bits)
        if order == "stream":
            qweight = np.ascontiguousarray(form.codes.stream().T)
        else:
            qweight = np.ascontiguousarray(pack(order, bits, form.codes.unpack()).T)
        zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape).T
        fields = zeros if v2 else zeros - 1 & (1 << bits) - 1
        if zeros.min() < 0 or zeros.max() >> bits or (not v2 and zeros.min() == 0 and (fields >> bits).any()):
            raise UnsupportedError(f"a zero point is out of the range of {bits} bits")
        group_of = form.group_of if form.group_of is not None else np.arange(form.columns) // form.group_size
        return {
            "qweight": Plane(qweight.view(np.int32), "I32"),
            "qzeros": Plane(pack(order, bits, np.ascontiguousarray(fields, np.uint8)).view(np.int32), "I32"),
            "scales": Plane(np.ascontiguousarray(form.scales.data.T), form.scales.kind),
            "g_idx": Plane(np.ascontiguousarray(group_of, np.int32), "I32"),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        bits = setting_int(folder.settings, "bits", allowed=BITS)
        order, _ = _layout(folder.settings, bits)
        params = {"quantization_config": folder.settings}
        found = []
        for module, tensors in folder.modules(("qweight", "qzeros", "scales"), ("g_idx",)).items():
            qweight = folder.source[tensors["qweight"]]
            if len(qweight.shape) != 2:
                raise FormatError(f"qweight has shape {list(qweight.shape)}: expected a matrix", tensor=qweight.name)
            shape = (qweight.shape[1], _columns(qweight.shape[0], order, bits))
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


def _layout(config: Mapping[str, Any], bits: int) -> tuple[str, bool]:
    """Order of the codes, and whether zeros are stored as they are."""
    label = setting_text(config, "checkpoint_format", setting_text(config, "format", "gptq"))
    if label not in ("gptq", "gptq_v2", "gptq_p"):
        raise UnsupportedError(f"GPTQ files of layout '{label}' cannot be read yet")
    return ("planar" if label == "gptq_p" or bits in (5, 6, 7) else "stream"), label != "gptq"


def _columns(words: int, order: str, bits: int) -> int:
    columns, rest = divmod(words * 32, bits)
    if rest or (order == "planar" and words % bits):
        raise FormatError(f"qweight has {words} rows of words: no whole number of codes of {bits} bits")
    return columns


def _stream_codes(codes: NDArray[np.uint8], bits: int) -> PackedCodes:
    rows, columns = codes.shape
    return PackedCodes(pack("stream", bits, codes), bits, (rows, columns))


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
