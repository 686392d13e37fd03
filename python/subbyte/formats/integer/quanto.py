"""optimum-quanto checkpoints: int8, float8, int4 and int2 weights.

``int8`` and ``float8`` store a weight ``[out, in]`` as it is:

======================  ======================  ======================================================================
plane                   type, shape             content
======================  ======================  ======================================================================
weight._data            I8 or F8_* [out, in]    w = scale * element
weight._scale           F16, BF16, F32 [out, 1]  or [1, in], [1, 1]
======================  ======================  ======================================================================

``int4`` and ``int2`` in groups of ``g`` columns, as the grouped matrix W.reshape(rows, g), rows = out * in / g:

======================  ======================  ======================================================================
weight._data._data      U8 [ceil(rows / k), g]  k = 8 / bits codes in a byte: byte r holds the rows r, r + step … from
                                                the lowest bits up, where step is the number of stored rows
weight._scale           F16, BF16, F32 [rows, 1]
weight._shift           the same                w = scale * code - shift, each step rounded in that type; as U8 or I8
                                                an integer zero point: w = scale * (code - shift)
======================  ======================  ======================================================================

Neither g nor [out, in] is stored: g is the width of the data; the rows of the weight are as many as its ``bias`` has
elements, and where there is none, config.json says the columns. ``quanto_qmap.json`` or ``quantization_map.json`` names
the types: ``{module: {"weights": "qint4", "activations": "none"}}``. ``input_scale`` and ``output_scale`` belong to the
activations.

Writer, every step in the type of the weight: int8 scale = amax / 127, float8 amax / largest element, the quotient x /
scale to nearest, ties to even; int4 and int2 scale = (max - min) / (2^bits - 1), shift = -min, code of (x + shift) /
scale. A group is the first of 128, 96, 64, 32 columns that divides more than 128, else all columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, settings
from subbyte.formats.integer.slabs import matrix_shape
from subbyte.forms import Affine, Biased, BlockScaled, Form, SlabCodes
from subbyte.forms.microfloat import LARGEST, encode_element
from subbyte.planes import FLOATS, Plane, rounded
from subbyte.quantize import Grid, quantized
from subbyte.quantize.grid import writer_only

_FLOAT8 = {"qfloat8_e4m3fn": "F8_E4M3", "qfloat8_e5m2": "F8_E5M2", "qfloat8_e4m3fnuz": "F8_E4M3FNUZ"}
_PACKED = {"qint4": 4, "qint2": 2}
#: Types as the settings and the maps name them; ``float8`` means any type of 8-bit floats in a checkpoint.
_TYPES = {name.removeprefix("q"): name for name in ("qint8", *_PACKED, *_FLOAT8)} | {"float8": "qfloat8"}
_SIDE_FILES = ("quanto_qmap.json", "quantization_map.json")
_OPTIONAL = ("weight._data", "weight._data._data", "weight._shift", "input_scale", "output_scale")

#: Settings with the columns of a projection, by the last part of its module's name.
_COLUMNS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "lm_head"),
                    ("hidden_size",)),
    "down_proj": ("intermediate_size",),
    "o_proj": ("num_attention_heads", "head_dim"),
}  # fmt: skip


class Quanto(Format):
    """The format ``quanto``."""

    id = "quanto"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        claimed = _claimed(params)
        if "weight._data._data" in planes or "weight._shift" in planes:
            return _read_packed(planes, params, claimed)
        return _read_bytes(planes, claimed)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"quanto stores matrices; the array has shape {list(source.shape)}")
        name = _claimed(params) or "qint8"
        name = "qfloat8_e4m3fn" if name == "qfloat8" else name
        if name in _PACKED:
            width = group_size(source.shape[1])
            grid = Grid(_PACKED[name], width, zeros="bias", kind=source.kind)
            form: Form = quantized(source, params, grid, importance) or _encode_packed(source, _PACKED[name], width)
        else:
            writer_only(params, f"weights of type {name}")
            form = _encode_bytes(source, "I8" if name == "qint8" else _FLOAT8[name])
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        packed = _claimed(params) in _PACKED
        return 32 if len(shape) == 2 and (not packed or "shape" in params) else 0

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if len(form.shape) != 2:
            raise UnsupportedError(f"quanto stores matrices; the weight has shape {list(form.shape)}")
        if isinstance(form, BlockScaled):
            return _write_bytes(form)
        if isinstance(form, Biased | Affine):
            return _write_packed(form)
        return super().write(form, params)

    def layers(self, folder: Folder) -> Sequence[Layer]:
        types = _map_of(folder)
        found = []
        for module, tensors in folder.modules(("weight._scale",), _OPTIONAL, "weight._scale").items():
            own = types.get(module, types.get(f"{module}.weight"))
            params: dict[str, Any] = {"quantization_config": folder.settings}
            if own is not None:
                params["quantization_map"] = {module: own}
            if "weight._data" in tensors:
                shape: tuple[int, ...] = folder.source[tensors["weight._data"]].shape
            else:
                shape = _dense_shape(folder, module, tensors)
                params["shape"] = list(shape)
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        stored = {layer.name for layer in found}
        for module in types:
            if f"{module}.weight" in folder.source and f"{module}.weight" not in stored:
                folder.notes.append(f"{module}: quantized by the map of quanto, but stored dense")
        return found


def _claimed(params: Mapping[str, Any]) -> str | None:
    """The type that map and settings name; None where they do not."""
    types = params.get("quantization_map")
    found = None
    if isinstance(types, Mapping) and types:
        names = {str(one.get("weights")) if isinstance(one, Mapping) else str(one) for one in types.values()}
        found = names.pop() if len(names) == 1 else None
    if found is None and "quantization_config" in params:
        named = settings(params).get("weights")
        found = None if named is None else str(named)
    if found is None:
        return None
    name = _TYPES.get(found.removeprefix("q"))
    if name is None:
        raise FormatError(f"weights are '{found:.40}': expected one of {', '.join(_TYPES)}")
    return name


def _map_of(folder: Folder) -> Mapping[str, Any]:
    for file in _SIDE_FILES:
        found = folder.side_file(file)
        if found is not None:
            if not isinstance(found, Mapping):
                raise FormatError(f"{file} is {found!r:.60}: expected a JSON object")
            return found
    return {}


def _dense_shape(folder: Folder, module: str, tensors: Mapping[str, str]) -> tuple[int, int]:
    """Rows and columns of packed codes, from the bias or the settings of the model.

    Raises:
        FormatError: neither says them, or they do not fit.
    """
    if "weight._data._data" not in tensors:
        raise FormatError(f"'{module}.weight._data' is missing", tensor=tensors["weight._scale"])
    data, scale = (folder.source[tensors[name]] for name in ("weight._data._data", "weight._scale"))
    if len(data.shape) != 2 or len(scale.shape) != 2:
        raise FormatError(f"codes {list(data.shape)}, scales {list(scale.shape)}: expected matrices", tensor=data.name)
    elements = scale.shape[0] * data.shape[1]
    bias = folder.source.get(f"{module}.bias")
    keys = _COLUMNS.get(module.rpartition(".")[2], ())
    if bias is not None and len(bias.shape) == 1:
        rows = bias.shape[0]
        columns = elements // max(rows, 1)
    elif keys and all(isinstance(folder.config.get(key), int) for key in keys):
        columns = 1
        for key in keys:
            columns *= folder.config[key]
        rows = elements // columns if columns > 0 else 0
    else:
        raise FormatError(
            "its rows and columns are not stored: neither a bias nor config.json says them", tensor=data.name
        )
    if rows * columns != elements or rows < 1:
        raise FormatError(f"{elements} elements do not make {rows} rows of {columns} columns", tensor=data.name)
    return rows, columns


# int8 and float8


def _read_bytes(planes: Mapping[str, Any], claimed: str | None) -> BlockScaled:
    data = _planes.get(planes, "weight._data", ("I8", *_FLOAT8.values()), (None, None))
    found = next((name for name, kind in _FLOAT8.items() if kind == data.kind), "qint8")
    if claimed is not None and not found.startswith(claimed):
        raise FormatError(f"plane 'weight._data' holds {data.kind}, but the weights are said to be {claimed}")
    scale = _planes.get(planes, "weight._scale", FLOATS, (None, None))
    block = tuple(max(size, 1) if parts == 1 else 1 for size, parts in zip(data.shape, scale.shape, strict=True))
    return BlockScaled((data.shape[0], data.shape[1]), data.data, data.kind, scale, (block[0], block[1]))


def _write_bytes(form: BlockScaled) -> dict[str, Plane]:
    whole = all(step in (1, max(size, 1)) for step, size in zip(form.block, form.shape, strict=True))
    kinds = ("I8", *_FLOAT8.values())
    if form.inverse or form.factor is not None or form.element not in kinds or form.scales.kind not in FLOATS:
        raise UnsupportedError("quanto holds elements times a float scale, and nothing else")
    if not whole or form.block == (1, 1):
        raise UnsupportedError(f"quanto has one scale per row or column, not per block of {list(form.block)}")
    return {"weight._data": Plane(form.data, form.element), "weight._scale": form.scales}


def _encode_bytes(source: Plane, element: str) -> BlockScaled:
    if element != "I8" and element not in LARGEST:
        raise UnsupportedError(f"quanto weights of {element} cannot be made from floats yet")
    values, kind = source.float32(), source.kind
    largest = np.float32(127 if element == "I8" else LARGEST[element])
    scale = _planes.finite_plane(np.abs(values).max(axis=1, initial=0, keepdims=True) / largest, kind)
    quotient = _quotient(values, scale.float32(), kind)
    if element == "I8":
        codes: Any = np.clip(np.rint(quotient), -128, 127).astype(np.int8)
    else:
        codes = encode_element(quotient, element)
    rows, columns = source.shape
    return BlockScaled((rows, columns), codes, element, scale, (1, max(columns, 1)))


def _quotient(values: NDArray[np.float32], scale: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """values / scale rounded to the type; 0 where the scale is 0."""
    quotient = np.zeros_like(values)
    np.divide(values, scale, out=quotient, where=scale > 0)
    return rounded(quotient, kind)


# int4 and int2


def _read_packed(planes: Mapping[str, Any], params: Mapping[str, Any], claimed: str | None) -> Form:
    data = _planes.get(planes, "weight._data._data", "U8", (None, None))
    scales = _planes.get(planes, "weight._scale", FLOATS, (None, 1))
    rows, width = scales.shape[0], data.shape[1]
    shift = _planes.get(planes, "weight._shift", ("U8", "I8", scales.kind), (rows, 1))
    fitting = [name for name, bits in _PACKED.items() if data.shape[0] == -(-rows * bits // 8)]
    if not fitting or (claimed is not None and claimed not in fitting):
        raise FormatError(
            f"plane 'weight._data._data' has {data.shape[0]} rows and 'weight._scale' {rows}"
            f"{f', but the weights are said to be {claimed}' if claimed else ': neither int4 nor int2'}"
        )
    bits = _PACKED[claimed or fitting[0]]
    if "shape" in params:
        shape = matrix_shape(params["shape"])
    elif "bias" in planes:
        out = _planes.get(planes, "bias", FLOATS, (None,)).shape[0]
        shape = (out, rows * width // max(out, 1))
    else:
        raise ArgumentError("params lacks 'shape': quanto stores neither rows nor columns of packed weights")
    if shape[0] * shape[1] != rows * width or not width or shape[1] % width:
        raise FormatError(
            f"plane 'weight._data._data' with {rows} groups of {width} codes does not make a weight {list(shape)}"
        )
    codes = SlabCodes(data.data, bits, shape, 8 // bits, bits, low_first=True)
    grouped = Plane(scales.data.reshape(shape[0], -1), scales.kind)
    if shift.kind in ("U8", "I8"):
        return Affine(shape, codes, grouped, shift.data.reshape(shape[0], -1).astype(np.int16), width)
    return Biased(shape, codes, grouped, _negated(shift, grouped.shape), width)


def _negated(shift: Plane, shape: tuple[int, ...]) -> Plane:
    """The floats with the other sign, exactly."""
    if shift.kind == "BF16":
        return Plane((shift.data ^ np.uint16(0x8000)).reshape(shape), shift.kind)
    return Plane(np.negative(shift.data).reshape(shape), shift.kind)


def _write_packed(form: Biased | Affine) -> dict[str, Plane]:
    bits, width = form.codes.bits, form.group_size
    if bits not in (2, 4):
        raise UnsupportedError(f"quanto has no packing for codes of {bits} bits")
    if width < 1 or form.columns % width:
        raise UnsupportedError(f"groups of {width} columns do not divide {form.columns} columns")
    if isinstance(form, Biased):
        if form.signed or form.biases.kind != form.scales.kind or form.compute not in (None, form.scales.kind):
            raise UnsupportedError("quanto holds unsigned codes, scales and shifts of one type, and computes in it")
        shift = _negated(form.biases, (-1, 1))
    else:
        zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape).reshape(-1, 1)
        if form.group_of is not None or zeros.min(initial=0) < -128 or zeros.max(initial=0) > 255:
            raise UnsupportedError("quanto holds groups in the order of the columns and zero points of 8 bits")
        signed = zeros.min(initial=0) < 0
        if signed and zeros.max() > 127:
            raise UnsupportedError("zero points from below 0 to above 127 do not fit 8 bits")
        shift = Plane(zeros.astype(np.int8 if signed else np.uint8), "I8" if signed else "U8")
    return {
        "weight._data._data": Plane(SlabCodes.pack(form.codes.unpack(), width, 8 // bits, bits, "U8", True), "U8"),
        "weight._scale": Plane(form.scales.data.reshape(-1, 1), form.scales.kind),
        "weight._shift": shift,
    }


def group_size(columns: int) -> int:
    """Columns of a group in the writer's rule."""
    return next((size for size in (128, 96, 64, 32) if columns > 128 and columns % size == 0), columns)


def _encode_packed(source: Plane, bits: int, width: int) -> Biased:
    rows, columns = source.shape
    kind = source.kind
    if not width:
        raise UnsupportedError("rows without columns cannot be stored in groups")
    groups = source.float32().reshape(-1, width)
    low, high = groups.min(axis=1, keepdims=True, initial=np.inf), groups.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):
        scale = _planes.finite_plane(rounded(high - low, kind) / np.float32((1 << bits) - 1), kind)
        quotient = _quotient(rounded(groups - low, kind), scale.float32(), kind)
    codes = np.clip(np.rint(quotient), 0, (1 << bits) - 1).astype(np.uint8)
    packed = SlabCodes.pack(codes, width, 8 // bits, bits, "U8", True)
    shape = (rows, columns // width)
    return Biased(
        (rows, columns),
        SlabCodes(packed, bits, (rows, columns), 8 // bits, bits, low_first=True),
        Plane(scale.data.reshape(shape), kind),
        _planes.float_plane(low.reshape(shape), kind),
        width,
    )


FORMATS = {"quanto": Quanto()}
