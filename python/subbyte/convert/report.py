"""What a conversion did, tensor by tensor, and the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subbyte.errors import FormatError

if TYPE_CHECKING:
    from subbyte.io.remote import Place
    from subbyte.planning.output import TensorPlan


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor.

    Attributes:
        name: name in the target.
        shape: NumPy order.
        source_type, type: types before and after.
        source_nbytes, nbytes: bytes before and after; those of a layer before are counted with its first plane.
        bits_per_weight: bits per weight in the target; those of the planes of a layer add up.
        kind: what happened to the values (:func:`~subbyte.convert.values.kind`).
        seconds: time it took, summed over threads.
        sha256: hash over those of its units (:mod:`subbyte.convert.manifest`).
        unit_rows: rows of a unit.
        unit_columns: their length; longer rows, of millions of elements, are cut into equal pieces.
        why: what rounds and by how much at most, or why the codes could not be moved.
        bound: largest relative change of a parameter that rounds.
        layer: name of the dense weight that it is a plane of; empty for a tensor of its own.
        elements: weights, of the whole layer for a plane.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_nbytes: int
    nbytes: int
    bits_per_weight: float
    kind: str
    seconds: float = 0.0
    sha256: str = ""
    unit_rows: int = 0
    why: str = ""
    bound: float = 0.0
    layer: str = ""
    elements: int = 0
    unit_columns: int = 0

    @classmethod
    def of(
        cls, tensor: TensorPlan, seconds: float = 0.0, sha256: str = "", unit_rows: int = 0, unit_columns: int = 0
    ) -> Row:
        """The row of a planned tensor."""
        recipe, part = tensor.recipe, tensor.part
        elements = recipe.elements if part is None else part.elements
        before = recipe.source_nbytes if part is None else part.source_nbytes
        bits = 8 * tensor.nbytes / elements if elements else 0.0
        return cls(tensor.name, tensor.shape, recipe.content.stored, tensor.type, before, tensor.nbytes, bits,
                   tensor.kind, seconds, sha256, unit_rows, tensor.why, tensor.bound,
                   "" if part is None else part.layer, elements, unit_columns)  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """The row whose fields are ``data``.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        values = {name: _checked(data[name], kind, name) for name, kind in _ROW_FIELDS.items()}
        shape = tuple(_checked(size, int, "shape") for size in values["shape"])
        return cls(**{**values, "shape": shape})


_ROW_FIELDS: Mapping[str, type] = {
    "name": str, "shape": list, "source_type": str, "type": str, "source_nbytes": int, "nbytes": int,
    "bits_per_weight": float, "kind": str, "seconds": float, "sha256": str, "unit_rows": int,
    "why": str, "bound": float, "layer": str, "elements": int, "unit_columns": int,
}  # fmt: skip
_FIELDS: Mapping[str, type] = {
    "src": str, "dst": str, "to": str, "nbytes": int, "seconds": float, "resumed": int, "unchanged": bool,
    "tensors": list, "warnings": list, "left_out": list, "files": dict, "not_copied": list,
}  # fmt: skip


def _checked(value: Any, kind: type, name: str) -> Any:
    """``value``, of the kind that a field of a stored report has; numbers from 0 up.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(value, (int, float) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name}: expected {kind.__name__}, found {type(value).__name__}")
    if isinstance(value, int | float) and not 0 <= value < 1 << 63:
        raise ValueError(f"{name}: expected a number from 0 up, found {value!r:.40}")
    return value


@dataclass(frozen=True, slots=True)
class Report:
    """A finished conversion.

    Attributes:
        src, dst: paths.
        to: the target, ``gguf.q4_k_m``.
        tensors: one row each, in file order.
        warnings: each names its tensor or file.
        left_out: source tensors that are not stored, with the reason.
        nbytes: size of the file.
        seconds: time it took; of the last run, if it went on from an earlier one.
        resumed: bytes that an earlier run had written.
        unchanged: whether the file was there already, made by the same command, and nothing was done.
        files: bytes of each file by its name, where the target is a folder.
        not_copied: files of the source that are not stored, with the reason.
    """

    src: Place
    dst: Path
    to: str
    tensors: tuple[Row, ...]
    warnings: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    nbytes: int
    seconds: float
    resumed: int = 0
    unchanged: bool = False
    files: Mapping[str, int] = field(default_factory=dict)
    not_copied: tuple[tuple[str, str], ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight, over all tensors."""
        elements = weights(self.tensors)
        return 8 * sum(row.nbytes for row in self.tensors) / elements if elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; ``version`` changes when a field changes its meaning."""
        return {
            "version": 1,
            "src": str(self.src),
            "dst": str(self.dst),
            "to": self.to,
            "nbytes": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "unchanged": self.unchanged,
            "tensors": [asdict(row) for row in self.tensors],
            "warnings": list(self.warnings),
            "left_out": [{"name": name, "reason": reason} for name, reason in self.left_out],
            "files": dict(self.files),
            "not_copied": [{"name": name, "reason": reason} for name, reason in self.not_copied],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], **changes: Any) -> Report:
        """The report that :meth:`to_json` gave, with ``changes`` to its attributes.

        Raises:
            FormatError: it is none.
        """
        try:
            values = {name: _checked(data[name], kind, name) for name, kind in _FIELDS.items()}
            listed = {
                name: tuple((_checked(entry["name"], str, name), _checked(entry["reason"], str, name))
                            for entry in values[name])
                for name in ("left_out", "not_copied")
            }  # fmt: skip
            tensors = tuple(Row.from_json(entry) for entry in values["tensors"])
            for name, size in values["files"].items():
                _checked(size, int, name)
            warnings = tuple(_checked(warning, str, "warnings") for warning in values["warnings"])
            return cls(**{**values, **listed, "src": Path(values["src"]), "dst": Path(values["dst"]),
                          "tensors": tensors, "warnings": warnings, **changes})  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not the report of a conversion: {type(error).__name__}: {error}") from None

    def table(self) -> str:
        """The tensors and the totals as text."""
        return conversion_table(self.tensors)

    def summary(self) -> str:
        """One line with file, size, bits per weight and time."""
        if self.unchanged:
            return f"{self.dst}: was made by the same conversion already; nothing to do"
        return (
            f"{self.dst}: {self.nbytes:,} bytes, {len(self.tensors)} tensors, "
            f"{self.bits_per_weight:.2f} bits per weight, {self.seconds:.1f} s"
            + (f", {len(self.files)} files" if self.files else "")
            + (f", {len(self.not_copied)} files of the source not copied" if self.not_copied else "")
            + (f", {self.resumed:,} bytes from an earlier run" if self.resumed else "")
        )


def weights(rows: Iterable[Row]) -> int:
    """Weights of the tensors, those of a layer counted once."""
    seen: set[str] = set()
    total = 0
    for row in rows:
        if not row.layer or row.layer not in seen:
            total += row.elements
            seen.add(row.layer)
    return total


def conversion_table(rows: Iterable[Row]) -> str:
    """The rows of a conversion with their totals as text; class and reason stand once for the planes of a layer."""
    rows = list(rows)
    before, after = sum(row.source_nbytes for row in rows), sum(row.nbytes for row in rows)
    body = []
    last = ""
    for row in rows:
        first = not row.layer or row.layer != last
        last = row.layer
        once = (row.source_type, f"{row.source_nbytes:,}", row.kind, row.why) if first else ("", "", "", "")
        body.append((row.name, once[0], row.type, once[1], f"{row.nbytes:,}", f"{row.bits_per_weight:.2f}", *once[2:]))
    bits = 8 * after / max(weights(rows), 1)
    body.append((f"{len(rows)} tensors", "", "", f"{before:,}", f"{after:,}", f"{bits:.2f}", "", ""))
    head = ("tensor", "from", "to", "bytes in", "bytes out", "bits/weight", "values", "because")
    shown = len(head) if any(row.why for row in rows) else len(head) - 1
    return table(head[:shown], [cells[:shown] for cells in body], right={3, 4, 5})


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Columns of text under a head; the last row of ``body`` may be totals.

    Args:
        head: titles.
        body: cells.
        right: columns aligned to the right.
    """
    right = set(right)
    body = [[printable(cell) for cell in row] for row in body]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = []
    for row in (head, ["-" * width for width in widths], *body):
        aligned = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def finite(value: Any) -> Any:
    """JSON data with ``None`` for the numbers that JSON does not have: infinities and NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    """``text`` with control characters escaped: a hostile file must not drive the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
