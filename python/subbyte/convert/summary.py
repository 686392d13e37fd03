"""The report on a converted file: sizes and errors by role and layer, as JSON, CSV and a page that opens offline."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import subbyte
from subbyte.arch import Architecture, find_architecture
from subbyte.arch.base import MAX_LAYERS, Config
from subbyte.arch.llama import LLAMA
from subbyte.convert.manifest import manifest_path, read_manifest
from subbyte.convert.recipe import Recipe
from subbyte.convert.report import Report, Row
from subbyte.convert.source import is_checkpoint
from subbyte.convert.verification import Comparison, Progress, stored_recipes, verify
from subbyte.errors import ArgumentError, Error, IoError
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place, place
from subbyte.io.safetensors import SafetensorsFile
from subbyte.jsonfile import read_object
from subbyte.paths import check_apart, checked_path
from subbyte.planning.mix import layer_number, tensor_class

VERSION = 1

ROLES: Mapping[str, str] = {
    "OUT": "output", "EMB": "embedding", "V": "attention value", "K": "attention key", "Q": "attention query",
    "O": "attention output", "UP": "feed-forward up", "GATE": "feed-forward gate", "DOWN": "feed-forward down",
    "": "norms and others",
}  # fmt: skip
"""Names of the classes of tensors (:func:`~subbyte.planning.mix.tensor_class`)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the report; numbers that are not known are ``None``.

    Attributes:
        name, role, layer: its name, what it is for, and its layer (-1 outside the layers).
        type, shape, elements, nbytes, bits_per_weight: how it is stored.
        source_type, source_nbytes, kind, seconds: what the conversion did, from the manifest.
        sha256: its hash, from the manifest.
        max_error, rms_error, relative_error, sqnr, cosine, clipped: against the source, where there is one
            (:class:`~subbyte.convert.verification.Comparison`).
    """

    name: str
    role: str
    layer: int
    type: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    bits_per_weight: float
    source_type: str | None = None
    source_nbytes: int | None = None
    kind: str | None = None
    seconds: float | None = None
    sha256: str | None = None
    max_error: float | None = None
    rms_error: float | None = None
    relative_error: float | None = None
    sqnr: float | None = None
    cosine: float | None = None
    clipped: float | None = None


_COLUMNS = tuple(field.name for field in fields(Entry))


@dataclass(frozen=True, slots=True)
class Summary:
    """What :func:`subbyte.report` found.

    Attributes:
        path, against: the file, and the source its errors are measured against.
        made: how it was made, from its manifest: ``src``, ``to``, ``seconds``, ``subbyte``; empty without one.
        tensors: in file order.
        failures, warnings: of the verification, and of the conversion.
        checked: which bytes were checked, how, and when.
    """

    path: Path
    against: Place | None
    made: Mapping[str, Any]
    tensors: tuple[Entry, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    checked: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors)

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(entry.elements for entry in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per element over all tensors."""
        return 8 * self.nbytes / self.elements if self.elements else 0.0

    def by_role(self) -> dict[str, tuple[int, int, float]]:
        """Tensors, bytes and bits per weight of each role, the largest first."""
        found: dict[str, tuple[int, int, int]] = {}
        for entry in self.tensors:
            count, size, elements = found.get(entry.role, (0, 0, 0))
            found[entry.role] = (count + 1, size + entry.nbytes, elements + entry.elements)
        ordered = sorted(found.items(), key=lambda item: -item[1][1])
        return {role: (count, size, 8 * size / max(elements, 1)) for role, (count, size, elements) in ordered}

    def worst(self, count: int = 10) -> list[Entry]:
        """The tensors with the largest relative errors."""
        measured = [entry for entry in self.tensors if entry.relative_error]
        return sorted(measured, key=lambda entry: -(entry.relative_error or 0.0))[:count]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; ``version`` changes when a field changes its meaning."""
        return {
            "version": VERSION,
            "subbyte": subbyte.__version__,
            "path": str(self.path),
            "against": None if self.against is None else str(self.against),
            "checked": self.checked,
            "made": dict(self.made),
            "nbytes": self.nbytes,
            "elements": self.elements,
            "bits_per_weight": self.bits_per_weight,
            "roles": {
                role: {"tensors": count, "nbytes": size, "bits_per_weight": bits}
                for role, (count, size, bits) in self.by_role().items()
            },
            "tensors": [asdict(entry) for entry in self.tensors],
            "failures": list(self.failures),
            "warnings": list(self.warnings),
        }

    def to_csv(self) -> str:
        """One line for each tensor, under a line of names; unknown numbers are empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for entry in self.tensors:
            values = [getattr(entry, name) for name in _COLUMNS]
            writer.writerow(["x".join(map(str, value)) if isinstance(value, tuple) else value for value in values])
        return out.getvalue()

    def to_html(self) -> str:
        """A page with plots that needs nothing but a browser."""
        from subbyte.convert.page import page

        return page(self)

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.path}: {len(self.tensors)} tensors, {self.nbytes:,} bytes, "
            f"{self.bits_per_weight:.2f} bits per weight; {self.checked}"
        )


def report(
    path: str | PathLike[str], against: str | PathLike[str] | None = None, *, progress: Progress | None = None
) -> Summary:
    """What is in a model, how it was made, and with ``against`` how far it is from its source.

    How it was made comes from the manifest that :func:`subbyte.convert` left beside the file; other files have a report
    as well. Nothing is computed without ``against``; with it, the file is verified (:func:`subbyte.verify`).

    Args:
        path: the GGUF file, checkpoint folder, or safetensors file.
        against: checkpoint folder or GGUF file it was made from.
        progress: called with (elements done, elements of all tensors, name).

    Raises:
        Error: a file cannot be opened or read.
    """
    path = checked_path(path)
    warnings: list[str] = []
    try:
        manifest = read_manifest(path)
    except Error as error:
        manifest = None
        warnings.append(f"{error}: the manifest is left out")
    if manifest is not None and not manifest.describes(path):
        if manifest.fits(path):
            warnings.append("the file was touched or copied after its manifest was written: verify compares the hashes")
        else:
            manifest = None
            warnings.append("the file was changed after its manifest was written: the manifest is left out")
    made = None if manifest is None else Report.from_json(manifest.report)
    rows = {row.layer or row.name: row for row in reversed(made.tensors)} if made else {}
    checked = None if against is None else verify(path, against, progress=progress)
    errors = {row.name: row for row in checked.tensors} if checked else {}
    named = _ggml_names(path)
    entries = [
        _entry(recipe, named(recipe.name), rows.get(recipe.name), errors.get(recipe.name))
        for recipe in stored_recipes(path)
    ]
    facts = {}
    if made and manifest:
        facts = {"src": str(made.src), "to": made.to, "seconds": made.seconds, "subbyte": manifest.identity["subbyte"]}
    warnings = [*(made.warnings if made else ()), *warnings]
    how = (
        f"headers only; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        if checked is None
        else f"{checked.checked}: {len(checked.failures)} failures"
    )
    return Summary(path, None if checked is None else checked.against, facts, tuple(entries),
                   () if checked is None else checked.failures, tuple(warnings), how)  # fmt: skip


def check_outputs(
    wanted: Mapping[str, str], path: str | PathLike[str], against: str | PathLike[str] | None = None
) -> None:
    """Refuse to write a report over a file that is read for it, over another report of the same run, or over any file
    that is not an earlier report of the same kind.

    Args:
        wanted: file by kind: ``html``, ``csv``.
        path, against: of the report.

    Raises:
        ArgumentError: one of the files may not be written.
        IoError: one cannot be looked at.
    """
    from subbyte.convert.page import BEGIN

    begins = {"html": BEGIN, "csv": ",".join(_COLUMNS)}
    read = files_read(path, against)
    targets: set[str] = set()
    for kind, file in wanted.items():
        check_apart(file, read)
        target = os.path.realpath(checked_path(file, kind))
        if os.path.lexists(target) and not os.path.isfile(target):
            continue  # a pipe or a device takes both
        if target in targets:
            raise ArgumentError("is named twice; page and table need a file each", file=file)
        targets.add(target)
        if os.path.isfile(target) and not _begins(target, begins[kind].encode()):
            raise ArgumentError(
                f"is there and is no earlier {kind} report; choose another name, or remove the file", file=file
            )


def _begins(path: str, begin: bytes) -> bool:
    """Whether the file begins so; an empty one begins in any way."""
    try:
        with open(path, "rb") as file:
            found = file.read(len(begin))
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), path) from None
    return found in (b"", begin)


def files_read(path: str | PathLike[str], against: str | PathLike[str] | None = None) -> list[Path]:
    """The local files of what :func:`report` and :func:`subbyte.verify` look at, with their manifests.

    Raises:
        Error: a file cannot be opened.
    """
    places = [checked_path(path), *([] if against is None else [place(against, "against")])]
    return [file for where in places if isinstance(where, Path) for file in (*_files(where), manifest_path(where))]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.rglob("*") if not file.is_dir()]
    if is_checkpoint(path):
        return [path, *map(Path, SafetensorsFile(path, mmap=False).paths), path.parent / "config.json"]
    return [Path(file) for file in GgufFile(path, mmap=False).paths]


def _ggml_names(path: Path) -> Callable[[str], str]:
    """The names that tensors have in a GGUF file, which tell role and layer: of a checkpoint by its architecture.

    Names of an architecture that is not known are taken as Llama's, which most models use; what is none of them has
    no role, and its layer is the first number in it.
    """
    if not is_checkpoint(path):
        return lambda name: name
    arch: Architecture = LLAMA
    config: Config = {"num_hidden_layers": MAX_LAYERS}
    with suppress(Error):
        arch, config = find_architecture(read_object((path if path.is_dir() else path.parent) / "config.json"))

    def named(name: str) -> str:
        try:
            found = arch.match(arch.plain_name(name), config)
        except Error:  # of a field that the split of a tensor needs
            found = None
        if found is None:
            layer = re.search(r"(?<=\.)\d{1,6}(?=\.)", name)
            return f"blk.{layer[0]}.{name}" if layer else name
        return found.name if found.split is None else found.split.pieces[0].name

    return named


def _entry(recipe: Recipe, name: str, row: Row | None, error: Comparison | None) -> Entry:
    """The entry of a tensor whose GGUF name is ``name``."""
    size = recipe.source_nbytes
    bits = 8 * size / recipe.elements if recipe.elements else 0.0
    entry = Entry(recipe.name, ROLES[tensor_class(name)], layer_number(name), recipe.content.stored,
                  recipe.shape, recipe.elements, size, bits)  # fmt: skip
    if row is not None:
        entry = replace(entry, source_type=row.source_type, source_nbytes=row.source_nbytes, kind=row.kind,
                        seconds=row.seconds, sha256=row.sha256)  # fmt: skip
    if error is not None:
        entry = replace(
            entry, kind=entry.kind or error.kind, max_error=_known(error.max_error), rms_error=_known(error.rms_error),
            relative_error=_known(error.relative_error), sqnr=_known(error.sqnr), cosine=_known(error.cosine),
            clipped=_known(error.clipped),
        )  # fmt: skip
    return entry


def _known(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None


def histogram(values: Sequence[tuple[float, int]]) -> list[tuple[str, int]]:
    """Elements by bits per weight, one bar for each whole bit; ``values`` are (bits per weight, elements)."""
    bars: dict[int, int] = {}
    for bits, elements in values:
        bars[int(bits)] = bars.get(int(bits), 0) + elements
    return [(f"{bits}-{bits + 1}", bars[bits]) for bits in sorted(bars)]
