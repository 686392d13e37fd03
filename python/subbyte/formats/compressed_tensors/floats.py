"""Small floats of compressed-tensors: ``float-quantized`` (FP8), NVFP4, MXFP4, MXFP6, MXFP8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import largest_magnitude
from subbyte.formats.compressed_tensors.integers import expanded, magnitudes, nonzero
from subbyte.formats.compressed_tensors.scheme import BLOCK_FORMATS, Scheme
from subbyte.forms import BlockScaled, ByteCodes, Form, Microscaled, PackedCodes
from subbyte.forms.codes import Codes, pack
from subbyte.forms.microfloat import e8m0_scales, encode_e2m1, encode_e4m3, encode_element
from subbyte.planes import FLOATS, Plane, float_plane, rounded


def read(planes: Mapping[str, Any], scheme: Scheme, format: str) -> Form:
    """The form of a layer of small floats."""
    if not scheme.symmetric:
        raise UnsupportedError("floats with zero points (setting 'symmetric' is false) cannot be read")
    if format in BLOCK_FORMATS:
        return _read_blocks(planes, format)
    weight = _planes.get(planes, "weight", "F8_E4M3")
    shape = weight.shape
    _check_shape("weight", shape)
    scale = _planes.get(planes, "weight_scale", (*FLOATS, "F8_E4M3", "F8_E8M0"))
    step = scheme.step(shape[-2], shape[-1])
    grid = (*shape[:-2], -(-shape[-2] // step[0]), -(-shape[-1] // step[1]))
    data = scale.data
    if data.size == 1 and scheme.strategy == "tensor":
        data = np.broadcast_to(data.reshape(()), grid)
    if data.shape != grid:
        raise FormatError(f"plane 'weight_scale' has shape {list(scale.shape)}: expected {list(grid)}")
    scales = Plane(np.ascontiguousarray(data).reshape(-1, grid[-1]), scale.kind)
    return BlockScaled(shape, weight.data.reshape(-1, shape[-1]), "F8_E4M3", scales, step)


def _read_blocks(planes: Mapping[str, Any], format: str) -> Microscaled:
    element, bits, block = BLOCK_FORMATS[format]
    nvidia = format == "nvfp4-pack-quantized"
    if format == "mxfp8-quantized":
        name, weight = "weight", _planes.get(planes, "weight", "F8_E4M3")
    else:
        name, weight = "weight_packed", _planes.get(planes, "weight_packed", "U8")
    _check_shape(name, weight.shape)
    columns, rest = divmod(weight.shape[-1] * 8, bits)
    if rest or columns % block:
        raise FormatError(f"plane '{name}' has rows of {weight.shape[-1]} bytes: no whole blocks of {block}")
    shape = (*weight.shape[:-1], columns)
    scales = _planes.get(
        planes, "weight_scale", ("F8_E4M3",) if nvidia else ("U8", "F8_E8M0"), (*shape[:-1], columns // block)
    )
    rows = np.ascontiguousarray(weight.data).reshape(prod(shape[:-1]), -1)
    codes: Codes = ByteCodes(rows) if bits == 8 else PackedCodes(rows.view(np.uint32), bits, (len(rows), columns))
    divisor: Any = None
    if nvidia:
        found = _planes.get(planes, "weight_global_scale", "F32").data
        if found.size not in (1, prod(shape[:-2])):
            raise FormatError(f"plane 'weight_global_scale' has shape {list(found.shape)}: expected [1]")
        divisor = np.float32(found.reshape(-1)[0]) if found.size == 1 else np.ascontiguousarray(found.reshape(-1))
    flat = Plane(scales.data.reshape(len(rows), -1), scales.kind)
    kind = "F8_E4M3" if nvidia else "F8_E8M0"
    return Microscaled(shape, codes, element, flat, kind, block, divisor=divisor)


def _check_shape(name: str, shape: Sequence[int]) -> None:
    if len(shape) not in (2, 3) or not prod(shape):
        raise FormatError(f"plane '{name}' has shape {list(shape)}: expected one matrix or several")


def write(form: Form, scheme: Scheme, format: str) -> dict[str, Plane]:
    """The planes of a layer of small floats."""
    if len(form.shape) not in (2, 3):
        raise UnsupportedError(f"a weight {list(form.shape)}: expected one matrix or several")
    if format in BLOCK_FORMATS:
        return _write_blocks(form, format)
    if not isinstance(form, BlockScaled) or form.element != "F8_E4M3" or form.inverse or form.factor is not None:
        raise UnsupportedError(f"format '{format}' holds elements of E4M3 that a scale multiplies")
    step = scheme.step(form.shape[-2], form.columns)
    scales = form.regrid(step)
    if scales is None:
        raise UnsupportedError(f"blocks of {list(form.block)} cannot be stored as blocks of {list(step)}")
    if scales.kind not in FLOATS:
        scales = Plane(scales.float32(), "F32")
    grid = scales.data.reshape(*form.shape[:-2], *form.grid(step))
    if scheme.strategy == "tensor" and np.all(grid == grid.reshape(-1)[0]):
        grid = grid.reshape(-1)[:1]
    return {
        "weight": Plane(np.ascontiguousarray(form.data).view(np.uint8).reshape(form.shape), "F8_E4M3"),
        "weight_scale": Plane(grid, scales.kind),
    }


def _write_blocks(form: Form, format: str) -> dict[str, Plane]:
    element, bits, block = BLOCK_FORMATS[format]
    nvidia = format == "nvfp4-pack-quantized"
    kind = "F8_E4M3" if nvidia else "F8_E8M0"
    if (
        not isinstance(form, Microscaled)
        or (form.element, form.scale_kind, form.block) != (element, kind, block)
        or form.columns % block
    ):
        raise UnsupportedError(f"format '{format}' holds {element} in blocks of {block} with {kind[3:]} scales")
    if form.multiplier is not None or form.maximum is not None or (form.divisor is None) == nvidia:
        raise UnsupportedError(
            f"format '{format}' has {'a scale of the tensor that divides' if nvidia else 'no scale of the tensor'}"
        )
    scales = np.ascontiguousarray(form.scales.data).view(np.uint8).reshape(*form.shape[:-1], -1)
    planes = {"weight_scale": Plane(scales, "F8_E4M3" if nvidia else "U8")}
    if bits == 8:
        planes["weight"] = Plane(np.ascontiguousarray(form.codes.unpack()).reshape(form.shape), "F8_E4M3")
    else:
        packed = np.ascontiguousarray(form.codes.stream()).view(np.uint8)
        planes["weight_packed"] = Plane(packed.reshape(*form.shape[:-1], -1), "U8")
    if form.divisor is not None:
        planes["weight_global_scale"] = Plane(np.asarray(form.divisor, np.float32).reshape(-1), "F32")
    return planes


def encode(source: Plane, scheme: Scheme, params: Mapping[str, Any]) -> Form:
    """The form that compressed-tensors makes of a float matrix."""
    rows, columns = source.shape
    values = source.float32()
    format = scheme.default
    if format not in BLOCK_FORMATS:
        step = scheme.step(rows, columns)
        whole = scheme.strategy == "tensor"
        maxima = np.full((1, 1), largest_magnitude(values, params)) if whole else magnitudes(values, step)
        scale = nonzero(rounded(maxima / np.float32(448), source.kind), source.kind)
        with np.errstate(all="ignore"):
            data = encode_e4m3(rounded(values / expanded(scale, source.shape, step), source.kind))
        return BlockScaled(source.shape, data, "F8_E4M3", float_plane(scale, source.kind), step)
    element, bits, block = BLOCK_FORMATS[format]
    if columns % block:
        raise UnsupportedError(f"{columns} columns are no whole blocks of {block}")
    step = (1, block)
    if format == "nvfp4-pack-quantized":
        return _encode_nvfp4(source, step, params)
    scales = e8m0_scales(magnitudes(values, step), element, "nearest")
    factors = _planes.float8_values("F8_E8M0")[scales]
    with np.errstate(all="ignore"):
        codes = encode_element(values / expanded(factors, source.shape, step), element)
    packed: Codes = ByteCodes(codes) if bits == 8 else PackedCodes(pack("stream", bits, codes), bits, (rows, columns))
    return Microscaled(source.shape, packed, element, Plane(scales, "U8"), "F8_E8M0", block)


def _encode_nvfp4(source: Plane, step: tuple[int, int], params: Mapping[str, Any]) -> Microscaled:
    """The scale of the tensor, 2688 / max, and those of the blocks, max / 6, are rounded in the type of the matrix."""
    values = source.float32()
    with np.errstate(all="ignore"):
        top = rounded(np.asarray(np.float32(2688) / largest_magnitude(values, params), np.float32), source.kind)
    divisor = np.float32(top) if np.isfinite(top) else np.float32(1)
    of_block = rounded(magnitudes(values, step) / np.float32(6), source.kind)
    scales = encode_e4m3(divisor * of_block)
    scales[scales == 0] = encode_e4m3(np.array([0.125], np.float32))[0]
    factors = _planes.float8_values("F8_E4M3")[scales] / divisor
    with np.errstate(all="ignore"):
        codes = encode_e2m1(values / expanded(factors, source.shape, step))
    packed = PackedCodes(pack("stream", 4, codes), 4, codes.shape)
    return Microscaled(source.shape, packed, "E2M1", Plane(scales, "F8_E4M3"), "F8_E4M3", 16, divisor=divisor)
