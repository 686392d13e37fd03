"""GPTVQ: codebooks for tiles of a weight (arXiv 2402.15319, github.com/Qualcomm-AI-research/gptvq).

There is no standard file; this is what the original's quantizer returns. A weight ``[o, i]`` is cut into tiles of
R = ``group_size`` / ``columns_per_group`` rows and C = ``columns_per_group`` columns, each with a codebook of
k = 2^(``bits_per_weight`` * d) vectors of d = ``vq_dim`` weights of a row:

===========  ==============  ======================  ===================================================================
plane        type            shape                   content
===========  ==============  ======================  ===================================================================
centroids    F32, F16, BF16  [i / C, o / R, k, d]    vectors (rounded to 8 bits and scaled back)
assignments  I16 or I32      [i / C, C / d, o / R, R]  index; I16 holds uint16
scales_full  F32, F16, BF16  [o, i]                  factor of every weight, unless ``scaling_blocksize`` is -1
===========  ==============  ======================  ===================================================================

w = entry * factor, in float32; in a 16-bit type rounded to the type of the centroids.

Writer: the factor of a block of ``scaling_blocksize`` columns is its largest weight, of which the logarithm is rounded
to one of 16 even steps of all blocks above and below it. The codebook of a tile is the k-means of its vectors, rounded
to 8 bits of the largest; indices are the nearest ones. Nothing is fed back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Format, encoded, setting_int
from subbyte.formats.vector.tables import check_setting, check_shape, finite, matrix
from subbyte.forms import Form
from subbyte.forms.vector import Additive, ArrayIndices, Book
from subbyte.planes import Plane
from subbyte.quantize.k_means import k_means, nearest


class Gptvq(Format):
    """The format ``gptvq``."""

    id = "gptvq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        centroids = finite(planes, "centroids", shape=(None, None, None, None))
        across, down, entries, length = centroids.shape
        bits = entries.bit_length() - 1
        if not centroids.data.size or entries != 1 << bits or not 0 < bits <= 16:
            raise FormatError(f"plane 'centroids' has shape {list(centroids.shape)}: expected 2^n vectors, n up to 16")
        check_setting(params, "vq_dim", length, "plane 'centroids' has vectors of")
        of_weight = setting_int(params, "bits_per_weight", bits // length)
        if of_weight * length != bits:
            raise FormatError(
                f"plane 'centroids' has {entries} vectors of {length}, and 'bits_per_weight' is {of_weight}"
            )
        stored = _planes.get(planes, "assignments", ("I16", "I32"), (across, None, down, None))
        vectors, height = stored.shape[1], stored.shape[3]
        if not stored.data.size:
            raise FormatError(f"plane 'assignments' has shape {list(stored.shape)}: it is empty")
        width = vectors * length
        check_setting(params, "columns_per_group", width, "plane 'assignments' has")
        check_setting(params, "group_size", width * height, "plane 'assignments' has tiles of")
        shape = rows, columns = down * height, across * width
        check_shape(params, shape, "assignments")
        data = np.ascontiguousarray(stored.data.transpose(2, 3, 0, 1)).reshape(rows, across * vectors)
        indices = ArrayIndices(data.view(np.uint16) if stored.kind == "I16" else data, bits)
        tables = np.ascontiguousarray(centroids.data.swapaxes(0, 1)).reshape(down, across, entries, 1, length)
        block = setting_int(params, "scaling_blocksize", 1 if "scales_full" in planes else -1)
        if block < 1 and block != -1:
            raise FormatError(f"setting 'scaling_blocksize' is {block}: expected a number of columns, or -1 for none")
        if block == -1 and "scales_full" in planes:
            raise FormatError("plane 'scales_full' is there, but 'scaling_blocksize' is -1")
        scales = None if block == -1 else finite(planes, "scales_full", shape=(rows, columns))
        return Additive(shape, (Book(indices, Plane(tables, centroids.kind)),), scales)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        length = setting_int(params, "vq_dim", allowed=(1, 2, 4))
        bits = setting_int(params, "bits_per_weight") * length
        width, size = (setting_int(params, key) for key in ("columns_per_group", "group_size"))
        block = setting_int(params, "scaling_blocksize", -1)
        source, of_columns = matrix(array, importance)
        rows, columns = source.shape
        if (
            not 0 < bits <= 16
            or width < 1
            or width % length
            or size < 1
            or size % width
            or columns % width
            or rows % (size // width)
        ):
            raise UnsupportedError(
                f"tiles of {size} weights, {width} columns, and vectors of {length} of {bits} bits do not fit a weight "
                f"{[rows, columns]}"
            )
        values, scales = source.float32(), None
        if block != -1:
            if block < 1 or columns % block:
                raise UnsupportedError(f"blocks of {block} columns do not divide {columns}")
            scales = _block_scales(values, block)
            values = values / scales
        height, per = size // width, width // length
        weights = np.broadcast_to(of_columns, values.shape) * (1 if scales is None else scales * scales)
        tiles, heavy = (
            np.ascontiguousarray(one.reshape(rows // height, height, columns // width, width).swapaxes(1, 2))
            for one in (values, weights)
        )
        tables = np.empty((*tiles.shape[:2], 1 << bits, 1, length), np.float32)
        codes = np.empty((*tiles.shape[:2], height, per), np.int64)
        for down, across in np.ndindex(*tiles.shape[:2]):
            points, mass = (one[down, across].reshape(-1, length) for one in (tiles, heavy))
            table = k_means(points, mass, 1 << bits)
            step = np.abs(table).max() / np.float32(127)
            table = np.clip(np.rint(table / step), -128, 127) * step if step > 0 else table
            tables[down, across, :, 0] = table
            codes[down, across] = nearest(points, mass, table).reshape(height, per)
        indices = ArrayIndices(codes.swapaxes(1, 2).reshape(rows, columns // length), bits)
        held = None if scales is None else Plane(scales, "F32")
        form = Additive((rows, columns), (Book(indices, Plane(tables, "F32")),), held)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, Additive) or len(form.books) != 1 or form.books[0].block[0] != 1:
            return super().write(form, params)
        book = form.books[0]
        down, across, entries, _, length = book.entries.shape
        if entries & (entries - 1) or not 1 < entries <= 1 << 16 or book.indices.shape[1] * length != form.columns:
            raise UnsupportedError(f"tables {list(book.entries.shape)}: GPTVQ has 2^n vectors that fill the columns")
        stored = book.indices.unpack().astype(np.uint16).view(np.int16)
        stored = stored.reshape(down, form.rows // down, across, book.indices.shape[1] // across).transpose(2, 3, 0, 1)
        tables = book.entries.data.reshape(down, across, entries, length).swapaxes(0, 1)
        planes = {
            "centroids": Plane(np.ascontiguousarray(tables), book.entries.kind),
            "assignments": Plane(np.ascontiguousarray(stored), "I16"),
        }
        if form.scales is not None:
            high, wide = (size // of for size, of in zip(form.shape, form.scales.shape, strict=True))
            full = np.repeat(np.repeat(form.scales.data, high, axis=0), wide, axis=1)
            planes["scales_full"] = Plane(np.ascontiguousarray(full), form.scales.kind)
        try:
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"the settings are for another layer: {e.message}") from e
        return planes


def _block_scales(values: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """The factor of every weight: the largest of its block, its logarithm in 16 steps of a column of blocks."""
    largest = np.abs(values).reshape(len(values), -1, block).max(axis=2)
    logs = np.log10(np.maximum(largest, np.float32(1e-30))).astype(np.float64)
    low = logs.min(axis=0)
    step = (logs.max(axis=0) - low) / 15
    codes = np.rint((logs - low) / np.where(step > 0, step, 1))
    return np.repeat(np.power(10.0, low + codes * step).astype(np.float32), block, axis=1)


FORMATS = {"gptvq": Gptvq()}
