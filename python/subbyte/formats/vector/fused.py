"""Projections that QuIP# stores as one weight."""

from __future__ import annotations

from collections.abc import Mapping

from subbyte.errors import FormatError
from subbyte.formats.base import Folder, Layer, setting_int

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "upgate_proj": ("up_proj", "gate_proj")}
"""The projections in each, from top to bottom."""


def part_layers(module: str, shape: tuple[int, int], tensors: Mapping[str, str], folder: Folder) -> list[Layer]:
    """The layers of a module that is one of `FUSED`: parameters ``rows`` (of all of them) and ``index``.

    Raises:
        FormatError: config.json does not say how many rows each has, or not these.
    """
    parent, _, last = module.rpartition(".")
    rows, names = shape[0], FUSED[last]
    if last == "upgate_proj":
        sizes = [rows // 2, rows - rows // 2]
    else:
        heads = setting_int(folder.config, "num_attention_heads", 0)
        pairs = setting_int(folder.config, "num_key_value_heads", heads)
        size = rows // max(heads + 2 * pairs, 1)
        if heads < 1 or pairs < 1 or size * (heads + 2 * pairs) != rows:
            raise FormatError(
                f"has {rows} rows, which are not those of {heads} 'num_attention_heads' and twice {pairs} "
                "'num_key_value_heads' of config.json",
                tensor=tensors["Qidxs"],
            )
        sizes = [size * heads, size * pairs, size * pairs]
    prefix = f"{parent}." if parent else ""
    return [
        Layer(f"{prefix}{name}.weight", (size, shape[1]), tensors, {**folder.settings, "rows": sizes, "index": index})
        for index, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
