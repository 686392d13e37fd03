"""Canonical forms: what families of formats have in common, so that N formats need N mappings and not N².

A format's ``read`` turns stored planes into a form, its ``write`` a form into planes. Forms hold views of the planes
and decode ranges of rows.
"""

from subbyte.forms.affine import Affine, Biased, FloatZero
from subbyte.forms.base import Form
from subbyte.forms.coded import Coded
from subbyte.forms.codes import ByteCodes, ByteRowCodes, Codes, PackedCodes
from subbyte.forms.dual import DualScaled
from subbyte.forms.flat import NibbleCodes, SlabCodes
from subbyte.forms.low_rank import LowRank
from subbyte.forms.real_bias import RealBias
from subbyte.forms.row_table import RowTable
from subbyte.forms.scaled import BlockScaled, ColumnScaled, Microscaled
from subbyte.forms.table import QuantizedScales, Table
from subbyte.forms.ternary import Ternary
from subbyte.forms.tiled import CroppedCodes, ReshapedCodes, TiledCodes, Tiling
from subbyte.forms.two_level import TwoLevel

__all__ = [
    "Affine",
    "Biased",
    "BlockScaled",
    "ByteCodes",
    "ByteRowCodes",
    "Coded",
    "Codes",
    "ColumnScaled",
    "CroppedCodes",
    "DualScaled",
    "FloatZero",
    "Form",
    "LowRank",
    "Microscaled",
    "NibbleCodes",
    "PackedCodes",
    "QuantizedScales",
    "RealBias",
    "ReshapedCodes",
    "RowTable",
    "SlabCodes",
    "Table",
    "Ternary",
    "TiledCodes",
    "Tiling",
    "TwoLevel",
]
