"""torchao checkpoints: tensor subclasses flattened to safetensors.

The header's metadata lists ``tensor_names`` (JSON) and has for each of them a JSON object with ``_type``, ``_data`` and
``_tensor_data_names``; its tensors are called ``<module>._<parameter>_<field>``. Planes are named
``_weight_<field>``. A weight ``[out, in]``; ``blk`` is the last of ``block_size``:

========================  =====================================================  =======================================
_type                     fields                                                 w
========================  =====================================================  =======================================
Int8Tensor                qdata I8 [out, in], scale F32 [out, in / blk],         (q - zero_point) * scale
                          zero_point I8, the same shape
IntxUnpackedToInt8Tensor  the same with scales of the type of the weight and     (q - zero_point) * scale
                          a target_dtype int1 … int8
Float8Tensor              qdata F8_*, scale F32, one of each block               q * scale
MXTensor                  qdata F8_*, or U8 [out, in / 2] of E2M1,               q * 2^(scale - 127)
                          scale F8_E8M0 [out, in / blk]
NVFP4Tensor               qdata U8 [out, in / 2] of E2M1, scale F8_E4M3          q * (scale * per_tensor_scale)
                          [out, in / 16], perhaps per_tensor_scale F32 []
Int4Tensor                qdata U8 [out, in / 2], scale and zero_point           q * scale + zero_point
                          [in / blk, out]
========================  =====================================================  =======================================

* Two 4-bit codes share a byte, that of the even column in the low bits. Those of Int4Tensor are integers from -8 to 7.
* All of it is float32 arithmetic, rounded once to the type of the result.
* Types that hold the layout of a device, and swizzled scales, cannot be read.

Writers, per block: Int8Tensor scale = amax / 127.5 in the type of the weight, q = x * (1 / scale) in float32, to
nearest, ties to even. IntxUnpackedToInt8Tensor, every step in the type of the weight: scale = amax / ((2^b - 1) / 2),
or with ``mapping_type`` ASYMMETRIC the range, zero included, over 2^b - 1 and zero_point = qmin - min / scale rounded.
Float8Tensor scale = amax / 448 in the type of the weight, q = x / scale. MXTensor scale = floor(log2 amax) less that of
the largest element. NVFP4Tensor per_tensor_scale g = amax / 2688, scale = amax / 6 / g as E4M3 between 2^-6 and 448,
q = x * ((1 / g) / scale). Int4Tensor scale = (max - min) / 15, zero_point = min + 8 * scale. Integer scales are at
least 2^-23, for float16 weights 2^-14.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, Error, FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    largest_magnitude,
    setting_bool,
    setting_int,
    setting_text,
)
from subbyte.forms import Affine, Biased, BlockScaled, ByteCodes, Form, Microscaled
from subbyte.forms.codes import Codes, SignedCodes, as_packed_bytes, pack, packed_bytes
from subbyte.forms.microfloat import LARGEST, block_maxima, divide_blocks, e8m0_scales, encode_e4m3, encode_element
from subbyte.planes import FLOATS, Plane, rounded
from subbyte.quantize import Grid, quantized
from subbyte.quantize.grid import writer_only
from subbyte.quantize.microscaled import refined

_FIELDS = ("qdata", "scale", "zero_point", "per_tensor_scale")
_OF_ACTIVATIONS = ("act_quant_scale", "act_quant_zero_point")
_FLOAT8 = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_ELEMENTS = {"float4_e2m1fn_x2": "E2M1", **_FLOAT8}
_DEVICE_TYPES = frozenset({
    "Int4TilePackedTo4dTensor", "Int4PreshuffledTensor", "Int4OpaqueTensor", "Int4PlainInt32Tensor",
    "Int4MarlinSparseTensor", "IntxOpaqueTensor", "Int8DynamicActivationIntxTensor", "Sparse2x4CUTLASSFloat8Tensor",
})  # fmt: skip
_PLAIN_TYPES = ("Tensor", "Parameter")
#: Scales of integers are at least this, so that their inverse is finite.
_SMALLEST_SCALE = {"F32": np.float32(2.0**-23), "BF16": np.float32(2.0**-23), "F16": np.float32(2.0**-14)}


class TorchAo(Format):
    """The format ``torchao``."""

    id = "torchao"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        kind, data, names = _entry(params)
        for field in _FIELDS if names else ():
            plane = f"_weight_{field}"
            if (field in names) != (plane in planes):
                there = "there" if plane in planes else "missing"
                raise ArgumentError(f"plane '{plane}' is {there}, but _tensor_data_names are {list(names)!r:.80}")
        if any("pre_scale" in str(name) for name in names):
            raise UnsupportedError(
                "a factor of the activations (act_pre_scale) belongs to the weight: not readable yet"
            )
        form: Form = _READERS[kind](planes, data, kind)
        return form

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        kind, data, names = _entry(params)
        source = _planes.source(array)
        if source.data.ndim < 2:
            raise UnsupportedError(f"torchao's weights are matrices; the array has shape {list(source.shape)}")
        if kind == "Float8Tensor":
            form = refined(_encode_float8(source, data), source, params, importance)
        elif kind == "MXTensor":
            form = refined(_encode_mx(source, data), source, params, importance)
        elif kind == "NVFP4Tensor":
            form = refined(_encode_nvfp4(source, "per_tensor_scale" in names, params), source, params, importance)
        else:
            writer = _encode_int4 if kind == "Int4Tensor" else _encode_integers
            form = _searched(source, data, kind, params, importance) or writer(source, data, kind, params)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        kind, data, _ = _entry(params)
        if len(shape) != 2:
            return 0
        alone = kind in ("MXTensor", "NVFP4Tensor") or _block_size(data, shape)[0] == 1
        return 32 if alone else 0

    def shares_maximum(self, params: Mapping[str, Any], shape: Sequence[int]) -> bool:
        kind, _, names = _entry(params)
        return kind == "NVFP4Tensor" and "per_tensor_scale" in names

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        kind, data, names = _entry(params)
        if isinstance(form, Affine) and kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
            fields = _write_integers(form, data, kind)
        elif isinstance(form, Affine | Biased) and kind == "Int4Tensor":
            fields = _write_int4(form, data)
        elif isinstance(form, BlockScaled) and kind == "Float8Tensor":
            fields = _write_float8(form, data)
        elif isinstance(form, Microscaled) and kind in ("MXTensor", "NVFP4Tensor"):
            fields = _write_blocks(form, data, kind)
        else:
            raise UnsupportedError(f"torchao's {kind} cannot hold a {type(form).__name__.lower()} form")
        needless = {"zero_point": 0, "per_tensor_scale": 1}
        left_out = [name for name in fields if names and name not in names]
        for name in left_out:
            if name not in needless or np.any(fields[name].float32() != needless[name]):
                raise UnsupportedError(f"the layer has no field '{name}', which the weight needs")
        return {f"_weight_{name}": field for name, field in fields.items() if name not in left_out}

    def layers(self, folder: Folder) -> Sequence[Layer]:
        metadata = folder.source.metadata
        found = []
        taken: set[str] = set()
        for name in _json(metadata, "tensor_names", list):
            if not isinstance(name, str) or name not in metadata:
                raise FormatError(f"the header's tensor_names list {name!r:.80}, which it does not describe")
            entry = _json(metadata, name, dict)
            if entry.get("_type") in _PLAIN_TYPES:
                continue
            module, _, parameter = name.rpartition(".")
            prefix = f"{module}._{parameter}_" if module else f"_{parameter}_"
            fields = (*_FIELDS, *_OF_ACTIVATIONS)
            tensors = {f"_weight_{field}": prefix + field for field in fields if prefix + field in folder.source}
            if "_weight_qdata" not in tensors:
                raise FormatError(f"tensor '{prefix}qdata' is missing", tensor=name)
            try:
                shape = _dense_shape(folder.source[tensors["_weight_qdata"]].shape, _entry({name: entry})[0], entry)
            except Error as e:
                e.tensor = e.tensor or name
                raise
            taken.update(tensors.values())
            found.append(Layer(name, shape, tensors, {name: entry}))
        stray = next((name for name in folder.source if name.endswith("_qdata") and name not in taken), None)
        if stray is not None:
            raise FormatError("the header's metadata does not say what it belongs to", tensor=stray)
        return found


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    """A string of the header's metadata as JSON of a type; empty where there is none."""
    try:
        found = json.loads(metadata.get(key, json.dumps(kind())))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise FormatError(f"the header's metadata '{key:.80}' is no JSON {kind.__name__}")
    return found


def _entry(params: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Sequence[str]]:
    """Type, attributes and fields of the one tensor that the parameters describe."""
    entries = [one for one in (params, *params.values()) if isinstance(one, Mapping) and "_type" in one]
    if len(entries) != 1:
        raise ArgumentError(f"params describe {len(entries)} tensors of torchao by '_type': expected one")
    kind, data = entries[0]["_type"], entries[0].get("_data")
    if isinstance(kind, str) and kind in _DEVICE_TYPES:
        raise UnsupportedError(f"{kind} holds the layout of a device: save the model with plain tensors")
    if not isinstance(kind, str) or kind not in _READERS:
        raise FormatError(f"_type is {kind!r:.60}: expected one of {', '.join(_READERS)}")
    if not isinstance(data, Mapping):
        raise FormatError(f"_data is {data!r:.60}: expected a JSON object")
    names = entries[0].get("_tensor_data_names", [])
    if not isinstance(names, list | tuple):
        raise FormatError(f"_tensor_data_names is {names!r:.60}: expected a list")
    return kind, data, names


def _dense_shape(stored: tuple[int, ...], kind: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    if len(stored) < 2:
        raise FormatError(f"qdata has shape {list(stored)}: expected a matrix")
    data = entry.get("_data")
    halves = kind in ("NVFP4Tensor", "Int4Tensor") or (
        kind == "MXTensor" and isinstance(data, Mapping) and _type_name(data, "elem_dtype") == "float4_e2m1fn_x2"
    )
    return (*stored[:-1], stored[-1] * 2) if halves else stored


def _type_name(data: Mapping[str, Any], key: str) -> str:
    """Name of a torch type, stored as ``{"_type": "torch.dtype", "_data": name}``."""
    found = data.get(key)
    name = found.get("_data") if isinstance(found, Mapping) else found
    if not isinstance(name, str):
        raise FormatError(f"{key} is {name!r:.60}: expected the name of a type")
    return name


def _block_size(data: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, ...]:
    """Elements of a block along each axis."""
    found = data.get("block_size")
    if (
        not isinstance(found, list | tuple)
        or len(found) != len(shape)
        or not all(isinstance(step, int) and not isinstance(step, bool) and step > 0 for step in found)
    ):
        raise FormatError(
            f"block_size is {found!r:.60}: expected {len(shape)} positive numbers for plane '_weight_qdata'"
        )
    block = tuple(min(step, max(size, 1)) for step, size in zip(found, shape, strict=True))
    if any(size % step for step, size in zip(block, shape, strict=True)):
        raise FormatError(f"block_size {list(found)} does not divide the weight {list(shape)} of plane '_weight_qdata'")
    return block


def _qdata(planes: Mapping[str, Any], kinds: Sequence[str]) -> Plane:
    found = _planes.get(planes, "_weight_qdata", kinds)
    if found.data.ndim < 2:
        raise FormatError(f"plane '_weight_qdata' has shape {list(found.shape)}: expected a matrix")
    return found


# Integers


def _bits(data: Mapping[str, Any], kind: str) -> int:
    if kind == "Int8Tensor":
        return 8
    name = _type_name(data, "target_dtype")
    names = [f"int{bits}" for bits in range(1, 9)]
    if name not in names:
        raise FormatError(f"target_dtype is {name!r:.60}: expected one of {', '.join(names)}")
    return names.index(name) + 1


def _read_integers(planes: Mapping[str, Any], data: Mapping[str, Any], kind: str) -> Form:
    qdata = _qdata(planes, ("I8",))
    bits, shape = _bits(data, kind), qdata.shape
    block = _block_size(data, shape)
    grid = tuple(size // step for size, step in zip(shape, block, strict=True))
    scales = _planes.get(planes, "_weight_scale", FLOATS, grid)
    zeros = _planes.optional(planes, "_weight_zero_point", "I8", grid)
    middle = 1 << (bits - 1)
    rows, across = prod(shape[:-1]), (prod(shape[:-1]), grid[-1])
    wide = Plane(_spread(scales.data, block).reshape(across), scales.kind)
    offset: Any = middle
    if zeros is not None and zeros.data.any():
        offset = _spread(zeros.data, block).reshape(across).astype(np.int16) + np.int16(middle)
    codes = ByteCodes(qdata.data.reshape(rows, shape[-1]), bits, middle)
    return Affine(shape, codes, wide, offset, block[-1])


def _spread(values: NDArray[Any], block: Sequence[int]) -> NDArray[Any]:
    """Values of blocks, repeated for every row of theirs."""
    for axis, step in enumerate(block[:-1]):
        values = np.repeat(values, step, axis) if step > 1 else values
    return values


def _gathered(values: NDArray[Any], shape: Sequence[int], block: Sequence[int]) -> NDArray[Any]:
    """The reverse of `_spread`: one value of each block, of (rows, groups).

    Raises:
        UnsupportedError: the rows of a block have different values.
    """
    wide = values.reshape(*shape[:-1], -1)
    found = wide[tuple(slice(None, None, step) for step in block[:-1])]
    if not np.array_equal(_spread(found, block), wide):
        raise UnsupportedError(f"blocks of {list(block)} have one scale, but the rows of the weight differ in theirs")
    return np.ascontiguousarray(found)


def _write_integers(form: Affine, data: Mapping[str, Any], kind: str) -> dict[str, Plane]:
    bits, block = _bits(data, kind), _block_size(data, form.shape)
    if form.codes.bits != bits or form.group_of is not None or form.group_size != block[-1]:
        order = "" if form.group_of is None else " out of order"
        raise UnsupportedError(
            f"{form.codes.bits} bits in groups of {form.group_size} columns{order} cannot be stored as {bits} bits in "
            f"blocks of {list(block)}"
        )
    middle = 1 << (bits - 1)
    zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape) - np.int16(middle)
    if zeros.size and not -128 <= zeros.min() <= zeros.max() <= 127:
        raise UnsupportedError("a zero point does not fit 8 bits")
    scales = Plane(form.scales.float32(), "F32") if kind == "Int8Tensor" else form.scales
    signed = (form.codes.unpack().astype(np.int16) - middle).astype(np.int8)
    return {
        "qdata": Plane(signed.reshape(form.shape), "I8"),
        "scale": Plane(_gathered(scales.data, form.shape, block), scales.kind),
        "zero_point": Plane(_gathered(zeros.astype(np.int8), form.shape, block), "I8"),
    }


def _blocked(values: NDArray[np.float32], block: Sequence[int]) -> NDArray[np.float32]:
    """Every block as a row: the grid of the blocks, then the elements of a block."""
    split: list[int] = []
    for size, step in zip(values.shape, block, strict=True):
        split += [size // step, step]
    axes = (*range(0, len(split), 2), *range(1, len(split), 2))
    turned = values.reshape(split).transpose(axes)
    return turned.reshape(*split[::2], -1)


def _searched(
    source: Plane, data: Mapping[str, Any], kind: str, params: Mapping[str, Any], importance: Any
) -> Affine | Biased | None:
    """The form by the ``method`` of the parameters; None for torchao's own rule."""
    if params.get("method", "writer") == "writer":
        return None
    block = _block_size(data, source.shape)
    if any(step > 1 for step in block[:-1]):
        writer_only(params, f"scales of blocks of {list(block)}")
    if kind == "Int4Tensor":
        found = quantized(source, params, Grid(4, block[-1], zeros="bias", kind=source.kind, signed=8), importance)
        return replace(found, compute="F32") if isinstance(found, Biased) else None
    mapping = setting_text(params, "mapping_type", "SYMMETRIC", ("SYMMETRIC", "ASYMMETRIC"))
    symmetric = kind == "Int8Tensor" or mapping == "SYMMETRIC"
    grid = Grid(_bits(data, kind), block[-1], symmetric, kind="F32" if kind == "Int8Tensor" else source.kind)
    found = quantized(source, params, grid, importance)
    return found if isinstance(found, Affine) else None


def _encode_integers(source: Plane, data: Mapping[str, Any], kind: str, params: Mapping[str, Any]) -> Affine:
    values, dtype, shape = source.float32(), source.kind, source.shape
    bits, block = _bits(data, kind), _block_size(data, source.shape)
    if setting_bool(data, "reduce_range", False):
        raise UnsupportedError("integers of a reduced range cannot be made from floats yet")
    blocks = _blocked(values, block)
    low, high = blocks.min(axis=-1, initial=0), blocks.max(axis=-1, initial=0)
    middle, steps = 1 << (bits - 1), np.float32((1 << bits) - 1)
    mapping = setting_text(params, "mapping_type", "SYMMETRIC", ("SYMMETRIC", "ASYMMETRIC"))
    asymmetric = kind != "Int8Tensor" and mapping == "ASYMMETRIC"
    with np.errstate(over="ignore"):
        spread = rounded(high - low, dtype) / steps if asymmetric else np.maximum(-low, high) / (steps / np.float32(2))
        spread = np.maximum(spread, _SMALLEST_SCALE[dtype])
    compute = "F32" if kind == "Int8Tensor" else dtype
    scales = _planes.finite_plane(spread, dtype)
    exact = scales.float32()
    inverse = rounded(np.float32(1) / exact, compute)
    zeros = np.zeros(exact.shape, np.float32)
    if asymmetric:
        zeros = np.clip(rounded(-middle - np.rint(rounded(low / exact, dtype)), dtype), -middle, middle - 1)
    wide, zero = (np.repeat(_spread(one, block), block[-1], axis=-1) for one in (inverse, zeros))
    codes = rounded(np.rint(rounded(values * wide, compute)) + zero, compute)
    signed = np.clip(codes, -middle, middle - 1).astype(np.int8)
    across = (prod(shape[:-1]), exact.shape[-1])
    stored = Plane(exact, "F32") if kind == "Int8Tensor" else scales
    return Affine(
        shape,
        ByteCodes(signed.reshape(across[0], -1), bits, middle),
        Plane(_spread(stored.data, block).reshape(across), stored.kind),
        _spread(zeros, block).reshape(across).astype(np.int16) + np.int16(middle),
        block[-1],
    )


def _read_int4(planes: Mapping[str, Any], data: Mapping[str, Any], kind: str) -> Form:
    qdata = _planes.get(planes, "_weight_qdata", ("U8", "I8"), (None, None))
    rows, columns = qdata.shape[0], 2 * qdata.shape[1]
    block = _block_size(data, (rows, columns))
    if block[0] != 1:
        raise FormatError(f"block_size is {list(block)}: expected one row")
    scales = _planes.get(planes, "_weight_scale", FLOATS, (columns // block[1], rows))
    zeros = _planes.get(planes, "_weight_zero_point", scales.kind, scales.shape)
    codes = SignedCodes(packed_bytes(qdata.data, 4))
    turned, biases = (Plane(np.ascontiguousarray(one.data.T), one.kind) for one in (scales, zeros))
    if not np.ascontiguousarray(zeros.data).view(np.uint8).any():
        return Affine((rows, columns), codes, turned, 8, block[1])
    return Biased((rows, columns), codes, turned, biases, block[1], signed=8, compute="F32")


def _write_int4(form: Affine | Biased, data: Mapping[str, Any]) -> dict[str, Plane]:
    if len(form.shape) != 2 or form.codes.bits != 4 or form.columns % 8:
        raise UnsupportedError(f"Int4Tensor holds matrices of 4 bits in rows of whole words, not {list(form.shape)}")
    if form.group_size != _block_size(data, form.shape)[1]:
        raise UnsupportedError(f"groups of {form.group_size} columns, but block_size is {data.get('block_size')}")
    if isinstance(form, Biased):
        if form.signed != 8 or form.compute != "F32" or form.biases.kind != form.scales.kind:
            raise UnsupportedError("Int4Tensor holds signed codes, scales and zeros of one type, computed in float32")
        biases = form.biases
    elif form.group_of is None and np.all(np.asarray(form.zeros) == 8):
        biases = Plane(np.zeros_like(form.scales.data), form.scales.kind)
    else:
        raise UnsupportedError("Int4Tensor has float zero points: a zero point times its scale would round")
    words = pack("stream", 4, form.codes.unpack() ^ np.uint8(8))
    return {
        "qdata": Plane(words.view(np.uint8), "U8"),
        "scale": Plane(np.ascontiguousarray(form.scales.data.T), form.scales.kind),
        "zero_point": Plane(np.ascontiguousarray(biases.data.T), biases.kind),
    }


def _encode_int4(source: Plane, data: Mapping[str, Any], kind: str, params: Mapping[str, Any]) -> Biased:
    if source.data.ndim != 2 or source.shape[1] % 8:
        raise UnsupportedError(f"Int4Tensor holds matrices with a multiple of 8 columns, not {list(source.shape)}")
    values, dtype = source.float32(), source.kind
    block = _block_size(data, values.shape)
    groups = _blocked(values, (1, block[1]))
    low, high = groups.min(axis=-1, initial=np.inf), groups.max(axis=-1, initial=-np.inf)
    with np.errstate(over="ignore"):
        scales = _planes.finite_plane(np.maximum((high - low) / np.float32(15), _SMALLEST_SCALE[dtype]), dtype)
        zeros = _planes.finite_plane(low + np.float32(8) * scales.float32(), dtype)
    wide, zero = (np.repeat(one.float32(), block[1], axis=1) for one in (scales, zeros))
    codes = np.clip(np.rint((values - zero) / wide), -8, 7).astype(np.int8) + np.int8(8)
    packed = ByteCodes(codes.view(np.uint8), 4)
    return Biased(values.shape, packed, scales, zeros, block[1], signed=8, compute="F32")


# Floats


def _read_float8(planes: Mapping[str, Any], data: Mapping[str, Any], kind: str) -> Form:
    qdata = _qdata(planes, tuple(_FLOAT8.values()))
    shape, block = qdata.shape, _block_size(data, qdata.shape)
    grid = tuple(size // step for size, step in zip(shape, block, strict=True))
    scales = _planes.get(planes, "_weight_scale", FLOATS, grid)
    wide = _spread(scales.data, (*block[:-2], 1, 1)).reshape(-1, grid[-1])
    elements = qdata.data.reshape(-1, shape[-1])
    return BlockScaled(shape, elements, qdata.kind, Plane(wide, scales.kind), (block[-2], block[-1]))


def _write_float8(form: BlockScaled, data: Mapping[str, Any]) -> dict[str, Plane]:
    block = _block_size(data, form.shape)
    if form.element not in _FLOAT8.values() or form.inverse or form.factor is not None or form.rounds_scale:
        raise UnsupportedError("Float8Tensor holds E4M3 or E5M2 elements that are multiplied by their scales")
    scales = form.regrid((block[-2], block[-1])) if form.scales.kind in FLOATS else None
    if scales is None:
        raise UnsupportedError(
            f"blocks of {list(form.block)} with {form.scales.kind} scales cannot be stored as blocks of {list(block)}"
        )
    grid = (*form.shape[:-2], *form.grid((block[-2], block[-1])))
    float32 = scales.float32().reshape(grid)
    gathered = float32[tuple(slice(None, None, step) for step in block[:-2])]
    if not np.array_equal(_spread(gathered, (*block[:-2], 1, 1)), float32):
        raise UnsupportedError(f"blocks of {list(block)} have one scale, but the matrices differ in theirs")
    return {"qdata": Plane(form.data.reshape(form.shape), form.element), "scale": Plane(gathered, "F32")}


def _encode_float8(source: Plane, data: Mapping[str, Any]) -> BlockScaled:
    values, shape = source.float32(), source.shape
    block = _block_size(data, shape)
    maxima = np.abs(_blocked(values, block)).max(axis=-1, initial=0)
    scales = _planes.finite_plane(maxima / np.float32(LARGEST["F8_E4M3"]), source.kind).float32()
    wide = np.repeat(_spread(scales, block), block[-1], axis=-1)
    quotient = np.zeros_like(values)
    np.divide(values, wide, out=quotient, where=wide > 0)
    of_matrices = _spread(scales, (*block[:-2], 1, 1)).reshape(-1, scales.shape[-1])
    codes = encode_e4m3(quotient).reshape(-1, shape[-1])
    return BlockScaled(shape, codes, "F8_E4M3", Plane(of_matrices, "F32"), (block[-2], block[-1]))


def _element(data: Mapping[str, Any], kind: str) -> str:
    if setting_bool(data, "is_swizzled_scales", False):
        raise UnsupportedError("the scales are swizzled for a device: save the model with plain scales")
    if kind == "NVFP4Tensor":
        return "E2M1"
    name = _type_name(data, "elem_dtype")
    if name not in _ELEMENTS:
        raise UnsupportedError(f"elem_dtype {name!r:.60} cannot be read: expected one of {', '.join(_ELEMENTS)}")
    return _ELEMENTS[name]


def _read_blocks(planes: Mapping[str, Any], data: Mapping[str, Any], kind: str) -> Form:
    element, nv = _element(data, kind), kind == "NVFP4Tensor"
    block = setting_int(data, "block_size", 16 if nv else 32, (16,) if nv else ())
    qdata = _qdata(planes, ("U8",) if element == "E2M1" else (element,))
    shape = (*qdata.shape[:-1], qdata.shape[-1] * (2 if element == "E2M1" else 1))
    if block < 1 or shape[-1] % block:
        raise FormatError(f"block_size {block} does not divide {shape[-1]} columns of plane '_weight_qdata'")
    scale_kind = "F8_E4M3" if nv else "F8_E8M0"
    stored = _planes.get(planes, "_weight_scale", (scale_kind,), (*shape[:-1], shape[-1] // block))
    scales = Plane(stored.data.reshape(-1, shape[-1] // block), scale_kind)
    folded = qdata.data.reshape(-1, qdata.shape[-1])
    codes: Codes = packed_bytes(folded, 4) if element == "E2M1" else ByteCodes(folded)
    multiplier = _planes.optional(planes, "_weight_per_tensor_scale", "F32", ()) if nv else None
    number = None if multiplier is None else np.float32(multiplier.data.item())
    return Microscaled(shape, codes, element, scales, scale_kind, block, multiplier=number)


def _write_blocks(form: Microscaled, data: Mapping[str, Any], kind: str) -> dict[str, Plane]:
    element, nv = _element(data, kind), kind == "NVFP4Tensor"
    block = setting_int(data, "block_size", 16 if nv else 32)
    wanted = (element, "F8_E4M3" if nv else "F8_E8M0", block)
    if (form.element, form.scale_kind, form.block) != wanted or form.columns % block:
        raise UnsupportedError(
            f"{form.element} in blocks of {form.block} with {form.scale_kind} scales cannot be stored as "
            f"{element} in blocks of {block} with {wanted[1]} scales"
        )
    if form.divisor is not None or form.maximum is not None or (form.multiplier is not None and not nv):
        raise UnsupportedError(f"{kind} has no scale of the tensor of this kind: turning it over would round")
    leading = form.shape[:-1]
    qdata = as_packed_bytes(form.codes) if element == "E2M1" else form.codes.unpack()
    fields = {
        "qdata": Plane(qdata.reshape(*leading, -1), "U8" if element == "E2M1" else element),
        "scale": Plane(form.scales.data.view(np.uint8).reshape(*leading, -1), form.scale_kind),
    }
    if form.multiplier is not None:
        fields["per_tensor_scale"] = Plane(np.array(form.multiplier, np.float32), "F32")
    return fields


def _rows(source: Plane, block: int) -> NDArray[np.float32]:
    if block < 1 or source.shape[-1] % block:
        raise UnsupportedError(f"rows of {source.shape[-1]} columns: expected whole blocks of {block}")
    return source.float32().reshape(-1, source.shape[-1])


def _coded(codes: NDArray[np.uint8], element: str) -> Any:
    return ByteCodes(codes, 4 if element == "E2M1" else 8)


def _encode_mx(source: Plane, data: Mapping[str, Any]) -> Microscaled:
    element, block = _element(data, "MXTensor"), setting_int(data, "block_size", 32)
    values = _rows(source, block)
    scales = e8m0_scales(block_maxima(values, block), element, "floor")
    powers = np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
    codes = encode_element(divide_blocks(values, powers), element)
    return Microscaled(source.shape, _coded(codes, element), element, Plane(scales, "F8_E8M0"), "F8_E8M0", block)


def _encode_nvfp4(source: Plane, per_tensor: bool, params: Mapping[str, Any]) -> Microscaled:
    values = _rows(source, 16)
    maxima = block_maxima(values, 16)
    largest = largest_magnitude(maxima, params)
    whole = np.float32(1)
    if per_tensor and largest > 0:
        whole = np.maximum(largest / np.float32(2688), np.float32(2.0**-126))
    exact = maxima / np.float32(6) / whole
    scales = encode_e4m3(np.clip(exact, np.float32(2.0**-6), np.float32(448)))
    with np.errstate(over="ignore"):  # weights below the range of float32's normal numbers
        factors = np.float32(1) / whole / _planes.float8_values("F8_E4M3")[scales]
        codes = encode_element(values * np.repeat(factors, 16, axis=1), "E2M1")
    multiplier = np.float32(whole) if per_tensor else None
    packed = _coded(codes, "E2M1")
    return Microscaled(source.shape, packed, "E2M1", Plane(scales, "F8_E4M3"), "F8_E4M3", 16, multiplier=multiplier)


_READERS: Mapping[str, Any] = {
    "Int8Tensor": _read_integers,
    "IntxUnpackedToInt8Tensor": _read_integers,
    "Int4Tensor": _read_int4,
    "Float8Tensor": _read_float8,
    "MXTensor": _read_blocks,
    "NVFP4Tensor": _read_blocks,
}

FORMATS = {"torchao": TorchAo()}
