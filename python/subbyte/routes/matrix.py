"""The best class between families of formats, found by asking every target about a typical layer of every source.

A conversion looks at the actual values of every layer; this says what is to be expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.formats.table.bitsandbytes import NF4
from subbyte.forms import (
    Affine,
    Biased,
    BlockScaled,
    ByteCodes,
    FloatZero,
    Form,
    Microscaled,
    Table,
    Ternary,
)
from subbyte.planes import Plane, float_plane
from subbyte.routes import blocks, find_target, target_ids
from subbyte.routes.fit import KINDS, Fit, MisfitError

_SHAPE = (64, 512)
_GROUP = 128
_GGML = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4", "TQ2_0", "TQ1_0")


def _random() -> np.random.Generator:
    return np.random.default_rng(5)


def _codes(bits: int) -> ByteCodes:
    """Every code of ``bits`` bits occurs in every group."""
    return ByteCodes(_random().permuted(np.tile(np.arange(_SHAPE[1]) % (1 << bits), (_SHAPE[0], 1)).astype(np.uint8),
                                        axis=1), bits)  # fmt: skip


def _scales(kind: str, group: int = _GROUP) -> Plane:
    values = _random().uniform(0.001, 0.01, (_SHAPE[0], _SHAPE[1] // group)).astype(np.float32)
    return float_plane(values, kind)


def _affine(bits: int, kind: str, *, sym: bool) -> Affine:
    scales = _scales(kind)
    zeros: NDArray[np.int16] | int = 1 << (bits - 1)
    if not sym:
        zeros = _random().integers(0, 1 << bits, scales.shape).astype(np.int16)
    return Affine(_SHAPE, _codes(bits), scales, zeros, _GROUP)


def _act_order() -> Affine:
    groups = _random().permutation(_SHAPE[1]).astype(np.int32) // _GROUP
    return replace(_affine(4, "F16", sym=True), group_of=groups)


def _biased(kind: str, group: int) -> Biased:
    scales = _scales(kind, group)
    biases = float_plane(scales.float32() * np.float32(-7.3), kind)
    return Biased(_SHAPE, _codes(4), scales, biases, group)


def _float_zero() -> FloatZero:
    scales = _scales("F16", 64)
    zeros = float_plane(_random().uniform(6, 9, scales.shape).astype(np.float32), "F16")
    return FloatZero(_SHAPE, _codes(4), scales, zeros, 64, "F16")


def _microscaled(scale_kind: str, block: int, **tensor: Any) -> Microscaled:
    low, high = (120, 130) if scale_kind == "F8_E8M0" else (0x30, 0x60)
    scales = _random().integers(low, high, (_SHAPE[0], _SHAPE[1] // block)).astype(np.uint8)
    return Microscaled(_SHAPE, _codes(4), "E2M1", Plane(scales, scale_kind), scale_kind, block, **tensor)


def _blocks(block: tuple[int, int], scales: NDArray[np.floating[Any]]) -> BlockScaled:
    data = _random().integers(0, 0x78, _SHAPE).astype(np.uint8)
    return BlockScaled(_SHAPE, data, "F8_E4M3", Plane(scales.astype(np.float32), "F32"), block)


def _int8() -> BlockScaled:
    data = _random().integers(-127, 128, _SHAPE).astype(np.int8)
    return BlockScaled(_SHAPE, data, "I8", Plane(_scales("F32", _SHAPE[1]).data, "F32"), (1, _SHAPE[1]),
                       factor=np.float32(1 / 127))  # fmt: skip


def _table() -> Table:
    scales = _scales("F32", 64).data.reshape(-1)
    return Table(_SHAPE, _codes(4), np.asarray(NF4, np.float32), scales, 64)


def _ternary(*, inverse: bool) -> Ternary:
    codes = ByteCodes(_random().integers(0, 3, _SHAPE).astype(np.uint8), 2)
    scale = np.full((1, 1), 3.7 if inverse else 0.25, np.float32)
    return Ternary(_SHAPE, codes, float_plane(scale, "BF16"), _SHAPE[1], inverse)


SOURCES: Mapping[str, Callable[[], Form]] = {
    "gptq, 2 bits": lambda: _affine(2, "F16", sym=True),
    "gptq, 3 bits": lambda: _affine(3, "F16", sym=True),
    "gptq, 4 bits": lambda: _affine(4, "F16", sym=True),
    "gptq, 8 bits": lambda: _affine(8, "F16", sym=True),
    "gptq, 2 bits, asymmetric": lambda: _affine(2, "F16", sym=False),
    "gptq, 3 bits, asymmetric": lambda: _affine(3, "F16", sym=False),
    "gptq, 4 bits, asymmetric": lambda: _affine(4, "F16", sym=False),
    "gptq, 8 bits, asymmetric": lambda: _affine(8, "F16", sym=False),
    "gptq, act-order": _act_order,
    "awq": lambda: _affine(4, "F16", sym=False),
    "compressed-tensors, pack-quantized": lambda: _affine(4, "BF16", sym=True),
    "mlx, affine": lambda: _biased("BF16", 64),
    "quanto, int4": lambda: _biased("F32", 128),
    "hqq": _float_zero,
    "bitsandbytes, int8": _int8,
    "bitsandbytes, nf4": _table,
    "torchao, int4": lambda: _affine(4, "BF16", sym=True),
    "mxfp4": lambda: _microscaled("F8_E8M0", 32),
    "modelopt, nvfp4": lambda: _microscaled("F8_E4M3", 16, multiplier=np.float32(0.37)),
    "fp8, blocks": lambda: _blocks((32, 128), _random().uniform(1e-3, 1e-2, (2, 4))),
    "fp8, powers of two": lambda: _blocks((32, 128), np.ldexp(1.0, _random().integers(-9, -3, (2, 4)))),
    "bitnet": lambda: _ternary(inverse=False),
    "bitnet, reciprocal": lambda: _ternary(inverse=True),
}
"""A typical layer of each family; where not said otherwise, symmetric codes in groups of 128 with scales in F16."""


def targets() -> list[str]:
    """What the sources are converted into: GGUF, and the checkpoint formats without their variants."""
    return ["gguf", *(name for name in target_ids() if (found := find_target(name)) and found[0].id == name
                      and not found[0].keeps)]  # fmt: skip


@cache
def fit(source: str, target: str) -> Fit | None:
    """The best fit of a source's layer in a target; None where it would have to be quantized again.

    For ``gguf`` the parameters name the type.
    """
    form = SOURCES[source]()
    fits = list(_blocks_of(form) if target == "gguf" else _layers_of(form, target))
    return min(fits, key=lambda found: KINDS.index(found.kind), default=None)


def _blocks_of(form: Form) -> Iterator[Fit]:
    for type in _GGML:
        try:
            yield blocks.fit(form, type).with_params(type=type)
        except MisfitError:
            continue


def _layers_of(form: Form, id: str) -> Iterator[Fit]:
    found = find_target(id)
    if found is None:
        raise KeyError(id)
    try:
        yield found[0].fit(form, found[1])
    except MisfitError:
        return
