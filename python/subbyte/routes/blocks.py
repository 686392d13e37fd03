"""ggml blocks as forms, and forms as ggml blocks: codes and scales move, nothing is searched.

=================  ===========================================================================================
type               form
=================  ===========================================================================================
Q4_0, Q5_0, Q8_0   symmetric codes of 4, 5, 8 bits in groups of 32, F16 scales
Q4_1, Q5_1         code * scale + minimum in groups of 32, F16
MXFP4              E2M1 in blocks of 32, E8M0 scales
NVFP4              E2M1 in blocks of 16, E4M3 scales, and a scale of the tensor beside it (``<name>.scale``)
TQ1_0, TQ2_0       trits in groups of 256, F16 scales
=================  ===========================================================================================

A block of 32 holds element j in the low and j + 16 in the high half of byte j, NVFP4 the same with 8 (ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte.arrays import Array, as_bytes
from subbyte.forms import Affine, Biased, Coded, Codes, DualScaled, FloatZero, Form, Microscaled, Ternary
from subbyte.forms.codes import CodeArray
from subbyte.ggml import TYPES
from subbyte.planes import Plane, float_plane
from subbyte.routes import adapt, small_floats
from subbyte.routes.fit import Fit, MisfitError

BITS: Mapping[str, int] = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
"""Bits of the codes of the integer types."""

#: Bytes before the nibbles of a block, and bytes of the fifth bits among them.
_HEADS = {"Q4_0": (2, 0), "Q4_1": (4, 0), "Q5_0": (2, 4), "Q5_1": (4, 4), "MXFP4": (1, 0)}


@dataclass(frozen=True, eq=False)
class BlockCodes(Codes):
    """The codes in blocks of a type.

    Attributes:
        blocks: uint8, shape (rows, bytes of a row).
        type: the ggml type.
        bits: of a code.
        shape: rows and columns.
    """

    blocks: NDArray[np.uint8]
    type: str
    bits: int
    shape: tuple[int, int]

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        facts = TYPES[self.type]
        blocks = self.blocks[rows].reshape(-1, facts.block_bytes)
        if self.type == "Q8_0":
            return (blocks[:, 2:] ^ np.uint8(128)).reshape(-1, self.shape[1])
        if self.type == "NVFP4":
            pairs = blocks[:, 4:].reshape(-1, 4, 8)
            return np.concatenate((pairs & 15, pairs >> 4), axis=2).reshape(-1, self.shape[1])
        scale, fifth = _HEADS[self.type]
        pairs = blocks[:, scale + fifth :]
        codes = np.concatenate((pairs & 15, pairs >> 4), axis=1)
        if fifth:
            codes |= np.unpackbits(blocks[:, scale : scale + 4], axis=1, bitorder="little") << 4
        return codes.reshape(-1, self.shape[1])


def form_of(type: str, blocks: NDArray[np.uint8], shape: tuple[int, ...], scale: float | None = None) -> Form | None:
    """The blocks of a tensor as a form; None for a type that has none.

    Args:
        type: ggml type.
        blocks: uint8, shape (rows, bytes of a row).
        shape: dense shape.
        scale: of the tensor, for NVFP4.
    """
    rows, columns = len(blocks), shape[-1]
    if type not in BITS and type not in ("MXFP4", "NVFP4"):
        return None
    codes = BlockCodes(blocks, type, BITS.get(type, 4), (rows, columns))
    each = blocks.reshape(rows, -1, TYPES[type].block_bytes)
    if type == "MXFP4":
        scales = Plane(np.ascontiguousarray(each[:, :, 0]), "F8_E8M0")
        return Microscaled(shape, codes, "E2M1", scales, "F8_E8M0", 32)
    if type == "NVFP4":
        scales = Plane(np.ascontiguousarray(each[:, :, :4]).reshape(rows, -1), "F8_E4M3")
        return Microscaled(
            shape, codes, "E2M1", scales, "F8_E4M3", 16, multiplier=None if scale is None else np.float32(scale)
        )
    half = [Plane(np.ascontiguousarray(each[:, :, at : at + 2]).view("<f2")[:, :, 0], "F16") for at in (0, 2)]
    if type.endswith("_1"):
        return Biased(shape, codes, half[0], half[1], 32, compute="F32")
    return Affine(shape, codes, half[0], 1 << (codes.bits - 1), 32)


def fit(form: Form, type: str) -> Fit:
    """The weight as blocks of ``type`` hold it.

    Raises:
        MisfitError: they cannot.
    """
    if isinstance(form, Coded):
        if form.ggml_type == type:
            return Fit(form)
        form = canonical(form)
    if form.columns % TYPES[type].block:
        raise MisfitError(f"rows of {form.columns} are no whole number of blocks of {TYPES[type].block}")
    if type in ("MXFP4", "NVFP4"):
        return _small_floats(form, type)
    if type in ("TQ1_0", "TQ2_0"):
        return _trits(form)
    if type not in BITS:
        raise MisfitError(f"{type} has scales of its own that are searched, not moved")
    if type.endswith("_1") and isinstance(form, Biased | FloatZero | DualScaled):
        return _minima(form, BITS[type])
    step = adapt.affine(form)
    whole = _as_affine(step.form)
    if whole.group_of is not None:
        raise MisfitError("columns are out of order (act-order), which blocks have no place for")
    found = adapt.in_groups(whole, 32)
    if type.endswith("_1"):
        wider = adapt.with_bits(found, BITS[type])
        last = adapt.biased(_as_affine(wider.form), "F16")
    else:
        wider = adapt.symmetric(found, BITS[type])
        last = adapt.with_scales(_as_affine(wider.form), "F16")
    step = step.then(wider.form, wider.kind)
    return step.then(last.form, last.kind, last.bound, last.why)


def canonical(form: Form) -> Form:
    """Blocks of a ggml type in the terms of their family, where they have one; any other form as it is."""
    if not isinstance(form, Coded) or form.ggml_type is None:
        return form
    return form_of(form.ggml_type, form.blocks, form.shape) or form


def _as_affine(form: Form) -> Affine:
    if not isinstance(form, Affine):
        raise TypeError(f"expected an affine form, found {form!r}")
    return form


def _minima(form: Form, bits: int) -> Fit:
    step = adapt.biased(form, "F16")
    found = step.form
    if not isinstance(found, Biased):
        raise TypeError(f"expected biases, found {found!r}")
    if found.codes.bits > bits or found.group_size % 32:
        raise MisfitError(f"codes of {found.codes.bits} bits in groups of {found.group_size}")
    if found.group_size == 32:
        return step
    return step.then(adapt.rebased(found, 32))


def _small_floats(form: Form, type: str) -> Fit:
    block, scale = (32, "F8_E8M0") if type == "MXFP4" else (16, "F8_E4M3")
    if not isinstance(form, Microscaled) or (form.element, form.block, form.scale_kind) != ("E2M1", block, scale):
        raise MisfitError(f"{type} holds E2M1 in blocks of {block} with {scale[3:]} scales")
    if type == "NVFP4" and np.any(form.scales.data & 0x80):
        raise MisfitError("a block scale is negative, which NVFP4 of GGUF has no room for")
    return small_floats.tensor_scale(form, "multiplier" if type == "NVFP4" else None)


def _trits(form: Form) -> Fit:
    if not isinstance(form, Ternary):
        raise MisfitError("not ternary")
    if form.scales.shape != (1, 1) and form.group_size % 256:
        raise MisfitError(f"scales of {form.group_size} trits: a block of 256 has one")
    values = np.ascontiguousarray(form.multipliers())
    half = float_plane(values, "F16")
    found = replace(form, scales=half, inverse=False)
    if np.array_equal(half.float32(), values) and not form.inverse:
        return Fit(found)
    with np.errstate(all="ignore"):
        bound = float(np.nanmax(np.abs(half.float32() / values - 1)))
    if not np.isfinite(half.float32()).all():
        raise MisfitError("a scale is out of the range of F16")
    return Fit(found, "rounded", bound=max(bound, 2.0**-24), why="scales round to F16")


class Assembler:
    """Makes the blocks of a type from a form that `fit` returned, by ranges of rows."""

    def __init__(self, form: Form, type: str) -> None:
        if isinstance(form, Affine) and isinstance(form.codes, adapt.ShiftedCodes):
            # The extension subtracts zero points by itself.
            form = replace(form.codes.source, scales=form.scales)
        self._form, self._type = form, type
        self._row_bytes = TYPES[type].row_bytes(form.columns)
        held = isinstance(form, Ternary | Coded)
        self._native = None if held else _codes(form).native()
        self._parameters = {} if held else _parameters(form)

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Blocks of the rows ``start`` to ``stop``: uint8, shape (rows, bytes of a row)."""
        if isinstance(self._form, Coded):
            return np.ascontiguousarray(self._form.blocks[start:stop])
        out = np.empty((stop - start, self._row_bytes), np.uint8)
        if not out.size:
            return out
        if isinstance(self._form, Ternary):
            values = np.ascontiguousarray(self._form.values(slice(start, stop)))
            flat = out.reshape(-1)
            _native.encode(self._type, as_bytes(values), "float32", self._form.columns, 1, None, flat)
            return out
        layer, parameters, first = self._native, self._parameters, start
        if layer is None:
            codes = np.ascontiguousarray(_codes(self._form).unpack(slice(start, stop)))
            count, columns = codes.shape
            layer = _native.PackedLayer(codes.reshape(-1), 8, count, columns, "rows", row_bytes=columns)
            parameters, first = _of_rows(parameters, start, stop), 0
        group = self._form.group_size if isinstance(self._form, Affine) else 32
        passed = {name: None if value is None else as_bytes(value) for name, value in parameters.items()}
        layer.assemble(self._type, first, out.reshape(-1), group=group, **passed)
        return out


def assembled(form: Form, codec: str) -> NDArray[np.uint8]:
    """All blocks of a form in the type of a codec: uint8, shape (rows, bytes of a row).

    Raises:
        MisfitError: the codec does not hold the form exactly, or is no ggml type.
    """
    type = codec.removeprefix("gguf.").upper()
    if type not in TYPES:
        raise MisfitError(f"{codec} makes its planes by itself, from floats")
    found = fit(form, type)
    if found.kind == "rounded":
        raise MisfitError(f"{type}: {found.why}")
    if isinstance(found.form, Microscaled) and found.form.multiplier not in (None, 1):
        raise MisfitError(f"{type} has no room for the scale of the whole tensor")
    return Assembler(found.form, type).rows(0, form.rows)


def _codes(form: Form) -> Codes:
    if not isinstance(form, Affine | Biased | Microscaled):
        raise TypeError(f"no codes to assemble in {form!r}")
    return form.codes


def _parameters(form: Form) -> dict[str, Array | None]:
    """Zero points, scales and minima as the extension takes them."""
    if isinstance(form, Microscaled):
        scales = form.scales.data.view(np.uint8).astype(np.uint16)
        return {"zeros": None, "scales": np.ascontiguousarray(scales), "minima": None}
    if isinstance(form, Biased):
        scale, minimum = (np.ascontiguousarray(plane.data).view(np.uint16) for plane in (form.scales, form.biases))
        return {"zeros": None, "scales": scale, "minima": minimum}
    if not isinstance(form, Affine):
        raise TypeError(f"no parameters to assemble in {form!r}")
    zeros = np.ascontiguousarray(np.atleast_1d(np.asarray(form.zeros, np.int16)))
    return {"zeros": zeros, "scales": np.ascontiguousarray(form.scales.data).view(np.uint16), "minima": None}


def _of_rows(parameters: Mapping[str, Array | None], start: int, stop: int) -> dict[str, Any]:
    return {
        name: value if value is None or value.ndim == 1 else np.ascontiguousarray(value[start:stop])
        for name, value in parameters.items()
    }
