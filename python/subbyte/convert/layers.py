"""The quantized layers of a checkpoint as rows: as ggml blocks that hold their codes, or as floats.

Decisions (which type holds a layer exactly) look at scales and zero points through mapped files; the work itself reads
the planes of one layer at a time, so that memory does not grow with the model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from subbyte.arrays import as_bytes
from subbyte.checkpoint import Checkpoint
from subbyte.convert.rows import ByteRange, Place, Rows, Selected, SourceTensor
from subbyte.convert.types import FLOATS, Raw, nbytes
from subbyte.errors import Error
from subbyte.formats import read_layer
from subbyte.formats.base import Layer
from subbyte.forms import Affine, Biased, Coded, Form, Microscaled, Ternary
from subbyte.io import remote
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planes import Plane, stored
from subbyte.routes import blocks
from subbyte.routes.fit import Grade, MisfitError

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_MOST_LOOKED_AT = 64 << 20
"""Bytes of layers whose mapped pages may be in memory at the same time."""

T = TypeVar("T")


class Kept:
    """The results of the last few calls: units of neighbouring layers are worked on at the same time."""

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._found: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once while it is among the last few that were asked for."""
        with self._lock:
            made: Future[T] | None = self._found.get(key)
            mine = made is None
            if made is None:
                while len(self._found) >= self._most:
                    self._found.popitem(last=False)  # before the next one needs its memory
                made = self._found[key] = Future()
            else:
                self._found.move_to_end(key)
        if mine:
            try:
                made.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._found.pop(key, None)
                made.set_exception(error)
        return made.result()


class Moved(NamedTuple):
    """How well blocks hold a layer, and the scale of the whole tensor beside them."""

    grade: Grade
    scale: float


class Layers(Mapping[str, Layer]):
    """The quantized layers of a checkpoint by the name of the dense weight.

    Attributes:
        format: format id; None for a dense checkpoint.
        tensors: the checkpoint's tensors, not mapped.
        notes: what is stale or odd but harmless.
    """

    def __init__(self, path: remote.Place) -> None:
        """Opens a checkpoint folder or file; errors are those of `subbyte.open`."""
        self._mapped = Checkpoint.open(path)
        self.path = path
        self.format = self._mapped.format
        self.notes = self._mapped.notes
        self.config = self._mapped.config
        opened = self._mapped.source
        shared = isinstance(opened, SafetensorsFile) and isinstance(path, remote.RemotePath)  # which is never mapped
        self.tensors: SafetensorsFile = cast(SafetensorsFile, opened) if shared else SafetensorsFile(path, mmap=False)
        self._layers = {name: weight.layer for name, weight in self._mapped.items() if weight.layer is not None}
        self.kept, self._looked = Kept(), Kept()
        self._looked_at = 0
        self._held: dict[tuple[str, str], Moved | MisfitError] = {}

    def __getitem__(self, name: str) -> Layer:
        return self._layers[name]

    def __iter__(self) -> Any:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @cached_property
    def planes(self) -> dict[str, str]:
        """The layer of each tensor that is a plane of one."""
        return {tensor: name for name, layer in self._layers.items() for tensor in layer.planes.values()}

    def look(self, name: str) -> Form:
        """The layer's form for decisions: views of mapped files, of which only what is looked at is read.

        The values of a remote layer are not looked at: its planes are ones, which fit wherever the types do.
        """
        if isinstance(self.path, remote.RemotePath):
            return self._form(name, _assumed, without=self._in_order(name))
        found: Form = self._looked(name, lambda: self._look(name))
        return found

    def _look(self, name: str) -> Form:
        self._looked_at += self.nbytes(name)
        if self._looked_at > _MOST_LOOKED_AT and isinstance(self._mapped.source, SafetensorsFile):
            self._mapped.source.release()
            self._looked_at = 0
        return self._mapped[name].form()

    def _in_order(self, name: str) -> frozenset[str]:
        """The plane that tells the group of each column, where the settings say that it tells nothing (GPTQ)."""
        settings = self._layers[name].params.get("quantization_config")
        ordered = isinstance(settings, Mapping) and settings.get("desc_act") is False
        return frozenset({"g_idx"}) if ordered else frozenset()

    def held(self, name: str, type: str) -> Moved:
        """How well blocks of ``type`` hold the layer; found out once.

        Raises:
            MisfitError: they do not.
        """
        found = self._held.get((name, type))
        if found is None:
            try:
                fit = blocks.fit(self.look(name), type)
                multiplier = fit.form.multiplier if isinstance(fit.form, Microscaled) else None
                found = Moved(fit.grade, 1.0 if multiplier is None else float(multiplier))
            except MisfitError as error:
                found = error
            self._held[name, type] = found
        if isinstance(found, MisfitError):
            raise found
        return found

    def form(self, name: str) -> Form:
        """The layer's form for work: its planes are read, and kept while neighbours are worked on."""
        return self.kept(("form", name), lambda: self._form(name, _read))

    def _form(
        self, name: str, read: Callable[[SafetensorsFile, str], Plane], without: frozenset[str] = frozenset()
    ) -> Form:
        layer = self._layers[name]
        try:
            planes = {
                plane: read(self.tensors, tensor) for plane, tensor in layer.planes.items() if plane not in without
            }
            return read_layer(self.format or "", layer, planes)
        except Error as error:
            first = self.tensors[next(iter(layer.planes.values()))]
            error.file, error.tensor = error.file or first.path, error.tensor or name
            raise

    def ranges(self, name: str) -> list[ByteRange]:
        """The parts of the files that hold the layer."""
        tensors = [self.tensors[tensor] for tensor in self._layers[name].planes.values()]
        return [ByteRange(tensor.path, tensor.offset, tensor.nbytes) for tensor in tensors]

    def nbytes(self, name: str) -> int:
        """Bytes of the layer in the source."""
        return sum(part.nbytes for part in self.ranges(name))


def _read(tensors: SafetensorsFile, name: str) -> Plane:
    tensor = tensors[name]
    return stored(tensors.raw(name), tensor.dtype, tensor.shape)


def _assumed(tensors: SafetensorsFile, name: str) -> Plane:
    tensor = tensors[name]
    if tensor.nbytes <= 4096 or (name.endswith("g_idx") and tensor.nbytes <= 1 << 20):
        return _read(tensors, name)
    size = tensor.nbytes // max(prod(tensor.shape), 1)
    one = stored(np.ones(size, np.uint8), tensor.dtype, (1,))
    if tensor.dtype in FLOATS:
        one = Plane(np.ones(1, np.float32 if tensor.dtype == "F32" else np.float16), tensor.dtype)
        if tensor.dtype == "BF16":
            one = Plane(np.full(1, 0x3F80, np.uint16), "BF16")
    return Plane(np.broadcast_to(one.data, tensor.shape), tensor.dtype)


@dataclass(frozen=True, eq=False)
class LayerRows(Rows):
    """The rows of a quantized layer.

    Attributes:
        layers: where it is from.
        name: of the dense weight.
        shape: dense shape.
        type: F32, F16, BF16, or a ggml type whose blocks hold the layer's codes.
        held: how well they do; None for floats.
    """

    layers: Layers
    name: str
    shape: tuple[int, ...]
    type: str
    held: Moved | None = None

    @property
    def layered(self) -> bool:
        return True

    @property
    def ranges(self) -> list[ByteRange]:
        return self.layers.ranges(self.name)

    def read(self, start: int, stop: int) -> Raw:
        if self.type not in FLOATS:
            return self.layers.kept((self.type, self.name), self._assembler).rows(start, stop)
        form = self.layers.form(self.name)
        values = form.decode_rows(slice(start, stop), _DTYPES[self.type])
        return as_bytes(np.ascontiguousarray(values)).reshape(stop - start, -1)

    def _assembler(self) -> blocks.Assembler:
        form = self.layers._form(self.name, _read)
        try:
            return blocks.Assembler(blocks.fit(form, self.type).form, self.type)
        except MisfitError as error:
            error.tensor = self.name
            raise

    def as_type(self, type: str) -> LayerRows | None:
        if type in FLOATS:
            return replace(self, type=type, held=None)
        try:
            return replace(self, type=type, held=self.layers.held(self.name, type))
        except MisfitError:
            return None

    def misfit(self, type: str) -> str:
        try:
            self.layers.held(self.name, type)
        except MisfitError as error:
            return error.message
        return ""

    def place(self, row: int, column: int) -> Place:
        size = nbytes("F32", self.shape)
        stand_in = SourceTensor(self.name, "F32", self.shape, None, lambda start, count: np.zeros(size, np.uint8))
        return Place(stand_in, row, column)

    @property
    def stored(self) -> str:
        return (self.layers[self.name].format or self.layers.format or "").removeprefix("gguf.").upper()

    @property
    def grades(self) -> list[Grade]:
        return [] if self.held is None else [self.held.grade]

    @property
    def tensor_scales(self) -> list[float]:
        return [] if self.held is None or self.type != "NVFP4" else [self.held.scale]


def layer_of(rows: Rows) -> tuple[Layers, str]:
    """The layer whose floats `float_rows` gave: its checkpoint and its name."""
    if isinstance(rows, Selected):
        rows = rows.source
    if not isinstance(rows, LayerRows):
        raise TypeError(f"expected the rows of a layer, found {rows!r}")
    return rows.layers, rows.name


def float_rows(layers: Layers, name: str) -> Rows:
    """The rows of a layer as F32."""
    layer = layers[name]
    if layer.transposed:
        *leading, rows, columns = layer.shape
        stored = LayerRows(layers, name, (*leading, columns, rows), "F32")
        return Selected(stored, (prod(leading), columns, rows), (slice(None), slice(None)), swapped=True)
    return LayerRows(layers, name, layer.shape, "F32")


def layer_rows(layers: Layers, name: str) -> Rows:
    """The rows of a layer in the type that holds its codes, F32 where none does."""
    floats = float_rows(layers, name)
    if not isinstance(floats, LayerRows):
        return floats
    for type in _candidates(layers.look(name)):
        found = floats.as_type(type)
        if found is not None and found.held is not None and found.held.grade.kind != "rounded":
            return found
    return floats


def _candidates(form: Form) -> tuple[str, ...]:
    """Types that may hold the codes of a form, smallest first."""
    if isinstance(form, Coded):
        return () if form.ggml_type is None else (form.ggml_type,)
    if isinstance(form, Biased):
        return ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    if isinstance(form, Affine):
        smallest = {1: 0, 2: 0, 3: 0, 4: 0, 5: 1}.get(form.codes.bits, 2)
        return ("Q4_0", "Q5_0", "Q8_0")[smallest:]
    if isinstance(form, Ternary):
        return ("TQ2_0", "Q4_0")
    if isinstance(form, Microscaled):
        return ("MXFP4", "NVFP4")
    return ("Q8_0",)
