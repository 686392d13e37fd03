"""A look into a checkpoint's headers: tensors, types, sizes and metadata. No tensor data is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from os import PathLike
from typing import Any

import numpy as np

from subbyte.convert.layers import Layers
from subbyte.convert.report import finite, printable, table
from subbyte.convert.source import is_gguf
from subbyte.errors import Error, UnsupportedError
from subbyte.inspection.scheme import Scheme, scheme_of
from subbyte.io.gguf import GgufFile, GgufTensor
from subbyte.io.remote import Place, RemotePath, place
from subbyte.io.safetensors import SafetensorsFile, SafetensorsTensor
from subbyte.planning.mix import FILE_TYPES

_LONG = 8
"""Arrays of more elements are shown by their length and first elements."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: name, type (ggml or safetensors name), shape in NumPy order, bytes, and first byte in its file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    file: str


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A quantized layer: name and shape of the dense weight, its scheme, its tensors, and their bytes."""

    name: str
    shape: tuple[int, ...]
    scheme: Scheme
    planes: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the headers of a checkpoint say.

    Attributes:
        path: what was inspected.
        format: ``"gguf"`` or ``"safetensors"``.
        file_type: name of GGUF's ``general.file_type``; empty where there is none.
        tensors: in file order.
        metadata: by key; arrays of more than eight elements as ``{"length": n, "first": [...]}``.
        quantization: format id of a quantized checkpoint (``gptq``); empty for others.
        layers: its quantized layers.
        notes: what is stale or odd in its settings.
    """

    path: Place
    format: str
    file_type: str
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, Any]
    quantization: str = ""
    layers: tuple[LayerInfo, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors; of a quantized layer those of the dense weight."""
        planes = {name for layer in self.layers for name in layer.planes}
        dense = sum(prod(tensor.shape) for tensor in self.tensors if tensor.name not in planes)
        return dense + sum(prod(layer.shape) for layer in self.layers)

    @property
    def dense(self) -> list[str]:
        """Names of the matrices that a quantized checkpoint does not quantize."""
        planes = {name for layer in self.layers for name in layer.planes}
        return [tensor.name for tensor in self.tensors if tensor.name not in planes and len(tensor.shape) > 1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per element over all tensors."""
        return 8 * self.nbytes / self.parameters if self.parameters else 0.0

    def types(self) -> dict[str, tuple[int, int, int]]:
        """Number of tensors, elements and bytes by type, the largest first."""
        found: dict[str, tuple[int, int, int]] = {}
        for tensor in self.tensors:
            count, elements, size = found.get(tensor.type, (0, 0, 0))
            found[tensor.type] = (count + 1, elements + prod(tensor.shape), size + tensor.nbytes)
        return dict(sorted(found.items(), key=lambda item: -item[1][2]))

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; numbers that are not finite are ``None``."""
        return {
            "version": 1,
            "path": str(self.path),
            "format": self.format,
            "file_type": self.file_type,
            "parameters": self.parameters,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "types": {
                name: {"tensors": count, "elements": elements, "nbytes": size}
                for name, (count, elements, size) in self.types().items()
            },
            "quantization": self.quantization,
            "layers": [asdict(layer) for layer in self.layers],
            "notes": list(self.notes),
            "metadata": finite(dict(self.metadata)),
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }

    def text(self, tensors: bool = False) -> str:
        """The facts as text, with ``tensors`` every tensor too."""
        kind = " ".join(filter(None, (self.format, self.file_type, self.quantization)))
        lines = [
            f"{self.path}: {kind}, {len(self.tensors)} tensors, {self.parameters:,} parameters, {self.nbytes:,} bytes, "
            f"{self.bits_per_weight:.2f} bits per weight",
            "",
        ]
        if self.metadata:
            lines += [table(("key", "value"), [(key, _shown(value)) for key, value in self.metadata.items()]), ""]
        body = [(name, *(f"{number:,}" for number in facts)) for name, facts in self.types().items()]
        lines.append(table(("type", "tensors", "elements", "bytes"), body, right={1, 2, 3}))
        if self.layers:
            lines += ["", self._schemes()]
        if self.quantization:
            lines += ["", f"matrices that are not quantized: {printable(', '.join(self.dense)) or 'none'}"]
        lines += [f"note: {printable(note)}" for note in self.notes]
        if tensors and self.layers:
            rows = [
                (layer.name, str(layer.scheme), str(list(layer.shape)), f"{layer.nbytes:,}",
                 f"{8 * layer.nbytes / max(prod(layer.shape), 1):.2f}")
                for layer in self.layers
            ]  # fmt: skip
            lines += ["", table(("layer", "scheme", "shape", "bytes", "bits/weight"), rows, right={3, 4})]
        if tensors:
            rows = [
                (
                    tensor.name,
                    tensor.type,
                    str(list(tensor.shape)),
                    f"{tensor.nbytes:,}",
                    f"{tensor.offset:,}",
                )
                for tensor in self.tensors
            ]
            lines += ["", table(("tensor", "type", "shape", "bytes", "at byte"), rows, right={3, 4})]
        return "\n".join(lines)

    def _schemes(self) -> str:
        """The schemes of the layers, those of most weights first."""
        found: dict[str, list[int]] = {}
        for layer in self.layers:
            sums = found.setdefault(str(layer.scheme), [0, 0, 0])
            for at, number in enumerate((1, prod(layer.shape), layer.nbytes)):
                sums[at] += number
        body = [
            (scheme, f"{count:,}", f"{weights:,}", f"{size:,}", f"{8 * size / max(weights, 1):.2f}")
            for scheme, (count, weights, size) in sorted(found.items(), key=lambda item: -item[1][1])
        ]
        head = (f"scheme ({self.quantization})", "layers", "weights", "bytes", "bits/weight")
        return table(head, body, right={1, 2, 3, 4})


def open_container(path: str | PathLike[str]) -> tuple[Place, GgufFile | SafetensorsFile]:
    """The file or folder at ``path``, opened by what it is; tensors are not mapped.

    Raises:
        As :func:`subbyte.inspect`.
    """
    where = place(path)
    if where.is_dir() or where.name.endswith((".safetensors", ".index.json")):
        return where, SafetensorsFile(where, mmap=False)
    if not is_gguf(where):
        raise UnsupportedError("expected a GGUF file, a safetensors file or a checkpoint folder", file=where)
    return where, GgufFile(where, mmap=False)


def tensor_info(tensor: GgufTensor | SafetensorsTensor) -> TensorInfo:
    """What a container says of one tensor."""
    kind = tensor.type if isinstance(tensor, GgufTensor) else tensor.dtype
    return TensorInfo(tensor.name, kind, tuple(tensor.shape), tensor.nbytes, tensor.offset, str(tensor.path))


def inspect_headers(path: str | PathLike[str]) -> Inspection:
    """What the headers of a checkpoint say; see :func:`subbyte.inspect`."""
    where, file = open_container(path)
    tensors = tuple(map(tensor_info, file.values()))
    if isinstance(file, SafetensorsFile):
        return Inspection(where, "safetensors", "", tensors, dict(file.metadata), *_quantization(where))
    metadata = {key: _short(value) for key, value in file.metadata.items()}
    names = {kind.number: name for name, kind in FILE_TYPES.items()}
    number = metadata.get("general.file_type")
    file_type = names.get(number & ~1024, "") if isinstance(number, int) else ""
    return Inspection(where, "gguf", file_type, tensors, metadata)


def _quantization(where: Place) -> tuple[str, tuple[LayerInfo, ...], tuple[str, ...]]:
    """Format, layers and notes of a quantized checkpoint; settings that cannot be read are a note."""
    try:
        layers = Layers(where)
        remote = isinstance(where, RemotePath)
        found = tuple(
            LayerInfo(name, layer.shape, scheme_of(layers.look(name), remote=remote), tuple(layer.planes.values()),
                      layers.nbytes(name))
            for name, layer in layers.items()
        )  # fmt: skip
    except Error as error:
        return "", (), (f"the quantization cannot be read: {error}",)
    return layers.format or "", found, tuple(layers.notes)


def _short(value: Any) -> Any:
    """A metadata value as JSON data, long arrays by their beginning."""
    if isinstance(value, np.ndarray):
        first = value[:_LONG].tolist()
        return first if len(value) <= _LONG else {"length": len(value), "first": first}
    if isinstance(value, Sequence) and not isinstance(value, str):
        first = list(value[:_LONG])
        return first if len(value) <= _LONG else {"length": len(value), "first": first}
    return value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{', '.join(_shown(item) for item in value['first'])}, …] ({value['length']:,})"
    if isinstance(value, list):
        return f"[{', '.join(_shown(item) for item in value)}]"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = printable(text[:80])
    return text if len(text) < 80 else f"{text[:77]}…"
