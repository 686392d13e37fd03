"""How much a model loses when a tensor is stored in a type: predicted from the weights, nothing is run.

The loss of a tensor in a type is its relative squared error, weighted by importance where there are data, times how
much of the model's quality hangs on the tensor. The error is measured with the real encoder on sampled rows. The role
table comes from the first measurement of this kind (llama.cpp issue 1256: a 7B model, everything in two bits, one class
of tensors restored; the gain in perplexity): it ranks tensors, it does not predict a perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.recipe import Recipe
from subbyte.convert.types import Raw
from subbyte.convert.values import Importance, encode, to_float32
from subbyte.planning.mix import layer_number, tensor_class

ROLES: Mapping[str, float] = {
    "DOWN": 1.083, "V": 0.782, "UP": 0.566, "GATE": 0.392, "O": 0.390, "Q": 0.125, "K": 0.109, "EMB": 0.05,
    "OUT": 0.6, "": 0.4,
}  # fmt: skip
"""Share of the quality that hangs on all tensors of a class. Output and unnamed classes were not measured: a guess."""

_ENDS = 2.0
"""Factor for the first and the last layer."""

_SAMPLE = 1 << 16
"""Elements of a tensor that are tried."""

_PLACES = 16
"""Places in a tensor that the sample is spread over."""


def weights(recipes: Sequence[Recipe], layers: int) -> dict[str, float]:
    """How much of the model's quality hangs on each tensor, by name."""
    sizes: dict[str, int] = {}
    for recipe in recipes:
        role = tensor_class(recipe.name)
        sizes[role] = sizes.get(role, 0) + recipe.elements
    found = {}
    for recipe in recipes:
        role, layer = tensor_class(recipe.name), layer_number(recipe.name)
        found[recipe.name] = ROLES[role] * recipe.elements / sizes[role] * (_ENDS if layer in (0, layers - 1) else 1.0)
    return found


def relative_errors(
    recipe: Recipe, types: Sequence[str], importance: Callable[[str], Importance | None]
) -> dict[str, float]:
    """Squared error over squared norm of sampled rows, for each type; weighted by importance where there is any.

    Args:
        recipe: the tensor.
        types: ggml types.
        importance: importance of the tensor's columns for the encoder of a type.

    Raises:
        NonFiniteError: a sampled value is not finite.
        IoError: the source cannot be read.
    """
    vectors = next((found for name in types if (found := importance(name)) is not None), None)
    noise, signal = dict.fromkeys(types, 0.0), 0.0
    for first, raw in _samples(recipe):
        values = to_float32(recipe.type, raw, recipe.columns).astype(np.float64)
        scales = _scales(vectors, first, len(raw))
        signal += _sum(values * values * scales)
        for name in types:
            if name == recipe.type:
                continue
            own = importance(name)
            stored = (
                encode(recipe.type, raw, recipe.columns, name)
                if own is None
                else own.encode(recipe.type, raw, recipe.columns, name, first)
            )
            error = to_float32(name, stored, recipe.columns) - values
            noise[name] += _sum(error * error * scales)
    return {name: noise[name] / signal if signal else 0.0 for name in types}


def _samples(recipe: Recipe) -> Iterator[tuple[int, Raw]]:
    """Rows from evenly spread places: number of the first, and their bytes."""
    rows = min(recipe.rows, max(1, _SAMPLE // max(recipe.columns, 1)))
    places = min(rows, _PLACES)
    each = rows // places
    for place in range(places):
        first = (recipe.rows - each) * place // max(places - 1, 1)
        yield first, recipe.read(first, first + each)


def _scales(importance: Importance | None, first: int, count: int) -> NDArray[np.float64] | float:
    """Importance of the columns of ``count`` rows from number ``first`` on."""
    if importance is None:
        return 1.0
    return importance.load()[np.arange(first, first + count) // importance.rows].astype(np.float64)


def _sum(values: NDArray[np.float64]) -> float:
    return float(np.einsum("ij->", values))  # one fixed order, whatever the number of threads
