"""SINQ checkpoints (Sinkhorn-normalized quantization, arXiv 2509.22944).

A weight ``[out, in]`` of ``nbits`` bits in groups of ``g`` columns, n = out * in / g, with a second scale per column:

==============================  ========================  =============================================================
plane                           type, shape               content
==============================  ========================  =============================================================
W_q                             U8 or I32                 codes of W.reshape(n, g), packed along its first axis
                                                          (`subbyte.formats.integer.slabs`)
meta.scale, meta.zero           F16, BF16, F32 [n, 1]     of each group; the zero is a float
meta.scale2                     F16, BF16, F32 [1, in]    of each column
meta.scale.x, .s, .m            U8 [32, n / 32],          instead of meta.scale: x * s + m, each step rounded to
                                F16 [1, n / 32]           float16, in the shape ``scale.shape``
meta.zero.x, .s, .m             U8 [n, 1], F16 [1, 1]     the same for meta.zero
==============================  ========================  =============================================================

w = ((code - zero) * scale) * scale2, each step rounded in the type of its operands, in float32 where types differ; the
code has the type ``compute_dtype``. Where ``method`` contains nf4 or nf3, the code is looked up first, in a table that
is rounded to the type of scale.

Tiles (2D): scale and zero ``[tiles, g, 1]`` and scale2 ``[tiles, 1, g]`` for tiles of g rows and g columns, in rows of
tiles.

What is no tensor (nbits, group_size, shape, packing, method, compute_dtype, scale.shape, zero.shape) is in
``model.safetensors.index.json.meta.json``, as ``{module: {"meta": {…}}}``: the parameter ``meta`` here. Codes of 5 and
6 bits are packed into words, ``5bit_32`` and ``6bit_32``.

Encoding balances the standard deviations of rows and columns of each tile, ``[out, g]`` or ``[g, g]``
(`subbyte.quantize.sinkhorn`), spreads the codes, or the values of the table, from minimum to maximum of what is left of
each group, and multiplies the row's factor into its scale. ``method`` with ``quantAux`` quantizes scales and zeros to 8
bits, also from minimum to maximum. Codes are the nearest ones for the parameters as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, Error, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_text
from subbyte.formats.integer.slabs import DTYPE_NAMES, DTYPES, PACKINGS, matrix_shape, pack_slabs, slab_codes
from subbyte.formats.table.bitsandbytes import NF4
from subbyte.forms import ByteCodes, DualScaled, Form
from subbyte.planes import FLOATS, Plane, rounded
from subbyte.quantize.sinkhorn import dual_scales, nearest_codes

SIDE_FILE = "model.safetensors.index.json.meta.json"
PACKINGS_OF = {
    1: "1bit_u8", 2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 5: "5bit_32", 6: "6bit_32", 8: "8bit_u8",
}  # fmt: skip
_PARAMETERS = ("meta.scale", "meta.zero")
_AUXILIARY = tuple(f"{name}.{part}" for name in _PARAMETERS for part in "xsm")

NF3 = np.array(
    [-1, -0.5350227355957031, -0.246931403875351, 0, 0.1833375245332718, 0.3819939494132996, 0.6229856610298157, 1],
    np.float32,
)
_TABLES = {"nf4": NF4, "nf3": NF3}


class Sinq(Format):
    """The format ``sinq``."""

    id = "sinq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        meta = _meta(params)
        bits = setting_int(meta, "nbits", allowed=PACKINGS_OF)
        shape = matrix_shape(meta.get("shape"))
        group = setting_int(meta, "group_size")
        if group < 1 or shape[1] % group:
            raise FormatError(f"group_size is {group}, which does not divide {shape[1]} columns")
        if meta.get("awq_scale") is not None:
            raise UnsupportedError("scales of AWQ (awq_scale) cannot be read")
        if setting_int(meta, "axis", 1) != 1:
            raise UnsupportedError(f"groups along axis {meta['axis']} cannot be read")
        packing = setting_text(meta, "packing", PACKINGS_OF[bits], PACKINGS)
        compute = DTYPES[setting_text(meta, "compute_dtype", "torch.float16", DTYPES)]
        codes = slab_codes(_planes.get(planes, "W_q"), packing, bits, shape, group)
        stored: dict[str, Plane] = {}
        scale, zero = (_parameter(planes, name, meta, stored) for name in _PARAMETERS)
        column = _planes.get(planes, "meta.scale2", FLOATS)
        tile = shape[0] if scale.data.ndim == 2 else group
        if shape[0] % tile:
            raise FormatError(f"tiles of {tile} rows do not divide {shape[0]} rows")
        grid = (shape[0] // tile, shape[1] // group)
        tiles = grid[0] * grid[1]
        flat = scale.data.ndim == 2
        expected = ((prod(shape) // group, 1), (1, shape[1])) if flat else ((tiles, group, 1), (tiles, 1, group))
        for name, found, want in zip((*_PARAMETERS, "meta.scale2"), (scale, zero, column), (0, 0, 1), strict=True):
            if found.shape != expected[want]:
                raise FormatError(f"plane '{name}' has shape {list(found.shape)}: expected {list(expected[want])}")
        scale, zero = (Plane(_rows(one.data, shape[0], grid, flat), one.kind) for one in (scale, zero))
        column = Plane(column.data.reshape(grid[0], shape[1]), column.kind)
        table = _table(meta, bits)
        if table is not None:
            table, compute = rounded(table, scale.kind), scale.kind
        return DualScaled(shape, codes, scale, zero, column, group, tile, compute, table, stored)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source = _planes.source(array)
        if source.data.ndim != 2:
            raise UnsupportedError(f"SINQ stores matrices; the array has shape {list(source.shape)}")
        given = params.get("meta", params.get("quantization_config", params))
        if not isinstance(given, Mapping):
            raise FormatError(f"meta is {given!r:.60}: expected a JSON object")
        bits, group = setting_int(given, "nbits", 4, PACKINGS_OF), setting_int(given, "group_size", 64)
        tiled = _tiled(given, setting_text(given, "method", "sinq_hf"))
        method = setting_text(given, "method", "sinq_2d" if tiled else "sinq_hf")
        rows, columns = source.shape
        tile = group if tiled else max(rows, 1)
        if group < 1 or columns % group or rows % tile:
            raise UnsupportedError(f"groups of {group} columns, tiles of {tile} rows do not divide {rows} x {columns}")
        meta: dict[str, Any] = {
            "nbits": bits, "group_size": group, "shape": [rows, columns], "awq_scale": None, "axis": 1,
            "packing": PACKINGS_OF[bits], "method": method,
            "compute_dtype": DTYPE_NAMES["BF16" if source.kind == "F32" else source.kind],
            "unpack_view_dtype": "torch.uint8" if PACKINGS[PACKINGS_OF[bits]].kind == "U8" else "torch.int32",
            "view_as_float": False,
        }  # fmt: skip
        table = _table(meta, bits)
        levels = np.arange(1 << bits, dtype=np.float32) if table is None else rounded(table, "F16")
        with np.errstate(all="ignore"):  # weights whose squares overflow end in factors that are refused
            found = dual_scales(source.float32(), levels, group, tile)
        scales, zeros, column = (_planes.finite_plane(one, "F16") for one in found)
        stored: dict[str, Plane] = {}
        if "quantaux" in method.lower():
            grid = (rows // tile, columns // group)
            scales = _quantized(scales, "scale", grid, tiled, meta, stored)
            zeros = _quantized(zeros, "zero", grid, tiled, meta, stored)
        codes = nearest_codes(source.float32(), scales, zeros, column, levels, tile)
        compute = "F16" if table is not None else DTYPES[meta["compute_dtype"]]
        table = None if table is None else levels
        shape = (rows, columns)
        form = DualScaled(shape, ByteCodes(codes, bits), scales, zeros, column, group, tile, compute, table, stored)
        return encoded(self.id, self.write(form, {**params, "meta": meta}), source.shape, {"meta": meta})

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, DualScaled):
            return super().write(form, params)
        meta = _meta(params)
        bits, method = form.codes.bits, setting_text(meta, "method", "sinq_hf")
        packing = setting_text(meta, "packing", PACKINGS_OF.get(bits, ""), PACKINGS)
        if len(form.shape) != 2 or PACKINGS[packing].field_bits < bits:
            raise UnsupportedError(
                f"codes of {bits} bits of a weight {list(form.shape)} cannot be packed as '{packing}'"
            )
        table = _table(meta, bits)
        same = table is form.table is None or (
            table is not None
            and form.table is not None
            and np.array_equal(rounded(table, form.scales.kind), form.table)
        )
        compute = form.scales.kind if table is not None else DTYPES.get(str(meta.get("compute_dtype")))
        if not same or form.compute != compute:
            raise UnsupportedError(f"method '{method}' and compute_dtype {meta.get('compute_dtype')} decode otherwise")
        rows = form.rows * form.columns // form.group_size
        if not PACKINGS[packing].padded and rows % PACKINGS[packing].fields:
            raise UnsupportedError(f"{rows} rows of codes do not fill whole bytes")
        tiled = form.tile != form.rows or _tiled(params.get("quantization_config"), method)
        if tiled and form.tile != form.group_size:
            raise UnsupportedError(f"tiles of {form.tile} rows with groups of {form.group_size} columns")
        grid = (form.rows // form.tile, form.columns // form.group_size)
        column = form.column_scales.data
        found = {"W_q": pack_slabs(form.codes.unpack(), packing, form.group_size)}
        for name, one in zip(_PARAMETERS, (form.scales, form.zeros), strict=True):
            found[name] = Plane(_parameters(one.data, grid, not tiled), one.kind)
        column = column.reshape(prod(grid), 1, -1) if tiled else column
        found["meta.scale2"] = Plane(np.ascontiguousarray(column), form.column_scales.kind)
        for name in {plane.rpartition(".")[0] for plane in form.stored}:
            del found[name]
        return found | dict(form.stored)

    def layers(self, folder: Folder) -> Sequence[Layer]:
        modules = folder.modules(("W_q", "meta.scale2"), (*_PARAMETERS, *_AUXILIARY), "W_q")
        side = folder.side_file(SIDE_FILE) if modules else {}
        if not isinstance(side, Mapping):
            raise FormatError(f"{SIDE_FILE} is missing or no JSON object: without it, SINQ weights cannot be decoded")
        found = []
        for module, tensors in modules.items():
            own = side.get(module)
            params = {"meta": own.get("meta") if isinstance(own, Mapping) else None}
            try:
                meta = _meta(params)
                shape = matrix_shape(meta.get("shape"))
                for key in ("nbits", "group_size"):
                    said = folder.settings.get(key)
                    if said is not None and said != meta.get(key):
                        raise FormatError(f"{SIDE_FILE} says {key} {meta.get(key)!r:.40}, the settings {said!r:.40}")
            except Error as e:
                e.tensor = e.tensor or tensors["W_q"]
                raise
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        return found


def _meta(params: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = params.get("meta")
    if meta is None:
        raise ArgumentError(f"params lacks 'meta', what {SIDE_FILE} says of the module")
    if not isinstance(meta, Mapping):
        raise FormatError(f"meta is {meta!r:.60}: expected a JSON object")
    return meta


def _table(meta: Mapping[str, Any], bits: int) -> NDArray[np.float32] | None:
    """The table that the method looks codes up in, if any."""
    method = setting_text(meta, "method", "sinq_hf").lower()
    name = next((name for name in _TABLES if name in method), None)
    if name is None:
        return None
    if len(_TABLES[name]) != 1 << bits:
        raise FormatError(f"method '{method:.40}' has {len(_TABLES[name])} values, nbits is {bits}")
    return _TABLES[name]


def _tiled(config: Any, method: str) -> bool:
    """Whether settings or method say tiles."""
    mode = config.get("tiling_mode") if isinstance(config, Mapping) else None
    return "2d" in method.lower() or mode == "2D"


def _parameter(planes: Mapping[str, Any], name: str, meta: Mapping[str, Any], stored: dict[str, Plane]) -> Plane:
    """Scales or zeros, in the shape in which the original uses them; their quantized planes go to ``stored``."""
    parts = [f"{name}.{part}" for part in "xsm"]
    if not any(part in planes for part in parts):
        return _planes.get(planes, name, FLOATS)
    if name in planes:
        raise FormatError(f"planes '{name}' and '{parts[0]}' are both there: which one counts?")
    x = _planes.get(planes, parts[0], "U8", (None, None))
    s, m = (_planes.get(planes, part, "F16", (1, x.shape[1])) for part in parts[1:])
    key = f"{name.removeprefix('meta.')}.shape"
    shape = meta.get(key)
    if (
        not isinstance(shape, list | tuple)
        or len(shape) not in (2, 3)
        or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
        or prod(shape) != x.data.size
    ):
        raise FormatError(f"{key} is {shape!r:.60}, which does not fit {x.data.size} elements of plane '{parts[0]}'")
    stored.update(zip(parts, (x, s, m), strict=True))
    return _planes.float_plane(_auxiliary(x, s, m).reshape(shape), "F16")


def _rows(values: NDArray[Any], rows: int, grid: tuple[int, int], flat: bool) -> NDArray[Any]:
    """Parameters of groups as (rows, groups)."""
    if flat:
        return values.reshape(rows, -1)
    return np.ascontiguousarray(values.reshape(*grid, -1).transpose(0, 2, 1).reshape(rows, grid[1]))


def _parameters(values: NDArray[Any], grid: tuple[int, int], flat: bool) -> NDArray[Any]:
    """The reverse of `_rows`."""
    if flat:
        return np.ascontiguousarray(values).reshape(-1, 1)
    turned = values.reshape(grid[0], -1, grid[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(turned).reshape(prod(grid), -1, 1)


def _quantized(
    plane: Plane, name: str, grid: tuple[int, int], tiled: bool, meta: dict[str, Any], stored: dict[str, Plane]
) -> Plane:
    """Scales or zeros, (rows, groups), as they decode from codes of 8 bits, which go to ``stored``.

    Scales have a range for each of n / 32 columns of codes, zeros one for all.
    """
    values = _parameters(plane.float32(), grid, not tiled)
    rows = 32 if name == "scale" else values.size
    if not values.size or values.size % rows:
        raise UnsupportedError(f"{values.size} scales cannot be quantized: expected a multiple of {rows}")
    table = values.reshape(rows, -1)
    low, high = table.min(axis=0, keepdims=True), table.max(axis=0, keepdims=True)
    step = _planes.finite_plane((high - low) / np.float32(255), "F16")
    least = _planes.finite_plane(low, "F16")
    quotient = np.zeros_like(table)
    wide = np.broadcast_to(step.float32(), table.shape)
    np.divide(table - least.float32(), wide, out=quotient, where=wide > 0)
    x = np.clip(np.rint(quotient), 0, 255).astype(np.uint8)
    parts = {"x": Plane(x, "U8"), "s": step, "m": least}
    meta[f"{name}.shape"] = list(values.shape)
    stored.update({f"meta.{name}.{part}": one for part, one in parts.items()})
    decoded = _auxiliary(*parts.values()).reshape(values.shape)
    return _planes.float_plane(_rows(decoded, plane.shape[0], grid, not tiled), "F16")


def _auxiliary(x: Plane, s: Plane, m: Plane) -> NDArray[np.float32]:
    """What quantized scales or zeros decode to."""
    with np.errstate(all="ignore"):
        return rounded(rounded(x.float32() * s.float32(), "F16") + m.float32(), "F16")


FORMATS = {"sinq": Sinq()}
