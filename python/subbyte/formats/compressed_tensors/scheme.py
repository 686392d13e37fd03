"""What the settings of compressed-tensors say about a layer: format, strategy, bits, by group of modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import setting_bool, setting_int, setting_text
from subbyte.formats.patterns import matches

INTEGER_FORMATS = ("pack-quantized", "int-quantized")
#: Element, its bits, and columns of a block of the formats with a small scale for each block.
BLOCK_FORMATS = {
    "nvfp4-pack-quantized": ("E2M1", 4, 16), "mxfp4-pack-quantized": ("E2M1", 4, 32),
    "mxfp6-pack-quantized": ("E2M3", 6, 32), "mxfp8-quantized": ("F8_E4M3", 8, 32),
}  # fmt: skip
FLOAT_FORMATS = ("float-quantized", *BLOCK_FORMATS)
FORMATS = (*INTEGER_FORMATS, *FLOAT_FORMATS, "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")

#: The first version that packs codes of 3, 5, 6, 7 bits without gaps.
_DENSE_SINCE = (0, 18)

_INT = {"type": "int", "symmetric": True}
_FLOAT = {"type": "float", "symmetric": True}
_MX = {**_FLOAT, "strategy": "group", "group_size": 32}
_PRESETS: dict[str, dict[str, Any] | None] = {
    "UNQUANTIZED": None,
    "W4A16_ASYM": {"type": "int", "symmetric": False, "num_bits": 4, "strategy": "group", "group_size": 128},
    "W8A8": {**_INT, "num_bits": 8, "strategy": "channel", "format": "int-quantized"},
    "INT8": {**_INT, "num_bits": 8, "strategy": "channel", "format": "int-quantized"},
    "W4AFP8": {**_INT, "num_bits": 4, "strategy": "group", "group_size": 128},
    "FP8": {**_FLOAT, "num_bits": 8, "strategy": "tensor", "format": "float-quantized"},
    "FP8_DYNAMIC": {**_FLOAT, "num_bits": 8, "strategy": "channel", "format": "float-quantized"},
    "FP8_BLOCK": {**_FLOAT, "num_bits": 8, "strategy": "block", "block_structure": [128, 128],
                  "format": "float-quantized"},
    "NVFP4": {**_FLOAT, "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "format": "nvfp4-pack-quantized"},
    "MXFP4": {**_MX, "num_bits": 4, "format": "mxfp4-pack-quantized"},
    "MXFP6": {**_MX, "num_bits": 6, "format": "mxfp6-pack-quantized"},
    "MXFP8": {**_MX, "num_bits": 8, "format": "mxfp8-quantized"},
}  # fmt: skip
_PRESETS |= {
    f"W{bits}A{activations}": {**_INT, "num_bits": bits, "strategy": "group", "group_size": 128}
    for bits in range(2, 9)
    for activations in (4, 8, 16)
    if bits <= activations and (bits, activations) != (8, 8)
}
_PRESETS |= {f"{name}A16": _PRESETS[name] for name in ("NVFP4", "MXFP4", "MXFP6", "MXFP8")}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of a group of modules are stored.

    Attributes:
        format: one of `FORMATS`; None where the settings do not say, and the planes have to.
        integer: whether elements are integers.
        bits: of an element.
        symmetric: whether there are no zero points.
        strategy: one of `STRATEGIES`.
        group_size: columns of a group, for ``group`` and ``tensor_group``.
        block: rows and columns of a block, for ``block``.
        ordered: whether the groups follow the columns; False with act-order.
        dense: whether codes of 3, 5, 6, 7 bits cross words.
    """

    format: str | None
    integer: bool
    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    ordered: bool
    dense: bool

    def named(self, planes: Mapping[str, str]) -> str | None:
        """The format of planes of these element types, by name, if it is that of the scheme; None if not."""
        found = format_of(planes)
        if found == "mxfp4-pack-quantized" and self.bits == 6:  # planes of the same names and types
            found = "mxfp6-pack-quantized"
        if self.format == "naive-quantized":
            found = "naive-quantized" if found == ("int-quantized" if self.integer else "float-quantized") else None
        if found is None or (self.format is not None and found != self.format):
            return None
        if found in FLOAT_FORMATS and (self.integer or self.bits != _float_bits(found)[0]):
            return None
        return None if found in INTEGER_FORMATS and not self.integer else found

    @property
    def default(self) -> str:
        """The format, or the one that is written where the settings do not say."""
        if self.format is not None:
            return self.format
        if self.integer:
            return "pack-quantized"
        if self.bits == 8:
            return "float-quantized"
        if self.bits == 6:
            return "mxfp6-pack-quantized"
        return "mxfp4-pack-quantized" if self.group_size == 32 else "nvfp4-pack-quantized"

    def step(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of a matrix that share a scale.

        Raises:
            FormatError: groups do not divide the columns.
        """
        if self.strategy == "tensor":
            return max(rows, 1), max(columns, 1)
        if self.strategy == "channel":
            return 1, max(columns, 1)
        if self.block is not None:
            return min(self.block[0], max(rows, 1)), min(self.block[1], max(columns, 1))
        size = self.group_size or columns
        if columns % size:
            raise FormatError(f"setting 'group_size' is {size}: the weight has {columns} columns, no whole groups")
        return 1, size


def format_of(planes: Mapping[str, str]) -> str | None:
    """The format that stores planes of these element types, by name; None if none does."""
    if planes.get("weight_packed") == "I32":
        return "pack-quantized"
    scale = planes.get("weight_scale")
    if planes.get("weight_packed") == "U8":
        if "weight_global_scale" in planes:
            return "nvfp4-pack-quantized"
        return "mxfp4-pack-quantized"
    if planes.get("weight") == "I8":
        return "int-quantized"
    if planes.get("weight") == "F8_E4M3":
        return "mxfp8-quantized" if scale in ("U8", "F8_E8M0") else "float-quantized"
    return None


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuses what changes weights in ways that are not read.

    Raises:
        UnsupportedError: rotations, or a sparse layout without a reader.
    """
    transforms = config.get("transform_config")
    if transforms and (not isinstance(transforms, Mapping) or transforms.get("config_groups", True)):
        raise UnsupportedError("setting 'transform_config' lists transforms of the weights, which cannot be undone yet")
    sparsity = sparse_format(config)
    if sparsity not in (None, "dense", "sparse-bitmask", "sparse-24-bitmask"):
        raise UnsupportedError(f"sparse weights of format '{sparsity}' cannot be read")


def sparse_format(config: Mapping[str, Any]) -> str | None:
    """The format of ``sparsity_config``."""
    sparsity = config.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping):
        raise FormatError(f"setting 'sparsity_config' is {sparsity!r:.60}: expected an object")
    return None if sparsity.get("format") is None else setting_text(sparsity, "format")


def schemes(config: Mapping[str, Any]) -> dict[str, tuple[Scheme, Sequence[str]]]:
    """Scheme and targets by name of group; groups that quantize no weights are left out.

    Raises:
        FormatError: a group is not what it has to be.
        UnsupportedError: a format or strategy that cannot be read.
    """
    check_settings(config)
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise FormatError(f"setting 'config_groups' is {groups!r:.60}: expected an object")
    found: dict[str, tuple[Scheme, Sequence[str]]] = {}
    for name, group in groups.items():
        if name.upper() in _PRESETS and isinstance(group, list):
            preset = _PRESETS[name.upper()]
            group = {"targets": group, "weights": preset, "format": (preset or {}).get("format")}
        if not isinstance(group, Mapping):
            raise FormatError(f"group '{name}' of the settings is {group!r:.60}: expected an object")
        targets, weights = group.get("targets") or (), group.get("weights")
        if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets):
            raise FormatError(f"setting 'targets' of group '{name}' is {targets!r:.60}: expected names")
        if weights is None:
            continue
        if not isinstance(weights, Mapping):
            raise FormatError(f"setting 'weights' of group '{name}' is {weights!r:.60}: expected an object")
        format = group.get("format") if group.get("format") is not None else config.get("format")
        found[name] = (_scheme(weights, format, config), targets)
    return found


def _scheme(weights: Mapping[str, Any], format: Any, config: Mapping[str, Any]) -> Scheme:
    if format is not None:
        format = setting_text({"format": format}, "format")
        if format not in (*FORMATS, "mixed-precision", "dense"):
            raise UnsupportedError(f"compressed-tensors of format '{format}' cannot be read")
    integer = setting_text(weights, "type", "int", allowed=("int", "float")) == "int"
    bits = setting_int(weights, "num_bits", 8, allowed=range(1, 9) if integer else (4, 6, 8))
    size = weights.get("group_size")
    size = None if size is None or size == -1 else setting_int(weights, "group_size")
    if size is not None and size < 1:
        raise FormatError(f"setting 'group_size' is {size}: expected a number of columns")
    default = "group" if size else "channel" if weights.get("group_size") == -1 else "tensor"
    strategy = setting_text(weights, "strategy", default) if weights.get("strategy") is not None else default
    if strategy not in STRATEGIES:
        raise UnsupportedError(f"weights by strategy '{strategy}' cannot be read: expected {', '.join(STRATEGIES)}")
    if strategy in ("group", "tensor_group") and size is None:
        raise FormatError(f"strategy '{strategy}' needs the setting 'group_size'")
    if format == "mixed-precision" or format == "dense":
        format = None
    if format in INTEGER_FORMATS and not integer:
        raise FormatError(f"format '{format}' holds integers, but the settings say type 'float'")
    if format in FLOAT_FORMATS:
        wanted, block = _float_bits(format)
        if integer or bits != wanted or (block is not None and size != block):
            raise FormatError(
                f"format '{format}' holds floats of {wanted} bits{f' in groups of {block}' if block else ''}, but the "
                f"settings say {'integers' if integer else 'floats'} of {bits} bits, group size {size}"
            )
    actorder = weights.get("actorder")
    return Scheme(
        format=format,
        integer=integer,
        bits=bits,
        symmetric=setting_bool(weights, "symmetric", True),
        strategy=strategy,
        group_size=size if strategy in ("group", "tensor_group") else None,
        block=_block(weights.get("block_structure")) if strategy == "block" else None,
        ordered=actorder not in ("group", "dynamic", True),
        dense=_is_dense(config.get("version")),
    )


def _float_bits(format: str) -> tuple[int, int | None]:
    """Bits of an element of a format of floats, and columns of a block if they are fixed."""
    return BLOCK_FORMATS[format][1:] if format in BLOCK_FORMATS else (8, None)


def _block(value: Any) -> tuple[int, int]:
    sides: Any = value
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,9})x(\d{1,9})", value)
        sides = [int(side) for side in found.groups()] if found else None
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 31 for side in sides)
    ):
        raise FormatError(f"setting 'block_structure' is {value!r:.60}: expected rows and columns of a block")
    return sides[0], sides[1]


def _is_dense(version: Any) -> bool:
    found = re.match(r"(\d{1,6})\.(\d{1,6})", version) if isinstance(version, str) else None
    return found is None or (int(found[1]), int(found[2])) >= _DENSE_SINCE


def choose(config: Mapping[str, Any], group: Any, planes: Mapping[str, str]) -> Scheme:
    """The scheme of a layer: that of the named group, or the only one that fits its planes.

    Args:
        config: the settings.
        group: name of the group, if known.
        planes: element types by plane.

    Raises:
        ArgumentError: the group is not known, and several fit.
        FormatError: there is no such group.
    """
    groups = schemes(config)
    if group is not None:
        if not isinstance(group, str) or group not in groups:
            raise FormatError(f"the settings have no group {group!r:.60} that quantizes weights")
        return groups[group][0]
    found = {scheme for scheme, _ in groups.values()}
    if len(found) > 1 and planes:
        found = {scheme for scheme in found if scheme.named(planes) is not None}
    if len(found) != 1:
        raise ArgumentError(
            f"{len(groups)} groups of the settings quantize weights, and {len(found)} of their schemes fit the planes: "
            "pass the name of the group as the parameter 'group'"
        )
    return found.pop()


def group_of(module: str, groups: Mapping[str, tuple[Scheme, Sequence[str]]]) -> str | None:
    """The group that a module belongs to: by its name, by a pattern, or by the class of its target, in this order."""
    ranked = [
        (rank, name)
        for name, (_, targets) in groups.items()
        for target in targets
        if (rank := _rank(target, module)) is not None
    ]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def ignored(config: Mapping[str, Any], module: str) -> bool:
    """Whether a module's name is among those that ``ignore`` excepts."""
    targets = config.get("ignore") or ()
    if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets):
        raise FormatError(f"setting 'ignore' is {targets!r:.60}: expected names")
    return any(_rank(target, module) in (0, 1) for target in targets)


def _rank(target: str, module: str) -> int | None:
    """0 for the module's name, 1 for a pattern, 2 and 3 for a class that it may be of; None for no match."""
    if target.startswith("re:"):
        return 1 if matches(target[3:], module) else None
    if target == module:
        return 0
    if not target.isidentifier() or not target[:1].isupper():
        return None
    embedding = "embed" in module.rpartition(".")[2]
    if target == "Embedding" or embedding:
        return 2 if embedding and target == "Embedding" else None
    return 2 if target == "Linear" else 3
