"""What HQQ and SINQ share: packed codes in slabs, and the names of their packings.

A packing names the bits of a field and the item: ``4bit_u8`` has two fields of 4 bits in a byte, ``3bit_32`` ten of 3
bits in a word. The first field is the highest; see `SlabCodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subbyte.errors import FormatError
from subbyte.forms.flat import SlabCodes
from subbyte.planes import Plane

#: Torch's names of types, and the only ones that are understood: the originals evaluate the text.
DTYPES: Mapping[str, str] = MappingProxyType({"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"})
DTYPE_NAMES = {kind: name for name, kind in DTYPES.items()}


class Packing(NamedTuple):
    """How codes are packed.

    Attributes:
        kind: element type of an item, U8 or I32.
        fields: codes in an item.
        field_bits: bits of a field.
        padded: rows may be padded to a multiple of the fields.
    """

    kind: str
    fields: int
    field_bits: int
    padded: bool


PACKINGS: Mapping[str, Packing] = MappingProxyType({
    "8bit_u8": Packing("U8", 1, 8, False), "4bit_u8": Packing("U8", 2, 4, False), "2bit_u8": Packing("U8", 4, 2, False),
    "1bit_u8": Packing("U8", 8, 1, False), "3bit_32": Packing("I32", 10, 3, True),
    "5bit_32": Packing("I32", 6, 5, True), "6bit_32": Packing("I32", 5, 6, True),
})  # fmt: skip


def slab_codes(plane: Plane, packing: str, bits: int, shape: tuple[int, int], width: int) -> SlabCodes:
    """The codes of a weight ``shape`` from its items, in rows of ``width``.

    Raises:
        FormatError: type, shape and packing do not fit together.
    """
    found = PACKINGS[packing]
    elements = prod(shape)
    if bits > found.field_bits:
        raise FormatError(f"packing '{packing}' has no room for codes of {bits} bits")
    if not width or elements % width:
        raise FormatError(f"a weight {list(shape)} cannot be cut into rows of {width}")
    rows = elements // width
    if not found.padded and rows % found.fields:
        raise FormatError(f"{rows} rows of codes are no multiple of the {found.fields} codes in a byte of '{packing}'")
    if plane.kind != found.kind or plane.shape != (-(-rows // found.fields), width):
        raise FormatError(
            f"plane 'W_q' holds {plane.kind} {list(plane.shape)}: expected {found.kind} "
            f"{[-(-rows // found.fields), width]} for a weight {list(shape)} packed as '{packing}'"
        )
    return SlabCodes(plane.data, bits, shape, found.fields, found.field_bits)


def pack_slabs(codes: NDArray[np.uint8], packing: str, width: int) -> Plane:
    """The items of codes, the plane ``W_q``."""
    found = PACKINGS[packing]
    return Plane(SlabCodes.pack(codes, width, found.fields, found.field_bits, found.kind), found.kind)


def matrix_shape(value: Any) -> tuple[int, int]:
    """The two dimensions of a weight.

    Raises:
        FormatError: it is anything but two positive numbers of a size that exists.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 40 for size in value)
    ):
        raise FormatError(f"shape is {value!r:.60}: expected two positive numbers")
    return value[0], value[1]
