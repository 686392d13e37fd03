"""SpQR: 3-bit integers with quantized scales, and sparse outliers (arXiv 2306.03078, github.com/Vahe1994/SpQR).

A weight ``[o, i]`` (o and i multiples of 16) in tiles of 16 by 16, its columns in an order of their own:

=============  ====  =================  ================================================================================
plane          type  shape              content
=============  ====  =================  ================================================================================
dense_weights  I64   [o * i / 16]       a word for a row of a tile: tiles of 16 rows from left to right, 16 words each
row_offsets    I32   [o + 1] or         where the outliers of a row begin (CSR), or those of 16 rows (PTCSR)
                     [o / 16 + 1]
col_vals       I32   [outliers]         column in the low 16 bits, float16 value above
in_perm        I32   [i / 2], [0]       two uint16 a word, the lower one first; optional
=============  ====  =================  ================================================================================

Word, low bits first: 3 bits code of the scale, 3 bits code of the zero, 16 codes of 3 bits, 8 bits, 2 bits 0. The 8
bits of rows 2f and 2f + 1 are both byte f of four float16 numbers of the tile: scale of scales (ss), scale of zeros
(zs), zero of scales (sz), zero of zeros (zz).

Every operation is rounded to float16: scale = ss * (code - sz), zero = zs * (code - zz), d = scale * (code - zero). An
outlier is added in float32, and the sum rounded to float16, of which type the weight is. Slot j of the outliers of 16
rows in PTCSR belongs to row j mod 16 of them; rows are filled up with zero words to the length of the longest. With P
the weight in stored order, W[:, in_perm[j]] = P[:, j].

The planes do not hold o and i: the parameter ``shape``, or the sizes of the model, tell CSR and PTCSR apart. Settings:
``bits`` 3, ``beta1`` and ``beta2`` 16, and in config.json ``shapes``, the lengths of the tensors.

Writer: (max - min) / 7 is a scale and -min / scale a zero of 16 weights, without rounding; the same for 16 scales and
16 zeros of a tile, whose codes are rounded to nearest. The codes of weights use scale and zero as decoded before the
second-level parameters are rounded to float16. Where all numbers are equal, 0 belongs to the range too; the scale and
zero of zeros are 0. No outliers are chosen: ``outlier_threshold`` has to be null. The parameter ``sparse`` is ``"csr"``
(default) or ``"ptcsr"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    optional_settings,
    setting_int,
    setting_shape,
    setting_text,
)
from subbyte.forms import ByteCodes, Form
from subbyte.forms.vector import Bilevel, Ordered, Outliers
from subbyte.planes import Plane

TILE = 16
BITS = 3
_MASK = (1 << BITS) - 1
_SECOND = 2 * BITS + TILE * BITS
"""Bit of a word where the byte of the second level begins."""

#: Settings of config.json that give outputs and inputs of a projection, by the last part of its name.
_SIDES = {
    "q_proj": ("queries", "hidden_size"), "k_proj": ("keys", "hidden_size"), "v_proj": ("keys", "hidden_size"),
    "o_proj": ("hidden_size", "queries"), "gate_proj": ("intermediate_size", "hidden_size"),
    "up_proj": ("intermediate_size", "hidden_size"), "down_proj": ("hidden_size", "intermediate_size"),
}  # fmt: skip


class Spqr(Format):
    """The format ``spqr``."""

    id = "spqr"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        _check_settings(params)
        words = _planes.get(planes, "dense_weights", "I64", (None,))
        shape = rows, columns = setting_shape(params)
        if rows % TILE or columns % TILE or words.shape[0] * TILE != rows * columns:
            raise FormatError(
                f"plane 'dense_weights' has {words.shape[0]} words: expected {rows * columns // TILE} for a weight "
                f"{list(shape)}, whose sides {TILE} divides"
            )
        form = _outliers(planes, params, _dense(words.data, rows, columns))
        order = _planes.optional(planes, "in_perm", "I32", (None,))
        if order is None or not order.data.size:
            return form
        if order.shape != (columns // 2,):
            raise FormatError(f"plane 'in_perm' has shape {list(order.shape)}: expected [{columns // 2}], or none")
        try:
            halves = np.ascontiguousarray(order.data).view(np.uint16)
            return Ordered(shape, form, halves.astype(np.int64))
        except FormatError as e:
            raise FormatError(f"plane 'in_perm': {e.message}") from e

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        _check_settings(params)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size or source.shape[0] % TILE or source.shape[1] % TILE:
            raise UnsupportedError(
                f"SpQR stores matrices with sides of whole {TILE}; the array is {list(source.shape)}"
            )
        if params.get("outlier_threshold") is not None:
            raise UnsupportedError("outliers cannot be chosen yet: 'outlier_threshold' has to be null")
        planes = self.write(_quantized(source.float32()), {key: params[key] for key in ("sparse",) if key in params})
        return encoded(self.id, planes, source.shape, {"shape": list(source.shape), **params})

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        order = np.zeros(0, np.int32)
        inner = form
        if isinstance(inner, Ordered):
            if inner.columns > 1 << 16:
                raise UnsupportedError(f"{inner.columns} columns: SpQR counts them in 16 bits")
            order = inner.order.astype(np.uint16).view(np.int32)
            inner = inner.inner
        if not isinstance(inner, Outliers) or inner.kind != "F16" or inner.added.kind != "F16":
            return super().write(form, params)
        dense = inner.inner
        if not isinstance(dense, Bilevel) or dense.codes.bits != BITS or dense.scale_codes.bits != BITS:
            return super().write(form, params)
        tiles = (form.rows // TILE, form.columns // TILE)
        groups = (form.rows, form.columns // TILE)
        if dense.scale_scales.kind != "F16" or (dense.scale_scales.shape, dense.scale_codes.shape) != (tiles, groups):
            raise UnsupportedError(f"groups of {TILE} columns and tiles of {TILE} rows with float16 parameters only")
        if form.columns > 1 << 16:
            raise UnsupportedError(f"{form.columns} columns: SpQR counts them in 16 bits")
        offsets, words = _sparse(inner, setting_text(params, "sparse", "csr", allowed=("csr", "ptcsr")))
        return {
            "dense_weights": Plane(_pack(dense), "I64"),
            "row_offsets": Plane(offsets, "I32"),
            "col_vals": Plane(words, "I32"),
            "in_perm": Plane(order, "I32"),
        }

    def layers(self, folder: Folder) -> Sequence[Layer]:
        _check_settings({"quantization_config": folder.settings})
        shapes = folder.settings.get("shapes", {})
        if not isinstance(shapes, Mapping):
            raise FormatError(f"setting 'shapes' is {shapes!r:.60}: expected lengths by tensor")
        found = []
        modules = folder.modules(("dense_weights", "row_offsets", "col_vals"), ("in_perm",), marker="dense_weights")
        for module, tensors in modules.items():
            for name in tensors.values():
                shape = folder.source[name].shape
                if len(shape) != 1:
                    raise FormatError(f"has shape {list(shape)}: expected one axis", tensor=name)
                if setting_int(shapes, f"{name}.shape", shape[0]) != shape[0]:
                    raise FormatError(
                        f"has {shape[0]} elements, but 'shapes' says {shapes[f'{name}.shape']}", tensor=name
                    )
            sides = _sides(folder, module, tensors)
            params = {"quantization_config": folder.settings, "shape": sides}
            found.append(Layer(f"{module}.weight", sides, tensors, params))
        return found


def _check_settings(params: Mapping[str, Any]) -> None:
    config = optional_settings(params) if "quantization_config" in params else params
    for key, wanted in (("bits", BITS), ("beta1", TILE), ("beta2", TILE)):
        if setting_int(config, key, wanted) != wanted:
            raise UnsupportedError(f"setting '{key}' is {config[key]}: SpQR files have {wanted}")


def _sides(folder: Folder, module: str, tensors: Mapping[str, str]) -> tuple[int, int]:
    """Outputs and inputs of a layer: those of its kind in the model that fit the lengths of its tensors.

    Raises:
        FormatError: none fit.
        UnsupportedError: two fit, and the model does not say which.
    """
    elements = {plane: folder.source[name].shape[0] for plane, name in tensors.items()}
    total, offsets = elements["dense_weights"] * TILE, elements["row_offsets"]
    rows = {(offsets - 1) * factor for factor in (1, TILE) if offsets > 1 and (offsets - 1) * factor % TILE == 0}
    fitting = [(one, total // one) for one in sorted(rows) if total % (one * TILE) == 0 and total]
    if elements.get("in_perm"):
        fitting = [shape for shape in fitting if shape[1] == 2 * elements["in_perm"]]
    config = folder.config
    keys = _SIDES.get(module.rpartition(".")[2])
    if keys is not None:
        sides = [_side(config, key) for key in keys]
        fitting = [
            shape for shape in fitting if all(want in (None, have) for want, have in zip(sides, shape, strict=True))
        ]
    if not fitting:
        raise FormatError(
            f"dense_weights of {elements['dense_weights']} words and row_offsets of {offsets} fit no weight of this "
            "module in the model",
            tensor=tensors["dense_weights"],
        )
    if len(fitting) > 1:
        raise UnsupportedError(
            f"may be {' or '.join(str(list(shape)) for shape in fitting)}, and config.json does not say which",
            tensor=tensors["dense_weights"],
        )
    return fitting[0]


def _side(config: Mapping[str, Any], key: str) -> int | None:
    """A size of the model; None where config.json does not say it."""
    if key in ("queries", "keys"):
        heads, hidden = (config.get(name) for name in ("num_attention_heads", "hidden_size"))
        count = config.get("num_key_value_heads", heads) if key == "keys" else heads
        if not isinstance(heads, int) or not isinstance(hidden, int) or not isinstance(count, int) or heads < 1:
            return None
        length = config.get("head_dim") or hidden // heads
        return count * length if isinstance(length, int) else None
    found = config.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _dense(words: NDArray[np.int64], rows: int, columns: int) -> Bilevel:
    """The dense part of a weight in stored order.

    Raises:
        FormatError: two rows disagree about the second level, or bits that are 0 are not.
    """
    by_row = words.reshape(rows // TILE, columns // TILE, TILE).swapaxes(1, 2).reshape(rows, columns // TILE)
    unsigned = np.ascontiguousarray(by_row).view(np.uint64)
    fields = [(unsigned >> np.uint64(BITS * at) & np.uint64(_MASK)).astype(np.uint8) for at in range(2 + TILE)]
    codes = np.stack(fields[2:], axis=-1).reshape(rows, columns)
    top = unsigned >> np.uint64(_SECOND)
    pairs = top.reshape(rows // TILE, TILE // 2, 2, columns // TILE)
    if np.any(top >> np.uint64(8)) or np.any(pairs[:, :, 0] != pairs[:, :, 1]):
        raise FormatError("plane 'dense_weights': the bytes of the second level differ between rows, or bits are left")
    second = np.ascontiguousarray(pairs[:, :, 0].astype(np.uint8).transpose(0, 2, 1)).view(np.float16)
    if not np.isfinite(second).all():
        raise FormatError("plane 'dense_weights' holds a parameter of the second level that is not finite")
    parameters = [Plane(np.ascontiguousarray(second[..., at]), "F16") for at in range(4)]
    return Bilevel(
        (rows, columns),
        ByteCodes(codes, BITS),
        ByteCodes(fields[0], BITS),
        ByteCodes(fields[1], BITS),
        scale_scales=parameters[0],
        zero_scales=parameters[1],
        scale_zeros=parameters[2],
        zero_zeros=parameters[3],
    )


def _pack(form: Bilevel) -> NDArray[np.int64]:
    """The words of the dense part."""
    rows, groups = form.scale_codes.shape
    words = form.scale_codes.unpack().astype(np.uint64)
    words |= form.zero_codes.unpack().astype(np.uint64) << np.uint64(BITS)
    codes = form.codes.unpack().reshape(rows, groups, TILE).astype(np.uint64)
    for at in range(TILE):
        words |= codes[..., at] << np.uint64(BITS * (2 + at))
    order = (form.scale_scales, form.zero_scales, form.scale_zeros, form.zero_zeros)
    second = np.ascontiguousarray(np.stack([plane.data for plane in order], axis=-1)).view(np.uint8)
    of_rows = np.repeat(second.transpose(0, 2, 1), 2, axis=1).reshape(rows, groups)
    words |= of_rows.astype(np.uint64) << np.uint64(_SECOND)
    tiles = words.reshape(rows // TILE, TILE, groups).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(-1).view(np.int64)


def _outliers(planes: Mapping[str, Any], params: Mapping[str, Any], dense: Bilevel) -> Outliers:
    """The dense part with its outliers."""
    found = _planes.get(planes, "row_offsets", "I32", (None,))
    words = _planes.get(planes, "col_vals", "I32", (None,)).data
    offsets = found.data.astype(np.int64)
    rows = dense.rows
    kinds = {"csr": (rows + 1,), "ptcsr": (rows // TILE + 1,)}
    kind = next((kind for kind, shape in kinds.items() if shape == found.shape), None)
    if kind is None:
        raise FormatError(
            f"plane 'row_offsets' has shape {list(found.shape)}: expected [{rows + 1}] or [{rows // TILE + 1}] for "
            f"{rows} rows"
        )
    if setting_text(params, "sparse", kind) != kind:
        raise FormatError(f"plane 'row_offsets' has {found.shape[0]} elements, but 'sparse' is '{params['sparse']}'")
    step = 1 if kind == "csr" else TILE
    if offsets[0] or offsets[-1] != len(words) or np.any(np.diff(offsets) < 0) or np.any(offsets % step):
        raise FormatError(f"plane 'row_offsets' does not rise from 0 to the {len(words)} words of 'col_vals'")
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    if kind == "ptcsr":
        offsets, unsigned = _by_rows(offsets, unsigned, rows)
    columns_of = (unsigned & np.uint32(0xFFFF)).astype(np.int64)
    added = (unsigned >> np.uint32(16)).astype(np.uint16).view(np.float16)
    if not np.isfinite(added).all():
        raise FormatError("plane 'col_vals' holds a value that is not finite")
    try:
        return Outliers(dense.shape, dense, offsets, columns_of, Plane(added, "F16"), "F16")
    except FormatError as e:
        raise FormatError(f"plane 'col_vals': {e.message}") from e


def _by_rows(
    offsets: NDArray[np.int64], words: NDArray[np.uint32], rows: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Offsets of rows and words of PTCSR in the order of CSR, without the zero words at the ends of rows."""
    longest = np.diff(offsets) // TILE
    slot = np.arange(len(words)) - np.repeat(offsets[:-1], longest * TILE)
    row = np.repeat(np.arange(len(longest)), longest * TILE) * TILE + slot % TILE
    place = slot // TILE
    lengths = np.zeros(rows, np.int64)
    used = words != 0
    np.maximum.at(lengths, row[used], place[used] + 1)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    kept = place < lengths[row]
    out = np.zeros(begins[-1], np.uint32)
    out[begins[row[kept]] + place[kept]] = words[kept]
    return begins, out


def _sparse(form: Outliers, kind: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """row_offsets and col_vals."""
    words = form.added.data.view(np.uint16).astype(np.uint32) << np.uint32(16) | form.columns_of.astype(np.uint32)
    offsets = form.row_offsets
    if kind == "csr":
        return offsets.astype(np.int32), words.view(np.int32)
    lengths = np.diff(offsets)
    longest = lengths.reshape(-1, TILE).max(axis=1)
    begins = np.concatenate([[0], np.cumsum(longest * TILE)])
    row = np.repeat(np.arange(form.rows), lengths)
    place = np.arange(len(words)) - offsets[row]
    out = np.zeros(begins[-1], np.uint32)
    out[begins[row // TILE] + place * TILE + row % TILE] = words
    return begins.astype(np.int32), out.view(np.int32)


def _quantized(values: NDArray[np.float32]) -> Outliers:
    """A weight without outliers, rounded to nearest."""
    rows, columns = values.shape
    tiles = (rows // TILE, TILE, columns // TILE)
    scales, zeros = _range(values.reshape(rows, columns // TILE, TILE), axis=2)
    decoded: list[NDArray[np.float32]] = []
    second: list[Plane] = []
    codes: list[ByteCodes] = []
    for first in (scales, zeros):
        tiled = first.reshape(tiles)
        scale, zero = _range(tiled, axis=1)
        code = _codes(tiled, scale, zero)
        decoded.append((scale * (code - zero)).reshape(rows, -1, 1))
        second.extend(_planes.finite_plane(one[:, 0], "F16") for one in (scale, zero))
        codes.append(ByteCodes(code.astype(np.uint8).reshape(rows, -1), BITS))
    weights = _codes(values.reshape(rows, columns // TILE, TILE), *decoded).astype(np.uint8).reshape(rows, columns)
    dense = Bilevel((rows, columns), ByteCodes(weights, BITS), codes[0], codes[1], *second)
    none = np.zeros(0, np.int64)
    return Outliers(
        (rows, columns), dense, np.zeros(rows + 1, np.int64), none, Plane(none.astype(np.float16), "F16"), "F16"
    )


def _range(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and zero of numbers along an axis, which stays with length 1."""
    low: NDArray[np.float32] = values.min(axis=axis, keepdims=True)
    high: NDArray[np.float32] = values.max(axis=axis, keepdims=True)
    single = low == high
    zero = np.float32(0)
    low, high = np.where(single, np.minimum(low, zero), low), np.where(single, np.maximum(high, zero), high)
    scale: NDArray[np.float32] = (high - low) / np.float32(_MASK)
    return scale, np.divide(-low, scale, out=np.zeros_like(scale), where=scale > 0)


def _codes(values: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        codes: NDArray[np.float32] = np.clip(np.nan_to_num(np.rint(values / scale + zero)), 0, _MASK)
        return codes


FORMATS = {"spqr": Spqr()}
