"""bitsandbytes checkpoints: NF4 and FP4 (QLoRA, arXiv 2305.14314), and int8 (LLM.int8(), arXiv 2208.07339).

4 bits, a weight of n elements in blocks of ``bs`` elements of the flattened weight (they may cross rows):

=========================================  =========================  =============================================
plane                                      type and shape             content
=========================================  =========================  =============================================
weight                                     U8 [ceil(n / 2), 1]        codes, the first of two in the high half; the
                                                                      same bytes may be called BF16, F16 or F32
weight.absmax                              F32 [ceil(n / bs)]         scales, or their codes where they are
                                           or U8                      quantized as well (double quantization)
weight.quant_map                           F32 [16]                   the table
weight.nested_absmax                       F32 [ceil(blocks / 256)]   double quantization only
weight.nested_quant_map                    F32 [256]                  double quantization only
weight.quant_state.bitsandbytes__nf4       U8                         JSON: quant_type, blocksize, dtype, shape;
(or __fp4)                                                            nested_blocksize, nested_dtype, nested_offset
=========================================  =========================  =============================================

* w = table[code] * absmax, rounded to float32 and then once to the type of the result. Doubly quantized, absmax =
  nested_quant_map[code] * nested_absmax[block] + nested_offset, both steps rounded to float32.
* FP4 has a table of its own and not the order of E2M1: 0, 0.0625, 8, 12, 4, 6, 2, 3, and their negatives, over 12.
  Both its zeros are +0; of what rounds to zero, positive values get the second one, code 8.
* The last half byte of an odd number of codes holds the code of zero: 7 for NF4, 0 for FP4.
* Writer: x * (1 / max(absmax, 1e-38)) in float32, cut to [-1, 1], and the nearest value of the table, the smaller one
  half-way. Scales are quantized after their mean is subtracted, in blocks of 256, by the signed dynamic map: for
  i = 0 … 6 the middles of 2^i equal parts of [0.1, 1], times 10^(i - 6), with both signs, and 0 and 1.
* Conv1D weights of GPT-2 are stored transposed, as [out, in].
* GPTQModel names the planes ``weight_absmax``, ``weight_quant_map``, ``weight_quant_state`` … and ``weight_scb``.

8 bits: ``weight`` I8 [out, in], ``SCB`` F32 [out] (largest magnitude of each row), ``weight_format`` U8 [] (0 for rows;
other numbers are tiled layouts of old versions). w = (q * SCB) * (1 / 127), each step rounded to float32; writer:
q = (x * 127) / SCB rounded to nearest, ties to even. Outlier columns are found at run time and not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, Error, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int, setting_text
from subbyte.forms import BlockScaled, Form, NibbleCodes, QuantizedScales, Table
from subbyte.planes import Plane

STATE = "weight.quant_state.bitsandbytes__"
_STATES = (f"{STATE}nf4", f"{STATE}fp4")
_PLANES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")

#: GPTQModel's names and ours; the name of its state does not say the type.
_ALIASES = {f"weight_{name}": f"weight.{name}" for name in _PLANES} | {"weight_scb": "SCB"}
_ANONYMOUS_STATE = "weight_quant_state"

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPE_NAMES = {kind: name for name, kind in _DTYPES.items()}
_LONGEST_STATE = 1 << 16

# Quantiles of a normal distribution, QLoRA appendix E.
NF4 = np.array(
    [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
    np.float32,
)  # fmt: skip
_FP4_HALF = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
FP4 = np.concatenate((_FP4_HALF, np.float32(0) - _FP4_HALF))
TABLES = {"nf4": NF4, "fp4": FP4}
_ZERO_CODES = {"nf4": 7, "fp4": 0}

_INT8_FACTOR = np.float32(1) / np.float32(127)
_INT8_LAYOUTS = {1: "col32", 2: "col_turing", 3: "col_ampere"}


class BitsAndBytes(Format):
    """The format ``bitsandbytes``."""

    id = "bitsandbytes"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        named = {_ALIASES.get(name, name): value for name, value in planes.items()}
        eight = "SCB" in named or "weight_format" in named
        _check_bits(params, eight)
        return _read_int8(named) if eight else _read_table(named, params)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = _config(params)
        source = _planes.source(array)
        values = source.float32()
        if setting_bool(config, "load_in_8bit", False):
            if values.ndim != 2:
                raise UnsupportedError(f"int8 is for matrices; the array has shape {list(values.shape)}")
            form: Form = _encode_int8(values)
        else:
            kind = setting_text(config, "bnb_4bit_quant_type", "fp4", TABLES)
            block = setting_int(params, "blocksize", 64, BLOCK_SIZES)
            nested = setting_bool(config, "bnb_4bit_use_double_quant", False)
            form = _encode_table(values, source.kind, kind, block, nested)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        config = _config(params)
        if setting_bool(config, "load_in_8bit", False):
            return 32 if len(shape) == 2 else 0
        alone = not setting_bool(config, "bnb_4bit_use_double_quant", False)
        return 32 if alone and shape[-1] % setting_int(params, "blocksize", 64, BLOCK_SIZES) == 0 else 0

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if isinstance(form, BlockScaled):
            return _write_int8(form)
        if not isinstance(form, Table):
            return super().write(form, params)
        found = _write_table(form, _config(params))
        length = setting_int(params, "state_bytes", 0)
        for name in found.keys() & set(_STATES):
            # Blanks after an object are JSON still: the plane has its length before the scales are known.
            found[name] = Plane(np.frombuffer(found[name].data.tobytes().ljust(length), np.uint8), "U8")
        return found

    def layers(self, folder: Folder) -> Sequence[Layer]:
        params = {"quantization_config": folder.settings}
        found = []
        names = ("weight_format", *(f"weight.{name}" for name in _PLANES), *_STATES, *_ALIASES, _ANONYMOUS_STATE, "SCB")
        for module, tensors in folder.modules(("weight",), names).items():
            named = {_ALIASES.get(plane, plane): name for plane, name in tensors.items()}
            if len(named) == 1:
                continue
            weight = folder.source[named["weight"]]
            shape = weight.shape
            _, state_plane = _state_plane(named)
            if state_plane:
                state_name = named[state_plane]
                try:
                    state = _parse_state(folder.source.raw(state_name), state_plane)
                    shape = _state_shape(state)
                except Error as e:
                    e.tensor = e.tensor or state_name
                    raise
            found.append(Layer(f"{module}.weight", tuple(shape), tensors, params))
        _note_dense(folder, {layer.name for layer in found})
        return found


def _config(params: Mapping[str, Any]) -> Mapping[str, Any]:
    config = params.get("quantization_config", {})
    if not isinstance(config, Mapping):
        raise FormatError(f"quantization_config is {config!r:.60}: expected a JSON object")
    return config


def _check_bits(params: Mapping[str, Any], eight: bool) -> None:
    config = _config(params)
    four, claimed = setting_bool(config, "load_in_4bit", not eight), setting_bool(config, "load_in_8bit", eight)
    if claimed != eight and four == eight:
        stored, said = ("8", "load_in_4bit") if eight else ("4", "load_in_8bit")
        raise FormatError(f"the planes are those of {stored} bits, but the settings say {said}")


def _note_dense(folder: Folder, quantized: set[str]) -> None:
    """Says which linear layers are stored dense although no setting excludes them."""
    kept = folder.settings.get("llm_int8_skip_modules") or ()
    for name in folder.source:
        module = name.removesuffix(".weight")
        expected = module != name and module.endswith("_proj") and name not in quantized
        if expected and isinstance(kept, Sequence) and not any(str(part) in module for part in kept):
            folder.notes.append(f"{name} is stored dense, although the settings do not exclude it")


# 4 bits


def _state_plane(named: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The type that the name of the state says, and that name; None for what there is not."""
    for kind in TABLES:
        if STATE + kind in named:
            return kind, STATE + kind
    return None, _ANONYMOUS_STATE if _ANONYMOUS_STATE in named else None


def _parse_state(raw: NDArray[np.uint8], plane: str) -> Mapping[str, Any]:
    if raw.size > _LONGEST_STATE:
        raise FormatError(f"plane '{plane}' has {raw.size:,} bytes: expected a short JSON object")
    try:
        state = json.loads(raw.tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"plane '{plane}' is no JSON: {error!s:.100}") from None
    if not isinstance(state, dict):
        raise FormatError(f"plane '{plane}' is {state!r:.60}: expected a JSON object")
    return state


def _state_shape(state: Mapping[str, Any]) -> tuple[int, ...]:
    shape = state.get("shape")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 48 for size in shape)
    ):
        raise FormatError(f"the quantization state says shape {shape!r:.60}: expected a list of dimensions")
    return tuple(shape)


def _read_table(named: Mapping[str, Any], params: Mapping[str, Any]) -> Table:
    kind_named, plane = _state_plane(named)
    if plane is None:
        raise ArgumentError(f"plane '{_STATES[0]}' (or '{_STATES[1]}') is missing: it says shape, block size and type")
    state = _parse_state(_planes.get(named, plane, "U8", (None,)).data, plane)
    kind = setting_text(state, "quant_type", allowed=TABLES)
    claimed = setting_text(_config(params), "bnb_4bit_quant_type", kind)
    for said, where in ((kind_named or kind, f"plane '{plane}'"), (claimed, "bnb_4bit_quant_type of the settings")):
        if said != kind:
            raise FormatError(f"the quantization state says {kind}, {where} says {said}")
    shape = _state_shape(state)
    elements = prod(shape)
    packed = _planes.get(named, "weight", ("U8", "BF16", "F16", "F32"), (None, 1))
    raw = np.ascontiguousarray(packed.data).reshape(-1).view(np.uint8)
    if raw.size != (elements + 1) // 2:
        raise FormatError(
            f"plane 'weight' has {raw.size} bytes, its quantization state says shape {list(shape)}: expected "
            f"{(elements + 1) // 2} bytes"
        )
    block = setting_int(state, "blocksize", allowed=BLOCK_SIZES)
    blocks = -(-elements // block)
    absmax = _planes.get(named, "weight.absmax", ("F32", "U8"), (blocks,))
    nested = None
    scales = absmax.data
    if absmax.kind == "U8":
        nested = _read_nested(named, state, absmax.data)
        scales = nested.values()
    elif "nested_blocksize" in state or "weight.nested_absmax" in named:
        raise FormatError("plane 'weight.absmax' holds F32, but there is a nested quantization of it: expected U8")
    table = _planes.get(named, "weight.quant_map", "F32", (16,)).data
    dtype = setting_text(state, "dtype", "float32", _DTYPES)
    rows = prod(shape[:-1])
    codes = NibbleCodes(raw, (rows, shape[-1]))
    return Table(shape, codes, table, scales, block, nested, _DTYPES[dtype])


def _read_nested(named: Mapping[str, Any], state: Mapping[str, Any], codes: NDArray[np.uint8]) -> QuantizedScales:
    setting_text(state, "nested_dtype", "float32", ("float32",))
    block = setting_int(state, "nested_blocksize", allowed=BLOCK_SIZES)
    offset = state.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not abs(offset) <= _planes.MAX_FLOAT32:
        raise FormatError(f"the quantization state says nested_offset {offset!r:.60}: expected a float32 number")
    scales = _planes.get(named, "weight.nested_absmax", "F32", (-(-len(codes) // block),)).data
    table = _planes.get(named, "weight.nested_quant_map", "F32", (256,)).data
    return QuantizedScales(codes, table, scales, block, np.float32(offset))


def _write_table(form: Table, config: Mapping[str, Any]) -> dict[str, Plane]:
    kind = next((name for name, table in TABLES.items() if np.array_equal(form.table, table)), None)
    if kind is None:
        raise UnsupportedError("its table of values is neither NF4 nor FP4")
    if form.block not in BLOCK_SIZES:
        raise UnsupportedError(f"blocks of {form.block} elements: expected a power of two from 32 to 4096")
    storage = setting_text(config, "bnb_4bit_quant_storage", "uint8", ("uint8", *_DTYPES))
    packed = NibbleCodes.pack(form.codes.unpack(), _ZERO_CODES[kind]).reshape(-1, 1)
    size = {"uint8": 1, "float32": 4}.get(storage, 2)
    if packed.size % size:
        raise UnsupportedError(f"{packed.size} bytes of codes are no whole number of {storage} elements")
    storage_kind = _DTYPES.get(storage, "U8")
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": form.block,
        "dtype": _DTYPE_NAMES[form.dtype or "F32"],
        "shape": list(form.shape),
    }
    scales, nested = Plane(form.scales, "F32"), form.quantized_scales
    found = {"weight": Plane(packed.reshape(-1).view(dtypes[storage_kind]).reshape(-1, 1), storage_kind)}
    if nested is not None:
        scales = Plane(nested.codes, "U8")
        found["weight.nested_absmax"] = Plane(nested.scales, "F32")
        found["weight.nested_quant_map"] = Plane(nested.table, "F32")
        state |= {"nested_blocksize": nested.block, "nested_dtype": "float32", "nested_offset": float(nested.offset)}
    found["weight.absmax"] = scales
    found["weight.quant_map"] = Plane(form.table, "F32")
    found[STATE + kind] = Plane(np.frombuffer(json.dumps(state).encode(), np.uint8), "U8")
    return found


def _encode_table(values: NDArray[np.float32], dtype: str, kind: str, block: int, nested: bool) -> Table:
    flat = values.reshape(-1)
    maxima = _block_maxima(flat, block)
    codes = _nearest(_scaled(flat, maxima, block), TABLES[kind])
    quantized = _quantize_scales(maxima) if nested else None
    rows = prod(values.shape[:-1])
    packed = NibbleCodes(NibbleCodes.pack(codes, _ZERO_CODES[kind]), (rows, values.shape[-1]))
    scales = maxima if quantized is None else quantized.values()
    return Table(values.shape, packed, TABLES[kind], scales, block, quantized, dtype)


def _quantize_scales(maxima: NDArray[np.float32]) -> QuantizedScales:
    offset = np.float32(maxima.astype(np.float64).mean()) if maxima.size else np.float32(0)
    centred = maxima - offset
    scales = _block_maxima(centred, 256)
    codes = _nearest(_scaled(centred, scales, 256), dynamic_map())
    return QuantizedScales(codes, dynamic_map(), scales, 256, offset)


def _block_maxima(flat: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    padded = np.zeros(-(-flat.size // block) * block, np.float32)
    padded[: flat.size] = np.abs(flat)
    return np.asarray(padded.reshape(-1, block).max(axis=1, initial=0), np.float32)


def _scaled(flat: NDArray[np.float32], maxima: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    inverse = np.float32(1) / np.maximum(maxima, np.float32(1e-38))
    return np.clip(flat * np.repeat(inverse, block)[: flat.size], np.float32(-1), np.float32(1))


def _nearest(values: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Code of the nearest value of the table, of the smaller one half-way; middles are rounded to float32."""
    order = np.argsort(table, kind="stable")
    ascending = table[order]
    return order[np.searchsorted((ascending[:-1] + ascending[1:]) / np.float32(2), values)].astype(np.uint8)


@cache
def dynamic_map() -> NDArray[np.float32]:
    """The signed dynamic map of 8 bits: float32, (256,), ascending (T. Dettmers, arXiv 1511.04561)."""
    low, found = np.float32(0.1), [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for power in range(7):
        parts = 1 << power
        step = float((np.float32(1) - low) / np.float32(parts))
        # float64 holds the product and the sum exactly, so that this rounds once, as a fused multiply-add does.
        up = np.arange(parts + 1)
        ends = np.where(up < (parts + 1) // 2, step * up + float(low), 1 - step * (parts - up)).astype(np.float32)
        middles = np.float32(10.0 ** (power - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))
        found += [middles, -middles]
    return np.sort(np.concatenate(found))


# 8 bits


def _read_int8(named: Mapping[str, Any]) -> BlockScaled:
    weight = _planes.get(named, "weight", "I8", (None, None))
    rows, columns = weight.shape
    scales = _planes.get(named, "SCB", "F32", (rows,))
    layout = _planes.optional(named, "weight_format", "U8")
    if layout is not None:
        number = int(layout.data.reshape(-1)[0]) if layout.data.size == 1 else -1
        if number in _INT8_LAYOUTS:
            raise UnsupportedError(f"stored in the tiled layout {_INT8_LAYOUTS[number]}: save it with a newer version")
        if number:
            raise FormatError(f"plane 'weight_format' is {layout.data.tolist()!r:.60}: expected 0")
    column = Plane(scales.data.reshape(rows, 1), "F32")
    return BlockScaled((rows, columns), weight.data, "I8", column, (1, max(columns, 1)), factor=_INT8_FACTOR)


def _write_int8(form: BlockScaled) -> dict[str, Plane]:
    if form.factor != _INT8_FACTOR or form.element != "I8" or form.scales.shape != (form.rows, 1) or form.inverse:
        raise UnsupportedError("int8 of bitsandbytes is w = q * SCB / 127 with one SCB per row")
    return {
        "weight": Plane(form.data.view(np.int8), "I8"),
        "SCB": Plane(form.scales.float32().reshape(-1), "F32"),
        "weight_format": Plane(np.zeros((), np.uint8), "U8"),
    }


def _encode_int8(values: NDArray[np.float32]) -> BlockScaled:
    rows, columns = values.shape
    maxima = np.abs(values).max(axis=1, initial=0, keepdims=True)
    quotient = np.zeros_like(values)
    np.divide(values * np.float32(127), maxima, out=quotient, where=maxima > 0)
    codes = np.clip(np.rint(quotient), -127, 127).astype(np.int8)
    scales = Plane(maxima, "F32")
    return BlockScaled((rows, columns), codes, "I8", scales, (1, max(columns, 1)), factor=_INT8_FACTOR)


FORMATS = {"bitsandbytes": BitsAndBytes()}
