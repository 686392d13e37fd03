"""Integer weights of compressed-tensors: ``pack-quantized``, ``int-quantized`` and ``naive-quantized``.

Codes are signed, -2^(b-1) to 2^(b-1) - 1; forms count them and the zero points from 0, 2^(b-1) higher, as the packed
planes do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.compressed_tensors.scheme import Scheme
from subbyte.forms import Affine, ByteCodes, Form, PackedCodes
from subbyte.forms.codes import Codes, pack, unpack, words_per_row
from subbyte.planes import FLOATS, Plane, float_plane, rounded
from subbyte.quantize import Grid, quantized
from subbyte.quantize.grid import writer_only

_EVEN = (1, 2, 4, 8)
#: The distance from 1 to the next number of the type.
_EPSILON = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}


def read(planes: Mapping[str, Any], scheme: Scheme, format: str) -> Affine:
    """The form of an integer layer."""
    packed = format == "pack-quantized"
    if packed:
        words = _planes.get(planes, "weight_packed", ("I32", "U32"))
        shape = _shape(planes, words)
        order = _order(planes, scheme, words.shape[-1], shape)
        codes: Codes = PackedCodes(
            words.data.reshape(-1, words.shape[-1]), scheme.bits, (prod(shape[:-1]), shape[-1]), order
        )
    else:
        weight = _planes.get(planes, "weight", "I8")
        shape = weight.shape
        if weight.data.ndim not in (2, 3) or not weight.data.size:
            raise FormatError(f"plane 'weight' has shape {list(shape)}: expected one matrix or several")
        codes = ByteCodes(weight.data.reshape(-1, shape[-1]), scheme.bits, 1 << (scheme.bits - 1))
        order = "stream"
    step = scheme.step(shape[-2], shape[-1])
    scales = _planes.get(planes, "weight_scale", FLOATS)
    spread_scales = Plane(_spread("weight_scale", scales.data, shape, step), scales.kind)
    zeros = _zeros(planes, scheme, order, shape, step, scales.shape, packed)
    group_of = _group_of(planes, scheme, shape[-1], spread_scales.shape[1]) if packed else None
    return Affine(shape, codes, spread_scales, zeros, step[1], group_of)


def _shape(planes: Mapping[str, Any], words: Plane) -> tuple[int, ...]:
    found = _planes.get(planes, "weight_shape", ("I64", "I32"), (None,)).data[-4:]
    *before, width = words.shape if words.data.ndim else (0,)
    shape = (*before, int(found[-1])) if found.size else ()
    said = [int(side) for side in found]
    if len(shape) not in (2, 3) or not words.data.size or said not in (list(shape), list(shape[-2:])):
        raise FormatError(
            f"plane 'weight_packed' has shape {list(words.shape)}, which plane 'weight_shape', {said!r:.60}, "
            "does not fit"
        )
    if not 0 < shape[-1] <= 32 * width:
        raise FormatError(
            f"plane 'weight_shape' says {shape[-1]} columns, plane 'weight_packed' has {width} words a row"
        )
    return shape


def _order(planes: Mapping[str, Any], scheme: Scheme, width: int, shape: Sequence[int]) -> str:
    """The order of packed codes, which the widths tell, or else the version."""
    widths = {words_per_row(order, scheme.bits, shape[-1]) for order in ("stream", "aligned")}
    if width not in widths:
        raise FormatError(
            f"plane 'weight_packed' has {width} words a row: expected {' or '.join(map(str, sorted(widths)))} for "
            f"{shape[-1]} codes of {scheme.bits} bits"
        )
    if scheme.bits in _EVEN:
        return "stream"
    sizes = [(width, shape[-1])]
    if "weight_zero_point" in planes:
        zeros = _planes.get(planes, "weight_zero_point")
        if zeros.kind == "I32" and zeros.data.ndim > 1:
            sizes.append((zeros.shape[-2], shape[-2]))
    for have, columns in sizes:
        fitting = [order for order in ("stream", "aligned") if words_per_row(order, scheme.bits, columns) == have]
        if len(fitting) == 1:
            return fitting[0]
    return "stream" if scheme.dense else "aligned"


def _grid(shape: Sequence[int], step: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a weight."""
    return (*shape[:-2], -(-shape[-2] // step[0]), -(-shape[-1] // step[1]))


def _spread(name: str, data: Array, shape: Sequence[int], step: tuple[int, int]) -> Array:
    """Parameters of blocks repeated for each row: (all rows, groups)."""
    grid = _grid(shape, step)
    if data.size == 1 and data.ndim < 2 and step[0] >= shape[-2] and step[1] >= shape[-1]:
        data = np.broadcast_to(data.reshape(()), grid)
    if data.shape != grid:
        raise FormatError(f"plane '{name}' has shape {list(data.shape)}: expected {list(grid)}")
    rows = np.repeat(data, step[0], axis=-2)[..., : shape[-2], :] if step[0] > 1 else data
    return np.ascontiguousarray(rows).reshape(-1, grid[-1])


def _zeros(
    planes: Mapping[str, Any],
    scheme: Scheme,
    order: str,
    shape: Sequence[int],
    step: tuple[int, int],
    scale_shape: Sequence[int],
    packed: bool,
) -> NDArray[np.int16] | int:
    middle = 1 << (scheme.bits - 1)
    if scheme.symmetric and "weight_zero_point" not in planes:
        return middle
    kinds = ("I8", "I32") if packed else ("I8",)
    plane = _planes.get(planes, "weight_zero_point", kinds)
    if plane.kind == "I32":
        expected = (*shape[:-2], words_per_row(order, scheme.bits, shape[-2]), _grid(shape, step)[-1])
        if plane.shape != expected or step[0] > 1:
            raise FormatError(f"plane 'weight_zero_point' has shape {list(plane.shape)}: expected {list(expected)}")
        words = np.ascontiguousarray(np.swapaxes(plane.data, -1, -2)).reshape(-1, expected[-2])
        fields = unpack(order, scheme.bits, words, shape[-2]).reshape(*shape[:-2], expected[-1], shape[-2])
        zeros = np.ascontiguousarray(np.swapaxes(fields, -1, -2)).reshape(-1, expected[-1]).astype(np.int16)
    else:
        zeros = _spread("weight_zero_point", plane.data, shape, step).astype(np.int16) + np.int16(middle)
        if zeros.min() < 0 or zeros.max() >> scheme.bits:
            raise FormatError(f"plane 'weight_zero_point' holds numbers out of the range of {scheme.bits} bits")
    if scheme.symmetric and np.any(zeros != middle):
        raise FormatError("plane 'weight_zero_point' is not zero, while setting 'symmetric' is true")
    return zeros


def _group_of(planes: Mapping[str, Any], scheme: Scheme, columns: int, groups: int) -> NDArray[np.int32] | None:
    plane = _planes.optional(planes, "weight_g_idx", ("I32", "I64"), (columns,))
    if plane is None or np.any(plane.data == -1):  # -1: made, but never filled
        if not scheme.ordered and plane is None and groups > 1 and not scheme.dense:
            raise FormatError("plane 'weight_g_idx' is missing, while setting 'actorder' says columns are out of order")
        return None
    if plane.data.min() < 0 or plane.data.max() >= groups:
        raise FormatError(f"plane 'weight_g_idx' names group {plane.data.max()}: plane 'weight_scale' has {groups}")
    if scheme.group_size is None or np.array_equal(plane.data, np.arange(columns) // scheme.group_size):
        return None if scheme.ordered else plane.data.astype(np.int32)
    return plane.data.astype(np.int32)


def write(form: Form, scheme: Scheme, format: str) -> dict[str, Plane]:
    """The planes of an integer layer."""
    if not isinstance(form, Affine):
        raise UnsupportedError(f"format '{format}' cannot hold a {type(form).__name__.lower()} form")
    if form.codes.bits != scheme.bits or len(form.shape) not in (2, 3):
        raise UnsupportedError(
            f"a weight {list(form.shape)} of {form.codes.bits} bits cannot be stored as {scheme.bits} bits"
        )
    packed = format == "pack-quantized"
    if form.group_of is not None and (scheme.ordered or not packed):
        raise UnsupportedError("columns are out of order (act-order): setting 'actorder' has to be 'group'")
    if scheme.symmetric and not form.symmetric:
        raise UnsupportedError("zero points other than 0: setting 'symmetric' has to be false")
    shape = form.shape
    step = scheme.step(shape[-2], shape[-1])
    form = form.regrouped(step[1])
    order = "stream" if scheme.bits in _EVEN or scheme.dense else "aligned"
    scales = Plane(_gathered("scales", form.scales.data, shape, step), form.scales.kind)
    if scheme.strategy == "tensor" and np.all(scales.data == scales.data.reshape(-1)[0]):
        scales = Plane(scales.data.reshape(-1)[:1], scales.kind)
    planes = {"weight_scale": scales}
    middle = 1 << (scheme.bits - 1)
    if packed:
        words = form.codes.stream() if order == "stream" else pack(order, scheme.bits, form.codes.unpack())
        signed_words = np.ascontiguousarray(words).view(np.int32).reshape(*shape[:-1], -1)
        planes["weight_packed"] = Plane(signed_words, "I32")
        planes["weight_shape"] = Plane(np.array(shape, np.int64), "I64")
        if form.group_of is not None:
            planes["weight_g_idx"] = Plane(form.group_of.astype(np.int32), "I32")
    else:
        signed = form.codes.unpack().astype(np.int16) - np.int16(middle)
        planes["weight"] = Plane(signed.astype(np.int8).reshape(shape), "I8")
    if not scheme.symmetric:
        zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape)
        if zeros.min() < 0 or zeros.max() >> scheme.bits:
            raise UnsupportedError(f"a zero point is out of the range of {scheme.bits} bits")
        planes["weight_zero_point"] = _write_zeros(zeros, scheme, order, shape, step, packed)
    return planes


def _write_zeros(
    zeros: NDArray[np.int16], scheme: Scheme, order: str, shape: Sequence[int], step: tuple[int, int], packed: bool
) -> Plane:
    if packed and step[0] == 1:
        turned = np.swapaxes(zeros.reshape(*shape[:-1], -1), -1, -2)
        fields = np.ascontiguousarray(turned, np.uint8).reshape(-1, shape[-2])
        words = pack(order, scheme.bits, fields).view(np.int32).reshape(*turned.shape[:-1], -1)
        return Plane(np.ascontiguousarray(np.swapaxes(words, -1, -2)), "I32")
    signed = _gathered("zero points", zeros, shape, step) - np.int16(1 << (scheme.bits - 1))
    if scheme.strategy == "tensor" and np.all(signed == signed.reshape(-1)[0]):
        signed = signed.reshape(-1)[:1]
    return Plane(signed.astype(np.int8), "I8")


def _gathered(what: str, data: Array, shape: Sequence[int], step: tuple[int, int]) -> Array:
    """The reverse of `_spread`.

    Raises:
        UnsupportedError: rows of one block differ.
    """
    grid = _grid(shape, step)
    by_row = data.reshape(*shape[:-1], grid[-1])
    first = np.ascontiguousarray(by_row[..., :: step[0], :])
    if step[0] > 1 and not np.array_equal(np.repeat(first, step[0], axis=-2)[..., : shape[-2], :], by_row):
        raise UnsupportedError(f"rows have {what} of their own, where {step[0]} rows have to share them")
    return first


def encode(source: Plane, scheme: Scheme, params: Mapping[str, Any], importance: Any) -> Form:
    """The form of a float matrix: by the ``method`` of the parameters, or as compressed-tensors makes it.

    Raises:
        UnsupportedError: a method for scales that several rows share.
    """
    step = scheme.step(source.shape[0], source.shape[1])
    if step[0] > 1:
        writer_only(params, f"scales of {step[0]} rows")
    grid = Grid(scheme.bits, step[1], scheme.symmetric, kind=source.kind)
    return quantized(source, params, grid, importance) or _encode(source, scheme)


def _encode(source: Plane, scheme: Scheme) -> Affine:
    """As compressed-tensors makes it, every step rounded in the type of the matrix."""
    kind = source.kind
    values = source.float32()
    shape = source.shape
    step = scheme.step(shape[0], shape[1])
    low = np.minimum(_reduced(values, step, np.minimum), np.float32(0))
    high = np.maximum(_reduced(values, step, np.maximum), np.float32(0))
    lowest, highest = -(1 << (scheme.bits - 1)), (1 << (scheme.bits - 1)) - 1
    levels = np.float32((1 << scheme.bits) - 1)
    with np.errstate(all="ignore"):
        if scheme.symmetric:
            largest = np.asarray(np.maximum(-low, high), np.float32)
            scale = nonzero(rounded(largest / np.float32(levels / 2), kind), kind)
            zero = np.zeros_like(scale)
        else:
            scale = rounded(rounded(high - low, kind) / levels, kind)
            offset = lowest - rounded(np.divide(low, scale), kind)
            zero = np.rint(np.clip(rounded(offset.astype(np.float32), kind), lowest, highest)).astype(np.float32)
            zero[np.isnan(zero)] = 0  # a block of zeros
            scale = nonzero(scale, kind)
        quotient = rounded(values / expanded(scale, shape, step), kind)
        moved = quotient if scheme.symmetric else rounded(quotient + expanded(zero, shape, step), kind)
        codes = np.clip(np.rint(moved), lowest, highest) - lowest
    packed = PackedCodes(pack("stream", scheme.bits, codes.astype(np.uint8)), scheme.bits, (shape[0], shape[1]))
    scales = float_plane(_spread("weight_scale", scale, shape, step), kind)
    zeros = _spread("weight_zero_point", zero, shape, step).astype(np.int16) - np.int16(lowest)
    return Affine(shape, packed, scales, zeros, step[1])


def nonzero(scale: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Scales with those that are 0 replaced by the epsilon of their type, as the original does."""
    return np.where(scale == 0, np.float32(_EPSILON[kind]), scale).astype(np.float32)


def expanded(grid: NDArray[np.float32], shape: Sequence[int], step: tuple[int, int]) -> NDArray[np.float32]:
    """Parameters of blocks, (down, across), repeated for every element of a matrix."""
    return np.repeat(np.repeat(grid, step[0], axis=0)[: shape[0]], step[1], axis=1)[:, : shape[1]]


def _reduced(values: NDArray[np.float32], step: tuple[int, int], operation: np.ufunc) -> NDArray[np.float32]:
    """Smallest or largest element of every block: (down, across)."""
    down = operation.reduceat(values, np.arange(0, values.shape[0], step[0]), axis=0)
    found: NDArray[np.float32] = operation.reduceat(down, np.arange(0, values.shape[1], step[1]), axis=1)
    return found


def magnitudes(values: NDArray[np.float32], step: tuple[int, int]) -> NDArray[np.float32]:
    """Largest magnitude of every block: (down, across)."""
    return _reduced(np.abs(values), step, np.maximum)
