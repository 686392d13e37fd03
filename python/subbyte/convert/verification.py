"""Checks of a written file: its structure, its scales, and how far its values are from those of the source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.layers import Layers, layer_of
from subbyte.convert.manifest import combined, digest, read_manifest
from subbyte.convert.measure import Errors, Stored, bits_of, code_bits
from subbyte.convert.recipe import Recipe, computed
from subbyte.convert.report import Report, Row, finite, table
from subbyte.convert.rows import Rows
from subbyte.convert.source import Source, is_checkpoint, is_gguf, open_source, stored_tensor
from subbyte.convert.types import FLOATS, is_dtype, piece_columns, quantized
from subbyte.convert.units import CHUNK
from subbyte.convert.values import first_invalid_block, kind
from subbyte.errors import CorruptError, Error, FormatError, UnsupportedError, warn
from subbyte.ggml import TYPES
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place, place
from subbyte.paths import checked_path
from subbyte.planning.dense import dense_recipes, dense_source
from subbyte.routes.fit import COMPANIONS, Grade

_MOST_AT_ONCE = 8 * CHUNK
"""Elements of the largest unit that is read at once because a manifest says so."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor of the checked file, and its errors against the source.

    Attributes:
        name: name in the checked file.
        type: ggml type, or dtype; of a layer of a quantized checkpoint the format in upper case.
        kind: relation of the two types (:func:`~subbyte.convert.values.kind`), or of a quantized layer what the
            manifest or the types promise, else what the values show; empty without a source.
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
    close; the same codes, and codes of the same values, must be equal; where a parameter rounds, values may differ by
    its bound; a float type may differ by half a unit in the last place. Names and row order of a checkpoint are
    translated, and both sides may be quantized checkpoints of any format: they are compared as the dense weights that
    they stand for. Both sides are read in chunks of a few megabytes, quantized layers one at a time.

    Where the manifest of :func:`subbyte.convert` is there, the hashes of headers, tensors and small files have to
    agree.

    Args:
        path: the GGUF file, checkpoint folder, or safetensors file.
        against: checkpoint folder or GGUF file it was made from.
        progress: called with (elements done, elements of all tensors, name).

    Raises:
        UnsupportedError: ``path`` is neither.
        Error: a file cannot be opened or read, and no manifest tells what is wrong with it.
    """
    path = checked_path(path)
    origin_path = None if against is None else place(against, "against")
    promised = _promised(path)
    try:
        checked = stored_recipes(path)
    except Error as error:
        if not promised.failures:
            raise
        found = tuple(dict.fromkeys([*promised.failures, str(error)]))
        told = f"headers and small files, by the manifest; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        return Verification(path, origin_path, (), found, (), told)
    read = open_source if is_gguf(path) else dense_source
    source = None if origin_path is None else read(origin_path)
    warn(() if source is None else source.warnings)
    total = sum(recipe.elements for recipe in checked)
    origins = _origins(source, checked)
    how = [f"{sum(recipe.source_nbytes for recipe in checked):,} bytes of tensors: scales and values finite"]
    how += [f"{len(promised.tensors)} hashes of the manifest"] if promised.tensors else []
    how += [] if origin_path is None else [f"values against {origin_path}"]
    rows, done, failures = [], 0, promised.failures
    scales = _tensor_scales(checked)
    for recipe in checked:
        row = _compare(recipe, origins.pop(recipe.name, None), source is not None, promised, scales.get(recipe.name))
        done += recipe.elements
        rows.append(row)
        if row.failure:
            failures.append(f"tensor '{row.name}': {row.failure}")
        if progress is not None:
            progress(done, total, recipe.name)
    failures += [f"tensor '{name}': missing, the source has it" for name in origins if not _is_beside(name)]
    failures += [f"tensor '{name}': missing, the manifest has it" for name in promised.tensors]
    return Verification(
        path, origin_path, tuple(rows), tuple(failures),
        () if source is None else tuple(source.warnings),
        f"{', '.join(how)}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip


def stored_recipes(path: Path) -> list[Recipe]:
    """The tensors of a GGUF file, a checkpoint folder or a safetensors file as they are stored.

    The layers of a quantized checkpoint are the dense weights that they stand for, in F32.

    Raises:
        UnsupportedError: it is none of these.
        Error: it cannot be opened.
    """
    if is_checkpoint(path):
        return dense_recipes(Layers(path))
    if is_gguf(path):
        model = GgufFile(path, mmap=False)
        return [
            Recipe(name, tuple(entry.shape), stored_tensor(model, name, entry.type)) for name, entry in model.items()
        ]
    raise UnsupportedError("expected a GGUF file, a checkpoint folder or a safetensors file", file=path)


@dataclass(slots=True)
class _Promised:
    """What the manifest beside the checked file says.

    Attributes:
        tensors: rows of the tensors that were not checked yet, by name.
        layers: the first row of each quantized layer, by the name of the dense weight.
        failures: which files are not what it says.
        proved: whether there is a manifest that can be read.
    """

    tensors: dict[str, Row] = field(default_factory=dict)
    layers: dict[str, Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    proved: bool = False

    def row(self, recipe: Recipe) -> Row | None:
        """What is said of a tensor or layer."""
        return self.tensors.get(recipe.name) or self.layers.get(recipe.name)

    def check(self, rows: Rows, name: str) -> str:
        """What is wrong with the bytes of a tensor that nothing else reads."""
        row = self.tensors.pop(name, None)
        if row is None:
            return "the manifest has no hash of it" if self.proved else ""
        hashed = _as_hashed(Recipe(name, rows.shape, rows), row)
        return "" if combined(_units(hashed, _step(hashed, row))) == row.sha256 else _CHANGED


_CHANGED = "its bytes are not those whose hash is in the manifest"


def _promised(path: Path) -> _Promised:
    try:
        manifest = read_manifest(path)
    except Error as error:
        return _Promised(failures=[str(error)])
    if manifest is None:
        return _Promised()
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
    hashed = {row.name: row for row in rows if row.sha256}
    layers = {row.layer: row for row in reversed(rows) if row.layer}
    return _Promised(hashed, layers, failures, True)


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


def _is_beside(name: str) -> bool:
    """Whether a tensor stands beside a quantized layer, and targets may have no place for it."""
    return name.rpartition(".")[2] in COMPANIONS


def _origins(source: Source | None, checked: Sequence[Recipe]) -> dict[str, Recipe]:
    """The tensors of the source by name, with the scales that stand beside blocks of NVFP4."""
    if source is None:
        return {}
    found = {recipe.name: recipe for recipe in source.recipes}
    for recipe in checked:
        origin = found.get(recipe.name)
        if recipe.type == "NVFP4" and origin is not None and origin.content.layered:
            scales = origin.held_as("NVFP4").recipe.content.tensor_scales
            if scales:
                name = _scale_name(recipe.name)
                found[name] = computed(name, np.array(scales, np.float32))
    return found


def _scale_name(name: str) -> str:
    return f"{name.removesuffix('.weight')}.scale"


def _tensor_scales(checked: Sequence[Recipe]) -> dict[str, NDArray[np.float32]]:
    """What the values of tensors of NVFP4 are multiplied by, by row."""
    by_name = {recipe.name: recipe for recipe in checked}
    found = {}
    for recipe in checked:
        beside = by_name.get(_scale_name(recipe.name))
        if recipe.type == "NVFP4" and beside is not None and beside.type == "F32":
            scales = np.ascontiguousarray(beside.read(0, beside.rows)).view(np.float32).reshape(-1)
            if scales.size and recipe.rows % scales.size == 0:
                found[recipe.name] = np.repeat(scales, recipe.rows // scales.size)
    return found


def _compare(
    recipe: Recipe, origin: Recipe | None, expected: bool, promised: _Promised, scale: NDArray[np.float32] | None
) -> Comparison:
    grade = Grade("") if origin is None else _grade(recipe, origin, promised.row(recipe))
    name = recipe.content.stored
    try:
        problem = _hashes(recipe, promised) if recipe.content.layered else ""
        if expected and origin is None and not _is_beside(recipe.name):
            problem = problem or "the source has no such tensor"
        elif origin is not None and _squeezed(origin.shape) != _squeezed(recipe.shape):
            problem, origin = problem or f"shape {recipe.shape}, the source has {origin.shape}", None
        measure, found = _measured(recipe, origin, grade, promised, scale)
    except (FormatError, CorruptError, UnsupportedError) as error:
        return Comparison(recipe.name, name, grade.kind, failure=error.message)
    problem = problem or found
    if measure is None or origin is None:
        return Comparison(recipe.name, name, grade.kind, failure=problem)
    kind_ = measure.kind(not (origin.content.layered or quantized(origin.type)))
    return Comparison(recipe.name, name, kind_, **measure.numbers(), failure=problem or measure.problem(name))


def _grade(recipe: Recipe, origin: Recipe, row: Row | None) -> Grade:
    """What the class of a tensor promises; of an empty kind where only the values can tell."""
    content = origin.content
    if _decoded(recipe, row) and row is not None and row.source_type != content.stored:
        return Grade("quantized" if is_dtype(content.stored) else "requantized")
    if not content.layered and not recipe.content.layered:
        return Grade(kind(origin.type, recipe.type))
    if row is not None and row.source_type == content.stored:
        return Grade(row.kind, row.bound)
    if recipe.content.layered:
        return Grade("")
    if quantized(recipe.type):
        held = origin.held_as(recipe.type)
        return Grade(held.kind, held.bound)
    return Grade("exact-value" if recipe.type == "F32" else "rounded")


def _decoded(recipe: Recipe, row: Row | None) -> bool:
    """Whether the manifest says that a tensor of floats was decoded from codes."""
    return row is not None and recipe.type in FLOATS and not recipe.content.layered and not is_dtype(row.source_type)


def _hashes(recipe: Recipe, promised: _Promised) -> str:
    """What is wrong with the bytes of the planes of a layer."""
    layers, name = layer_of(recipe.content)
    for plane in layers[name].planes.values():
        problem = promised.check(stored_tensor(layers.tensors, plane, layers.tensors[plane].dtype), plane)
        if problem:
            return f"{plane}: {problem}"
    return ""


def _measured(
    recipe: Recipe, origin: Recipe | None, grade: Grade, promised: _Promised, scale: NDArray[np.float32] | None
) -> tuple[Errors | None, str]:
    """The errors of a tensor against its source, and what is wrong with its bytes and values by themselves."""
    layered = recipe.content.layered
    row = None if layered else promised.tensors.pop(recipe.name, None)
    problem = "the manifest has no hash of it" if row is None and promised.proved and not layered else ""
    whole, hashed = recipe, None if row is None else _as_hashed(recipe, row)
    if scale is None:
        recipe, origin = _in_pieces(recipe, origin)
    measure = same = before = None
    if origin is not None:
        before = origin.content.as_type("F32") if origin.content.layered else origin.content
        if origin.content.layered and recipe.type in ("F16", "BF16"):
            same = origin.content.as_type(recipe.type)
        measure = Errors("F32" if before is None else before.type, _stored(whole, scale, grade, row), grade)
    together = hashed is not None and hashed.columns == recipe.columns
    units = [] if hashed is None or together else _units(hashed, _step(hashed, row))
    step = _step(recipe, row if together else None)
    for first in range(0, recipe.rows if recipe.elements else 0, step):
        last = min(first + step, recipe.rows)
        raw = recipe.read(first, last)
        if together:
            units.append(digest(np.ascontiguousarray(raw)))
        block = first_invalid_block(recipe.type, raw)
        if block is not None:
            at = first * recipe.columns + block * TYPES[recipe.type].block
            problem = problem or f"NaN or infinite at row {at // whole.columns}, column {at % whole.columns}"
        if measure is not None and before is not None:
            rounded = None if same is None else same.read(first, last)
            measure.add(before.read(first, last), raw, recipe.columns, first, rounded)
    if row is not None and combined(units) != row.sha256:
        problem = problem or _CHANGED
    return measure, problem


def _stored(recipe: Recipe, scale: NDArray[np.float32] | None, grade: Grade, row: Row | None) -> Stored:
    if row is not None and _decoded(recipe, row) and grade.kind in ("quantized", "requantized"):
        counted = max(8 * row.source_nbytes // max(recipe.elements, 1), 1)
        # The codes of a format may be floats, of which those of eight bits round like integers of at least five.
        return Stored(recipe.type, bits_of(row.source_type) or min(counted, 5), None, scale)
    if not recipe.content.layered:
        return Stored(recipe.type, bits_of(recipe.type), None, scale)
    layers, name = layer_of(recipe.content)
    form = layers.form(name)
    bits = min(8 * recipe.source_nbytes // max(recipe.elements, 1), code_bits(form))
    return Stored("F32", max(bits, 1), None if layers[name].transposed else form)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
