"""AQLM: sums of vectors from several codebooks (arXiv 2401.06118, github.com/Vahe1994/AQLM).

A weight ``[o, i]`` is cut into blocks of ``out_group_size`` by ``in_group_size`` (a by b) weights, each the sum of
an entry of every one of M = ``num_codebooks`` codebooks of 2^n entries, n = ``nbits_per_codebook``:

=========  ==============  =====================  ======================================================================
plane      type            shape                  content
=========  ==============  =====================  ======================================================================
codes      I8, I16, I32    [o / a, i / b, M]      index; from 2^(n - 1) on it is stored minus 2^n
codebooks  F16, BF16, F32  [M, 2^n, a, b]         entries
scales     as codebooks    [o / a, 1, 1, 1]       factor of the rows of a block
=========  ==============  =====================  ======================================================================

The type of the codes is the smallest that holds n bits; they are not packed. w = scale * (sum of the entries): the
entries are summed in float32, first codebook first. In a 16-bit type the sum and the product are rounded to the type
of the codebooks.

Settings: ``quantization_config`` of config.json with ``quant_method: "aqlm"`` and the names above;
``linear_weights_not_to_quantize`` lists the names of dense tensors. Without settings the shapes of the planes count.
The bias of a module is a dense tensor beside its planes.

Writer: scale = norm of the rows of a block + 1e-9; the scaled blocks are encoded by
`subbyte.quantize.k_means.additive`, an error weighing the square of its scale and the importance of its column.
Parameters are of type F16 for F32 weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, optional_settings, setting_int
from subbyte.formats.vector.tables import check_setting, finite, matrix
from subbyte.forms import Form
from subbyte.forms.vector import Additive, ArrayIndices, Book
from subbyte.forms.vector.indices import as_signed
from subbyte.planes import Plane
from subbyte.quantize.k_means import additive

_LEAST = {"F16": np.float32(2.0**-24), "BF16": np.float32(2.0**-126)}
"""The least scale, of rows of zeros."""

_TYPES = {8: "I8", 16: "I16", 32: "I32"}


class Aqlm(Format):
    """The format ``aqlm``."""

    id = "aqlm"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = optional_settings(params) if "quantization_config" in params else params
        codebooks = finite(planes, "codebooks", shape=(None, None, None, None))
        count, entries, height, width = codebooks.shape
        bits = entries.bit_length() - 1
        if not codebooks.data.size or entries != 1 << bits or not bits:
            raise FormatError(f"plane 'codebooks' has shape {list(codebooks.shape)}: expected 2^n entries of vectors")
        for key, found in (
            ("num_codebooks", count),
            ("nbits_per_codebook", bits),
            ("out_group_size", height),
            ("in_group_size", width),
        ):
            check_setting(config, key, found, f"plane 'codebooks' of shape {list(codebooks.shape)} makes it")
        codes = _planes.get(planes, "codes", _code_type(bits), (None, None, count))
        down, across, _ = codes.shape
        if not codes.data.size:
            raise FormatError(f"plane 'codes' has shape {list(codes.shape)}: it is empty")
        scales = finite(planes, "scales", codebooks.kind, (down, 1, 1, 1))
        rows, columns = down * height, across * width
        check_setting(config, "out_features", rows, "plane 'codes' makes it")
        check_setting(config, "in_features", columns, "plane 'codes' makes it")
        books = tuple(
            Book(
                ArrayIndices(codes.data[..., at], bits, signed=True),
                Plane(codebooks.data[at].reshape(1, 1, entries, height, width), codebooks.kind),
            )
            for at in range(count)
        )
        return Additive((rows, columns), books, Plane(scales.data.reshape(down, 1), scales.kind))

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = optional_settings(params) if "quantization_config" in params else params
        count, bits = setting_int(config, "num_codebooks", 1), setting_int(config, "nbits_per_codebook", 16)
        height, width = setting_int(config, "out_group_size", 1), setting_int(config, "in_group_size", 8)
        if not (0 < count <= 64 and 0 < bits <= 16 and height > 0 and width > 0):
            raise FormatError(f"{count} codebooks of {bits} bits for blocks {[height, width]}: expected positive sizes")
        source, of_columns = matrix(array, importance)
        rows, columns = source.shape
        if rows % height or columns % width:
            raise UnsupportedError(f"blocks of {[height, width]} do not divide a weight {[rows, columns]}")
        kind = source.kind if source.kind != "F32" else "F16"
        values = source.float32()
        down, across = rows // height, columns // width
        norms = np.linalg.norm(values.reshape(down, -1), axis=1).astype(np.float32) + np.float32(1e-9)
        scales = _planes.finite_plane(np.maximum(norms, _LEAST[kind]), kind)
        factors = scales.float32()
        blocks = (values.reshape(down, -1) / factors[:, None]).reshape(down, height, across, width).swapaxes(1, 2)
        points = np.ascontiguousarray(blocks).reshape(-1, height * width)
        weights = (factors * factors)[:, None, None] / np.float32(np.square(factors).mean())
        if importance is None:
            weights = np.broadcast_to(weights, (down, across, 1))
        else:
            weights = weights * np.tile(of_columns.reshape(across, width), height)
        weights = np.ascontiguousarray(weights).reshape(len(points), -1)
        tables, codes = additive(points, weights, [1 << bits] * count, kind)
        books = tuple(
            Book(
                ArrayIndices(codes[:, at].reshape(down, across), bits),
                _planes.finite_plane(table.reshape(1, 1, -1, height, width), kind),
            )
            for at, table in enumerate(tables)
        )
        form = Additive((rows, columns), books, Plane(scales.data.reshape(down, 1), kind))
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Additive) or form.scales is None:
            return super().write(form, params)
        first = form.books[0].entries
        height, width = form.books[0].block
        bits = (first.shape[2] - 1).bit_length()
        down, across = form.books[0].indices.shape
        if (
            any((book.entries.kind, book.entries.shape) != (first.kind, first.shape) for book in form.books)
            or first.shape[:3] != (1, 1, 1 << bits)
            or (down * height, across * width) != form.shape
            or (form.scales.kind, form.scales.shape) != (first.kind, (down, 1))
        ):
            raise UnsupportedError(
                f"format '{self.id}' holds codebooks of 2^n entries for the whole weight, and a scale for the rows of "
                f"a block; tables {list(first.shape)} and scales {list(form.scales.shape)} are not that"
            )
        codes = np.stack([as_signed(book.indices.unpack(), bits) for book in form.books], axis=-1)
        kind = _code_type(bits)
        planes = {
            "codes": Plane(codes.astype({"I8": np.int8, "I16": np.int16, "I32": np.int32}[kind]), kind),
            "codebooks": Plane(np.stack([book.entries.data[0, 0] for book in form.books]), first.kind),
            "scales": Plane(form.scales.data.reshape(down, 1, 1, 1), first.kind),
        }
        try:
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"the settings are for another layer: {e.message}") from e
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        for module, tensors in folder.modules(("codes", "codebooks", "scales"), marker="codebooks").items():
            codes, codebooks = (folder.source[tensors[plane]] for plane in ("codes", "codebooks"))
            for tensor, axes in ((codes, 3), (codebooks, 4)):
                if len(tensor.shape) != axes:
                    raise FormatError(f"has shape {list(tensor.shape)}: expected {axes} axes", tensor=tensor.name)
            shape = (codes.shape[0] * codebooks.shape[2], codes.shape[1] * codebooks.shape[3])
            found.append(Layer(f"{module}.weight", shape, tensors, {"quantization_config": folder.settings}))
        folder.note_exceptions(found, "linear_weights_not_to_quantize")
        return found


def _code_type(bits: int) -> str:
    return next((kind for width, kind in _TYPES.items() if bits <= width), "I32")


FORMATS = {"aqlm": Aqlm()}
