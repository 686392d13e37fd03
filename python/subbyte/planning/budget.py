"""Types for a file of a given size: the tensors of a model as units, types as options, solved exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

from subbyte import _native
from subbyte.convert.recipe import Recipe
from subbyte.convert.types import nbytes
from subbyte.convert.values import Importance
from subbyte.errors import ArgumentError
from subbyte.ggml import TYPES
from subbyte.planning.allocate import Option, allocate
from subbyte.planning.mix import FILE_TYPES, FileType
from subbyte.planning.sensitivity import relative_errors, weights

TYPES_TRIED = ("Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
"""Types whose rows are multiples of 256 elements, and Q8_0."""

_WITH_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ2_S")
_SHORT_ROWS = ("Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip

_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kmgt]?i?)b?\s*")
_SIZES_END = 1 << 63

Load = Callable[[Recipe, str], Importance | None]


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``4.0GiB``, ``1.5g`` or ``3400000000``: k, m, g are powers of 1000, Ki, Mi, Gi of 1024.

    Raises:
        ArgumentError: it is none.
    """
    given = text.lower() if isinstance(text, str) else text
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < _SIZES_END:
        given = str(given)
    match = _SIZE.fullmatch(given) if isinstance(given, str) else None
    size = -1 if match is None or match[2] not in _UNITS else math.floor(Fraction(match[1]) * _UNITS[match[2]])
    if not 0 < size < _SIZES_END:
        found = repr(text) if isinstance(text, str) else str(text) if type(text) is int else type(text).__name__
        raise ArgumentError(f"target_size: expected a size such as 4.0GiB or 3.5GB, found {found:.80}")
    return size


def parse_bits(value: float) -> float:
    """Bits per weight: a number above 0, and at most the 64 of the widest type.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 64:
        found = value if isinstance(value, float) else type(value).__name__
        raise ArgumentError(f"target_bpw: expected a number of bits above 0 and up to 64, found {found}")
    return float(value)


def candidates(recipe: Recipe, kept: str, importance: Load) -> list[str]:
    """The types that a tensor may be stored in: those its rows fit, and the one that keeps its values."""
    wanted: tuple[str, ...] = TYPES_TRIED if recipe.columns % 256 == 0 else _SHORT_ROWS
    if recipe.columns % 256 == 0 and importance(recipe, "IQ2_XXS") is not None:
        wanted = (*_WITH_IMPORTANCE, *TYPES_TRIED)
    return [name for name in wanted if recipe.columns % TYPES[name].block == 0 and name != kept] + [kept]


def choose(
    recipes: Sequence[Recipe],
    kept: Mapping[str, str],
    layers: int,
    importance: Load,
    *,
    alignment: int,
    limit: Callable[[Mapping[str, str]], int],
) -> dict[str, str]:
    """The type of each tensor, so that the predicted loss is smallest.

    Args:
        recipes: the tensors to choose for.
        kept: the type of each that keeps its values.
        layers: number of layers of the model.
        importance: importance of a tensor's columns for the encoder of a type.
        alignment: what the bytes of a tensor are rounded up to.
        limit: bytes for these tensors, rounded up; is given the smallest type of each, and refuses if they are too
            large.

    Raises:
        ArgumentError: even the smallest types take more than the limit.
    """
    share = weights(recipes, layers)

    def measure(recipe: Recipe) -> list[tuple[str, Option]]:
        types = candidates(recipe, kept[recipe.name], importance)
        errors = relative_errors(recipe, types, lambda name: importance(recipe, name))
        return [
            (name, Option(_padded(nbytes(name, recipe.shape), alignment), share[recipe.name] * errors[name]))
            for name in types
        ]

    with ThreadPoolExecutor(max(2, min(_native.num_threads(), 8))) as pool:
        tables = dict(zip((recipe.name for recipe in recipes), pool.map(measure, recipes), strict=True))
    smallest = {name: min(table, key=lambda entry: entry[1].nbytes)[0] for name, table in tables.items()}
    found = allocate({name: [option for _, option in table] for name, table in tables.items()}, limit(smallest))
    return {name: tables[name][at][0] for name, at in found.chosen.items()}


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def nearest_file_type(share: Mapping[str, int]) -> FileType:
    """The file type to name a file of mixed types by: that of the type with the most bytes."""
    largest = max(share, key=lambda name: (share[name], name))
    matching = [kind for kind in FILE_TYPES.values() if kind.base == largest]
    preferred = [kind for kind in matching if kind.name.endswith("_M")] or matching
    return preferred[0] if preferred else FILE_TYPES["F32"]
