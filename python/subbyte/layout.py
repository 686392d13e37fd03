"""Where the blocks of the ggml types keep their scales and their codes, for looking into stored tensors.

Facts as in the layout tables of docs/formats/gguf.md. What a block decodes to is for the codecs to say; here are the
scales alone, as they are stored, and the range of values that the codes of a block span.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte.ggml import TYPES

Blocks = NDArray[np.uint8]
"""Blocks of one type: shape (blocks, bytes of a block)."""

Numbers = NDArray[Any]

SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022, "ue4m3": 2.0**-6}
"""Smallest normal number of the float types that have subnormal ones."""


@dataclass(frozen=True, slots=True)
class ScaleField:
    """One kind of scale in the blocks of a type.

    Attributes:
        name: what it scales: ``block scale``, ``sub-block minimum`` …
        type: how it is stored: ``f16``, ``f32``, ``e8m0``, ``ue4m3``; ``u`` or ``i`` and a number of bits.
        read: the stored numbers of blocks, float64 or integers, any shape.
    """

    name: str
    type: str
    read: Callable[[Blocks], Numbers]


@dataclass(frozen=True, slots=True)
class CodeRange:
    """The bytes of a block that hold codes, and the ends of the codes' range.

    Attributes:
        start, stop: the bytes.
        lowest, highest: a byte of the lowest and of the highest codes.
        below, above: half the step next to the lowest and the highest value, in units of the whole range.
    """

    start: int
    stop: int
    lowest: int
    highest: int
    below: float
    above: float

    def clipped(self, name: str, blocks: Blocks, values: NDArray[np.float32]) -> int:
        """How many ``values`` (one per element of the blocks of type ``name``) lie beyond what their block can reach.

        Beyond is more than half a step past the end of the range: less is what rounding does to any value.
        """
        ends = []
        for code in (self.lowest, self.highest):
            block = blocks.copy()
            block[:, self.start : self.stop] = code
            out = np.empty(values.shape, np.float32)
            _native.decode(name, block, values.size // len(blocks), "float32", out.view(np.uint8))
            ends.append(out)
        low, high = ends
        with np.errstate(all="ignore"):  # where the scale is 0 any other value is beyond the range, at ±infinity
            part = (values - low) / (high - low)
        return int(np.count_nonzero((part < -self.below) | (part > 1 + self.above)))


def as_blocks(name: str, raw: NDArray[np.uint8]) -> Blocks:
    """Stored bytes of type ``name`` (any shape) as blocks."""
    return np.ascontiguousarray(raw).reshape(-1, TYPES[name].block_bytes)


def _words(b: Blocks, start: int, stop: int, dtype: str) -> Numbers:
    return np.ascontiguousarray(b[:, start:stop]).view(dtype)


def _f16(name: str, at: int) -> ScaleField:
    return ScaleField(name, "f16", lambda b: _words(b, at, at + 2, "<f2").astype(np.float64))


def _nibbles(name: str, start: int, stop: int) -> ScaleField:
    """4-bit scales, low nibble first."""
    return ScaleField(name, "u4", lambda b: np.stack([b[:, start:stop] & 15, b[:, start:stop] >> 4], axis=-1))


def _tops(name: str, start: int, stop: int, step: int) -> ScaleField:
    """4-bit scales in the high nibbles of every ``step``-th byte."""
    return ScaleField(name, "u4", lambda b: b[:, start:stop:step] >> 4)


def _k_scales(b: Blocks, minimum: bool) -> Numbers:
    """The 6-bit scales or minimums of Q4_K and Q5_K, from their 12 bytes at offset 4."""
    first, last = b[:, 8:12] if minimum else b[:, 4:8], b[:, 12:16]
    low = last >> 4 if minimum else last & 15
    return np.concatenate([first & 63, low | (first >> 6) << 4], axis=1)


def _q3_k_scales(b: Blocks) -> Numbers:
    low = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], axis=1)
    high = np.concatenate([b[:, 104:108] >> 2 * part & 3 for part in range(4)], axis=1)
    found: Numbers = (low | high << 4).astype(np.int8) - np.int8(32)
    return found


def _iq4_xs_scales(b: Blocks) -> Numbers:
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = (_words(b, 2, 4, "<u2") >> (2 * np.arange(8, dtype=np.uint16))) & 3
    found: Numbers = (low | high << 4).astype(np.int8) - np.int8(32)
    return found


def _iq1_m_words(b: Blocks) -> Numbers:
    return _words(b, 48, 56, "<u2")


def _iq1_m_scale(b: Blocks) -> Numbers:
    top = _iq1_m_words(b) >> 12 << (4 * np.arange(4, dtype=np.uint16))
    found: Numbers = np.bitwise_or.reduce(top, axis=1).astype(np.uint16).view(np.float16).astype(np.float64)
    return found


def _e8m0(b: Blocks) -> Numbers:
    return np.where(b[:, 0] == 255, np.nan, np.ldexp(1.0, b[:, 0].astype(np.int32) - 127))


def _ue4m3_table() -> NDArray[np.float64]:
    code = np.arange(128)
    table = np.where(code < 8, code / 512, np.ldexp(1 + (code & 7) / 8, (code >> 3) - 7))
    table[127] = np.nan
    return np.tile(table, 2)  # the sign bit has no meaning


_UE4M3 = _ue4m3_table()
_D, _M, _SUB, _SUBMIN = "block scale", "block minimum", "sub-block scale", "sub-block minimum"

SCALES: dict[str, tuple[ScaleField, ...]] = {
    **{name: (_f16(_D, 0),) for name in ("Q4_0", "Q5_0", "Q8_0", "Q1_0", "Q2_0", "IQ4_NL")},
    **{name: (_f16(_D, 0), _f16(_M, 2)) for name in ("Q4_1", "Q5_1")},
    "Q8_1": (_f16(_D, 0), _f16("block sum", 2)),
    "Q8_K": (ScaleField(_D, "f32", lambda b: _words(b, 0, 4, "<f4").astype(np.float64)),),
    "Q2_K": (
        _f16(_D, 80), _f16(_M, 82), ScaleField(_SUB, "u4", lambda b: b[:, :16] & 15),
        ScaleField(_SUBMIN, "u4", lambda b: b[:, :16] >> 4),
    ),
    "Q3_K": (_f16(_D, 108), ScaleField(_SUB, "i6", _q3_k_scales)),
    **{
        name: (
            _f16(_D, 0), _f16(_M, 2), ScaleField(_SUB, "u6", lambda b: _k_scales(b, False)),
            ScaleField(_SUBMIN, "u6", lambda b: _k_scales(b, True)),
        )
        for name in ("Q4_K", "Q5_K")
    },
    "Q6_K": (_f16(_D, 208), ScaleField(_SUB, "i8", lambda b: b[:, 192:208].view(np.int8))),
    "IQ4_XS": (_f16(_D, 0), ScaleField(_SUB, "i6", _iq4_xs_scales)),
    "IQ2_XXS": (_f16(_D, 0), _tops(_SUB, 9, 66, 8)),
    "IQ2_XS": (_f16(_D, 0), _nibbles(_SUB, 66, 74)),
    "IQ2_S": (_f16(_D, 0), _nibbles(_SUB, 74, 82)),
    "IQ3_XXS": (_f16(_D, 0), _tops(_SUB, 69, 98, 4)),
    "IQ3_S": (_f16(_D, 0), _nibbles(_SUB, 106, 110)),
    "IQ1_S": (_f16(_D, 0), ScaleField(_SUB, "u3", lambda b: _words(b, 34, 50, "<u2") >> 12 & 7)),
    "IQ1_M": (
        ScaleField(_D, "f16", _iq1_m_scale),
        ScaleField(_SUB, "u3", lambda b: _iq1_m_words(b)[:, :, None] >> (3 * np.arange(4, dtype=np.uint16)) & 7),
    ),
    "TQ1_0": (_f16(_D, 52),),
    "TQ2_0": (_f16(_D, 64),),
    "MXFP4": (ScaleField(_D, "e8m0", _e8m0),),
    "NVFP4": (ScaleField(_SUB, "ue4m3", lambda b: _UE4M3[b[:, :4]]),),
}  # fmt: skip
"""The scales of each type that has blocks; UE4M3's 0x7F counts as NaN, though ggml decodes it to 0."""


def _even(start: int, stop: int, steps: int, lowest: int = 0x00, highest: int = 0xFF) -> CodeRange:
    """Codes of ``steps`` equal steps."""
    return CodeRange(start, stop, lowest, highest, 0.5 / steps, 0.5 / steps)


CODES: dict[str, CodeRange] = {
    "Q4_0": _even(2, 18, 15), "Q4_1": _even(4, 20, 15), "Q5_0": _even(2, 22, 31), "Q5_1": _even(4, 24, 31),
    "Q8_0": _even(2, 34, 255, 0x80, 0x7F), "Q8_K": _even(4, 260, 255, 0x80, 0x7F),
    "Q1_0": _even(2, 18, 1), "Q2_0": _even(2, 18, 3),
    "Q2_K": _even(16, 80, 3), "Q3_K": _even(0, 96, 7), "Q4_K": _even(16, 144, 15), "Q5_K": _even(16, 176, 31),
    "Q6_K": _even(0, 192, 63),
    "TQ1_0": _even(0, 52, 2), "TQ2_0": _even(0, 64, 2, 0x00, 0xAA),
    "IQ4_NL": CodeRange(2, 18, 0x00, 0xFF, 11.5 / 240, 12 / 240),
    "IQ4_XS": CodeRange(8, 136, 0x00, 0xFF, 11.5 / 240, 12 / 240),
    "MXFP4": CodeRange(1, 17, 0xFF, 0x77, 1 / 12, 1 / 12), "NVFP4": CodeRange(4, 36, 0xFF, 0x77, 1 / 12, 1 / 12),
}  # fmt: skip
"""The codes of the types whose elements have a range each. The IQ1, IQ2 and IQ3 types choose rows of a grid instead."""

_FLOAT_ENDS = {"F16": 65520.0, "BF16": (2 - 2**-8) * 2.0**127}
"""Half a step past the largest finite number."""


def can_clip(name: str) -> bool:
    """Whether :func:`clipped` has a meaning for values stored as type ``name``."""
    return name in CODES or name in _FLOAT_ENDS


def clipped(name: str, raw: NDArray[np.uint8], values: NDArray[np.float32]) -> int:
    """How many ``values`` lie beyond the range of what they were stored as.

    Args:
        name: ggml type with :func:`can_clip`.
        raw: the stored bytes.
        values: what was to be stored, one for each element.
    """
    if name in _FLOAT_ENDS:
        return int(np.count_nonzero(np.abs(values) >= _FLOAT_ENDS[name]))
    return CODES[name].clipped(name, as_blocks(name, raw), values.reshape(-1)) if values.size else 0
