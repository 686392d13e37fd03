"""Writes docs/formats/matrix.md from the registries: what this version reads, writes and converts.

Run `python scripts/generate_matrix.py` after a change of a registry; a test compares the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from subbyte.arch import ARCHITECTURES
from subbyte.convert.catalogue import CLASSES, list_conversions
from subbyte.convert.types import FLOATS, WEIGHTS
from subbyte.formats import PLANNED, checkpoint_format, envelope, format_ids
from subbyte.formats.base import Format
from subbyte.ggml import TYPES
from subbyte.planning.mix import ALIASES, FILE_TYPES
from subbyte.routes import TARGETS, VARIANTS, matrix

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats" / "matrix.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def codecs() -> str:
    """The block formats."""
    mark = {True: "✓", False: "–"}
    return table(
        ["codec", "ggml id", "bits per weight", "block", "bytes", "decode", "encode", "importance"],
        (
            [
                f"`gguf.{facts.name.lower()}`" if facts.encodes else facts.name,
                str(facts.number),
                f"{8 * facts.block_bytes / facts.block:g}",
                str(facts.block),
                str(facts.block_bytes),
                mark[facts.decodes],
                mark[facts.encodes],
                facts.importance if facts.encodes else "–",
            ]
            for facts in TYPES.values()
        ),
    )


def targets() -> str:
    """What `subbyte convert --to` takes, format by format."""
    others = {name: [alias for alias, of in ALIASES.items() if of == name] for name in FILE_TYPES}
    rows = [
        [f"`gguf.{t.name.lower()}`", " ".join(f"`gguf.{a.lower()}`" for a in others[name]), str(t.number), t.base]
        for name, t in FILE_TYPES.items()
    ]
    return table(["target", "also called", "file type", "type of most tensors"], rows)


def architectures() -> str:
    """The model architectures."""
    rows = ([f"`{arch.name}`", ", ".join(f"`{kind}`" for kind in arch.model_types)] for arch in ARCHITECTURES)
    return table(["GGUF `general.architecture`", "Hugging Face `model_type`"], rows)


def conversions() -> str:
    """What becomes of a tensor: a row for each source, by class; targets that only differ in the source are alike."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in list_conversions():
        if row["source"] not in matrix.SOURCES:
            found.setdefault(row["source"], {}).setdefault(row["class"], []).append(row["target"])
    blocks = [f"gguf.{name.lower()}" for name in WEIGHTS if TYPES[name].block > 1]

    def cell(source: str, targets: Sequence[str]) -> str:
        quantized = [target for target in targets if target in blocks]
        others = " ".join(f"`{target}`" for target in targets if target not in blocks)
        if len(quantized) < len(blocks) - 1:
            return " ".join(f"`{target}`" for target in targets) or "–"
        every = "every block type" if len(quantized) == len(blocks) else "every other block type"
        return f"{others} {every}".strip()

    rows = ([f"`{source}`", *(cell(source, by.get(name, [])) for name in CLASSES)] for source, by in found.items())
    return table(["source", *CLASSES], rows)


def checkpoints() -> str:
    """The class of a typical layer of each family in each target."""
    targets = matrix.targets()

    def cell(source: str, target: str) -> str:
        found = matrix.fit(source, target)
        if found is None:
            return "requantized"
        return f"{found.kind} ({found.params['type']})" if target == "gguf" else found.kind

    rows = ([source, *(cell(source, target) for target in targets)] for source in matrix.SOURCES)
    return table(["source", *(f"`{target}`" for target in targets)], rows)


def formats() -> str:
    """The checkpoint formats."""
    mark = {True: "✓", False: "–"}
    return table(
        ["format", "open", "target"],
        (
            [
                f"`{id}`",
                mark[type(checkpoint_format(id)).layers is not Format.layers],
                mark[id in TARGETS or id == envelope.ID],
            ]
            for id in format_ids()
        ),
    )


def settings() -> str:
    """The settings of every target that is a checkpoint format, and what its variants stand for."""
    rows = []
    for id, target in TARGETS.items():
        for key, option in target.options.items():
            codes = "the source's" if option.default is None else f"`{option.default}`"
            floats = option.floats if option.default is None else option.default
            rows.append([
                f"`{id}`", f"`{key}`", codes, "–" if floats is None else f"`{floats}`",
                " ".join(f"`{choice}`" for choice in option.choices) or "any", option.about,
            ])  # fmt: skip
    return table(["target", "setting", "default for codes", "default for floats", "choices", "what it is"], rows)


def variants() -> str:
    """Names of targets with settings in them."""
    rows = (
        [f"`{name}`", ", ".join(f"`{key}={value}`" for key, value in chosen.items())]
        for name, chosen in VARIANTS.items()
    )
    return table(["target", "settings"], rows)


def render() -> str:
    """The page."""
    return f"""# Format matrix

Generated from the registries by `scripts/generate_matrix.py`.

## Codecs

Layouts and encoders are specified in [GGUF and the ggml tensor types](gguf.md). The integer types have no codec: they
are stored and copied, not decoded to floats. *importance* is what the encoder does with importance weights.

{codecs()}

## Conversion targets: GGUF

{targets()}

## Conversion targets: Hugging Face

{" ".join(f"`hf.{name.lower()}`" for name in FLOATS)}: safetensors of this type with config.json and the tokenizer.

## Checkpoint formats

What `subbyte.decode` and `subbyte.encode` take, layer by layer; *open*: `subbyte.open` reads folders of safetensors in
this format; *target*: `subbyte convert --to` writes them. The bytes of each are specified in
[Checkpoint formats](checkpoints.md), and in [subbyte's own checkpoints](envelope.md).

{formats()}

## Conversions, tensor by tensor

What happens to the values of a tensor (`subbyte list conversions`): *exact* keeps the codes; *exact-value* writes other
codes of the same values; *rounded* goes to a float type that cannot hold them all; *quantized* goes from floats to
blocks; *requantized* goes from blocks to other blocks, and only with `--lossy`. `gguf` without a type keeps each
tensor's own. The block types are those of the table of codecs, without `gguf.q8_k`.

{conversions()}

## Conversions between checkpoint formats, layer by layer

The best class of a typical layer: `exact` moves the codes, `exact-value` writes other codes of the same values,
`rounded` rounds a parameter within a bound that the plan states, `requantized` needs `--lossy`. For GGUF the type is
given that has it; `gguf` without a type takes it where nothing rounds, and floats otherwise. A conversion looks at the
values of every layer, and `subbyte plan` says what becomes of each, and why. Where nothing else is said, codes are
symmetric, in groups of 128.

{checkpoints()}

## Settings of checkpoint formats

What `--set key=value` sets (`subbyte list targets`). Codes that move keep their bits, groups and types where the target
has room for them; floats that are quantized get the defaults.

{settings()}

Some targets have names for their settings:

{variants()}

## Architectures

{architectures()}

## Planned

Ids that are spoken for; `subbyte.get_codec` and `subbyte.decode` refuse them and say so.

{" ".join(f"`{name}`" for name in sorted(PLANNED))}
"""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
