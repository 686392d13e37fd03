"""Checks of a written file: its structure, its scales, and how far its values are from those of the source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.manifest import combined, digest, read_manifest
from subbyte.convert.recipe import Recipe
from subbyte.convert.report import Report, Row, finite, table
from subbyte.convert.source import is_checkpoint, is_gguf, open_source, stored_tensor
from subbyte.convert.types import FLOATS, piece_columns, quantized
from subbyte.convert.units import CHUNK
from subbyte.convert.values import first_invalid_block, kind, to_float32
from subbyte.errors import Error, UnsupportedError, warn
from subbyte.ggml import TYPES
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place, place
from subbyte.io.safetensors import SafetensorsFile
from subbyte.layout import can_clip, clipped
from subbyte.paths import checked_path
from subbyte.planning.dense import dense_source

_MOST_AT_ONCE = 8 * CHUNK
"""Elements of the largest unit that is read at once because a manifest says so."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of the checked file, and its errors against the source.

    Attributes:
        name: name in the checked file.
        type: ggml type, or dtype.
        kind: relation of the two types (:func:`~subbyte.convert.values.kind`); empty without a source.
        max_error: largest absolute difference.
        rms_error: root of the mean squared difference.
        relative_error: Frobenius norm of the difference over that of the source.
        sqnr: signal to quantization noise ratio in decibels; infinite where all values are equal.
        cosine: cosine of the angle between the two tensors.
        clipped: share of the elements whose value in the source lies more than half a step beyond the range that their
            block can reach, so that rounding alone does not explain their error; of a float type, beyond its largest
            number. NaN where it has no meaning: values that are the same, and the IQ1, IQ2 and IQ3 types, whose
            elements have no range of their own.
        failure: why the tensor does not pass; empty where it does.
    """

    name: str
    type: str
    kind: str = ""
    max_error: float = math.nan
    rms_error: float = math.nan
    relative_error: float = math.nan
    sqnr: float = math.nan
    cosine: float = math.nan
    clipped: float = math.nan
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of :func:`subbyte.verify`.

    Attributes:
        path, against: the checked file and its source.
        tensors: one comparison each, in file order.
        failures: everything that is wrong, each naming its tensor; empty for a good file.
        warnings: what the source's reader had to say.
        checked: which bytes were checked, how, and when.
    """

    path: Path
    against: Place | None
    tensors: tuple[Comparison, ...]
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    checked: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; infinite and unknown numbers are ``None``."""
        return {
            "version": 1,
            "path": str(self.path),
            "against": None if self.against is None else str(self.against),
            "checked": self.checked,
            "ok": self.ok,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "tensors": [finite(asdict(row)) for row in self.tensors],
        }

    def table(self) -> str:
        """The tensors as text."""
        if self.against is None:
            return table(
                ("tensor", "type", "result"), [(row.name, row.type, row.failure or "ok") for row in self.tensors]
            )
        head = ("tensor", "type", "values", "max error", "RMS error", "relative", "SQNR dB", "cosine", "clipped",
                "result")  # fmt: skip
        body = []
        for row in self.tensors:
            numbers = (f"{row.max_error:.3g}", f"{row.rms_error:.3g}", f"{row.relative_error:.3g}", f"{row.sqnr:.2f}")
            clipped = "" if math.isnan(row.clipped) else f"{row.clipped:.3%}"
            body.append((row.name, row.type, row.kind, *numbers, f"{row.cosine:.6f}", clipped, row.failure or "ok"))
        return table(head, body, right=range(3, 9))

    def summary(self) -> str:
        """One line."""
        what = f"{self.path}: {len(self.tensors)} tensors checked"
        what += "" if self.against is None else f" against {self.against}"
        return f"{what}, {len(self.failures)} failures" if self.failures else f"{what}, all good"


def verify(
    path: str | PathLike[str], against: str | PathLike[str] | None = None, *, progress: Progress | None = None
) -> Verification:
    """Check a GGUF file or a checkpoint folder, and compare its values with those of the model it was made from.

    Checked are the structure (by opening it), that every scale and value is finite, and with ``against``: that both
    have the same tensors in the same shapes, and that the values differ by no more than the type allows. A type of b
    bits fails at a relative error of 2^(2-b), which real weights never come near, or of 1, where zeros would be as
    close; the same codes, and codes of the same values, must be equal; a float type may differ by half a unit in the
    last place. Names and row order of a checkpoint
    are translated. Both sides are read in chunks of a few megabytes.

    Where the manifest of :func:`subbyte.convert` is there, the hashes of headers, tensors and small files have to
    agree.

    Args:
        path: the GGUF file, checkpoint folder, or safetensors file.
        against: checkpoint folder or GGUF file it was made from.
        progress: called with (elements done, elements of all tensors, name).

    Raises:
        UnsupportedError: ``path`` is neither.
        Error: a file cannot be opened or read.
    """
    path = checked_path(path)
    origin_path = None if against is None else place(against, "against")
    checked = stored_recipes(path)
    read = open_source if is_gguf(path) else dense_source
    source = None if origin_path is None else read(origin_path)
    warn(() if source is None else source.warnings)
    origins = {} if source is None else {recipe.name: recipe for recipe in source.recipes}
    total = sum(recipe.elements for recipe in checked)
    hashes, failures = _promised(path)
    proved = hashes is not None
    hashes = hashes or {}
    how = [f"{sum(recipe.source_nbytes for recipe in checked):,} bytes of tensors: scales and values finite"]
    how += [f"{len(hashes)} hashes of the manifest"] if hashes else []
    how += [] if origin_path is None else [f"values against {origin_path}"]
    rows, done, known = [], 0, set(hashes)
    for recipe in checked:
        row = _compare(recipe, origins.pop(recipe.name, None), source is not None, hashes.pop(recipe.name, None))
        done += recipe.elements
        if proved and recipe.name not in known and not row.failure:
            row = replace(row, failure="the manifest has no hash of it")
        rows.append(row)
        if row.failure:
            failures.append(f"tensor '{row.name}': {row.failure}")
        if progress is not None:
            progress(done, total, recipe.name)
    failures += [f"tensor '{name}': missing, the source has it" for name in origins]
    failures += [f"tensor '{name}': missing, the manifest has it" for name in hashes]
    return Verification(
        path, origin_path, tuple(rows), tuple(failures),
        () if source is None else tuple(source.warnings),
        f"{', '.join(how)}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip


def stored_recipes(path: Path) -> list[Recipe]:
    """The tensors of a GGUF file, a checkpoint folder or a safetensors file as they are stored.

    Raises:
        UnsupportedError: it is none of these.
        Error: it cannot be opened.
    """
    if is_checkpoint(path):
        file = SafetensorsFile(path, mmap=False)
        stored = [stored_tensor(file, name, tensor.dtype) for name, tensor in file.items()]
        return [Recipe(tensor.name, tensor.shape, tensor) for tensor in stored]
    if is_gguf(path):
        model = GgufFile(path, mmap=False)
        return [
            Recipe(name, tuple(entry.shape), stored_tensor(model, name, entry.type)) for name, entry in model.items()
        ]
    raise UnsupportedError("expected a GGUF file, a checkpoint folder or a safetensors file", file=path)


def _promised(path: Path) -> tuple[dict[str, Row] | None, list[str]]:
    """What the manifest says of each tensor that it has a hash of, and which files are not what it says.

    There are no hashes where there is no manifest that can be read.
    """
    try:
        manifest = read_manifest(path)
    except Error as error:
        return None, [str(error)]
    if manifest is None:
        return None, []
    rows = Report.from_json(manifest.report).tensors
    failures = []
    for file, facts in manifest.paths(path).items():
        name = f"{file.name}: " if file != path else ""
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            failures.append(f"{file.name}: missing, the manifest has it")
            continue
        if size != facts.nbytes:
            failures.append(f"{name}{size:,} bytes, the manifest has {facts.nbytes:,}")
        elif not facts.fit(file):
            what = "the header is not the one" if rows and facts.header_nbytes < facts.nbytes else "not the file"
            failures.append(f"{name}{what} whose hash is in the manifest")
    weights = path.glob("*.safetensors") if path.is_dir() else [path]
    unknown = [file.name for file in weights if file not in manifest.paths(path)]
    failures += [f"{name}: the manifest does not have it" for name in sorted(unknown)]
    return {row.name: row for row in rows if row.sha256}, failures


def _compare(recipe: Recipe, origin: Recipe | None, expected: bool, promised: Row | None) -> Comparison:
    relation = "" if origin is None else kind(origin.type, recipe.type)
    problem = ""
    if expected and origin is None:
        problem = "the source has no such tensor"
    elif origin is not None and _squeezed(origin.shape) != _squeezed(recipe.shape):
        problem = f"shape {recipe.shape}, the source has {origin.shape}"
    measure = None if origin is None or problem else _Errors(origin.type, recipe.type, relation)
    whole, hashed = recipe, None if promised is None else _as_hashed(recipe, promised)
    recipe, origin = _in_pieces(recipe, None if measure is None else origin)
    together = hashed is not None and hashed.columns == recipe.columns
    units = [] if hashed is None or promised is None or together else _units(hashed, _step(hashed, promised))
    step = _step(recipe, promised if together else None)
    for first in range(0, recipe.rows if recipe.elements else 0, step):
        last = min(first + step, recipe.rows)
        raw = recipe.read(first, last)
        if together:
            units.append(digest(np.ascontiguousarray(raw)))
        block = first_invalid_block(recipe.type, raw)
        if block is not None:
            at = first * recipe.columns + block * TYPES[recipe.type].block
            problem = problem or f"NaN or infinite at row {at // whole.columns}, column {at % whole.columns}"
        if measure is not None and origin is not None:
            measure.add(origin.read(first, last), raw, recipe.columns)
    if promised is not None and combined(units) != promised.sha256:
        problem = problem or "its bytes are not those whose hash is in the manifest"
    if measure is None:
        return Comparison(recipe.name, recipe.type, relation, failure=problem)
    return measure.comparison(recipe, relation, problem)


def _step(recipe: Recipe, promised: Row | None) -> int:
    """Rows that are read at once: those of a unit of the manifest, unless it names far too many."""
    if promised is not None and (promised.unit_rows == 1 or 0 < promised.unit_rows * recipe.columns <= _MOST_AT_ONCE):
        return promised.unit_rows
    return max(1, CHUNK // max(recipe.columns, 1))


def _units(recipe: Recipe, step: int) -> list[str]:
    rows = recipe.rows if recipe.elements else 0
    return [digest(np.ascontiguousarray(recipe.read(first, min(first + step, rows)))) for first in range(0, rows, step)]


def _as_hashed(recipe: Recipe, promised: Row) -> Recipe:
    """The tensor in rows as long as those whose hashes the manifest has."""
    columns = promised.unit_columns
    block = TYPES[recipe.type].block if recipe.type in TYPES else 1
    fits = 0 < columns < recipe.columns and recipe.columns % columns == 0 and columns % block == 0
    return recipe.cut(columns) if fits else recipe


def _in_pieces(recipe: Recipe, origin: Recipe | None) -> tuple[Recipe, Recipe | None]:
    """Both tensors in rows of one bounded length: whole blocks of both types."""
    types = [recipe.type] if origin is None else [recipe.type, origin.type]
    columns = piece_columns(recipe.columns, *types)
    if origin is None or origin.columns == columns:
        return recipe.cut(columns), origin
    other = origin.cut(columns)
    return (recipe, origin) if other is origin else (recipe.cut(columns), other)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


class _Errors:
    """Running sums over the chunks of two tensors, in float64."""

    def __init__(self, source: str, target: str, relation: str) -> None:
        self.source, self.target = source, target
        self.clips = can_clip(target) and relation not in ("exact", "exact-value")
        self.count = self.clipped = 0
        self.max = self.noise = self.signal = self.power = self.product = 0.0
        self.beyond = 0

    def add(self, source: NDArray[np.uint8], target: NDArray[np.uint8], columns: int) -> None:
        if not all(name in TYPES and TYPES[name].decodes for name in (self.source, self.target)):
            self.beyond += not np.array_equal(source, target)
            return
        stored = to_float32(self.source, source, columns).reshape(-1)
        if self.clips:
            self.clipped += clipped(self.target, target, stored)
        want = stored.astype(np.float64)
        got = to_float32(self.target, target, columns).reshape(-1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinities are reported as such
            difference = np.abs(got - want)
        self.count += want.size
        self.max = float(np.maximum(self.max, difference.max(initial=0.0)))
        self.noise += _dot(difference, difference)
        self.signal += _dot(want, want)
        self.power += _dot(got, got)
        self.product += _dot(got, want)
        self.beyond += int(np.count_nonzero(~(difference <= _half_unit(self.target, self.source, want))))

    def comparison(self, recipe: Recipe, relation: str, problem: str) -> Comparison:
        relative = math.sqrt(self.noise / self.signal) if self.signal else math.inf if self.noise else 0.0
        sqnr = -20 * math.log10(relative) if relative else math.inf
        cosine = (
            self.product / math.sqrt(self.signal * self.power) if self.signal and self.power else float(not self.noise)
        )
        # An encoder of one bit scores up to 0.85 on real weights, unrelated weights score about the root of 2.
        if quantized(recipe.type) and relation != "exact":
            limit = min(2.0 ** (2 - _bits(recipe.type)), 1.0)
            if not relative < limit:
                problem = problem or f"relative error {relative:.3g}, {recipe.type} stays below {limit:.3g}"
        elif self.beyond:
            allowed = "differ by more than rounding" if relation == "rounded" else "differ, equal values are expected"
            problem = problem or f"{self.beyond:,} elements {allowed}"
        return Comparison(
            recipe.name, recipe.type, relation, self.max, math.sqrt(self.noise / max(self.count, 1)), relative,
            sqnr, min(cosine, 1.0), self.clipped / max(self.count, 1) if self.clips else math.nan, problem,
        )  # fmt: skip


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The scalar product in one fixed order: BLAS splits it among its threads, which wait for each other when busy."""
    return float(np.einsum("i,i->", a, b))


def _bits(name: str) -> int:
    """Whole bits per weight of a type."""
    return 8 * TYPES[name].block_bytes // TYPES[name].block


def _half_unit(target: str, source: str, values: NDArray[np.float64]) -> NDArray[np.float64] | float:
    """Half a unit in the last place of a float type that the source's values are rounded to; 0 where all fit."""
    if target not in FLOATS or target in (source, "F32"):
        return 0.0
    digits, lowest = (11, -14) if target == "F16" else (8, -126)
    _, exponents = np.frexp(values)  # |value| < 2^exponent
    result: NDArray[np.float64] = np.ldexp(0.5, np.maximum(exponents, lowest + 1) - digits)
    return result
