"""Routes between formats: the best class a conversion can have, decided by the actual values.

A target is a format id, perhaps with a variant: ``gptq``, ``gptq.v2``. ``subbyte`` before another one, or before the id
of a ggml type, stores the same in subbyte's own layout: ``subbyte.gptq.v2``, ``subbyte.gguf.q4_k``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from subbyte.errors import ArgumentError
from subbyte.formats.envelope import ID
from subbyte.routes.compressed import CompressedTensors
from subbyte.routes.envelope import BLOCK_TYPES, Blocks, Enveloped, Kept
from subbyte.routes.fit import Target
from subbyte.routes.floats import Fp8, ModelOpt, Mxfp4
from subbyte.routes.grouped import Hqq, Quanto, Sinq, TorchAo
from subbyte.routes.integer import Awq, Gptq, Mlx
from subbyte.routes.kernels import Any4, BitNet, BitsAndBytes, Gemma, MatQuant, Qqq, QServe

TARGETS: Mapping[str, Target] = {
    target.id: target
    for target in (
        Any4(), Awq(), BitNet(), BitsAndBytes(), CompressedTensors(), Fp8(), Gemma(), Gptq(), Hqq(), MatQuant(), Mlx(),
        ModelOpt(), Mxfp4(), Qqq(), QServe(), Quanto(), Sinq(), TorchAo(),
    )
}  # fmt: skip
"""Checkpoint formats that conversions can write, by id."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "gptq.v1": {"version": "gptq"},
    "gptq.v2": {"version": "gptq_v2"},
    "awq.gemm": {"version": "gemm"},
    "awq.gemv": {"version": "gemv"},
    "awq.gemv_fast": {"version": "gemv_fast"},
    "compressed-tensors.pack": {"format": "pack-quantized"},
    "compressed-tensors.int8": {"format": "int-quantized", "bits": 8},
    "compressed-tensors.fp8": {"format": "float-quantized"},
    "compressed-tensors.nvfp4": {"format": "nvfp4-pack-quantized"},
    "compressed-tensors.mxfp4": {"format": "mxfp4-pack-quantized"},
    "compressed-tensors.mxfp6": {"format": "mxfp6-pack-quantized"},
    "compressed-tensors.mxfp8": {"format": "mxfp8-quantized"},
    "modelopt.nvfp4": {"algo": "NVFP4"},
    "modelopt.mxfp4": {"algo": "MXFP4"},
    "modelopt.mxfp8": {"algo": "MXFP8"},
    "modelopt.fp8": {"algo": "FP8"},
    "modelopt.int4": {"algo": "W4A16_AWQ"},
    "bitsandbytes.nf4": {"type": "nf4"},
    "bitsandbytes.fp4": {"type": "fp4"},
    "bitsandbytes.int8": {"type": "int8"},
}
"""Settings that the variants of targets stand for."""


def target_ids() -> list[str]:
    """The targets that are checkpoint formats, with their variants."""
    enveloped = (f"{ID}.gguf.{type.lower()}" for type in BLOCK_TYPES)
    return sorted({*TARGETS, *VARIANTS, ID, *enveloped})


def find_target(to: str) -> tuple[Target, dict[str, Any]] | None:
    """The target called ``to``, and the settings that its variant stands for; None where there is none."""
    id = to if to in TARGETS else to.partition(".")[0]
    if id == ID:
        return _enveloped(to.removeprefix(ID))
    if id not in TARGETS or (to != id and to not in VARIANTS):
        return None
    return TARGETS[id], dict(VARIANTS.get(to, {}))


def _enveloped(inner: str) -> tuple[Target, dict[str, Any]] | None:
    """The target ``subbyte`` followed by ``inner``."""
    if not inner:
        return Kept(), {}
    type = inner.removeprefix(".gguf.").upper()
    if type in BLOCK_TYPES:
        return Enveloped(Blocks(type)), {}
    found = None if inner[1:].startswith(ID) else find_target(inner[1:])
    return None if found is None else (Enveloped(found[0]), found[1])


def checked_settings(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a target as the caller gave them, texts as the command line has them turned into values.

    Raises:
        ArgumentError: the target has no such setting, or it cannot have that value.
    """
    found = {}
    for key, value in given.items():
        option = target.options.get(key)
        if option is None:
            known = ", ".join(sorted(target.options)) or "none"
            raise ArgumentError(f"'{target.id}' has no setting '{key}': it has {known}")
        found[key] = _parsed(key, value, option.choices, option.default)
    return found


def _parsed(key: str, value: Any, choices: tuple[Any, ...], default: Any) -> Any:
    candidates = [value]
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            candidates.append(value.lower() == "true")
        with contextlib.suppress(ValueError):
            candidates.append(int(value))
    if choices:
        for candidate in candidates:
            for choice in choices:
                if candidate == choice and isinstance(candidate, bool) == isinstance(choice, bool):
                    return choice
        raise ArgumentError(f"setting '{key}' is {value!r}: expected one of {', '.join(map(str, choices))}")
    whole = [c for c in candidates if isinstance(c, int) and not isinstance(c, bool)]
    if key == "group_size" or isinstance(default, int):
        if not whole or not (whole[0] == -1 or 0 < whole[0] < 1 << 31):
            raise ArgumentError(f"setting '{key}' is {value!r}: expected a positive integer, or -1")
        return whole[0]
    if not isinstance(value, str):
        raise ArgumentError(f"setting '{key}' is {value!r}: expected a string")
    return value
