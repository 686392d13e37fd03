"""BitNet b1.58 as transformers stores it, arXiv 2402.17764.

A weight ``[out, in]``; n = ceil(out / 4):

============  =================  =========  ===================================================================
plane         type               shape      content
============  =================  =========  ===================================================================
weight        U8                 [n, in]    byte (r, c): trit + 1 of rows r, n + r, 2n + r, 3n + r of column c
weight_scale  BF16 (F32, F16)    [1]        for the whole weight
============  =================  =========  ===================================================================

The row r takes the lowest two bits of its byte; 3 is no trit. Where 4 does not divide ``out`` the last slab is short
and its missing fields are zero: the parameter ``shape`` gives the rows, else they count as rows.

* ``linear_class: "bitlinear"`` (also where it is missing): w = trit / weight_scale, which is 1 / mean|W|.
* ``linear_class: "autobitlinear"``: w = trit * weight_scale, which is mean|W|.
* ``quantization_mode: "online"``: layers hold float master weights and no scale; the model uses trit * mean|W|. A
  checkpoint gives them as the dense weights that they are.

Writer: s = mean|W| in float32, at least 1e-5; trit = clamp(round(W / s), -1, 1), ties to even; then s or 1 / s is
rounded to BF16. Packing and both directions of the scale are those of transformers' ``integrations/bitnet``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, optional_settings, setting_shape, setting_text
from subbyte.formats.ternary.source import by_mean, matrix
from subbyte.forms import ByteCodes, Form, SlabCodes, Ternary
from subbyte.planes import FLOATS, Plane


class BitNet(Format):
    """The format ``bitnet``."""

    id = "bitnet"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        weight = _planes.get(planes, "weight", ("U8", *FLOATS), (None, None))
        inverse = _divides(params)
        if weight.kind != "U8":
            return _online(planes, weight, params)
        slab, columns = weight.shape
        shape = setting_shape(params, (4 * slab, columns))
        if shape[1] != columns or -(-shape[0] // 4) != slab:
            raise FormatError(f"plane 'weight' has shape {[slab, columns]}: a weight {list(shape)} does not fit it")
        scale = _planes.get(planes, "weight_scale", FLOATS)
        if scale.shape not in ((), (1,)):
            raise FormatError(f"plane 'weight_scale' has shape {list(scale.shape)}: expected a single value")
        one = Plane(scale.data.reshape(1, 1), scale.kind)
        return Ternary(
            shape, SlabCodes(weight.data, 2, shape, fields=4, field_bits=2, low_first=True), one, columns, inverse
        )

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        values = matrix(array)
        codes, scale = by_mean(values)
        stored = np.float32(1) / scale if _divides(params) else scale
        one = _planes.float_plane(np.full((1, 1), stored, np.float32), "BF16")
        form = Ternary(values.shape, ByteCodes(codes, 2), one, values.shape[1], _divides(params))
        return encoded(self.id, self.write(form, params), values.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Ternary) or len(form.shape) != 2:
            return super().write(form, params)
        if form.scales.shape != (1, 1):
            raise UnsupportedError(f"format 'bitnet' has one scale for a weight, not {form.scales.data.size}")
        scale = form.scales
        if form.inverse != _divides(params):
            with np.errstate(all="ignore"):
                turned = Plane(np.float32(1) / scale.float32(), "F32")
                exact = form.inverse or (np.float32(1) / turned.data == scale.float32()).all()
            if not exact:
                raise UnsupportedError("no float32 divides to the scale; 'autobitlinear' stores it as it is")
            scale = turned
        return {
            "weight": Plane(SlabCodes.pack(form.digits(), form.columns, 4, 2, "U8", low_first=True), "U8"),
            "weight_scale": Plane(scale.data.reshape(1), scale.kind),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        params = {"quantization_config": folder.settings}
        _divides(params)
        if setting_text(folder.settings, "quantization_mode", "offline", ("offline", "online")) == "online":
            folder.notes.append("quantization_mode is online: float weights are given as stored, not as trits")
        found = []
        for module, tensors in folder.modules(("weight",), ("weight_scale",)).items():
            weight = folder.source[tensors["weight"]]
            if weight.dtype != "U8":
                if "weight_scale" in tensors:
                    raise FormatError(
                        f"holds {weight.dtype} beside a weight_scale, but quant_method is 'bitnet', with U8 weights",
                        tensor=weight.name,
                    )
                continue
            if len(weight.shape) != 2:
                raise FormatError(f"has shape {list(weight.shape)}: expected a matrix", tensor=weight.name)
            if "weight_scale" not in tensors:
                raise FormatError("holds packed trits, but there is no weight_scale beside it", tensor=weight.name)
            slab, columns = weight.shape
            found.append(Layer(f"{module}.weight", (4 * slab, columns), tensors, params))
        folder.note_exceptions(found)
        return found


def _divides(params: Mapping[str, Any]) -> bool:
    choices = ("bitlinear", "autobitlinear")
    return setting_text(optional_settings(params), "linear_class", "bitlinear", choices) == "bitlinear"


def _online(planes: Mapping[str, Any], weight: Plane, params: Mapping[str, Any]) -> Form:
    """Master weights, which the model rounds whenever it runs."""
    mode = setting_text(optional_settings(params), "quantization_mode", "offline", ("offline", "online"))
    if mode == "offline" or "weight_scale" in planes:
        fact = "quantization_mode is offline" if mode == "offline" else "there is a weight_scale"
        raise FormatError(f"plane 'weight' holds {weight.kind} master weights, but {fact}: expected U8")
    shape = setting_shape(params, (weight.shape[0], weight.shape[1]))
    if shape != weight.shape or not weight.data.size:
        raise FormatError(f"plane 'weight' has shape {list(weight.shape)}: expected {list(shape)}, not empty")
    codes, scale = by_mean(weight.float32())
    return Ternary(shape, ByteCodes(codes, 2), Plane(np.full((1, 1), scale, np.float32), "F32"), shape[1])


FORMATS = {"bitnet": BitNet()}
