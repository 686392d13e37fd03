"""What formats with tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import setting_int
from subbyte.planes import FLOATS, Plane
from subbyte.quantize.grid import checked_weights


def finite(
    planes: Mapping[str, Any], name: str, kinds: Sequence[str] | str = FLOATS, shape: Sequence[int | None] | None = None
) -> Plane:
    """The float plane ``name``, see `subbyte.planes.get`.

    Raises:
        FormatError: it holds NaN or infinity, too.
    """
    found = _planes.get(planes, name, kinds, shape)
    if not np.isfinite(found.float32()).all():
        raise FormatError(f"plane '{name}' holds NaN or infinity")
    return found


def check_setting(values: Mapping[str, Any], key: str, found: int, what: str) -> None:
    """Compares a setting, where it is given, with what the planes say.

    Raises:
        FormatError: they differ.
    """
    if setting_int(values, key, found) != found:
        raise FormatError(f"setting '{key}' is {values[key]}, but {what} {found}")


def check_shape(values: Mapping[str, Any], shape: Sequence[int], plane: str, key: str = "shape") -> None:
    """Compares a setting of sizes, where it is given, with those of the planes.

    Raises:
        FormatError: they differ.
    """
    given = values.get(key, list(shape))
    if not isinstance(given, Sequence) or isinstance(given, str) or list(given) != list(shape):
        raise FormatError(f"setting '{key}' is {given!r:.60}, but plane '{plane}' makes it {list(shape)}")


def matrix(array: Any, importance: Any) -> tuple[Plane, NDArray[np.float32]]:
    """A weight to encode, and the weights of its columns (1 without importance).

    Raises:
        UnsupportedError: it is no matrix with elements.
        ArgumentError: the importance does not fit.
        NonFiniteError: NaN or infinity.
    """
    source = _planes.source(array)
    if source.data.ndim != 2 or not source.data.size:
        raise UnsupportedError(f"the format stores matrices; the array has shape {list(source.shape)}")
    weights = checked_weights(importance, None, source.shape[1])
    return source, np.ones(source.shape[1], np.float32) if weights is None else weights


def sides(params: Mapping[str, Any], rows: int | None, columns: int | None) -> tuple[int, int]:
    """m and n (``out_features``, ``in_features``): those of the planes, if given, which settings have to agree with.

    Raises:
        FormatError: they do not agree, or are no sizes.
        ArgumentError: nothing says one.
    """
    found = []
    for keys, known in ((("m", "out_features"), rows), (("n", "in_features"), columns)):
        side = known
        for key in keys:
            if key in params:
                given = setting_int(params, key)
                if side not in (None, given) or not 0 < given < 1 << 31:
                    raise FormatError(f"setting '{key}' is {given}: expected {side or 'a number of 32 bits'}")
                side = given
        if side is None:
            raise ArgumentError(f"params lacks '{keys[0]}', the {'rows' if 'm' in keys else 'columns'} of the weight")
        found.append(side)
    return found[0], found[1]
