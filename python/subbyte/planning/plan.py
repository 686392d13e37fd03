"""The plan of a conversion to GGUF: every tensor's type and size, and the size of the file, from headers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.recipe import Recipe, computed
from subbyte.convert.source import Source, open_source, stamp
from subbyte.convert.types import FLOATS, nbytes, parse_type, quantized
from subbyte.convert.values import Importance
from subbyte.errors import ArgumentError, Error, UnsupportedError
from subbyte.formats import PLANNED, format_ids
from subbyte.ggml import TYPES
from subbyte.imatrix import ImportanceMatrix, load_imatrix
from subbyte.io.gguf import GgufValue, plan_gguf
from subbyte.io.remote import Place
from subbyte.paths import checked_path, utf8
from subbyte.planning.budget import choose, nearest_file_type, parse_bits, parse_size
from subbyte.planning.mix import (
    FILE_TYPES,
    FileType,
    MixOptions,
    choose_types,
    converter_type,
    file_type,
    is_quantizable,
    lacking_importance,
    overridden,
    rule_finds,
    tensor_class,
    unknown_target,
    visit_order,
)
from subbyte.planning.output import Plan, TensorFile, TensorPlan
from subbyte.tokenizer.pretokenizer import pre_tokenizers


def make_plan(
    src: Place,
    to: str,
    *,
    lossy: bool = False,
    pure: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_type: Sequence[str] | Mapping[str, str] = (),
    imatrix: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    strict: bool = False,
    target_size: str | int | None = None,
    target_bpw: float | None = None,
    types: Mapping[str, str] | None = None,
    edited: bool = False,
    mixed: bool = False,
) -> Plan:
    """Plan the conversion of ``src``; arguments as :func:`subbyte.convert`.

    Args:
        types: type of every tensor by name, decided already (a plan file).
        edited: whether somebody changed them, so that they are no longer those of the target.
        mixed: whether they were chosen for a size.

    Raises:
        ArgumentError: the options contradict each other or the model.
        UnsupportedError: a source or target that cannot be converted (yet).
        Error: with ``strict``, there are warnings.
    """
    target_name = _target_name(to)
    options = MixOptions(
        pure=pure,
        output_tensor_type=None if output_tensor_type is None else parse_type(output_tensor_type),
        token_embedding_type=None if token_embedding_type is None else parse_type(token_embedding_type),
        tensor_type=tuple(_rules(tensor_type)),
        importance=imatrix is not None,
    )
    size = None if target_size is None else parse_size(target_size)
    bits = None if target_bpw is None else parse_bits(target_bpw)
    budget = size is not None or bits is not None
    if budget and (target_name or pure or types is not None or None not in (size, bits)):
        raise ArgumentError(
            "target_size and target_bpw choose the types themselves: give one of them, with to='gguf' and without pure "
            "or a plan"
        )
    named = output_tensor_type or token_embedding_type or options.tensor_type
    if types is not None and (pure or named):
        raise ArgumentError("a plan names the type of every tensor: edit it instead of giving options for types")
    if pure and not target_name:
        raise ArgumentError("pure is one type for every tensor: name it, as in to='gguf.q6_k'")
    data = None if imatrix is None else load_imatrix(checked_path(imatrix, "imatrix"))
    if target_name:
        file_type(target_name)  # a misspelt target is reported before the source is read
    source = open_source(src, pre)
    if imatrix is not None:
        source.files.append(Path(imatrix))
    source.warnings += _idle_rules(source, options)
    if pre is not None:
        _rename_pre(source, pre)
    copied = source.format == "gguf" and not target_name and not budget
    if source.no_model and not copied:
        raise UnsupportedError(f"{source.no_model}; only a copy can be made of it, with to='gguf'", file=src)
    target = _noted_type(source) if copied else file_type(target_name or _own_type(source))
    # A checkpoint becomes a float or Q8_0 file in one step of the original converter; every other file is what the
    # original quantizer makes of a file that holds the checkpoint exactly.
    direct = copied or (
        source.format == "safetensors" and target.name in (*FLOATS, "Q8_0") and not budget and not mixed
    )
    if types is not None:
        chosen = _given_types(source, types)
        target = nearest_file_type(_shares(source, chosen)) if edited else target
    elif copied:
        chosen = {recipe.name: _overridden(recipe, options) or recipe.type for recipe in source.recipes}
    elif budget:
        chosen = _budgeted_types(source, options, data, size, bits, lossy=lossy)
        target = nearest_file_type(_shares(source, chosen))
    elif any(recipe.content.layered for recipe in source.recipes):
        chosen = _routed_types(source, target if target_name else None, options, data)
        target = target if target_name else nearest_file_type(_shares(source, chosen))
    elif not direct:
        chosen = _mixed_types(source, target, options, data)
    else:
        chosen = _converter_types(source, target if target_name else None, options)
        if "MXFP4" in chosen.values():
            target = file_type("MXFP4")  # the original's name for files that keep the codes of gpt-oss
    recipes = {recipe.name: recipe for recipe in source.recipes}
    _check_importance(source, chosen, data)
    tensors: list[TensorPlan] = []
    for name, type_ in chosen.items():
        recipe, kind_, why, bound = recipes[name].held_as(type_)
        shape = _shape(recipe.shape, keep=direct)
        tensors.append(TensorPlan(recipe, type_, shape, kind_, _importance(recipe, type_, data), why, bound))
        if scales := recipe.content.tensor_scales:
            beside = computed(f"{name.removesuffix('.weight')}.scale", np.array(scales, np.float32))
            tensors.append(TensorPlan(beside, "F32", beside.shape, "exact"))
    if data is not None:
        source.warnings += _idle_importance(tensors, data, noted=not direct)
    if strict and source.warnings:
        raise Error(f"strict, and there are {len(source.warnings)} warnings: {'; '.join(source.warnings)}", file=src)
    again = [tensor for tensor in tensors if tensor.kind == "requantized"]
    if again and not lossy:
        listed = ", ".join(f"'{tensor.name}' {tensor.recipe.content.stored} to {tensor.type}" for tensor in again[:5])
        raise ArgumentError(
            f"{len(again)} tensors are quantized already and would lose precision a second time ({listed}"
            f"{', …' if len(again) > 5 else ''}); convert the original, or allow it with lossy",
            file=src,
        )
    metadata = dict(source.metadata) if copied else _metadata(source, target, direct)
    if data is not None and not direct:
        metadata |= _imatrix_keys(data, os.fspath(imatrix or ""))
    layout = plan_gguf(metadata, [(tensor.name, tensor.type, tensor.shape) for tensor in tensors])
    asked = {
        "to": to,
        "pure": pure,
        "output_tensor_type": options.output_tensor_type,
        "token_embedding_type": options.token_embedding_type,
        "tensor_type": [f"{pattern}={name}" for pattern, name in options.tensor_type],
        "imatrix": None if imatrix is None else stamp(Path(imatrix)),
        "pre": pre,
        "target_size": size,
        "target_bpw": bits,
    }
    return Plan(source, f"gguf.{target.name.lower()}", (TensorFile("", tuple(tensors), layout),), asked)


def _target_name(to: str) -> str:
    """The file type's name in a target such as ``gguf.q4_k_m``; empty for ``gguf``: the checkpoint's own type.

    Raises:
        ArgumentError: there is no such target.
        UnsupportedError: a format that cannot be written (yet).
    """
    family, dot, name = to.partition(".")
    if not PLANNED.isdisjoint((to, family)) or family in format_ids():
        raise UnsupportedError(f"conversion to '{to}' is not supported (yet); expected gguf.TYPE such as gguf.q4_k_m")
    if family != "gguf" or (dot and not name):
        raise unknown_target(to)
    return name


def _rename_pre(source: Source, pre: str) -> None:
    """Put another name into a GGUF source's ``tokenizer.ggml.pre``; see that a checkpoint's has got it.

    Raises:
        ArgumentError: there is no vocabulary whose texts are split by it.
    """
    if "tokenizer.ggml.model" not in source.metadata:
        raise ArgumentError("pre: the source has no vocabulary", file=source.path)
    if source.format == "gguf":
        source.metadata["tokenizer.ggml.pre"] = GgufValue("str", pre)
        if pre not in pre_tokenizers():
            source.warnings.append(f"pre-tokenizer '{pre}' is none that is known: programs may refuse the file")


def _noted_type(source: Source) -> FileType:
    """The file type that a GGUF source's metadata tell; F32 where they tell none that is known."""
    noted = source.metadata.get("general.file_type")
    number = None if noted is None else noted.value
    return next((known for known in FILE_TYPES.values() if known.number == number), file_type("F32"))


def _own_type(source: Source) -> str:
    """The float type that holds the source exactly: that of the largest share of its floats."""
    share: dict[str, int] = {}
    for recipe in source.recipes:
        if not quantized(recipe.type):
            share[recipe.type] = share.get(recipe.type, 0) + recipe.elements
    own = max(share, key=lambda name: share[name], default="F32")
    return own if own in FLOATS else "F32"


def _rules(tensor_type: Sequence[str] | Mapping[str, str]) -> Iterable[tuple[str, str]]:
    if isinstance(tensor_type, str):
        tensor_type = [tensor_type]
    pairs: list[tuple[str, str]]
    if isinstance(tensor_type, Mapping):
        pairs = list(tensor_type.items())
    elif isinstance(tensor_type, Iterable):
        pairs = [(left, right) for left, _, right in (str(rule).rpartition("=") for rule in tensor_type)]
    else:
        raise ArgumentError(f"tensor_type: expected rules REGEX=TYPE or a mapping, found {tensor_type!r}")
    for pattern, name in pairs:
        if not pattern:
            raise ArgumentError(f"tensor_type: expected REGEX=TYPE, found {name!r}")
        if not isinstance(pattern, str):
            raise ArgumentError(f"tensor_type: {pattern!r:.80} is not a regular expression: expected a string")
        rule_finds(pattern, "")  # refused here if it is none
        yield pattern, parse_type(name)


def _idle_rules(source: Source, options: MixOptions) -> list[str]:
    """Warnings for rules that find no tensor whose type may be chosen."""
    free = [
        recipe.name
        for recipe in source.recipes
        if recipe.name not in source.unknown and is_quantizable(recipe.name, recipe.shape)
    ]
    return [
        f"tensor_type '{pattern}={name}' finds no tensor whose type can be chosen"
        for pattern, name in options.tensor_type
        if not any(rule_finds(pattern, tensor) for tensor in free)
    ]


def _converter_types(source: Source, target: FileType | None, options: MixOptions) -> dict[str, str]:
    """Types of a file that a checkpoint becomes directly, in the checkpoint's order.

    Tensors that the checkpoint stores in blocks keep them. Without a target every other tensor keeps its float type,
    as far as the original converter does not want it in F32.
    """
    chosen = {}
    for recipe in source.recipes:
        if recipe.name in source.unknown or quantized(recipe.type):
            chosen[recipe.name] = recipe.type
        elif target is None:
            chosen[recipe.name] = _kept_type(source, recipe)
        else:
            chosen[recipe.name] = converter_type(recipe.name, recipe.shape, target)
        own = _overridden(recipe, options)
        if own and recipe.name not in source.unknown:
            chosen[recipe.name] = own
    return chosen


def _routed_types(
    source: Source, target: FileType | None, options: MixOptions, data: ImportanceMatrix | None
) -> dict[str, str]:
    """Types of a file that a quantized checkpoint becomes, in its order.

    Its layers get the type of the target where that holds their codes, and that of the target's mix otherwise; without
    a target the type that holds them. What it stores as floats stays floats where no option says otherwise.
    """
    mixed = {} if target is None or target.name in FLOATS else _mixed_types(source, target, options, data)
    chosen = {}
    for recipe in source.recipes:
        kept = _kept_type(source, recipe)
        if recipe.content.layered:
            kept = recipe.type
            if target is not None:
                base = target.base
                moved = base in FLOATS or recipe.type == base or recipe.content.as_type(base) is not None
                kept = base if moved else mixed[recipe.name]
        own = None if recipe.name in source.unknown else _overridden(recipe, options)
        chosen[recipe.name] = own or kept
    return chosen


def _overridden(recipe: Recipe, options: MixOptions) -> str | None:
    """The type that the user asked for, where the tensor may be quantized."""
    return overridden(recipe.name, recipe.shape, options) if is_quantizable(recipe.name, recipe.shape) else None


def _mixed_types(
    source: Source, target: FileType, options: MixOptions, data: ImportanceMatrix | None
) -> dict[str, str]:
    """Types of a mixed file, in visit order."""
    shapes = {recipe.name: recipe.shape for recipe in source.recipes if recipe.name not in source.unknown}
    mixed = choose_types(shapes, target, source.model, options)
    lacking = [name for name in lacking_importance(target, mixed) if data is None or name not in data]
    if lacking:
        names = ", ".join(f"'{name}' {mixed[name]}" for name in lacking)
        raise ArgumentError(
            f"gguf.{target.name.lower()} needs importance data (an imatrix) for {len(lacking)} tensors"
            f"{' that the imatrix lacks' if data is not None else ''}; "
            f"choose a target without, such as gguf.q2_k or gguf.iq3_s. The tensors: {names}",
            file=source.path,
        )
    recipes = {recipe.name: recipe for recipe in source.recipes}
    return {name: mixed.get(name) or _kept_type(source, recipes[name]) for name in visit_order(list(recipes))}


def _given_types(source: Source, types: Mapping[str, str]) -> dict[str, str]:
    """The types of an edited plan, in its order."""
    recipes = {recipe.name: recipe for recipe in source.recipes}
    for name in {*recipes, *types}:
        if name not in types or name not in recipes:
            where = "the plan" if name in recipes else "the source"
            raise ArgumentError(f"not in {where}: plan and source do not belong together", tensor=name)
    chosen = {}
    for name, given in types.items():
        recipe = recipes[name]
        kind_ = recipe.type if given.upper() == recipe.type else parse_type(given)
        if recipe.columns % TYPES[kind_].block:
            raise ArgumentError(f"rows of {recipe.columns} elements are no whole blocks of {kind_}", tensor=name)
        chosen[name] = kind_
        if quantized(kind_) and kind_ != recipe.type and not is_quantizable(name, recipe.shape):
            source.warnings.append(f"tensor '{name}': {kind_}, where programs expect floats and may refuse the file")
    return chosen


def _budgeted_types(
    source: Source,
    options: MixOptions,
    data: ImportanceMatrix | None,
    size: int | None,
    bits: float | None,
    *,
    lossy: bool,
) -> dict[str, str]:
    """Types that make a file of the size asked for with the smallest predicted loss, in visit order."""
    recipes = {recipe.name: recipe for recipe in source.recipes}
    chosen = {name: _kept_type(source, recipes[name]) for name in visit_order(list(recipes))}
    free = []
    for name, recipe in recipes.items():
        if name in source.unknown or not is_quantizable(name, recipe.shape):
            continue
        own = overridden(name, recipe.shape, options)
        if own is None and (lossy or not quantized(recipe.type)):
            free.append(recipe)
        chosen[name] = own or chosen[name]
    if not free:
        again = not lossy and any(quantized(recipe.type) for recipe in source.recipes)
        raise ArgumentError(
            "there is no tensor whose type could be chosen"
            + (": those that could are quantized already; convert the original, or allow it with lossy" * again),
            file=source.path,
        )

    def limit(smallest: Mapping[str, str]) -> int:
        if bits is not None:
            elements = sum(recipe.elements for recipe in free)
            least = sum(nbytes(kind_, recipes[name].shape) for name, kind_ in smallest.items())
            if 8 * least > bits * elements:
                least_bits = math.ceil(800 * least / elements) / 100
                raise too_small(f"target_bpw {bits:g}", f"{least_bits:.2f} bits per weight in {len(free)} tensors")
            return math.floor(bits * elements / 8)
        # Everything that does not depend on the choice is what a file of the smallest types has besides these.
        trial = {**chosen, **smallest}
        metadata = _metadata(source, file_type("F32"), False)
        if data is not None:
            metadata |= _imatrix_keys(data, os.fspath(data.path or ""))
        shapes = [(name, trial[name], _shape(recipes[name].shape, keep=False)) for name in trial]
        layout = plan_gguf(metadata, shapes)
        least = sum(_padded(nbytes(kind_, recipes[name].shape)) for name, kind_ in smallest.items())
        if size is None or layout.nbytes > size:
            header = len(layout.header())
            raise too_small(
                f"target_size {size:,}",
                f"{layout.nbytes:,} bytes: {least:,} in the {len(free)} tensors whose type can be chosen, "
                f"{layout.nbytes - least - header:,} in the others, {header:,} in names and metadata",
            )
        return size - layout.nbytes + least

    def too_small(asked: str, least: str) -> ArgumentError:
        helps = data is None and any(recipe.columns % 256 == 0 for recipe in free)
        hint = "; importance data (imatrix) would allow smaller types" if helps else ""
        return ArgumentError(f"{asked} is too small: the smallest types take {least}{hint}", file=source.path)

    def importance(recipe: Recipe, kind_: str) -> Importance | None:
        return _importance(recipe, kind_, data)

    alignment = 1 if bits is not None else _ALIGNMENT
    found = choose(free, chosen, source.model.n_layer, importance, alignment=alignment, limit=limit)
    return {**chosen, **found}


_ALIGNMENT = 32


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _shares(source: Source, chosen: Mapping[str, str]) -> dict[str, int]:
    """Bytes by type."""
    share: dict[str, int] = {}
    for recipe in source.recipes:
        kind_ = chosen[recipe.name]
        share[kind_] = share.get(kind_, 0) + nbytes(kind_, recipe.shape)
    return share


def _kept_type(source: Source, recipe: Recipe) -> str:
    """The type of a tensor that a mix leaves alone: what an exact GGUF copy of the source has."""
    if source.format == "gguf" or recipe.name in source.unknown:
        return recipe.type
    if quantized(recipe.type):
        return recipe.type
    own = recipe.type if recipe.type in FLOATS else "F32"
    return converter_type(recipe.name, recipe.shape, file_type(own))


def _check_importance(source: Source, chosen: Mapping[str, str], data: ImportanceMatrix | None) -> None:
    """Refuse types that cannot be computed without importance data, for tensors that have none."""
    lacking = [
        f"'{recipe.name}' {chosen[recipe.name]}"
        for recipe in source.recipes
        if TYPES[chosen[recipe.name]].importance == "required"
        and recipe.type != chosen[recipe.name]
        and (data is None or recipe.name not in data)
    ]
    if lacking:
        raise ArgumentError(
            f"{len(lacking)} tensors need importance data (an imatrix) for their type"
            f"{', and the imatrix has none for them' if data is not None else ''}: {', '.join(lacking)}",
            file=source.path,
        )


def _idle_importance(tensors: Sequence[TensorPlan], data: ImportanceMatrix, *, noted: bool) -> list[str]:
    """A warning where importance data are not used, not for all tensors that could use them, or not ``noted``.

    The embedding and the output matrix have no entry in most files: what they are multiplied with is not measured.
    """
    where = f"imatrix '{data.path}'"
    able = [tensor for tensor in tensors if tensor.type != tensor.recipe.type and _uses_importance(tensor.type)]
    used = sum(tensor.importance is not None for tensor in able)
    if not used:
        known = any(tensor.name in data for tensor in tensors)
        why = "none gets a type that uses it" if known else f"none of its {len(data)} entries is for one of this model"
        return [f"{where}: no tensor is encoded with it: {why}"]
    idle = [
        tensor.name for tensor in able if tensor.importance is None and tensor_class(tensor.name) not in ("EMB", "OUT")
    ]
    warnings = [] if noted else [f"{where}: {used} tensors are encoded with it, and the file does not name it"]
    if idle:
        names = ", ".join(f"'{name}'" for name in idle[:5]) + (", …" if len(idle) > 5 else "")
        warnings.append(f"{where}: no entry for {len(idle)} of the {len(able)} tensors that could use one: {names}")
    return warnings


def _uses_importance(kind_: str) -> bool:
    return TYPES[kind_].importance != "ignored"


def _importance(recipe: Recipe, target: str, data: ImportanceMatrix | None) -> Importance | None:
    """The importance of the recipe's columns for its encoder; ``None`` where there is none, or no use for it."""
    name = recipe.name
    if data is None or name not in data:
        return None
    matrices = recipe.rows // recipe.shape[-2] if len(recipe.shape) > 1 else 1
    try:
        data.importance(name, matrices, recipe.columns)
    except ArgumentError:
        if name == "token_embd.weight":
            return None  # the original measures other rows there, and goes on without
        raise
    if recipe.type == target or not _uses_importance(target):
        return None

    @lru_cache(maxsize=1)
    def load() -> NDArray[np.float32]:
        return data.importance(name, matrices, recipe.columns)

    return Importance(recipe.rows // matrices, load)


def _imatrix_keys(data: ImportanceMatrix, path: str) -> dict[str, GgufValue]:
    """What a file says about the importance data it was made with; texts are cut as the original cuts them."""

    def text(value: str) -> GgufValue:
        return GgufValue("str", utf8(value).encode()[:127].decode("utf-8", "ignore"))

    keys = {"quantize.imatrix.file": text(path)}
    if data.datasets:
        keys["quantize.imatrix.dataset"] = text(data.datasets[0])
    return keys | {
        "quantize.imatrix.entries_count": GgufValue("u32", len(data)),
        "quantize.imatrix.chunks_count": GgufValue("u32", data.chunk_count),
    }


def _shape(shape: tuple[int, ...], *, keep: bool) -> tuple[int, ...]:
    """The shape as written: mixed files drop leading ones (ggml's trailing ones)."""
    while not keep and len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape or (1,)


def _metadata(source: Source, target: FileType, direct: bool) -> dict[str, GgufValue]:
    """The source's keys with those that tell the file type: in place in a direct file, last in a mixed one."""
    keys = {key: value for key, value in source.metadata.items() if key != "general.alignment"}
    marks = {
        "general.quantization_version": GgufValue("u32", 2),
        "general.file_type": GgufValue("u32", target.number),
    }
    if not direct:
        for key in marks:
            keys.pop(key, None)
    keys.update(marks)
    return keys
