"""Folders of safetensors as targets: tensors cut into shards, their index, and small files beside them.

A format that is stored as a checkpoint folder plans its tensors (:class:`~subbyte.planning.output.TensorPlan`: name,
dtype, shape, and the rows that produce the bytes) and its small files; this module makes the plan of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from subbyte import _native
from subbyte.convert.source import Source
from subbyte.errors import FormatError
from subbyte.planning.output import Plan, SmallFile, TensorFile, TensorPlan

SHARD = 5_000_000_000
"""Bytes of tensors in one file at most, as the Hugging Face libraries cut."""


def plan_folder(
    source: Source,
    to: str,
    tensors: Sequence[TensorPlan],
    small: Iterable[SmallFile],
    options: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a checkpoint folder.

    Args:
        source: the model.
        to: the target's name.
        tensors: what the shards hold, in order.
        small: files beside them; of two with one name the first counts.
        options: what the user asked for, as JSON data.
        metadata: strings for the header of every file of tensors; ``{"format": "pt"}`` if not given.

    Raises:
        FormatError: there are no tensors, or two of one name.
    """
    names = {tensor.name for tensor in tensors}
    if not tensors:
        raise FormatError("no tensors", file=source.path)
    if len(names) < len(tensors):
        raise FormatError("two tensors of one name are planned", file=source.path)
    shards = _shards(tensors)
    strings = list((metadata or {"format": "pt"}).items())
    files = []
    for number, part in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries = [(tensor.name, tensor.type, list(tensor.shape)) for tensor in part]
        files.append(TensorFile(name, tuple(part), _native.safetensors_plan(entries, strings)))
    beside = {file.name: file for file in reversed(list(small))}
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
        }
        beside["model.safetensors.index.json"] = json_file("model.safetensors.index.json", index)
    ordered = tuple(beside[name] for name in sorted(beside))
    return Plan(source, to, tuple(files), options, ordered, folder=True)


def _shards(tensors: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for tensor in tensors:
        if size + tensor.nbytes > SHARD and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def json_file(name: str, value: Any) -> SmallFile:
    """A small file of JSON, as people write it."""
    return SmallFile(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
