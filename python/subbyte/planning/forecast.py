"""What a conversion will do, before it does anything: exact sizes, and estimates of memory and time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.convert.executors.threads import worker_count
from subbyte.convert.manifest import digest
from subbyte.convert.report import Row, conversion_table, weights
from subbyte.convert.source import stamp
from subbyte.convert.types import quantized
from subbyte.convert.units import PIECE, in_pieces, unit_rows
from subbyte.convert.values import encode
from subbyte.errors import ArgumentError, Error, FormatError
from subbyte.ggml import TYPES
from subbyte.io.remote import Place
from subbyte.jsonfile import read_object
from subbyte.paths import checked_path
from subbyte.planning.output import Plan

VERSION = 1

_BASE_MEMORY = 128 << 20
"""Interpreter, NumPy, headers and vocabulary."""

_COPY_RATE = 2e9
"""Bytes per second that are read, hashed and written where nothing has to be computed."""

_TRIAL = 1 << 17
"""Elements that are encoded to learn how fast this machine is."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A plan with what it will take.

    Attributes:
        src, dst: paths; ``dst`` may be ``None``.
        plan: the plan.
        rows: one row for each tensor, in file order.
        peak_memory: estimate of the largest resident size in bytes.
        seconds: estimate of the time, from a short trial of each encoder on this machine.
        free: bytes that are free where ``dst`` will be; ``None`` without ``dst``.
        exists: whether ``dst`` is there already.
    """

    src: Place
    dst: Path | None
    plan: Plan
    rows: tuple[Row, ...]
    peak_memory: int
    seconds: float
    free: int | None
    exists: bool = False

    @property
    def nbytes(self) -> int:
        """Exact size of the file."""
        return self.plan.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight, over all tensors."""
        elements = weights(self.rows)
        return 8 * sum(row.nbytes for row in self.rows) / elements if elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``: a plan file, whose tensors' ``type`` may be edited (:func:`read_plan`)."""
        fields = (
            "name", "shape", "source_type", "type", "source_nbytes", "nbytes", "bits_per_weight", "kind", "why",
            "layer", "elements",
        )  # fmt: skip
        rows = [asdict(row) for row in self.rows]
        return {
            "subbyte_plan": VERSION,
            "src": str(self.src),
            "dst": None if self.dst is None else str(self.dst),
            "to": self.plan.to,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "peak_memory": self.peak_memory,
            "seconds": self.seconds,
            "free": self.free,
            "exists": self.exists,
            "options": dict(self.plan.options),
            "types_sha256": _types_digest({row["name"]: row["type"] for row in rows}),
            "tensors": [{field: row[field] for field in fields} for row in rows],
            "warnings": list(self.plan.warnings),
            "left_out": [{"name": name, "reason": reason} for name, reason in self.plan.source.left_out],
            "files": self.plan.sizes,
            "not_copied": [{"name": name, "reason": reason} for name, reason in self.plan.source.not_copied],
        }

    def table(self) -> str:
        """The tensors and the totals as text."""
        return conversion_table(self.rows)

    def summary(self) -> str:
        """One line with size, bits per weight, memory and time."""
        where = "" if self.dst is None else f"{self.dst}: "
        short = self.free is not None and self.free < self.nbytes
        return (
            f"{where}{self.nbytes:,} bytes, {len(self.rows)} tensors, {self.bits_per_weight:.2f} bits per weight, "
            f"about {self.seconds:.1f} s and {self.peak_memory / (1 << 20):,.0f} MiB of memory"
            + (f", {len(self.plan.sizes)} files" if self.plan.folder else "")
            + (f"; only {self.free:,} bytes are free there" if short else "")
            + ("; exists already, and is replaced with overwrite only" if self.exists else "")
        )


def forecast(plan: Plan, src: Place, dst: Path | None) -> Forecast:
    """What the plan will take on this machine."""
    rows = tuple(Row.of(tensor) for tensor in plan.tensors)
    workers = worker_count()
    unit = piece = 0
    seconds = sum(row.source_nbytes + row.nbytes for row in rows) / _COPY_RATE
    for tensor in map(in_pieces, plan.tensors):
        recipe = tensor.recipe
        height = min(unit_rows(tensor), max(recipe.rows, 1))
        unit = max(unit, height * (tensor.nbytes // max(recipe.rows, 1)))
        decoded = quantized(recipe.type) or recipe.type != recipe.content.stored
        per_element = recipe.source_nbytes / max(recipe.elements, 1) + (4 if decoded else 0)
        piece = max(piece, int(max(PIECE, recipe.columns) * per_element))
        if recipe.type != tensor.type:
            seconds += recipe.elements * _seconds_per_element(recipe.type, tensor.type)
    memory = _BASE_MEMORY + (workers + 2) * unit + 2 * workers * piece
    there = dst is not None and any(path.exists() for path in ([dst] if not dst.is_dir() else dst.iterdir()))
    return Forecast(src, dst, plan, rows, memory, seconds, None if dst is None else _free(dst), there)


@cache
def _seconds_per_element(source: str, target: str) -> float:
    """Time to encode one element, from a short trial with all threads."""
    values = np.random.default_rng(0).standard_normal((_TRIAL // 256, 256)).astype(np.float32).view(np.uint8)
    columns = 256
    try:
        raw = encode("F32", values, columns, source)
        best = float("inf")
        for _ in range(2):
            begin = time.perf_counter()
            weights = np.ones(columns, np.float32) if TYPES[target].importance == "required" else None
            encode(source, raw, columns, target, weights)
            best = min(best, time.perf_counter() - begin)
    except Error:  # a source type that cannot be made here
        return 0.0
    return best / _TRIAL


def _free(dst: Path) -> int | None:
    """Free bytes in the nearest folder above ``dst`` that exists."""
    folder = next((parent for parent in dst.absolute().parents if parent.is_dir()), None)
    try:
        return None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What a plan file says; sizes in it do not count.

    Attributes:
        path: the file.
        to: the target.
        names: the target's names: as the plan has it, and as it was asked for.
        types: type of each tensor, edited or not.
        edited: whether types were edited.
        mixed: whether they were chosen for a size.
        imatrix: name and size of the importance data that it was made with; ``None`` without.
        pre: value of ``tokenizer.ggml.pre`` that was asked for.
    """

    path: Path
    to: str
    names: frozenset[str]
    types: Mapping[str, str]
    edited: bool
    mixed: bool
    imatrix: tuple[str, int] | None
    pre: str | None

    def check(self, to: str | None, imatrix: str | os.PathLike[str] | None) -> None:
        """Refuse options that contradict what the plan was made for.

        Raises:
            ArgumentError: another target, or other importance data, or none.
            IoError: the importance data cannot be looked at.
        """
        if to is not None and to.lower() not in self.names:
            raise ArgumentError(f"to='{to}': the plan is for '{self.to}'; make another one", file=self.path)
        if self.imatrix is None:
            return
        name, size = self.imatrix
        found = None if imatrix is None else stamp(checked_path(imatrix, "imatrix"))
        if found is None or found[1] != size:
            what = "none were given" if found is None else f"'{found[0]}' has {found[1]:,}"
            raise ArgumentError(
                f"the plan was made with the importance data '{name}' of {size:,} bytes, and {what}; give that file "
                "with imatrix",
                file=self.path,
            )


def read_plan(path: str | os.PathLike[str]) -> PlanFile:
    """The target, the type of each tensor, and the options of a plan file.

    Raises:
        FormatError: it is no plan.
        IoError: it cannot be read.
    """
    path = Path(path)
    data = read_object(path)
    if data.get("subbyte_plan") != VERSION:
        raise FormatError(f"expected a plan of version {VERSION}, found {data.get('subbyte_plan')!r}", file=path)
    target, tensors, options = data.get("to"), data.get("tensors"), data.get("options", {})
    if not isinstance(target, str) or not isinstance(tensors, list) or not isinstance(options, dict):
        raise FormatError("expected the keys 'to', 'tensors' and 'options'", file=path)
    types: dict[str, str] = {}
    for entry in tensors:
        name, kind = (entry.get("name"), entry.get("type")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(kind, str) or name in types:
            raise FormatError(f"expected tensors with one name and type each, found {entry!r:.80}", file=path)
        types[name] = kind
    asked, imatrix, pre = options.get("to", target), options.get("imatrix"), options.get("pre")
    if not isinstance(asked, str) or not isinstance(pre, str | None) or not _is_stamp(imatrix):
        raise FormatError("options: expected what convert was given", file=path)
    mixed = any(options.get(name) is not None for name in ("target_size", "target_bpw"))
    return PlanFile(
        path,
        asked if asked in ("gguf", "hf") and not mixed else target,
        frozenset((asked.lower(), target.lower())),
        types,
        data.get("types_sha256") != _types_digest(types),
        mixed,
        None if imatrix is None else (imatrix[0], imatrix[1]),
        pre,
    )


def _is_stamp(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)
    )


def _types_digest(types: Mapping[str, str]) -> str:
    return digest(json.dumps(list(types.items())).encode())
