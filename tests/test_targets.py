"""Checkpoint folders of every format: made of floats, and planned to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import subbyte
from checkpoints import checkpoint
from subbyte.convert.targets import moved_shapes, shapes
from subbyte.formats import checkpoint_format
from subbyte.planes import plane
from subbyte.routes import TARGETS, VARIANTS, find_target
from subbyte.routes.fit import MisfitError

NAMES = sorted({*TARGETS, *VARIANTS})
LAYER = "model.layers.0."


def floats(rows: int, columns: int, *leading: int) -> Any:
    values = np.random.default_rng(3).standard_normal((*leading, rows, columns), np.float32)
    return values.astype(ml_dtypes.bfloat16)


def sizes(planes: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {name: plane(planes[name]) for name in planes}
    return {name: (one.kind, one.shape) for name, one in found.items()}


@pytest.mark.parametrize("to", NAMES)
def test_sizes_of_planes_are_known_before_they_are_made(to: str) -> None:
    """Of more rows than are tried, and no whole number of samples."""
    target, options = find_target(to) or pytest.fail(to)
    shape = (576, 128)
    params = target.params(options, shape)
    encoded = checkpoint_format(target.id).encode(floats(*shape), params=params, importance=None)
    assert shapes(target, params, shape, "BF16") == sizes(encoded)
    form = checkpoint_format(target.id).read(
        encoded, params | ({"meta": encoded.config["meta"]} if to == "sinq" else {})
    )
    for name, other in TARGETS.items():
        try:
            fit = other.fit(form, {})
        except MisfitError:
            continue
        expected = sizes(checkpoint_format(other.id).write(fit.form, fit.params))
        assert moved_shapes(other, fit.params, fit.form) == expected, (to, name)


@pytest.mark.parametrize("to", ["compressed-tensors", "mlx", "modelopt", "mxfp4", "fp8", "torchao"])
def test_sizes_of_the_planes_of_stacked_experts(to: str) -> None:
    source = TARGETS["fp8" if to == "fp8" else "mlx" if to == "torchao" else "mxfp4"]
    params = {"quantization": {"group_size": 32, "bits": 8, "mode": "mxfp8"}} if source.id == "mlx" else {}
    params = source.params({}, (3, 600, 128)) if source.id == "fp8" else params
    encoded = checkpoint_format(source.id).encode(floats(600, 128, 3), params=params, importance=None)
    form = checkpoint_format(source.id).read(encoded, params)
    fit = TARGETS[to].fit(form, {})
    assert moved_shapes(TARGETS[to], fit.params, fit.form) == sizes(checkpoint_format(to).write(fit.form, fit.params))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {
        "model.embed_tokens.weight": floats(32, 128),
        "model.norm.weight": floats(1, 128)[0],
        f"{LAYER}mlp.up_proj.weight": floats(256, 128),
        f"{LAYER}mlp.down_proj.weight": floats(128, 256),
        f"{LAYER}mlp.odd_proj.weight": floats(18, 36),
    }
    folder = tmp_path_factory.mktemp("model") / "floats"
    return checkpoint(folder, tensors, hidden_size=128, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.parametrize("to", NAMES)
def test_floats_become_every_format(model: Path, tmp_path: Path, to: str) -> None:
    report = subbyte.convert(model, tmp_path / "out", to=to)
    check = subbyte.verify(tmp_path / "out", model)
    assert check.ok, check.failures
    with subbyte.open(tmp_path / "out") as made:
        assert made.format == to.partition(".")[0]
        for name in (f"{LAYER}mlp.up_proj.weight", f"{LAYER}mlp.down_proj.weight"):
            assert made[name].format == made.format
    kinds = {row.name: row.kind for row in report.tensors}
    assert kinds["model.embed_tokens.weight"] == "exact"


def test_double_quantization_has_a_state_of_known_length(model: Path, tmp_path: Path) -> None:
    for kind in ("nf4", "fp4"):
        dst = tmp_path / kind
        report = subbyte.convert(model, dst, to="bitsandbytes", type=kind, double_quant=True)
        assert report.nbytes == subbyte.plan(model, to="bitsandbytes", type=kind, double_quant=True).nbytes
        assert subbyte.verify(dst, model).ok
        assert subbyte.convert(dst, tmp_path / f"{kind}.again", to="bitsandbytes").tensors


def test_a_matrix_that_a_format_has_no_place_for_stays_floats(model: Path, tmp_path: Path) -> None:
    with pytest.warns(subbyte.SubbyteWarning, match=r"odd_proj.*stays floats"):
        subbyte.convert(model, tmp_path / "out", to="mlx")
    with subbyte.open(tmp_path / "out") as made:
        assert made[f"{LAYER}mlp.odd_proj.weight"].format == "bf16"
