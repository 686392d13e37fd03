"""Forms of vector quantization: indices into tables of vectors, and what is added or put in order around them."""

from subbyte.forms.vector.additive import Additive, Book, Residual
from subbyte.forms.vector.bilevel import Bilevel
from subbyte.forms.vector.columns import Beside, ColumnAffine, Ordered, RowRange, Stacked
from subbyte.forms.vector.indices import ArrayIndices, BitIndices, Indices, StreamIndices
from subbyte.forms.vector.outliers import AddedRows, Outliers
from subbyte.forms.vector.rotated import HalfRotated, Rotated

__all__ = [
    "AddedRows",
    "Additive",
    "ArrayIndices",
    "Beside",
    "Bilevel",
    "BitIndices",
    "Book",
    "ColumnAffine",
    "HalfRotated",
    "Indices",
    "Ordered",
    "Outliers",
    "Residual",
    "Rotated",
    "RowRange",
    "Stacked",
    "StreamIndices",
]
