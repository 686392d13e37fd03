"""Layers of a target checkpoint: what makes their planes, and the planes as rows of the files to write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any

import numpy as np

from subbyte import planes as _planes
from subbyte.arrays import Array, as_bytes
from subbyte.convert.layers import Kept, LayerRows
from subbyte.convert.recipe import Recipe
from subbyte.convert.rows import Blocks, ByteRange, Place, Rows, Selected, SourceTensor
from subbyte.convert.source import stored_tensor
from subbyte.convert.types import Raw, nbytes, quantized
from subbyte.convert.values import to_float32
from subbyte.errors import Error, FormatError
from subbyte.formats import CodecFormat, checkpoint_format, get_format
from subbyte.formats.ranges import encode_ranges
from subbyte.forms import Form
from subbyte.forms.sample import sample, signature
from subbyte.ggml import PLANE
from subbyte.planes import Plane
from subbyte.routes import blocks
from subbyte.routes.fit import COMPANIONS, MisfitError, Stored, Target

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
    layer = _layer_rows(recipe)
    if layer is not None:
        return blocks.canonical(layer.layers.look(layer.name) if look else layer.layers.form(layer.name))
    if recipe.type in (*blocks.BITS, "MXFP4", "NVFP4"):
        return blocks.form_of(recipe.type, recipe.read(0, recipe.rows), recipe.shape)
    return None


def _layer_rows(recipe: Recipe) -> LayerRows | None:
    """The rows of the layer that a recipe is made of, if it is."""
    content = recipe.content
    if isinstance(content, Selected) and content.swapped and isinstance(content.source, LayerRows):
        content = content.source  # the axes of a dense weight are exchanged, those of the form are not
    return content if isinstance(content, LayerRows) else None


def transposed(recipe: Recipe) -> bool:
    """Whether the axes of a tensor are exchanged against those of its form."""
    layer = _layer_rows(recipe)
    return layer is not None and layer is not recipe.content


def kept_planes(recipe: Recipe) -> tuple[Stored, dict[str, Rows]] | None:
    """A quantized layer as the source stores it, and its planes; None for floats, and for layers put together anew.

    ``params`` are ``format``, the id of its format, and ``params``, what that format takes.
    """
    layer = _layer_rows(recipe)
    if layer is None:
        if recipe.content.layered or not quantized(recipe.type):
            return None
        found = {"format": f"gguf.{recipe.type.lower()}", "params": {}}
        return Stored(found, recipe.shape, (PLANE,)), {PLANE: Blocks(recipe.content)}
    own, tensors = layer.layers[layer.name], layer.layers.tensors
    id = own.format or layer.layers.format or ""
    params = {} if isinstance(get_format(id), CodecFormat) else dict(own.params)
    planes: dict[str, Rows] = {
        plane: stored_tensor(tensors, name, tensors[name].dtype)
        for plane, name in own.planes.items()
        if plane not in COMPANIONS
    }
    return Stored({"format": id, "params": params}, layer.shape, tuple(planes), own.transposed), planes


def companions_of(recipe: Recipe) -> dict[str, Plane]:
    """The planes of a layer that are no part of its weight (`COMPANIONS`), by the name of their tensor."""
    layer = _layer_rows(recipe)
    if layer is None:
        return {}
    tensors, planes = layer.layers.tensors, layer.layers[layer.name].planes
    return {
        name: _planes.stored(tensors.raw(name), tensors[name].dtype, tensors[name].shape)
        for plane, name in planes.items()
        if plane in COMPANIONS
    }


def held(name: str, plane: Plane) -> SourceTensor:
    """A small plane that is kept until it is written, as rows."""
    raw = as_bytes(np.ascontiguousarray(plane.data)).reshape(-1)
    return SourceTensor(name, plane.kind, plane.shape, None, lambda start, count: raw[start : start + count])


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
                method = {"method": self.options["method"]} if "method" in self.options else {}
                return encode_ranges(format, self._floats(), self.recipe.shape, {**self.params, **method})
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

    def _floats(self) -> Callable[[int, int], Array]:
        """Reads rows of the source as floats of type ``kind``."""
        content = self.recipe.content
        values = (content.as_type("F32") if content.layered else None) or content

        def read(start: int, stop: int) -> Array:
            found = to_float32(values.type, values.read(start, stop), values.columns)
            return _planes.float_plane(found, self.kind).array()

        return read


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
    def whole(self) -> bool:
        return True

    @property
    def stored(self) -> str:
        return self.layer.recipe.content.stored

    def place(self, row: int, column: int) -> Place:
        size = nbytes("F32", self.layer.recipe.shape)
        name, shape = self.layer.recipe.name, self.layer.recipe.shape
        where = next(iter(self.ranges), None)
        return Place(SourceTensor(name, "F32", shape, where, lambda start, count: np.zeros(size, np.uint8)), 0, 0)


def shapes(target: Target, params: Mapping[str, Any], shape: tuple[int, ...], kind: str) -> Shapes:
    """Element types and shapes of the planes that floats are encoded to, without encoding all of them.

    Args:
        target: the format.
        params: its parameters.
        shape: of the weight.
        kind: type of its values.
    """
    return dict(_encoded_shapes(target.id, json.dumps(params, sort_keys=True), shape, kind, target.whole))


def moved_shapes(target: Target, params: Mapping[str, Any], form: Form) -> Shapes:
    """Element types and shapes of the planes that a form is written to, without writing all of it.

    Args:
        target: the format.
        params: its parameters.
        form: what it holds.
    """
    key = (target.id, json.dumps(params, sort_keys=True), signature(form))
    if key not in _moved:
        if len(_moved) >= _MOST_SHAPES:
            _moved.clear()
        _moved[key] = _written_shapes(target, params, form)
    return dict(_moved[key])


_moved: dict[Any, Shapes] = {}
_MOST_SHAPES = 1024


def _written_shapes(target: Target, params: Mapping[str, Any], form: Form) -> Shapes:
    format = checkpoint_format(target.id)

    def write(matrices: int, rows: int) -> Shapes | None:
        part = form if (matrices, rows) == (0, 0) else sample(form, matrices, rows)
        return None if part is None else _shapes_of(format.write(part, params))

    found = None if target.whole else _grown(form.shape, write)
    return found or write(0, 0) or {}


@cache
def _encoded_shapes(id: str, params: str, shape: tuple[int, ...], kind: str, whole: bool) -> Shapes:
    decoded, format = json.loads(params), checkpoint_format(id)
    *leading, _, columns = shape

    def encode(matrices: int, rows: int) -> Shapes:
        part = (*((matrices,) if leading else ()), rows, columns) if matrices else shape
        values = np.random.default_rng(0).standard_normal(part, np.float32)
        made = format.encode(_planes.float_plane(values, kind).array(), params=decoded, importance=None)
        return _shapes_of({name: _planes.plane(made[name]) for name in made})

    return (None if whole else _grown(shape, encode)) or encode(0, 0)


def _shapes_of(planes: Mapping[str, Plane]) -> Shapes:
    return {name: (plane.kind, plane.shape) for name, plane in planes.items()}


def _grown(shape: tuple[int, ...], make: Callable[[int, int], Shapes | None]) -> Shapes | None:
    """The planes of a large weight, from those of small ones that ``make`` gives for numbers of matrices and rows.

    Their sizes grow by steps with the rows, and with the matrices. None where the weight is small, or has no parts.
    """
    *leading, rows, _ = shape
    if len(leading) > 1 or rows <= 2 * _SAMPLE or prod(shape) <= 1 << 16:
        return None
    small, large = make(1, _SAMPLE), make(1, 2 * _SAMPLE)
    double = make(2, _SAMPLE) if leading and leading[0] > 1 else small
    if small is None or large is None or double is None:
        return None
    grown: Shapes = {}
    for name, (kind, first) in small.items():
        sides = []
        for one, taller, two in zip(first, large[name][1], double[name][1], strict=True):
            side = one + ceil((taller - one) * (rows - _SAMPLE) / _SAMPLE)
            sides.append(side * leading[0] if two == 2 * one and leading and leading[0] > 1 else side)
        grown[name] = kind, tuple(sides)
    return grown
