"""MatQuant slices as MatGPTQ stores their parent, arXiv 2502.06786 and 2602.03537.

A weight ``[out, in]`` of 8 bits in groups of g input columns, of which fewer bits can be cut:

=======  ==================  ===================  ===================================
plane    type                shape                content
=======  ==================  ===================  ===================================
qweight  U8                  [out, in]            parent codes; the zero point is 128
scales   F16 or BF16 (F32)   [out, ceil(in / g)]
=======  ==================  ===================  ===================================

The slice of r bits rounds halves up and stays in its range: s = min((q >> (8 - r)) + (q >> (7 - r) & 1), 2^r - 1);
w = scale * ((s << (8 - r)) - 128), rounded once. That is a symmetric weight of r bits with the scale 2^(8 - r) times as
large. ``extra_precision: true`` leaves out the upper limit, so that a code may be 2^r.

r is the parameter ``bits``, else ``inference_bitwidth`` of the settings (1 to 8, where 8 is the parent itself); groups
are those of the scales, and ``group_size`` must not contradict them. The format ``matquant.codes`` gives the slice
without scales, of codes of any shape.

Writer: scale = max|w| / 127 of a group, rounded to its type; code = clamp(round(w / scale) + 128, 0, 255), ties even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    optional_settings,
    setting_bool,
    setting_group_size,
    setting_int,
    setting_text,
)
from subbyte.forms import Affine, Codes, Form
from subbyte.forms.affine import spread
from subbyte.forms.codes import CodeArray
from subbyte.planes import FLOATS, Plane


def slice_codes(parent: CodeArray, bits: int, extra: bool) -> CodeArray:
    """The upper ``bits`` bits of codes of 8 bits, halves rounded up; ``extra`` lets them reach 2^bits."""
    if bits == 8:
        return parent
    top = parent >> np.uint8(8 - bits)
    found = top + (parent >> np.uint8(7 - bits) & np.uint8(1))
    return found if extra else np.minimum(found, np.uint8((1 << bits) - 1))


@dataclass(frozen=True, eq=False)
class _Slice(Codes):
    """The slice of a parent; with ``extra`` its codes take one bit more."""

    parent: CodeArray
    kept: int
    extra: bool

    @property
    def bits(self) -> int:  # type: ignore[override]
        return min(self.kept + self.extra, 8)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        rows, columns = self.parent.shape
        return rows, columns

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        return slice_codes(self.parent[rows], self.kept, self.extra)


class MatQuant(Format):
    """The format ``matquant``."""

    id = "matquant"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        qweight = _planes.get(planes, "qweight", "U8", (None, None))
        rows, columns = qweight.shape
        scales = _planes.get(planes, "scales", FLOATS, (rows, None))
        group_size = setting_group_size(optional_settings(params), columns, scales.shape[1])
        bits, extra = _bits(params)
        codes = _Slice(qweight.data, bits, extra)
        return Affine((rows, columns), codes, _scaled(scales, 8 - bits), 1 << (bits - 1), group_size)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"MatQuant stores matrices; the array has shape {list(source.shape)}")
        rows, columns = source.shape
        config = {"group_size": -1} | dict(optional_settings(params))
        group_size = setting_group_size(config, columns)
        kind = "BF16" if setting_text(config, "quant_dtype", "float16") == "bfloat16" else "F16"
        values = source.float32()
        starts = np.arange(0, columns, group_size)
        largest: NDArray[np.float32] = np.maximum.reduceat(np.abs(values), starts, axis=1)
        scales = _planes.float_plane(largest / np.float32(127), kind)
        divisors = scales.float32()
        divisors = spread(np.where(divisors == 0, np.float32(1), divisors), columns, group_size)
        codes = np.clip(np.rint(values / divisors) + np.float32(128), 0, 255).astype(np.uint8)
        return encoded(self.id, {"qweight": Plane(codes, "U8"), "scales": scales}, (rows, columns), params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Affine) or len(form.shape) != 2:
            return super().write(form, params)
        bits = form.codes.bits
        if not form.symmetric or form.group_of is not None:
            reason = "has zero points other than the middle" if form.group_of is None else "has columns out of order"
            raise UnsupportedError(f"format 'matquant' holds symmetric groups in order; the weight {reason}")
        parent = form.codes.unpack() << np.uint8(8 - bits)
        scales = _scaled(form.scales, bits - 8)
        return {"qweight": Plane(np.ascontiguousarray(parent), "U8"), "scales": scales}

    def layers(self, folder: Folder) -> Sequence[Layer]:
        params = {"quantization_config": folder.settings}
        _bits(params)
        found = []
        for module, tensors in folder.modules(("qweight", "scales"), marker="qweight").items():
            qweight, scales = (folder.source[tensors[plane]] for plane in ("qweight", "scales"))
            if qweight.dtype != "U8" or len(qweight.shape) != 2 or len(scales.shape) != 2:
                raise FormatError(
                    f"is {qweight.dtype} {list(qweight.shape)} with scales {list(scales.shape)}: expected a U8 "
                    "matrix with a matrix of scales",
                    tensor=qweight.name,
                )
            found.append(Layer(f"{module}.weight", tuple(qweight.shape), tensors, params))
        folder.note_exceptions(found)
        return found


class MatQuantCodes(Format):
    """The format ``matquant.codes``: the slice as numbers."""

    id = "matquant.codes"

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        qweight = _planes.get(planes, "qweight", "U8")
        return _planes.result(slice_codes(qweight.data, *_bits(params)).astype(np.float32), dtype)

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        raise UnsupportedError("codes without scales are no weight: pass the scales to format 'matquant'")


def _bits(params: Mapping[str, Any]) -> tuple[int, bool]:
    """Width of the slice, and whether it may reach 2^width."""
    config = optional_settings(params)
    setting_int(config, "master_bitwidth", 8, allowed=(8,))
    extra = setting_bool(params, "extra_precision", setting_bool(config, "extra_precision", False))
    key, holder = ("bits", params) if "bits" in params else ("inference_bitwidth", config)
    return setting_int(holder, key, 8, allowed=range(1, 9)), extra


def _scaled(scales: Plane, exponent: int) -> Plane:
    """Scales times 2^exponent in their own type, in float32 where that is too small.

    Raises:
        UnsupportedError: the product is no float32.
    """
    if exponent == 0:
        return scales
    with np.errstate(all="ignore"):
        wanted = np.ldexp(scales.float32().astype(np.float64), exponent)
        for kind in (scales.kind, "F32"):
            found = _planes.float_plane(wanted.astype(np.float32), kind)
            if np.array_equal(found.float32(), wanted, equal_nan=True):
                return found
    raise UnsupportedError(f"a scale times 2^{exponent} is no float32")


FORMATS = {"matquant": MatQuant(), "matquant.codes": MatQuantCodes()}
