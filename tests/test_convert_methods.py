"""Floats to checkpoint formats by each method: the setting reaches the encoder, and errors fall."""

from pathlib import Path

import numpy as np
import pytest

import subbyte

SOURCE = Path(__file__).parent.parent / "examples" / "small-llama"
NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def original():
    return subbyte.open(SOURCE)[NAME].decode()


def error(folder, original):
    return np.linalg.norm(subbyte.open(folder)[NAME].decode() - original) / np.linalg.norm(original)


@pytest.mark.parametrize(
    ("to", "settings"),
    [
        ("gptq", {"bits": 3, "group_size": 64, "sym": False}),
        ("awq", {"group_size": 64}),
        ("compressed-tensors", {"bits": 4, "group_size": 64}),
        ("mlx", {"bits": 2, "group_size": 64}),
    ],
)
def test_the_method_is_a_setting(to, settings, original, tmp_path):
    errors = {}
    for method in ("writer", "mse"):
        subbyte.convert(SOURCE, tmp_path / method, to=to, method=method, **settings)
        errors[method] = error(tmp_path / method, original)
    assert errors["mse"] < errors["writer"]
    # the method is no fact about the checkpoint: config.json is that of the writer's rule
    assert (tmp_path / "mse" / "config.json").read_bytes() == (tmp_path / "writer" / "config.json").read_bytes()
    subbyte.convert(SOURCE, tmp_path / "default", to=to, **settings)
    assert error(tmp_path / "default", original) == errors["writer"]


def test_another_method_is_refused(tmp_path):
    with pytest.raises(subbyte.ArgumentError, match="'method' is 'best': expected one of writer, rtn, mse"):
        subbyte.convert(SOURCE, tmp_path / "out", to="gptq", method="best")


def test_symmetric_codes_have_no_zeros_to_search(tmp_path):
    with pytest.raises(subbyte.ArgumentError, match="'hqq' searches zeros") as caught:
        subbyte.convert(SOURCE, tmp_path / "out", to="gptq", method="hqq", sym=True)
    assert caught.value.tensor is not None
