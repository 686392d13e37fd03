"""What a conversion writes: files of tensors and small files, each known to the byte before anything is written.

A plan is one file (GGUF), or a folder of them: tensors in shards, an index, and whole small files, made or copied.
Every target format comes down to this; :mod:`subbyte.convert.run` writes any of them with one journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subbyte._native import FilePlan
from subbyte.convert.recipe import Recipe
from subbyte.convert.source import Source
from subbyte.convert.types import nbytes
from subbyte.convert.values import Importance
from subbyte.sidefiles import SmallFile

__all__ = ["Plan", "SmallFile", "TensorFile", "TensorPlan"]


@dataclass(frozen=True, slots=True)
class Part:
    """The layer that a tensor is a plane of.

    Attributes:
        layer: name of the dense weight.
        elements: of the dense weight.
        source_nbytes: bytes of the layer in the source; 0 for every plane but the first.
    """

    layer: str
    elements: int
    source_nbytes: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the target.

    Attributes:
        recipe: where its values come from.
        type: ggml type or safetensors dtype it is stored as; rows of a recipe of the same type are written as they are.
        shape: shape in the file, NumPy order.
        kind: what happens to the values (:func:`~subbyte.convert.values.kind`).
        importance: weights of the columns; ``None`` without.
        why: what rounds and by how much at most, or why codes cannot be moved; empty where there is nothing to say.
        bound: largest relative change of a parameter that rounds.
        part: the layer that it is a plane of; ``None`` for a tensor of its own.
    """

    recipe: Recipe
    type: str
    shape: tuple[int, ...]
    kind: str
    importance: Importance | None = None
    why: str = ""
    bound: float = 0.0
    part: Part | None = None

    @property
    def name(self) -> str:
        """Name in the target."""
        return self.recipe.name

    @property
    def nbytes(self) -> int:
        """Bytes in the target."""
        return nbytes(self.type, self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file of tensors.

    Attributes:
        name: its name in the folder; empty where it is all there is.
        tensors: in file order.
        layout: its header, the places of the tensors, its size.
    """

    name: str
    tensors: tuple[TensorPlan, ...]
    layout: FilePlan


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will write.

    Attributes:
        source: the model.
        to: the target's name.
        files: files of tensors, in order.
        small: further files of a folder, in the order they are written.
        options: what the user asked for, as JSON data.
        folder: whether the target is a folder.
    """

    source: Source
    to: str
    files: tuple[TensorFile, ...]
    options: Mapping[str, Any]
    small: tuple[SmallFile, ...] = ()
    folder: bool = False

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """The tensors of all files."""
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def nbytes(self) -> int:
        """Exact size of all files."""
        return sum(file.layout.nbytes for file in self.files) + sum(len(file.data) for file in self.small)

    @property
    def sizes(self) -> dict[str, int]:
        """Exact size of each file of a folder."""
        tensors = {file.name: file.layout.nbytes for file in self.files}
        return (tensors | {file.name: len(file.data) for file in self.small}) if self.folder else {}

    @property
    def header(self) -> bytes:
        """Everything that is known beforehand: the headers and the small files, one after the other."""
        return b"".join([*(file.layout.header() for file in self.files), *(file.data for file in self.small)])

    @property
    def warnings(self) -> list[str]:
        """What the user should know before running it."""
        return self.source.warnings
