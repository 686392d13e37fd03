"""VPTQ: vectors along the outputs from a codebook and a residual one (arXiv 2409.17066, github.com/microsoft/VPTQ).

The columns of a weight ``[o, i]`` are stored in an order ``perm``: first ``outlier_size`` outlier columns, then
G = ``group_num`` groups of g = ``group_size`` columns. A column is cut into vectors of v rows; the rows of the last
vector beyond o are padding.

========================  ====================  ================================  ======================================
plane                     type                  shape                             content
========================  ====================  ================================  ======================================
centroids.weight          F16, BF16, F32        [G, K * v]                        K vectors for every group
res_centroids.weight      as centroids          [G, R * v]                        residual vectors, where R > 0
indices (packed)          I32                   [G, ceil(o / v), words]           a row of entries, see below
indices, res_indices      I16, I32 or I64       [G, ceil(o / v), g]               not packed; I16 holds uint16
outlier_centroids.weight  as centroids          [1, K' * v']                      vectors of the outlier columns
outlier_indices           I16, I32 or I64       [1, ceil(o / v'), outlier_size]   their indices
perm                      I16, I32 or I64       [i]                               I16 holds uint16
weight_scale              as centroids          [i]                               factor of a column
weight_bias               as centroids          [i]                               offset of a column
========================  ====================  ================================  ======================================

Packed entries have log2 K + log2 R bits, the index of the residual above the other; a row is one stream, low bits
first, in whole 32-bit words. The vector of a place is centroid + residual centroid. With P the weight in stored order,
W[:, perm[j]] = P[:, j], then w = W[:, j] * weight_scale[j] + weight_bias[j]; in a 16-bit type each of the three results
is rounded to the type of the centroids (kernels that fuse the last two differ in the last bit).

Settings of a layer: ``vector_lens`` [v', v], ``num_centroids`` [K', K], ``num_res_centroids`` [-1, R] (-1 or 0: none),
``group_num``, ``group_size``, ``outlier_size``, ``in_features``, ``out_features``, ``enable_norm`` (scale and bias),
``enable_perm``, ``is_indice_packed``. In config.json they are in ``quantization_config.config_for_layers`` by module,
or in ``shared_layer_config`` by the last part of its name.

Writer: weight_bias and weight_scale are the minimum of a column and its range; columns are in the order of their
importance, if it is given. Codebooks and indices of outliers and of every group are those of
`subbyte.quantize.k_means.additive`. Parameters are of type F16 for F32 weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int, setting_text
from subbyte.formats.vector.tables import finite, matrix
from subbyte.forms import Form
from subbyte.forms.vector import Additive, ArrayIndices, Beside, Book, ColumnAffine, Ordered, StreamIndices
from subbyte.forms.vector.indices import Indices, pack_stream
from subbyte.planes import Plane
from subbyte.quantize.grid import Floats
from subbyte.quantize.k_means import additive

_INTEGERS = ("I16", "I32", "I64")


class Vptq(Format):
    """The format ``vptq``."""

    id = "vptq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        rows, columns = (_size(params, key) for key in ("out_features", "in_features"))
        groups, group_size = _size(params, "group_num"), _size(params, "group_size")
        outliers = setting_int(params, "outlier_size", 0)
        if groups * group_size + outliers != columns or outliers < 0:
            raise FormatError(
                f"{groups} groups of {group_size} columns and {outliers} outlier columns: 'in_features' is {columns}"
            )
        if setting_text(params, "vector_quant_dim", "out") != "out" or setting_bool(params, "indices_as_float", False):
            raise UnsupportedError("VPTQ vectors along the inputs, or indices as floats, cannot be read")
        parts: list[Form] = []
        kind = None
        if outliers or "outlier_indices" in planes or "outlier_centroids.weight" in planes:
            part = _outliers(planes, params, rows, outliers)
            kind = part.books[0].entries.kind
            parts.append(part)
        main = _groups(planes, params, rows, groups, group_size)
        if kind not in (None, main[0].books[0].entries.kind):
            raise FormatError(f"plane 'outlier_centroids.weight' holds {kind}, and plane 'centroids.weight' does not")
        parts.extend(main)
        form = parts[0] if len(parts) == 1 else Beside((rows, columns), tuple(parts))
        if _flag(planes, params, "enable_perm", ("perm",)):
            order = _unsigned(_planes.get(planes, "perm", _INTEGERS, (columns,)))
            try:
                form = Ordered((rows, columns), form, order.astype(np.int64))
            except FormatError as e:
                raise FormatError(f"plane 'perm': {e.message}") from e
        if _flag(planes, params, "enable_norm", ("weight_scale", "weight_bias")):
            kind = main[0].books[0].entries.kind
            scale, bias = (finite(planes, name, kind, (columns,)) for name in ("weight_scale", "weight_bias"))
            form = ColumnAffine((rows, columns), form, scale, bias)
        return form

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        source, of_columns = matrix(array, importance)
        rows, columns = source.shape
        params = {"in_features": columns, "out_features": rows, **params}
        kind = source.kind if source.kind != "F32" else "F16"
        values: NDArray[np.float32] = source.float32()
        scale = offset = None
        if setting_bool(params, "enable_norm", False):
            low, high = values.min(axis=0), values.max(axis=0)
            offset = _planes.finite_plane(low, kind)
            scale = _planes.finite_plane(np.where(high > low, high - low, np.float32(1)), kind)
            factors = np.where(scale.float32() > 0, scale.float32(), np.float32(1))
            values = ((values - offset.float32()) / factors).astype(np.float32)
            of_columns = of_columns * factors * factors
            of_columns = of_columns / of_columns.max()
        order = np.arange(columns)
        if importance is not None and setting_bool(params, "enable_perm", False):
            order = np.argsort(-np.asarray(importance), kind="stable")
        outliers = setting_int(params, "outlier_size", 0)
        sizes = [(0, [outliers])] if outliers else []
        sizes.append((1, [_size(params, "group_size")] * _size(params, "group_num")))
        parts, begin = [], 0
        for at, widths in sizes:
            counts = [one for key in ("num_centroids", "num_res_centroids") if (one := _pair(params, key, at))]
            for width in widths:
                chosen = order[begin : begin + width]
                length = _pair(params, "vector_lens", at)
                if len(chosen) < width or width < 1 or not length or not counts:
                    raise FormatError(f"'group_size', 'vector_lens' and 'num_centroids' do not fit {columns} columns")
                parts.append(_fitted(values[:, chosen], of_columns[chosen], length, counts[: at + 1], kind))
                begin += width
        form: Form = parts[0] if len(parts) == 1 else Beside((rows, columns), tuple(parts))
        if setting_bool(params, "enable_perm", False):
            form = Ordered((rows, columns), form, order)
        if scale is not None and offset is not None:
            form = ColumnAffine((rows, columns), form, scale, offset)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        planes: dict[str, Plane] = {}
        inner = form
        packed = setting_bool(params, "is_indice_packed", False)
        if isinstance(inner, ColumnAffine):
            planes |= {"weight_scale": inner.scales, "weight_bias": inner.offsets}
            inner = inner.inner
        if isinstance(inner, Ordered):
            planes["perm"] = _short(inner.order) if packed else Plane(inner.order, "I64")
            inner = inner.inner
        parts = inner.parts if isinstance(inner, Beside) else (inner,)
        count = _size(params, "group_num")
        main, outliers = parts[-count:], parts[:-count]
        if len(main) != count or len(outliers) > 1 or not all(_stackable(part, main[0]) for part in main):
            return super().write(form, params)
        if outliers:
            part = outliers[0]
            if not isinstance(part, Additive) or not _stackable(part, part) or len(part.books) != 1:
                return super().write(form, params)
            planes["outlier_centroids.weight"] = _flat([part], 0)
            planes["outlier_indices"] = _short(part.books[0].indices.unpack()[None])
        layers = [part for part in main if isinstance(part, Additive)]
        planes["centroids.weight"] = _flat(layers, 0)
        fields = [[(book.indices.unpack(), book.indices.bits) for book in part.books] for part in layers]
        if len(layers[0].books) == 2:
            planes["res_centroids.weight"] = _flat(layers, 1)
        if packed:
            planes["indices"] = Plane(np.stack([pack_stream(one).view(np.int32) for one in fields]), "I32")
        else:
            for at, name in enumerate(("indices", "res_indices")[: len(layers[0].books)]):
                planes[name] = _short(np.stack([one[at][0] for one in fields]))
        try:
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"the settings are for another layer: {e.message}") from e
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        by_module, shared = (folder.settings.get(key) or {} for key in ("config_for_layers", "shared_layer_config"))
        for key, found in (("config_for_layers", by_module), ("shared_layer_config", shared)):
            if not isinstance(found, Mapping) or not all(isinstance(one, Mapping) for one in found.values()):
                raise FormatError(f"setting '{key}' is {found!r:.60}: expected settings by module")
        optional = (
            "res_centroids.weight", "res_indices", "outlier_centroids.weight", "outlier_indices", "perm",
            "weight_scale", "weight_bias",
        )  # fmt: skip
        layers = []
        modules = folder.modules(("indices", "centroids.weight"), optional, marker="centroids.weight")
        for module, tensors in modules.items():
            params = by_module.get(module, shared.get(module.rpartition(".")[2]))
            if params is None:
                raise FormatError(
                    "'config_for_layers' and 'shared_layer_config' have no settings for this module",
                    tensor=tensors["indices"],
                )
            shape = (_size(params, "out_features"), _size(params, "in_features"))
            layers.append(Layer(f"{module}.weight", shape, tensors, params))
        stale = sum(module not in modules for module in by_module)
        if stale:
            folder.notes.append(f"'config_for_layers' has settings for {stale} modules that are not quantized")
        return layers


def _size(params: Mapping[str, Any], key: str) -> int:
    found = setting_int(params, key)
    if not 0 < found < 1 << 31:
        raise FormatError(f"setting '{key}' is {found}: expected a positive number of 32 bits")
    return found


def _pair(params: Mapping[str, Any], key: str, at: int) -> int:
    """An element of a setting for outliers (0) and the other columns (1); 0 where there is none."""
    found = params.get(key)
    if (
        not isinstance(found, Sequence)
        or len(found) != 2
        or any(isinstance(one, bool) or not isinstance(one, int) or not -1 <= one < 1 << 31 for one in found)
    ):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected two integers, the second for most columns")
    return max(int(found[at]), 0)


def _flag(planes: Mapping[str, Any], params: Mapping[str, Any], key: str, names: Sequence[str]) -> bool:
    """A setting that says whether there are these planes.

    Raises:
        FormatError: there are some although it is false.
    """
    found = setting_bool(params, key, any(name in planes for name in names))
    if not found and any(name in planes for name in names):
        raise FormatError(f"plane '{names[0]}' is there, but '{key}' is false")
    return found


def _unsigned(plane: Plane) -> Array:
    """The elements of a plane of indices; those of 16 bits are unsigned."""
    return np.ascontiguousarray(plane.data).view(np.uint16) if plane.kind == "I16" else plane.data


def _short(indices: Array) -> Plane:
    if indices.size and int(indices.max()) >> 16:
        raise UnsupportedError(f"an index is {indices.max()}: VPTQ stores it in 16 bits")
    return Plane(indices.astype(np.uint16).view(np.int16), "I16")


def _table(planes: Mapping[str, Any], name: str, groups: int, entries: int, length: int) -> Plane:
    """Codebooks of a plane, (groups, 1, entries, length, 1)."""
    if not entries or not length:
        raise FormatError(f"plane '{name}': 'num_centroids' and 'vector_lens' have to be positive for it")
    found = finite(planes, name, shape=(groups, entries * length))
    return Plane(found.data.reshape(groups, 1, entries, length, 1), found.kind)


def _outliers(planes: Mapping[str, Any], params: Mapping[str, Any], rows: int, outliers: int) -> Additive:
    length = _pair(params, "vector_lens", 0)
    table = _table(planes, "outlier_centroids.weight", 1, _pair(params, "num_centroids", 0), length)
    if not outliers:
        raise FormatError("plane 'outlier_centroids.weight' is there, but 'outlier_size' is 0")
    indices = _planes.get(planes, "outlier_indices", _INTEGERS, (1, -(-rows // length), outliers))
    return Additive((rows, outliers), (_book(_unsigned(indices)[0], table, 0),))


def _book(indices: Array | Indices, tables: Plane, group: int) -> Book:
    """The book of a group: indices below the number of its entries."""
    entries = Plane(tables.data[group : group + 1], tables.kind)
    if not isinstance(indices, Indices):
        indices = ArrayIndices(indices, max((entries.shape[2] - 1).bit_length(), 1))
    return Book(indices, entries)


def _groups(
    planes: Mapping[str, Any], params: Mapping[str, Any], rows: int, groups: int, group_size: int
) -> list[Additive]:
    length, entries, residuals = (
        _pair(params, key, 1) for key in ("vector_lens", "num_centroids", "num_res_centroids")
    )
    tables = [_table(planes, "centroids.weight", groups, entries, length)]
    if residuals:
        tables.append(_table(planes, "res_centroids.weight", groups, residuals, length))
        if tables[1].kind != tables[0].kind:
            raise FormatError(f"plane 'res_centroids.weight' holds {tables[1].kind}: expected {tables[0].kind}")
    elif "res_centroids.weight" in planes or "res_indices" in planes:
        raise FormatError("plane 'res_centroids.weight' is there, but 'num_res_centroids' says that there is none")
    down = -(-rows // length)
    indices: list[list[Array | Indices]]
    if setting_bool(params, "is_indice_packed", False):
        widths = [(table.shape[2] - 1).bit_length() for table in tables]
        if any(table.shape[2] != 1 << bits or not bits for table, bits in zip(tables, widths, strict=True)):
            raise FormatError(f"{[t.shape[2] for t in tables]} centroids: packed indices need powers of two from 2 on")
        width = sum(widths)
        words = _planes.get(planes, "indices", "I32", (groups, down, -(-group_size * width // 32)))
        shape = (down, group_size)
        indices = [
            [
                StreamIndices(words.data[group], bits, shape, width, offset)
                for bits, offset in zip(widths, (0, widths[0]), strict=False)
            ]
            for group in range(groups)
        ]
    else:
        shape3 = (groups, down, group_size)
        names = ("indices", "res_indices")[: len(tables)]
        stored = [_unsigned(_planes.get(planes, name, _INTEGERS, shape3)) for name in names]
        indices = [[one[group] for one in stored] for group in range(groups)]
    return [
        Additive((rows, group_size), tuple(_book(i, table, group) for i, table in zip(found, tables, strict=True)))
        for group, found in enumerate(indices)
    ]


def _fitted(values: Floats, of_columns: Floats, length: int, counts: list[int], kind: str) -> Additive:
    """A part of a weight in codebooks of ``counts`` vectors along its columns."""
    rows, columns = values.shape
    down = -(-rows // length)
    padded, weights = (np.zeros((down * length, columns), np.float32) for _ in range(2))
    padded[:rows], weights[:rows] = values, of_columns
    points, heavy = (
        np.ascontiguousarray(one.reshape(down, length, columns).swapaxes(1, 2)).reshape(-1, length)
        for one in (padded, weights)
    )
    tables, codes = additive(points, heavy if rows % length else heavy[:, :1], counts, kind)
    return Additive(
        (rows, columns),
        tuple(
            Book(
                ArrayIndices(codes[:, at].reshape(down, columns), max((len(table) - 1).bit_length(), 1)),
                _planes.finite_plane(table.reshape(1, 1, -1, length, 1), kind),
            )
            for at, table in enumerate(tables)
        ),
    )


def _stackable(part: Form, first: Form) -> bool:
    """Whether a part is a group of a layer, with tables of the same sizes as the first one."""
    return (
        isinstance(part, Additive)
        and isinstance(first, Additive)
        and part.scales is None
        and part.shape == first.shape
        and len(part.books) == len(first.books) <= 2
        and all(
            book.entries.shape[:2] == (1, 1)
            and book.block[1] == 1
            and (book.entries.shape, book.entries.kind) == (other.entries.shape, other.entries.kind)
            for book, other in zip(part.books, first.books, strict=True)
        )
    )


def _flat(parts: Sequence[Additive], at: int) -> Plane:
    """The codebooks of all groups as a plane."""
    tables = [part.books[at].entries for part in parts]
    return Plane(np.stack([table.data.reshape(-1) for table in tables]), tables[0].kind)


FORMATS = {"vptq": Vptq()}
