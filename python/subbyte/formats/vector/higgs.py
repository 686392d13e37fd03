"""HIGGS in FLUTE's packing: rotated blocks, a scale a group, a grid of pairs (arXiv 2411.17525, transformers).

A weight ``[N, K]`` is stored with rows padded by zeros to a multiple of h = ``hadamard_size``:

=======  =========  ====================  ==============================================================================
plane    type       shape                 content
=======  =========  ====================  ==============================================================================
weight   I16        [b * N / 16, K']      codes of b = ``bits`` bits in FLUTE's order (`subbyte.formats.vector.flute`)
scales   F16, BF16  [N, K' / g]           scale of g = ``group_size`` columns
tables   as scales  [2^b]                 the grid for ``p`` 1; 0, 1, 2 … for 2
tables2  F16        [2^b, 2^b, 2]         values of two neighbours by their codes, the first one first; the bits of the
                                          type of the scales, also where that is BF16 (or F32 [2^b, 2^b, 1])
=======  =========  ====================  ==============================================================================

With the pair of columns 2i and 2i + 1 being tables2[code of 2i, code of 2i + 1] times the scale, a block of h columns
is (1 / sqrt(h)) H_h of it, and what is beyond K falls away. The rotation is computed in float64.

P of FLUTE's order comes from ``template_id`` (of ``tune_metadata``): for 4 bits it is 64 where id mod 48 < 16, for 2
bits where id mod 12 < 4; otherwise, with 3 bits, and without an id, it is 32. ``tileP`` says it, too.

Settings, in ``quantization_config``: ``bits``, ``p``, ``group_size``, ``hadamard_size``; ``tune_metadata`` by module,
which repeats ``num_bits`` and ``group_size`` and has ``template_id``. A checkpoint does not say K, so its weights keep
their padding. ``in_features`` is K. The parameter ``part: "codes"`` decodes the codes as numbers, [N, K'].

Writer: scale = norm of a block / sqrt(h), v = H_h block / norm, and the code of p neighbours is the point g of the grid
with the largest 2 v · g - g · g, the first one of equals; all in float64. The grids are those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.data import tables as data_tables
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_int, setting_text
from subbyte.formats.vector.flute import FluteIndices, pack
from subbyte.formats.vector.tables import check_setting, finite
from subbyte.forms import Form, hadamard
from subbyte.forms.vector import Additive, Book, Rotated
from subbyte.planes import Plane

_SIZE = 512
"""Default of ``hadamard_size``."""


class Higgs(Format):
    """The format ``higgs``."""

    id = "higgs"

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        if setting_text(params, "part", "weight", allowed=("weight", "codes")) == "weight":
            return super().decode(planes, params=params, dtype=dtype)
        bits, tile = _bits(params), _tile(params)
        fields = _indices(planes, bits, tile).unpack()
        codes = np.stack([fields >> np.uint32(bits), fields & np.uint32((1 << bits) - 1)], axis=-1)
        return _planes.result(codes.reshape(len(codes), -1).astype(np.float32), dtype)

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        bits, tile = _bits(params), _tile(params)
        indices = _indices(planes, bits, tile)
        rows, columns = indices.shape[0], 2 * indices.shape[1]
        size, group_size = _sizes(params)
        if columns % size or size % group_size:
            raise FormatError(
                f"plane 'weight' has {columns} columns: not whole Hadamard transforms of 'hadamard_size' {size} and "
                f"groups of 'group_size' {group_size}"
            )
        scales = finite(planes, "scales", ("F16", "BF16"), (rows, columns // group_size))
        _check_type(params, scales.kind)
        pairs = _pairs(planes, bits, scales.kind, setting_int(params, "p", 2, allowed=(1, 2)))
        shape = (rows, setting_int(params, "in_features", columns))
        if setting_int(params, "out_features", rows) != rows or not columns - size < shape[1] <= columns:
            raise FormatError(
                f"plane 'weight' is for {rows} outputs and {columns - size + 1} to {columns} inputs; 'out_features' "
                "and 'in_features' say otherwise"
            )
        stored = Additive((rows, columns), (Book(indices, pairs),), scales)
        return Rotated(shape, stored, across=size)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        bits, tile = _bits(params), _tile(params)
        length = setting_int(params, "p", 2, allowed=(1, 2))
        size, group_size = _sizes(params)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"HIGGS stores matrices; the array has shape {list(source.shape)}")
        kind = source.kind if source.kind != "F32" else _type(params) or "F16"
        rows, columns = source.shape
        padded = np.zeros((rows, -(-columns // size) * size))
        padded[:, :columns] = source.float32()
        blocks = padded.reshape(rows, -1, size)
        norms = np.sqrt((blocks * blocks).sum(axis=2, keepdims=True))
        scales = _planes.finite_plane(
            np.repeat((norms[..., 0] / np.sqrt(size)).astype(np.float32), size // group_size, 1), kind
        )
        turned = hadamard.rotate(blocks, size) * np.sqrt(size)
        vectors = (turned / np.where(norms > 0, norms, 1)).reshape(rows, -1, length)
        grid = data_tables("higgs_grids")[f"p{length}_n{1 << (bits * length)}"]
        codes = _nearest(vectors, grid.astype(np.float64))
        if length == 1:
            codes = codes[:, ::2] << np.uint32(bits) | codes[:, 1::2]
            entry = np.arange(1 << bits)
            pairs = grid[np.stack(np.broadcast_arrays(entry[:, None], entry), axis=-1), 0]
            table = grid[:, 0]
        else:
            pairs = grid.reshape(1 << bits, 1 << bits, 2)
            table = np.arange(1 << bits, dtype=np.float32)
        try:
            words = pack(codes, 2 * bits, tile)
        except FormatError as e:
            raise UnsupportedError(e.message) from e
        planes = {
            "weight": Plane(words, "I16"),
            "scales": scales,
            "tables": _planes.float_plane(table, kind),
            "tables2": _as_half(_planes.float_plane(pairs, kind)),
        }
        return encoded(self.id, planes, source.shape, {"in_features": columns, **params})

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        stored = form.inner if isinstance(form, Rotated) else None
        if (
            not isinstance(form, Rotated)
            or not isinstance(stored, Additive)
            or (form.across, form.down, form.row_factors, form.column_factors) != (_sizes(params)[0], None, None, None)
            or len(stored.books) != 1
            or stored.scales is None
        ):
            return super().write(form, params)
        bits, tile = _bits(params), _tile(params)
        entries, kind = stored.books[0].entries, stored.scales.kind
        groups = (form.rows, stored.columns // _sizes(params)[1])
        if entries.shape != (1, 1, 1 << (2 * bits), 1, 2) or entries.kind != kind or stored.scales.shape != groups:
            raise UnsupportedError(
                f"a table {list(entries.shape)} is no table of pairs of {bits} bits, with its scales"
            )
        pairs = Plane(entries.data.reshape(1 << bits, 1 << bits, 2), kind)
        if setting_int(params, "p", 2, allowed=(1, 2)) == 1:
            table = Plane(np.ascontiguousarray(pairs.data[:, 0, 0]), kind)
        else:
            table = _planes.float_plane(np.arange(1 << bits, dtype=np.float32), kind)
        try:
            words = pack(stored.books[0].indices.unpack(), 2 * bits, tile)
            planes = {
                "weight": Plane(words, "I16"),
                "scales": stored.scales,
                "tables": table,
                "tables2": _as_half(pairs),
            }
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"format '{self.id}': {e.message}") from e
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        tuned = folder.settings.get("tune_metadata") or {}
        if not isinstance(tuned, Mapping):
            raise FormatError(f"setting 'tune_metadata' is {tuned!r:.60}: expected settings by module")
        found = []
        modules = folder.modules(("weight", "scales", "tables", "tables2"), marker="tables2")
        for module, tensors in modules.items():
            own = {"tune_metadata": tuned[module]} if module in tuned else {}
            params = {key: value for key, value in folder.settings.items() if key != "tune_metadata"} | own
            weight = folder.source[tensors["weight"]]
            if len(weight.shape) != 2:
                raise FormatError(f"has shape {list(weight.shape)}: expected a matrix", tensor=weight.name)
            shape = (weight.shape[0] * 16 // _bits(params), weight.shape[1])
            found.append(Layer(f"{module}.weight", shape, tensors, params))
        folder.note_exceptions(found)
        return found


def _tuned(params: Mapping[str, Any]) -> Mapping[str, Any]:
    found = params.get("tune_metadata", {})
    if not isinstance(found, Mapping):
        raise FormatError(f"setting 'tune_metadata' is {found!r:.60}: expected a JSON object")
    return found


def _bits(params: Mapping[str, Any]) -> int:
    tuned = _tuned(params)
    if "bits" not in params and "num_bits" not in tuned:
        raise ArgumentError("params lacks 'bits', the bits of a code")
    bits = setting_int(params, "bits", tuned.get("num_bits"), allowed=(2, 3, 4))
    check_setting(tuned, "num_bits", bits, "'bits' is")
    return bits


def _tile(params: Mapping[str, Any]) -> int:
    """P of FLUTE's order."""
    bits, tuned = _bits(params), _tuned(params)
    tile = None
    for holder in (params, tuned):
        if holder.get("template_id") is None:
            continue
        template = setting_int(holder, "template_id")
        if template < 0:
            raise FormatError(f"setting 'template_id' is {template}: expected a number from 0 on")
        own = 64 if (template % 48 < 16 if bits == 4 else template % 12 < 4) else 32
        if tile not in (None, own):
            raise FormatError(
                f"'template_id' {template} of 'tune_metadata' is for tiles of {own}, another one for {tile}"
            )
        tile = own
    said = setting_int(params, "tileP", tile or 32, allowed=(32, 64))
    if tile not in (None, said):
        raise FormatError(f"'tileP' is {said}, but 'template_id' is for tiles of {tile}")
    if bits == 3 and said != 32:
        raise FormatError("codes of 3 bits are in tiles of 32 only; 'template_id' or 'tileP' is for 64")
    return said


def _sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Columns of a Hadamard transform and of a group."""
    tuned = _tuned(params)
    size = setting_int(params, "hadamard_size", _SIZE)
    group_size = setting_int(params, "group_size", tuned.get("group_size", 256))
    check_setting(tuned, "group_size", group_size, "'group_size' is")
    if size < 2 or size & (size - 1) or size > 1 << 24:
        raise FormatError(f"setting 'hadamard_size' is {size}: expected a power of two")
    if group_size < 1 or size % group_size:
        raise FormatError(f"setting 'group_size' is {group_size}: expected a divisor of 'hadamard_size' {size}")
    return size, group_size


def _type(params: Mapping[str, Any]) -> str | None:
    """The type of a tuned model, if that is one of 16 bits."""
    found = _tuned(params).get("dtype")
    return {"torch.float16": "F16", "torch.bfloat16": "BF16"}.get(str(found))


def _check_type(params: Mapping[str, Any], kind: str) -> None:
    if _type(params) not in (None, kind):
        raise FormatError(f"plane 'scales' holds {kind}, but 'dtype' of 'tune_metadata' is {_tuned(params)['dtype']}")


def _indices(planes: Mapping[str, Any], bits: int, tile: int) -> FluteIndices:
    words = _planes.get(planes, "weight", "I16", (None, None))
    try:
        return FluteIndices(words.data, 2 * bits, tile)
    except FormatError as e:
        raise FormatError(f"plane 'weight': {e.message}") from e


def _pairs(planes: Mapping[str, Any], bits: int, kind: str, length: int) -> Plane:
    """The table of pairs, as that of a book."""
    count = 1 << bits
    table = finite(planes, "tables", kind, (count,))
    stored = _planes.get(planes, "tables2", ("F16", "BF16", "F32"))
    if stored.shape != (count, count, 1 if stored.kind == "F32" else 2):
        raise FormatError(f"plane 'tables2' has shape {list(stored.shape)}: expected {[count, count, 2]}")
    raw = np.ascontiguousarray(stored.data).view(np.uint16 if kind == "BF16" else np.float16)
    pairs = Plane(raw.reshape(count, count, 2), kind)
    if not np.isfinite(pairs.float32()).all():
        raise FormatError("plane 'tables2' holds NaN or infinity")
    entry = np.arange(count)
    if length == 1 and not np.array_equal(
        pairs.float32(), table.float32()[np.stack(np.broadcast_arrays(entry[:, None], entry), axis=-1)]
    ):
        raise FormatError("plane 'tables2' does not hold the pairs of plane 'tables', but 'p' is 1")
    return Plane(pairs.data.reshape(1, 1, count * count, 1, 2), kind)


def _as_half(pairs: Plane) -> Plane:
    """The bits of a 16-bit plane under the type F16, which files give ``tables2``."""
    return Plane(pairs.data.view(np.float16), "F16")


def _nearest(vectors: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The points of a grid for vectors (rows, vectors, p): (rows, vectors)."""
    half = (grid * grid).sum(axis=1)
    found = np.empty(vectors.shape[:2], np.uint32)
    for row, some in enumerate(vectors):
        found[row] = np.argmax(2 * (some @ grid.T) - half, axis=1)
    return found


FORMATS = {"higgs": Higgs()}
