"""SqueezeLLM: a table of values for every output, and sparse outliers (arXiv 2306.07629).

The files are those of github.com/SqueezeAILab/SqueezeLLM.

A weight ``[o, i]`` of b = 3 or 4 bits, i a multiple of 32:

================  ====  ===============  ===============================================================================
plane             type  shape            content
================  ====  ===============  ===============================================================================
qweight           I32   [i / 32 * b, o]  codes of an output down a column, a stream with low bits first
lookup_table      F32   [o, 2^b]         values of the codes (F16 and BF16 are read, too)
rows, cols, vals  I32,  [o + 1], [n],    outliers as compressed sparse rows: where those of an output begin, input, what
                  F32   [n]              is added to the value of the table
full_rows         F32   [i, t]           dense rows, added to the outputs ``full_row_indices``
full_row_indices  I32   [t]
startrows         I32   any              how kernels share the work; of no meaning for the weight
================  ====  ===============  ===============================================================================

w = table[code] + outlier + dense row, in float32. The sparse planes come together or not at all.

Settings, all optional: ``bits``, ``shape`` and ``sparse``.

Writer: with ``sparse``, the 0.45 % largest weights are outliers, and 0 in what follows. A table is the k-means of a
row, weighted by the importance of the columns; an outlier is the weight less the value of its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, optional_settings, setting_bool, setting_int
from subbyte.formats.vector.tables import check_setting, check_shape, finite, matrix
from subbyte.forms import ByteCodes, Form, PackedCodes, RowTable
from subbyte.forms.vector import AddedRows, Outliers
from subbyte.planes import Plane
from subbyte.quantize.k_means import k_means_of_row

_OUTLIERS = 0.0045
"""Share of the weights that the writer stores apart."""

_SPARSE = ("rows", "cols", "vals")
_DENSE = ("full_rows", "full_row_indices")


class SqueezeLlm(Format):
    """The format ``squeezellm``."""

    id = "squeezellm"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config = optional_settings(params) if "quantization_config" in params else params
        tables = finite(planes, "lookup_table", shape=(None, None))
        rows, entries = tables.shape
        bits = {8: 3, 16: 4}.get(entries)
        if bits is None or not rows:
            raise FormatError(
                f"plane 'lookup_table' has shape {list(tables.shape)}: expected 8 or 16 values of outputs"
            )
        check_setting(config, "bits", bits, "plane 'lookup_table' makes it")
        qweight = _planes.get(planes, "qweight", "I32", (None, rows))
        columns = _columns(qweight.shape[0], bits)
        check_shape(config, (rows, columns), "qweight")
        codes = PackedCodes(qweight.data, bits, (rows, columns), down=True)
        form: Form = RowTable((rows, columns), codes, tables, None, None, columns)
        if self._has(planes, _SPARSE, config):
            vals = finite(planes, "vals", shape=(None,))
            cols = _planes.get(planes, "cols", "I32", vals.shape)
            offsets = _planes.get(planes, "rows", "I32", (rows + 1,))
            try:
                form = Outliers(form.shape, form, offsets.data.astype(np.int64), cols.data.astype(np.int64), vals)
            except FormatError as e:
                raise FormatError(f"planes 'rows' and 'cols': {e.message}") from e
        if self._has(planes, _DENSE, {}):
            indices = _planes.get(planes, "full_row_indices", "I32", (None,))
            added = finite(planes, "full_rows", shape=(columns, indices.shape[0]))
            turned = Plane(np.ascontiguousarray(added.data.T), added.kind)
            try:
                form = AddedRows(form.shape, form, indices.data.astype(np.int64), turned)
            except FormatError as e:
                raise FormatError(f"plane 'full_row_indices': {e.message}") from e
        return form

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config = optional_settings(params) if "quantization_config" in params else params
        bits = setting_int(config, "bits", 4, allowed=(3, 4))
        source, of_columns = matrix(array, importance)
        rows, columns = source.shape
        if columns % 32:
            raise UnsupportedError(f"{columns} columns: SqueezeLLM needs a multiple of 32")
        values = source.float32()
        outlier = np.zeros(values.shape, bool)
        if setting_bool(config, "sparse", False):
            outlier.reshape(-1)[
                np.argsort(-np.abs(values), axis=None, kind="stable")[: int(values.size * _OUTLIERS)]
            ] = True
        kept = np.where(outlier, np.float32(0), values)
        fitted = [k_means_of_row(row, of_columns, 1 << bits) for row in kept]
        codes, tables = np.stack([code for code, _ in fitted]), np.stack([table for _, table in fitted])
        packed = ByteCodes(codes, bits)
        form: Form = RowTable((rows, columns), packed, Plane(tables, "F32"), None, None, columns)
        if setting_bool(config, "sparse", False):
            offsets = np.concatenate([[0], np.cumsum(outlier.sum(axis=1))])
            added = (values - np.take_along_axis(tables, codes.astype(np.intp), axis=1))[outlier]
            form = Outliers((rows, columns), form, offsets, np.nonzero(outlier)[1], Plane(added, "F32"))
        return encoded(self.id, self.write(form, params), source.shape, params)

    def _has(self, planes: Mapping[str, Any], names: Sequence[str], config: Mapping[str, Any]) -> bool:
        """Whether a layer has these planes, which come together; the setting ``sparse`` may say so."""
        found = setting_bool(config, "sparse", any(name in planes for name in names))
        extra = next((name for name in names if name in planes), None)
        if not found and extra is not None:
            raise FormatError(f"plane '{extra}' is there, but setting 'sparse' is false")
        return found

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        planes: dict[str, Plane] = {}
        inner = form
        if isinstance(inner, AddedRows):
            planes["full_rows"] = Plane(np.ascontiguousarray(inner.added.data.T), inner.added.kind)
            planes["full_row_indices"] = Plane(inner.rows_of.astype(np.int32), "I32")
            inner = inner.inner
        if isinstance(inner, Outliers) and inner.kind == "F32":
            planes["rows"] = Plane(inner.row_offsets.astype(np.int32), "I32")
            planes["cols"] = Plane(inner.columns_of.astype(np.int32), "I32")
            planes["vals"] = inner.added
            inner = inner.inner
        if not isinstance(inner, RowTable):
            return super().write(form, params)
        bits = inner.codes.bits
        if (
            inner.scales is not None
            or inner.zeros is not None
            or inner.centre
            or inner.tables.shape[0] != inner.rows
            or bits not in (3, 4)
            or inner.columns % 32
        ):
            raise UnsupportedError(
                f"format '{self.id}' holds tables of rows of 8 or 16 values without scales, and whole 32 columns"
            )
        planes["lookup_table"] = inner.tables
        planes["qweight"] = Plane(np.ascontiguousarray(inner.codes.stream().T).view(np.int32), "I32")
        try:
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"the settings are for another layer: {e.message}") from e
        return planes

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found = []
        modules = folder.modules(("qweight", "lookup_table"), (*_SPARSE, *_DENSE, "startrows"), marker="lookup_table")
        for module, tensors in modules.items():
            qweight, tables = (folder.source[tensors[plane]] for plane in ("qweight", "lookup_table"))
            if len(qweight.shape) != 2 or len(tables.shape) != 2 or tables.shape[1] not in (8, 16):
                raise FormatError(
                    f"qweight {list(qweight.shape)} and lookup_table {list(tables.shape)}: expected matrices, the "
                    "second of 8 or 16 columns",
                    tensor=qweight.name,
                )
            bits = {8: 3, 16: 4}[tables.shape[1]]
            shape = (qweight.shape[1], _columns(qweight.shape[0], bits))
            found.append(Layer(f"{module}.weight", shape, tensors, {"quantization_config": folder.settings}))
        return found


def _columns(words: int, bits: int) -> int:
    columns, rest = divmod(words * 32, bits)
    if rest or not words or columns % 32:
        raise FormatError(f"plane 'qweight' has {words} rows of words: no multiple of 32 codes of {bits} bits")
    return columns


FORMATS = {"squeezellm": SqueezeLlm()}
