"""Routes between formats: the class of every pair, and what becomes of the values, for the golden layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import subbyte
from conformance import run as runner
from subbyte.codec import get_codec
from subbyte.formats import checkpoint_format
from subbyte.forms import Affine, Biased, BlockScaled, FloatZero, Form, Microscaled, Ternary
from subbyte.ggml import PLANE
from subbyte.planes import Plane, float_plane, plane
from subbyte.routes import TARGETS, adapt, blocks
from subbyte.routes.fit import Fit, MisfitError

GOLDEN = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """A layer of a golden file."""

    name: str
    format: str
    planes: Mapping[str, Plane]
    params: Mapping[str, Any]

    @property
    def form(self) -> Form:
        return checkpoint_format(self.format).read(self.planes, self.params)


def golden_layers() -> Iterator[Golden]:
    for manifest in sorted(GOLDEN.glob("*/cases.json")):
        for case in json.loads(manifest.read_text())["cases"]:
            if "file" not in case or manifest.parent.name == "gguf":
                continue
            tensors, metadata = runner.read_safetensors(manifest.parent / case["file"])
            seen = set()
            for check in case["checks"]:
                params = {**runner.decode_metadata(metadata), **check.get("params", {})}
                key = (check.get("format"), str(check.get("planes")), str(check.get("params")))
                if check["op"] != "decode" or key in seen:
                    continue
                seen.add(key)
                stored = {name: plane(tensors[tensor]) for name, tensor in check["planes"].items()}
                yield Golden(f"{manifest.parent.name}/{case['name']}", check["format"], stored, params)


@cache
def layers() -> list[Golden]:
    """The layers that are weights."""
    found = []
    for layer in golden_layers():
        try:
            layer.form.decode()
        except subbyte.Error:
            continue  # parts of weights, and damage that has to be refused
        found.append(layer)
    return found


def route(id: str, form: Form, **options: Any) -> Fit | None:
    try:
        return TARGETS[id].fit(form, options)
    except MisfitError:
        return None


def moved(id: str, fit: Fit) -> Form:
    """The form of the planes that a fit is stored as."""
    format = checkpoint_format(id)
    return format.read(format.write(fit.form, fit.params), fit.params)


def check_values(name: str, source: np.ndarray, found: np.ndarray, kind: str, bound: float) -> None:
    if kind in ("exact", "exact-value"):
        assert np.array_equal(source, found, equal_nan=True), name
        return
    assert 0 < bound < 0.01, name
    # Terms that cancel each other (codes and biases) are larger than the values; sixteen times is enough for them here.
    error = np.nanmax(np.abs(source.astype(np.float64) - found), initial=0)
    assert error <= 16 * bound * np.nanmax(np.abs(source), initial=0), (name, error, bound)


def test_there_are_layers_of_every_family() -> None:
    assert len(layers()) > 150
    assert {layer.format.partition(".")[0] for layer in layers()} >= set(TARGETS)


@pytest.mark.parametrize("id", sorted(TARGETS))
def test_every_layer_that_a_target_holds_has_its_values(id: str) -> None:
    held = 0
    for layer in layers():
        form = layer.form
        fit = route(id, form)
        if fit is not None:
            held += 1
            found = moved(id, fit)
            assert found.shape == form.shape
            check_values(f"{layer.name} to {id}", form.decode(), found.decode(), fit.kind, fit.bound)
    assert held


@pytest.mark.parametrize("id", sorted(TARGETS))
def test_a_target_holds_its_own_layers_exactly(id: str) -> None:
    """But for columns out of order, which compressed-tensors has given up, reciprocal scales, and sparse layouts and
    tables of any4 that are not centred, which are read alone.
    """
    kinds = {}
    for layer in layers():
        given_up = isinstance(layer.form, Affine) and layer.form.group_of is not None and id == "compressed-tensors"
        if layer.format == id and not given_up:
            fit = route(id, layer.form)
            kinds[layer.name] = None if fit is None else fit.kind
    other = {name: kind for name, kind in kinds.items() if kind not in ("exact", "exact-value")}
    assert set(other) <= OTHERWISE, other


OTHERWISE = {
    "fp8/gptqmodel_inverse_row",
    "compressed-tensors/sparse_bitmask_bf16", "compressed-tensors/sparse24_bitmask_bf16",
    "any4/any4_16x128_g64",
}  # fmt: skip


@pytest.mark.parametrize("id", sorted(TARGETS))
def test_there_and_back_gives_the_planes(id: str) -> None:
    """Where codes and parameters moved as they are, the way back gives the bytes of the source."""
    same = 0
    for layer in layers():
        form, own = layer.form, TARGETS.get(layer.format)
        fit = route(id, form)
        if own is None or fit is None or fit.kind != "exact":
            continue
        try:
            back = own.fit(moved(id, fit), {})
        except MisfitError:
            continue  # the other format has settings of its own (groups repeated for it)
        assert back.kind != "requantized"
        check_values(f"{layer.name} to {id} and back", form.decode(), moved(layer.format, back).decode(), back.kind,
                     fit.bound + back.bound)  # fmt: skip
        codes = getattr(form, "codes", None)
        returned = getattr(back.form, "codes", None)
        if back.kind == "exact" and codes is not None and returned is not None and codes.bits == returned.bits:
            same += np.array_equal(codes.unpack(), returned.unpack())
    assert same or id in ("bitnet", "fp8", "quanto", "any4")


# The matrix of the specification, section 22.2. L: exact. P: rounded. R: no route.


def fits_f16(scales: Plane) -> bool:
    return bool(np.array_equal(float_plane(scales.float32(), "F16").float32(), scales.float32()))


def has_place(id: str, form: Form) -> bool:
    """Whether the sides of a weight are those that a target's programs can read."""
    rows, columns = form.shape[-2:]
    size = min(getattr(form, "group_size", columns), columns)
    bits = form.codes.bits if isinstance(form, Affine | Biased | Ternary) else 8
    if id == "gptq":
        multiple = 32 // bits if bits in (2, 4, 8) else 32
        return len(form.shape) == 2 and bits > 1 and rows % multiple == columns % multiple == 0
    if id == "awq":
        return len(form.shape) == 2 and rows % 32 == 0 and columns % size == 0
    if id == "mlx":
        return any(size % g == 0 and columns % g == 0 for g in (32, 64, 128)) and columns * bits % 32 == 0
    if id == "compressed-tensors":
        return size >= columns or columns % size == 0
    block = {"TQ2_0": 256, "NVFP4": 64}.get(id, 32)
    return columns % block == 0 and size % 32 == 0


def expected(layer: Golden, form: Form) -> dict[str, str]:
    """The row of the matrix for a layer."""
    family = layer.format
    if isinstance(form, Affine) and family in ("gptq", "awq", "compressed-tensors", "torchao", "matquant", "gemma"):
        ordered, fits, bits = form.group_of is None, fits_f16(form.scales), form.codes.bits
        low, high = adapt.difference_range(form, -256, 256)
        f16 = "L" if fits else "P"
        awq = ("L" if fits else "P") if bits == 4 or (bits < 4 and low >= -8 and high <= 7) else None
        row = {"gptq": f16, "compressed-tensors": "L", "mlx": "L" if adapt.significant_bits(form.scales) < 16 else "P"}
        if awq is not None:
            row["awq"] = awq
        if not ordered:
            return {
                "gptq": "L",
                "awq": "R",
                "compressed-tensors": "R",
                "mlx": "R",
                "Q4_0": "R",
                "Q5_0": "R",
                "Q8_0": "R",
            }
        widest = max(-low - 1, high)
        row |= {type: f16 if widest < 1 << (b - 1) else "R" for type, b in (("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8))}
        return row
    if family in ("mlx", "quanto") and isinstance(form, Biased):
        integers = whole(form)
        row = (
            {"mlx": "L"} if integers else {"gptq": "R", "awq": "R", "compressed-tensors": "R", "mlx": "L", "Q8_0": "R"}
        )
        if form.codes.bits <= 4 and "degenerate" not in layer.name:  # whose scales are too small for F16
            row["Q4_1"] = "L" if fits_f16(form.scales) and fits_f16(form.biases) else "P"
        return row
    if isinstance(form, FloatZero) and family == "hqq" and form.scales.data.ndim == 2:
        row = {"gptq": "R", "awq": "R", "compressed-tensors": "R", "mlx": "P"}
        if form.codes.bits <= 4:
            row["Q4_1"] = "P"
        return row
    if family == "bitsandbytes":
        if isinstance(form, BlockScaled):
            return {"gptq": "P", "compressed-tensors": "P", "mlx": "P", "Q8_0": "P"}
        return dict.fromkeys(("gptq", "awq", "compressed-tensors", "mlx", "Q4_0", "Q8_0"), "R")
    if isinstance(form, Ternary) and family == "bitnet":
        one = "P" if form.inverse else "L"
        f16 = one if fits_f16(form.scales) else "P"
        return {"gptq": f16, "awq": f16, "compressed-tensors": one, "mlx": one, "TQ2_0": f16}
    if isinstance(form, Microscaled) and form.element == "E2M1":
        nvidia = form.scale_kind == "F8_E4M3"
        none = {"gptq": "R", "awq": "R"}
        if not nvidia:
            return none | {
                "compressed-tensors": "L",
                "mlx": "L",
                "MXFP4": "L",
                "modelopt": "L",
                "torchao": "L",
                "mxfp4": "L",
            }
        if form.multiplier is not None and form.multiplier != 1:
            return none | {"compressed-tensors": "P", "modelopt": "L", "torchao": "L", "NVFP4": "L"}
        if form.divisor is not None:
            return none | {"compressed-tensors": "L", "modelopt": "P", "mlx": "P"}
        return none | {"modelopt": "L", "compressed-tensors": "L" if form.plain else "P"}
    if isinstance(form, BlockScaled) and form.element == "F8_E4M3" and family == "fp8" and not form.inverse:
        powers = np.all(np.frexp(form.scales.float32())[0] == 0.5) and form.regrid((1, 32)) is not None
        return {
            "gptq": "R",
            "awq": "R",
            "compressed-tensors": "L",
            "fp8": "L",
            "mlx": "L" if powers else "R",
            "Q8_0": "R",
        }
    return {}


def whole(form: Biased) -> bool:
    try:
        adapt.affine(form)
    except MisfitError:
        return False
    return True


LETTERS = {"exact": "L", "exact-value": "L", "rounded": "P"}


def test_classes_are_those_of_the_matrix() -> None:
    counted: dict[tuple[str, str], int] = {}
    for layer in layers():
        form = layer.form
        for target, letter in expected(layer, form).items():
            if not has_place(target, form):
                continue
            fit = route(target, form) if target in TARGETS else block_route(target, form)
            found = "R" if fit is None else LETTERS[fit.kind]
            why = "" if fit is None else fit.why
            assert found == letter, f"{layer.name} ({type(form).__name__}) to {target}: {why}"
            counted[layer.format, target] = counted.get((layer.format, target), 0) + 1
    for source, target in (("gptq", "awq"), ("awq", "compressed-tensors"), ("matquant", "gptq"), ("hqq", "mlx"),
                           ("mlx", "Q4_1"), ("bitnet", "gptq"), ("modelopt", "compressed-tensors")):  # fmt: skip
        assert counted.get((source, target)), (source, target)


def block_route(type: str, form: Form) -> Fit | None:
    try:
        return blocks.fit(form, type)
    except MisfitError:
        return None


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"])
def test_every_layer_that_blocks_hold_has_its_values(type: str) -> None:
    held = 0
    for layer in layers():
        form = layer.form
        fit = block_route(type, form)
        if fit is None or np.isnan(form.decode()).any():
            continue
        held += 1
        raw = blocks.Assembler(fit.form, type).rows(0, form.rows)
        found = get_codec(f"gguf.{type.lower()}").decode({PLANE: raw}, dtype="float32").reshape(form.shape)
        if isinstance(fit.form, Microscaled) and fit.form.multiplier is not None:
            found = found * fit.form.multiplier
            # The scale of the tensor multiplies values here, and scales of blocks in the source.
            check_values(f"{layer.name} as {type}", form.decode(), found, "rounded", fit.bound + 2.0**-23)
        else:
            check_values(f"{layer.name} as {type}", form.decode(), found, fit.kind, fit.bound)
    assert held
