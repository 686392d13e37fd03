"""Hadamard transforms against the matrices that define them."""

from __future__ import annotations

import numpy as np
import pytest

import subbyte
from subbyte.forms.hadamard import SIZES, factors, matrix, rotate

RNG = np.random.default_rng(26)


def sylvester(size):
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("size", SIZES)
def test_stored_matrices_are_hadamard(size):
    found = matrix(size)
    assert set(np.unique(found)) == {-1.0, 1.0}
    np.testing.assert_array_equal(found @ found.T, size * np.eye(size))
    assert np.array_equal(found, found.T) == (size in (28, 36))


@pytest.mark.parametrize("size", [1, 2, 8, 64, 12, 24, 56, 172, 344, 40, 96, 192])
def test_transforms(size):
    base, power = factors(size)
    whole = np.kron(matrix(base), sylvester(power)) / np.sqrt(size)
    values = RNG.normal(0, 1, (3, 2 * size))
    blocks = values.reshape(3, 2, size)
    np.testing.assert_allclose(rotate(values, size), (blocks @ whole.T).reshape(3, -1), atol=1e-12)
    np.testing.assert_allclose(rotate(values, size, inverse=True), (blocks @ whole).reshape(3, -1), atol=1e-12)
    np.testing.assert_allclose(rotate(rotate(values, size), size, inverse=True), values, atol=1e-12)


@pytest.mark.parametrize("size", [0, -4, 3, 7, 18944, 25600, 9728, 4864])
def test_sizes_without_a_transform(size):
    with pytest.raises(subbyte.UnsupportedError, match="Hadamard"):
        factors(size)


def test_useful_sizes():
    assert [factors(n) for n in (11008, 5120, 13824, 14336, 6656, 896, 4096)] == [
        (172, 64), (20, 256), (108, 128), (28, 512), (52, 128), (28, 32), (1, 4096),
    ]  # fmt: skip
