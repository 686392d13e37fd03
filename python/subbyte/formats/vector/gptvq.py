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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Format, setting_int
from subbyte.formats.vector.tables import check_setting, check_shape, finite
from subbyte.forms import Form
from subbyte.forms.vector import Additive, ArrayIndices, Book
from subbyte.planes import Plane


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


FORMATS = {"gptvq": Gptvq()}
