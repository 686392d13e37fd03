"""MXFP4 as gpt-oss stores it: OCP Microscaling Formats (MX) Specification 1.0.

For a parameter ``x`` of shape ``[expert, in, out]`` in transformers; leading axes may be missing:

=========  =======  ==========================  ======================================================================
plane      type     shape                       content
=========  =======  ==========================  ======================================================================
blocks     U8       [expert, out, in / 32, 16]  two E2M1 codes a byte, that of the even column in the low bits
scales     U8       [expert, out, in / 32]      E8M0: 2^(byte - 127); 255 is NaN
=========  =======  ==========================  ======================================================================

Tensors are called ``x_blocks`` and ``x_scales``. w[expert, o, i] = element * scale, exact unless it underflows; the
scale of byte 0 is the subnormal 2^-127. Planes decode to ``[expert, out, in]``, checkpoints to the parameter's shape.
Rows of gate and up projections alternate in ``gate_up_proj``. Biases are stored dense.

Writer: exponent ceil(log2(amax / 6)), elements to nearest with ties to even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded
from subbyte.forms import ByteCodes, Form, Microscaled
from subbyte.forms.codes import as_packed_bytes, packed_bytes
from subbyte.forms.microfloat import block_maxima, divide_blocks, e8m0_scales, encode_e2m1
from subbyte.planes import Plane, float8_values
from subbyte.quantize.microscaled import refined

BLOCK = 32


class Mxfp4(Format):
    """The format ``mxfp4``."""

    id = "mxfp4"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        blocks = _planes.get(planes, "blocks", "U8")
        scales = _planes.get(planes, "scales", ("U8", "F8_E8M0"), blocks.shape[:-1])
        shape = dense_shape(blocks.shape)
        codes = packed_bytes(blocks.data.reshape(*shape[:-1], shape[-1] // 2), 4)
        flat = Plane(_planes.folded(scales.data.view(np.uint8)), "F8_E8M0")
        return Microscaled(shape, codes, "E2M1", flat, "F8_E8M0", BLOCK)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim < 2 or source.shape[-1] % BLOCK or not source.data.size:
            raise UnsupportedError(f"MXFP4 stores rows of whole blocks of {BLOCK}; the array has {list(source.shape)}")
        values = _planes.folded(source.float32())
        scales = e8m0_scales(block_maxima(values, BLOCK), "E2M1", "ceil")
        codes = encode_e2m1(divide_blocks(values, float8_values("F8_E8M0")[scales]))
        form = Microscaled(
            source.shape,
            ByteCodes(codes, 4),
            "E2M1",
            Plane(scales, "F8_E8M0"),
            "F8_E8M0",
            BLOCK,
        )
        found = refined(form, source, params, importance)
        return encoded(self.id, self.write(found, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        return 32

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Microscaled):
            return super().write(form, params)
        codes, scales = mxfp4_bytes(form)
        shape = (*form.shape[:-1], form.columns // BLOCK)
        return {"blocks": Plane(codes.reshape(*shape, 16), "U8"), "scales": Plane(scales.reshape(shape), "U8")}

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        for name, tensor in folder.source.items():
            stem = name.removesuffix("_blocks")
            if stem == name:
                scaled = name.removesuffix("_scales")
                if scaled != name and f"{scaled}_blocks" not in folder.source:
                    raise FormatError(f"tensor '{scaled}_blocks', which belongs to it, is missing", tensor=name)
                continue
            if f"{stem}_scales" not in folder.source:
                raise FormatError(f"tensor '{stem}_scales', which belongs to it, is missing", tensor=name)
            try:
                shape = dense_shape(tensor.shape)
            except FormatError as e:
                e.tensor = name
                raise
            experts = len(shape) > 2
            shape = (*shape[:-2], shape[-1], shape[-2]) if experts else shape
            found.append(Layer(stem, shape, {"blocks": name, "scales": f"{stem}_scales"}, {}, transposed=experts))
        return found


def dense_shape(blocks: Sequence[int]) -> tuple[int, ...]:
    """The shape ``[..., out, in]`` that ``blocks`` decode to.

    Raises:
        FormatError: it is no shape of blocks.
    """
    if len(blocks) < 3 or blocks[-1] != BLOCK // 2:
        raise FormatError(f"plane 'blocks' has shape {list(blocks)}: expected [..., out, in / {BLOCK}, {BLOCK // 2}]")
    return (*blocks[:-2], blocks[-2] * BLOCK)


def mxfp4_bytes(form: Microscaled) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Bytes of codes, (rows, columns / 2), and scales, (rows, blocks), of a form that is MXFP4.

    Raises:
        UnsupportedError: it has other elements, scales or blocks.
    """
    if (form.element, form.scale_kind, form.block, form.columns % BLOCK, form.plain) != (
        "E2M1",
        "F8_E8M0",
        BLOCK,
        0,
        True,
    ):
        raise UnsupportedError(
            f"{form.element} elements in blocks of {form.block} with {form.scale_kind} scales are no MXFP4"
        )
    return as_packed_bytes(form.codes), form.scales.data.view(np.uint8)


FORMATS = {"mxfp4": Mxfp4()}
