"""LLM-FP4: floats of a few bits with a real exponent bias, arXiv 2310.16836 (github.com/nbasyl/LLM-FP4).

The research code has no packed format: these planes are what its simulation computes. A weight ``[out, in]``:

==========  ====  ==================  ========================================================================
plane       type  shape               content
==========  ====  ==================  ========================================================================
codes       U8    [out, in]           sign, E bits of exponent, M bits of mantissa, the sign in the highest bit
w_interval  F32   [out, 1] or [1, 1]  the exponent bias c of a row, or of the weight
==========  ====  ==================  ========================================================================

Parameters: ``config`` with ``w_bit`` = 1 + E + M (at most 8), ``w_exponent_bit`` E and ``w_mantissa_bit`` M.

w = ±(2^M + m) * 2^(e - M - c), or ±m * 2^(1 - M - c) where e is 0. The power of two is computed in float32 as
2^((max(e, 1) - M) - c), rounded once; its original's is off by up to two units in the last place.

Writer: c = 2^E - log2(a) + log2(2 - 2^-M) - 1 in float32 from left to right, where a is the largest magnitude of the
row (of the weight with the parameter ``per_tensor``); c is 0 where a is. e = max(floor(log2|w| + c), 1), and |w| over
its step is rounded to nearest, ties to even. What rounds to zero has code 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import Format, encoded, setting_bool, setting_int, settings
from subbyte.forms import ByteCodes, Form, RealBias
from subbyte.forms.real_bias import steps
from subbyte.planes import Plane


class LlmFp4(Format):
    """The format ``llm-fp4``."""

    id = "llm-fp4"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        exponent_bits, mantissa_bits = _fields(params)
        codes = _planes.get(planes, "codes", "U8", (None, None))
        if not codes.data.size:
            raise FormatError(f"plane 'codes' has shape {list(codes.shape)}: it is empty")
        biases = _planes.get(planes, "w_interval", "F32", (None, 1))
        if biases.shape[0] not in (1, codes.shape[0]):
            raise FormatError(
                f"plane 'w_interval' has shape {list(biases.shape)}: expected [{codes.shape[0]}, 1] or [1, 1]"
            )
        rows, columns = codes.shape
        stored = ByteCodes(codes.data, 1 + exponent_bits + mantissa_bits)
        return RealBias((rows, columns), stored, exponent_bits, mantissa_bits, biases)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        exponent_bits, mantissa_bits = _fields(params)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"LLM-FP4 stores matrices; the array has shape {list(source.shape)}")
        magnitudes = np.abs(source.float32())
        whole = setting_bool(params, "per_tensor", False)
        largest = magnitudes.max(axis=None if whole else 1, keepdims=True)
        with np.errstate(divide="ignore"):
            biases = np.float32(1 << exponent_bits) - np.log2(largest)
            biases = biases + np.log2(np.float32(2 - 2.0**-mantissa_bits)) - np.float32(1)
            biases = np.where(largest == 0, np.float32(0), biases)
            exponents = np.maximum(np.floor(np.log2(magnitudes) + biases), np.float32(1))
        units = np.rint(magnitudes / steps(exponents, mantissa_bits, biases)).astype(np.int64)
        # Rounded up to the next power of two: one exponent more, and the significand halves.
        carried = units >> (mantissa_bits + 1) > 0
        field = exponents.astype(np.int64) + carried
        units = np.where(carried, 1 << mantissa_bits, units)
        codes = np.where(units >> mantissa_bits > 0, (field << mantissa_bits) + units - (1 << mantissa_bits), units)
        codes = np.minimum(codes, (1 << (exponent_bits + mantissa_bits)) - 1)
        negative = (source.float32() < 0) & (codes > 0)
        codes |= negative.astype(np.int64) << (exponent_bits + mantissa_bits)
        planes = {"codes": Plane(codes.astype(np.uint8), "U8"), "w_interval": Plane(biases, "F32")}
        return encoded(self.id, planes, source.shape, params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        if not isinstance(form, RealBias) or len(form.shape) != 2:
            return super().write(form, params)
        if _fields(params) != (form.exponent_bits, form.mantissa_bits):
            raise UnsupportedError(
                f"codes of {form.exponent_bits} exponent and {form.mantissa_bits} mantissa bits, but 'config' says "
                f"{_fields(params)}"
            )
        return {"codes": Plane(form.codes.unpack(), "U8"), "w_interval": form.biases}


def _fields(params: Mapping[str, Any]) -> tuple[int, int]:
    """Bits of the exponent and of the mantissa."""
    config = settings(params, "config")
    bits = setting_int(config, "w_bit", allowed=range(3, 9))
    exponent = setting_int(config, "w_exponent_bit", allowed=range(1, 8))
    mantissa = setting_int(config, "w_mantissa_bit", allowed=range(8))
    if bits != 1 + exponent + mantissa:
        raise FormatError(
            f"'w_bit' is {bits}, but a sign, {exponent} exponent and {mantissa} mantissa bits are "
            f"{1 + exponent + mantissa}"
        )
    return exponent, mantissa


FORMATS = {"llm-fp4": LlmFp4()}
