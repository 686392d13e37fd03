"""What formats with tables share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.errors import FormatError
from subbyte.formats.base import setting_int
from subbyte.planes import FLOATS, Plane


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
