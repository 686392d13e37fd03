"""What this installation can do: formats, codecs, conversions, SIMD levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subbyte import _native
from subbyte.codec import codec_ids
from subbyte.convert.types import FLOATS, WEIGHTS
from subbyte.convert.values import kind
from subbyte.formats import PLANNED, format_ids
from subbyte.ggml import TYPES
from subbyte.planning.mix import FILE_TYPES
from subbyte.routes import find_target, matrix, target_ids


def list_formats() -> list[dict[str, Any]]:
    """Format ids and conversion targets: ``id``; ``use`` (``"convert"`` or ``"decode, encode"``); ``status``."""
    targets = [{"id": f"gguf.{name.lower()}", "use": "convert", "status": "supported"} for name in FILE_TYPES]
    targets += [{"id": f"hf.{name.lower()}", "use": "convert", "status": "supported"} for name in FLOATS]
    targets += [{"id": name, "use": "convert", "status": "supported"} for name in target_ids()]
    layers = [*codec_ids(), *format_ids()]
    codecs = [{"id": name, "use": "decode, encode", "status": "supported"} for name in layers]
    planned = [{"id": name, "use": "decode, encode", "status": "planned"} for name in sorted(PLANNED)]
    return targets + codecs + planned


def list_targets() -> list[dict[str, Any]]:
    """Targets of conversions: a row for each setting of each: ``target``, ``setting``, ``default``, ``about``.

    ``default`` is that of floats that are quantized; codes that are moved keep the bits and groups of their source.
    A target without settings has one row. ``choices`` are the values that a setting may have; empty: any.
    """
    plain = ["gguf", *(f"gguf.{name.lower()}" for name in FILE_TYPES), "hf", *(f"hf.{name.lower()}" for name in FLOATS)]
    rows: list[dict[str, Any]] = [
        {"target": name, "setting": None, "default": None, "choices": [], "about": ""} for name in plain
    ]
    for name in target_ids():
        found = find_target(name)
        if found is None:
            raise KeyError(name)
        target, fixed = found
        for key, option in target.options.items():
            default = fixed.get(key, option.floats if option.default is None else option.default)
            rows.append({"target": name, "setting": key, "default": default, "choices": list(option.choices),
                         "about": option.about})  # fmt: skip
    return rows


def list_codecs() -> list[dict[str, Any]]:
    """Codec ids with ``block`` (elements), ``bits_per_weight`` and ``importance`` (use of importance weights)."""
    rows = []
    for name in codec_ids():
        facts = TYPES.get(name.removeprefix("gguf.").upper())
        rows.append(
            {"id": name}
            if facts is None
            else {
                "id": name,
                "block": facts.block,
                "bits_per_weight": 8 * facts.block_bytes / facts.block,
                "importance": facts.importance,
            }
        )
    return rows


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of checkpoint, as a source and as a target of conversions.

    Attributes:
        reads: types that its tensors may have as a source.
        writes: types that they may have as a target.
        into: families it is converted into.
        kept: the type that a tensor of a type has in a target that keeps every tensor's own; ``None``: no such target.
    """

    reads: Sequence[str]
    writes: Sequence[str]
    into: Sequence[str]
    kept: Callable[[str], str] | None = None


FAMILIES: Mapping[str, Family] = {
    "hf": Family(reads=("F64", *FLOATS, "MXFP4"), writes=FLOATS, into=("gguf", "hf")),
    "gguf": Family(
        reads=tuple(TYPES),
        writes=WEIGHTS,
        into=("gguf", "hf"),
        kept=lambda name: "F32" if name == "F64" else name,
    ),
}
"""What is converted into what; everything that lists conversions is made from it."""

CLASSES: Mapping[str, str] = {"exact": "=", "exact-value": "v", "rounded": "r", "quantized": "q", "requantized": "Q"}
"""What happens to the values (:func:`~subbyte.convert.values.kind`), and the letter that stands for it in a matrix."""


def list_conversions() -> list[dict[str, Any]]:
    """Every conversion of a tensor: ``source``, ``target``, ``class``, and ``lossy`` (whether it has to be allowed).

    ``class`` is what happens to the values: ``exact`` (the same codes), ``exact-value`` (other codes of the same
    values), ``rounded`` (to a float type that cannot hold them all), ``quantized``, or ``requantized`` (quantized a
    second time). A target without a type, ``gguf``, keeps each tensor's own.

    Between checkpoint formats it is that of a typical layer (:mod:`subbyte.routes.matrix`), in a type that
    holds its codes, else as floats, where the target is ``gguf``; a conversion looks at the values of every layer.
    """
    rows = []
    for source, family in FAMILIES.items():
        for name in family.reads:
            for target in family.into:
                kept = FAMILIES[target].kept
                found = [(target, name if source == target else kept(name))] if kept else []
                if TYPES[name].decodes:
                    found += [(f"{target}.{written.lower()}", written) for written in FAMILIES[target].writes]
                for id, written in found:
                    class_ = kind(name, written)
                    row = {"source": f"{source}.{name.lower()}", "target": id, "class": class_}
                    rows.append(row | {"lossy": class_ == "requantized"})
    for name in matrix.SOURCES:
        for target in matrix.targets():
            fit = matrix.fit(name, target)
            class_ = "requantized" if fit is None else fit.kind
            if target == "gguf" and class_ in ("rounded", "requantized"):
                class_ = "exact-value"  # floats: only a type that is asked for may round or search
            rows.append({"source": name, "target": target, "class": class_, "lossy": class_ == "requantized"})
    return rows


def conversion_matrix(rows: Sequence[Mapping[str, Any]]) -> str:
    """The conversions as text: a table for each family of targets, and one for layers; a letter for each class."""
    legend = ", ".join(f"{letter} {name}" for name, letter in CLASSES.items())
    parts = [legend, "requantized: only with --lossy; . not possible"]
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        family = row["target"].partition(".")[0]
        group = groups.setdefault("layers" if row["source"] in matrix.SOURCES else family, {})
        group.setdefault(row["source"], {})[row["target"]] = CLASSES[row["class"]]
    for name, group in groups.items():
        targets = list(dict.fromkeys(target for letters in group.values() for target in letters))
        titles = [target.partition(".")[2] or ("(own)" if target == name else target) for target in targets]
        height, width = max(map(len, titles)), max(map(len, group))
        head = [" ".join(title.rjust(height)[line] for title in titles) for line in range(height)]
        title = "layers of quantized checkpoints:" if name == "layers" else f"to {name}:"
        parts += ["", title] + [f"{'':{width}}  {line}".rstrip() for line in head]
        parts += [
            f"{source:{width}}  {' '.join(letters.get(target, '.') for target in targets)}"
            for source, letters in group.items()
        ]
    return "\n".join(parts)


def list_levels() -> list[dict[str, Any]]:
    """SIMD levels, lowest first: ``level``, ``available`` (this processor can run it), and which one is ``used``."""
    used = _native.level()
    return [{"level": name, "available": runs, "used": name == used} for name, runs in _native.levels()]
