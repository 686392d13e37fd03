"""Layers of a target checkpoint: what makes their planes, and the planes as rows of the files to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.arrays import as_bytes
from subbyte.convert.layers import Kept, LayerRows
from subbyte.convert.recipe import Recipe
from subbyte.convert.rows import ByteRange, Place, Rows, Selected, SourceTensor
from subbyte.convert.types import Raw, nbytes
from subbyte.convert.values import to_float32
from subbyte.errors import Error, FormatError
from subbyte.formats import checkpoint_format
from subbyte.forms import Form
from subbyte.planes import Plane
from subbyte.routes import blocks
from subbyte.routes.fit import MisfitError, Target

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Element type and shape by plane."""

#: Rows of the samples that tell the shapes of planes, a multiple of what any format divides rows by.
_SAMPLE = 256


def form_of(recipe: Recipe, *, look: bool = False) -> Form | None:
    """The canonical form of a recipe's tensor; None for floats.

    Args:
        recipe: a tensor of a checkpoint.
        look: for a decision: as little as possible is read.
    """
    content = recipe.content
    if isinstance(content, Selected) and content.swapped and isinstance(content.source, LayerRows):
        content = content.source  # the axes of a dense weight are exchanged, those of the form are not
    if isinstance(content, LayerRows):
        return content.layers.look(content.name) if look else content.layers.form(content.name)
    if recipe.type in (*blocks.BITS, "MXFP4", "NVFP4"):
        return blocks.form_of(recipe.type, recipe.read(0, recipe.rows), recipe.shape)
    return None


def values_of(recipe: Recipe) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of a recipe's tensor: float32, of its shape."""
    content = recipe.content.as_type("F32") if recipe.content.layered else recipe.content
    if content is None:
        content = recipe.content
    raw = content.read(0, content.rows)
    return to_float32(content.type, raw, content.columns).reshape(recipe.shape)


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A layer as the target stores it.

    Attributes:
        target: the format.
        recipe: the layer in the source.
        params: the format's parameters.
        options: what the user set.
        moved: its codes are moved; otherwise its values are encoded.
        kind: float type of the values that are encoded.
        kept: planes of the last few layers.
    """

    target: Target
    recipe: Recipe
    params: Mapping[str, Any]
    options: Mapping[str, Any]
    moved: bool
    kind: str
    kept: Kept

    def planes(self) -> dict[str, Plane]:
        """The planes, made once while the layer is worked on.

        Raises:
            Error: the source is not what the plan saw; the layer is named.
        """
        return self.kept(self.recipe.name, self._make)

    def _make(self) -> dict[str, Plane]:
        format = checkpoint_format(self.target.id)
        try:
            if not self.moved:
                values = _planes.float_plane(values_of(self.recipe), self.kind).array()
                encoded = format.encode(values, params=self.params, importance=None)
                return {name: _planes.plane(encoded[name]) for name in encoded}
            form = form_of(self.recipe)
            if form is None:
                raise FormatError("floats have no codes to move")
            fit = self.target.fit(form, self.options)
            return format.write(fit.form, self.params)
        except MisfitError as error:
            error.message += "; the source has changed, or it is remote and its values were not looked at"
            error.tensor = error.tensor or self.recipe.name
            raise
        except Error as error:
            error.tensor = error.tensor or self.recipe.name
            raise


@dataclass(frozen=True, eq=False)
class PlaneRows(Rows):
    """A plane of a target's layer.

    Attributes:
        layer: what makes it.
        plane: its name.
        type: element type, as safetensors names it.
        shape: as stored.
    """

    layer: TargetLayer
    plane: str
    type: str
    shape: tuple[int, ...]

    @property
    def ranges(self) -> list[ByteRange]:
        return self.layer.recipe.ranges

    def read(self, start: int, stop: int) -> Raw:
        found = self.layer.planes()[self.plane]
        if (found.kind, found.shape) != (self.type, self.shape):
            raise FormatError(
                f"plane '{self.plane}' became {found.kind} {list(found.shape)}: {self.type} {list(self.shape)} was "
                "planned",
                tensor=self.layer.recipe.name,
            )
        rows = np.ascontiguousarray(found.data).reshape(self.rows, -1)[start:stop]
        return as_bytes(np.ascontiguousarray(rows)).reshape(stop - start, self.row_bytes)

    @property
    def stored(self) -> str:
        return self.layer.recipe.content.stored

    def place(self, row: int, column: int) -> Place:
        size = nbytes("F32", self.layer.recipe.shape)
        name, shape = self.layer.recipe.name, self.layer.recipe.shape
        return Place(SourceTensor(name, "F32", shape, None, lambda start, count: np.zeros(size, np.uint8)), 0, 0)


def shapes(target: Target, params: Mapping[str, Any], shape: tuple[int, ...], kind: str) -> Shapes:
    """Element types and shapes of the planes of a weight, without making them.

    Planes of small weights are made to see; their sizes grow by steps with the rows.

    Args:
        target: the format.
        params: its parameters.
        shape: of the weight.
        kind: type of its scales or values.
    """
    return dict(_shapes(target.id, json.dumps(params, sort_keys=True), shape, kind))


@cache
def _shapes(id: str, params: str, shape: tuple[int, ...], kind: str) -> Shapes:
    decoded, format = json.loads(params), checkpoint_format(id)
    *leading, rows, columns = shape

    def sample(count: int) -> Shapes:
        values = np.random.default_rng(0).standard_normal((*leading, count, columns), np.float32)
        made = format.encode(_planes.float_plane(values, kind).array(), params=decoded, importance=None)
        return {name: (_planes.plane(made[name]).kind, made[name].shape) for name in made}

    if rows <= 2 * _SAMPLE or rows * columns * prod(leading) <= 1 << 16:
        return sample(rows)
    small, large = sample(_SAMPLE), sample(2 * _SAMPLE)
    grown: Shapes = {}
    for name, (plane_kind, first) in small.items():
        steps = [(b - a, a) for a, b in zip(first, large[name][1], strict=True)]
        grown[name] = plane_kind, tuple(a + ceil(step * (rows - _SAMPLE) / _SAMPLE) for step, a in steps)
    return grown
