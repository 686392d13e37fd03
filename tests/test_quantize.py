"""Quantizers without data: errors that only fall, grids that are kept, and groups that are hardly numbers."""

import itertools

import numpy as np
import pytest

import subbyte
from subbyte import ArgumentError, NonFiniteError
from subbyte.forms import Affine, Biased, FloatZero
from subbyte.quantize import METHODS, Grid, quantize
from subbyte.quantize.neuqi import swept_zeros, tail_zeros

GRIDS = [
    Grid(bits, group, symmetric, zeros, kind)
    for bits, group in ((2, 16), (3, 32), (4, 48), (8, 64))
    for symmetric, zeros, kind in (
        (True, "integer", "F16"),
        (False, "integer", "BF16"),
        (False, "float", "F16"),
        (False, "bias", "F32"),
    )
]
SEARCHES = ("mse", "neuqi")


def named(grid):
    return f"{grid.bits}-{grid.group_size}-{'sym' if grid.symmetric else grid.zeros}-{grid.kind}"


def matrix(rng, rows=12, columns=144, spread=1.0):
    values = rng.standard_t(4, (rows, columns)) * np.exp(rng.normal(0, spread, (rows, 1)))
    return values.astype(np.float32)


def group_losses(found, values, weights=None, norm=2):
    """Weighted errors by group, in float64."""
    size, columns = found.grid.group_size, values.shape[1]
    errors = np.abs(found.dense().astype(np.float64) - values) ** norm
    errors *= np.ones(columns) if weights is None else weights
    return np.add.reduceat(errors, np.arange(0, columns, size), axis=1)


@pytest.mark.parametrize("grid", GRIDS, ids=named)
def test_a_search_is_never_worse_than_minimum_and_maximum(grid):
    rng = np.random.default_rng(grid.bits)
    for _ in range(3):
        values = matrix(rng)
        plain = group_losses(quantize(values, grid, "rtn"), values)
        for method in SEARCHES:
            assert (group_losses(quantize(values, grid, method), values) <= plain * (1 + 1e-5)).all()
        powers = group_losses(quantize(values, grid, "lp"), values, norm=2.4)
        assert (powers <= group_losses(quantize(values, grid, "rtn"), values, norm=2.4) * (1 + 1e-4)).all()


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits < 8], ids=named)
def test_importance_lowers_the_weighted_error(grid, method):
    rng = np.random.default_rng(7)
    values, weights = matrix(rng, 32), rng.gamma(0.3, 1, 144)
    weighted = group_losses(quantize(values, grid, method, importance=weights), values, weights).sum()
    assert weighted < group_losses(quantize(values, grid, method), values, weights).sum()


def test_the_diagonal_of_a_hessian_is_the_importance():
    rng = np.random.default_rng(3)
    values, inputs = matrix(rng), rng.normal(size=(300, 144)) * rng.gamma(0.5, 1, 144)
    hessian = inputs.T @ inputs
    grid = Grid(3, 32)
    found, expected = quantize(values, grid, hessian=hessian), quantize(values, grid, importance=np.diag(hessian))
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.scales, expected.scales)


@pytest.mark.parametrize("grid", GRIDS, ids=named)
def test_codes_scales_and_zeros_are_those_of_the_grid(grid):
    values = matrix(np.random.default_rng(1))
    for method in METHODS:
        if method == "hqq" and grid.symmetric:
            continue
        found = quantize(values, grid, method)
        form = found.form()
        assert isinstance(form, {"integer": Affine, "float": FloatZero, "bias": Biased}[grid.zeros])
        assert form.scales.kind == grid.kind
        assert np.array_equal(form.scales.float32(), found.scales)  # nothing rounds a second time
        assert found.scales.min() > 0
        assert found.codes.max() < 1 << grid.bits
        if isinstance(form, Affine):
            assert form.symmetric or not grid.symmetric
            assert 0 <= found.zeros.min() <= found.zeros.max() < 1 << grid.bits
            assert np.array_equal(found.zeros, np.rint(found.zeros))


def test_no_code_of_any_other_value_comes_nearer():
    values = matrix(np.random.default_rng(2), 4)
    for grid, method in itertools.product(GRIDS[:12], ("rtn", "mse", "neuqi")):
        found = quantize(values, grid, method)
        size = grid.group_size
        scale, zero = (np.repeat(one, size, axis=1)[:, :144].astype(np.float64) for one in (found.scales, found.zeros))
        every = (np.arange(1 << grid.bits)[:, None, None] - zero) * scale
        mine = np.abs((found.codes - zero) * scale - values)
        assert (mine <= np.abs(every - values).min(axis=0) * (1 + 1e-4) + 1e-6 * scale).all()


def exact_symmetric(values, bits):
    """The least square error of symmetric codes of one group: every code vector between two breakpoints is tried."""
    middle = 1 << (bits - 1)
    steps = np.arange(1, middle + 1) - 0.5
    breaks = np.sort((np.abs(values)[:, None] / steps).ravel())
    scales = np.concatenate([(breaks[:-1] + breaks[1:]) / 2, breaks[-1:] * 1.01])
    codes = np.clip(np.rint(values / scales[:, None]), -middle, middle - 1)
    norms = (codes**2).sum(axis=1)
    best = np.where(norms > 0, (codes @ values) ** 2 / np.maximum(norms, 1), 0).max()
    return (values**2).sum() - best


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_comes_close_to_the_exact_optimum(bits):
    values = np.random.default_rng(bits).standard_t(5, (200, 32)).astype(np.float32)
    found = group_losses(quantize(values, Grid(bits, 32, True, kind="F32"), "mse"), values)[:, 0]
    exact = np.array([exact_symmetric(row.astype(np.float64), bits) for row in values])
    assert (found >= exact * (1 - 1e-5)).all()
    assert found.sum() <= exact.sum() * 1.02


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_zero_of_a_scale_is_near_optimal(bits):
    rng = np.random.default_rng(bits)
    largest = np.float32((1 << bits) - 1)
    steps = (rng.standard_t(4, (60, 1, 32)) * largest / 3).astype(np.float32)
    weights = rng.gamma(0.5, 1, (1, 1, 32)).astype(np.float32)

    def losses(zeros):
        codes = np.clip(np.rint(steps[:, 0] + zeros), 0, largest)
        return (weights[0] * (steps[:, 0] + zeros - codes) ** 2).sum(axis=1)

    found = losses(swept_zeros(steps, weights, tail_zeros(steps, weights, largest), largest))
    tried = np.min([losses(np.full((60, 1), zero)) for zero in np.arange(-largest, 2 * largest, 0.01)], axis=0)
    assert np.median(found / tried) <= 1.001
    assert found.sum() <= tried.sum() * 1.05


DEGENERATE = {
    "zeros": np.zeros((2, 48), np.float32),
    "constants": np.repeat(np.array([[3.25], [-7.5]], np.float32), 48, axis=1),
    "one outlier": np.where(np.arange(96).reshape(2, 48) % 48 == 5, 1000, 1e-3).astype(np.float32),
    "denormals": np.linspace(-1e-40, 1e-40, 96, dtype=np.float32).reshape(2, 48),
    "one value": np.eye(2, 48, dtype=np.float32),
    "mixed": np.concatenate([np.zeros((2, 32)), np.ones((2, 16))], axis=1).astype(np.float32),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("grid", GRIDS[:12], ids=named)
def test_groups_that_hardly_vary(grid, name):
    values = DEGENERATE[name]
    largest = np.abs(values).max()
    for method in (*METHODS, "easyquant"):
        if method == "hqq" and grid.symmetric:
            continue
        dense = quantize(values, grid, method).dense()
        assert np.isfinite(dense).all()
        # a step of the grid at most, or what float16 leaves of numbers below its range
        steps = (1 << grid.bits) - 1
        assert np.abs(dense - values).max() <= 2 * largest / steps * 1.02 + 2.0**-24
        if name == "zeros":
            assert not dense.any()


@pytest.mark.parametrize("grid", GRIDS[4:8], ids=named)
def test_constant_rows_are_kept(grid):
    values = DEGENERATE["constants"]
    dense = quantize(values, grid, "mse").dense()
    np.testing.assert_allclose(dense, values, rtol=2**-8)


def test_scaling_the_values_scales_the_result():
    values = matrix(np.random.default_rng(5))
    for grid, method in itertools.product((Grid(3, 48, kind="F32"), Grid(2, 48, True, kind="F32")), SEARCHES):
        one, other = quantize(values, grid, method), quantize(values * np.float32(8), grid, method)
        assert np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.scales * np.float32(8), other.scales)


def test_rows_do_not_depend_on_each_other():
    values = matrix(np.random.default_rng(6), 600, 256)
    for method in METHODS:
        whole = quantize(values, Grid(3, 64), method)
        part = quantize(values[511:], Grid(3, 64), method)
        assert np.array_equal(whole.codes[511:], part.codes)
        assert np.array_equal(whole.scales[511:], part.scales)


def test_outliers_are_kept_and_the_others_gain():
    rng = np.random.default_rng(8)
    values = rng.normal(size=(16, 256)).astype(np.float32)
    values[rng.integers(0, 16, 20), rng.integers(0, 256, 20)] *= 50
    found = quantize(values, Grid(4, 128, True), "easyquant")
    kept = found.outliers
    assert 0 < len(kept.values) < 0.01 * values.size
    assert np.array_equal(values[kept.rows, kept.columns], found.dense()[kept.rows, kept.columns])
    assert (
        np.square(found.dense() - values).sum() < np.square(quantize(values, Grid(4, 128, True)).dense() - values).sum()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad):
    values = np.ones((3, 32), np.float32)
    values[1, 7] = bad
    with pytest.raises(NonFiniteError) as caught:
        quantize(values, Grid(4, 32))
    assert (caught.value.row, caught.value.column) == (1, 7)
    with pytest.raises(NonFiniteError, match="importance"):
        quantize(np.ones((3, 32), np.float32), Grid(4, 32), importance=np.full(32, bad))


def test_what_does_not_fit_the_type_of_scales_is_refused():
    with pytest.raises(NonFiniteError, match="F16"):
        quantize(np.full((2, 32), 3e38, np.float32), Grid(4, 32), "mse").form()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "best"}, "method 'best'"),
        ({"method": "hqq", "grid": Grid(4, 32, True)}, "hqq"),
        ({"importance": np.ones(31)}, r"expected \[32\]"),
        ({"importance": -np.ones(32)}, "negative"),
        ({"hessian": np.ones((31, 32))}, "Hessian"),
        ({"values": np.ones(32, np.float32)}, "matrix"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    given = {"values": np.ones((2, 32), np.float32), "grid": Grid(4, 32)} | arguments
    with pytest.raises(ArgumentError, match=words):
        quantize(**given)


def test_columns_without_any_importance_count_alike():
    values = matrix(np.random.default_rng(9))
    grid = Grid(3, 48)
    assert np.array_equal(quantize(values, grid, importance=np.zeros(144)).codes, quantize(values, grid).codes)


MATRIX = matrix(np.random.default_rng(11), 64, 256, 0.3)
INTEGER_TARGETS = {
    "gptq": ({"quantization_config": {"bits": 3, "group_size": 64, "sym": True}}, ("mse", "lp", "neuqi")),
    "gptq asymmetric": (
        {"quantization_config": {"bits": 4, "group_size": 128, "sym": False, "checkpoint_format": "gptq_v2"}},
        ("mse", "hqq", "neuqi"),
    ),
    "awq": ({"quantization_config": {"bits": 4, "group_size": 64, "version": "gemm"}}, ("mse", "hqq", "neuqi")),
    "compressed-tensors": (
        {
            "quantization_config": {
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64,
                        },
                    }
                },
            }
        },
        ("mse", "neuqi"),
    ),
    "mlx": ({"quantization": {"bits": 3, "group_size": 64}}, ("mse", "hqq", "neuqi")),
    "hqq": ({"nbits": 3, "group_size": 64, "axis": 1}, ("mse", "hqq", "neuqi")),
    "quanto": ({"quantization_config": {"weights": "int4"}, "shape": [64, 256]}, ("mse", "neuqi")),
    "torchao": (
        {
            "_type": "Int4Tensor",
            "_data": {"block_size": [1, 64]},
            "_tensor_data_names": ["qdata", "scale", "zero_point"],
        },
        ("mse", "neuqi"),
    ),
}  # fmt: skip


def relative_error(format, params, **more):
    made = subbyte.encode(format, MATRIX.astype(np.float16), params=params, **more)
    back = subbyte.decode(format, made, params=params)
    return np.linalg.norm(back - MATRIX.astype(np.float16)) / np.linalg.norm(MATRIX)


@pytest.mark.parametrize("name", INTEGER_TARGETS)
def test_formats_take_a_method(name):
    params, methods = INTEGER_TARGETS[name]
    format = name.split()[0]
    plain = relative_error(format, params)
    assert relative_error(format, {**params, "method": "writer"}) == plain
    errors = {method: relative_error(format, {**params, "method": method}) for method in (*methods, "rtn")}
    assert errors["mse"] < plain
    assert errors["neuqi"] < plain
    weights = np.random.default_rng(1).gamma(0.3, 1, 256)
    assert relative_error(format, {**params, "method": "mse"}, importance=weights) > errors["mse"]
    with pytest.raises(ArgumentError, match="method"):
        relative_error(format, {**params, "method": "easyquant"})


BLOCK_TARGETS = {
    "mxfp4": {},
    "mlx": {"quantization": {"mode": "mxfp8"}},
    "mlx nvfp4": {"quantization": {"mode": "nvfp4"}},
    "modelopt": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}},
    "torchao": {
        "_type": "NVFP4Tensor",
        "_data": {"block_size": 16, "is_swizzled_scales": False},
        "_tensor_data_names": ["qdata", "scale", "per_tensor_scale"],
    },
}


@pytest.mark.parametrize("name", BLOCK_TARGETS)
def test_scales_of_blocks_are_searched(name):
    format, params = name.split()[0], BLOCK_TARGETS[name]
    plain = relative_error(format, params)
    found = relative_error(format, {**params, "method": "mse"})
    assert found <= plain if "mxfp8" in str(params) else found < plain  # the steps of E4M3 are relative to the values
    with pytest.raises(ArgumentError, match="method"):
        relative_error(format, {**params, "method": "hqq"})


@pytest.mark.parametrize("name", ["zeros", "one outlier", "denormals"])
@pytest.mark.parametrize("target", BLOCK_TARGETS)
def test_blocks_that_hardly_vary(target, name):
    format, params = target.split()[0], BLOCK_TARGETS[target]
    values = np.tile(DEGENERATE[name], (32, 2))
    losses = [
        np.square(subbyte.decode(format, subbyte.encode(format, values, params=chosen), params=params) - values).sum(0)
        for chosen in (params, {**params, "method": "mse"})
    ]
    assert losses[1].sum() <= losses[0].sum() * (1 + 1e-5)


@pytest.mark.parametrize(
    ("format", "params"),
    [
        ("quanto", {"quantization_config": {"weights": "int8"}}),
        ("hqq", {"nbits": 1.58, "group_size": 64}),
        ("modelopt", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
        (
            "torchao",
            {"_type": "Float8Tensor", "_data": {"block_size": [1, 256]}, "_tensor_data_names": ["qdata", "scale"]},
        ),
    ],
)
def test_where_there_is_no_other_method_it_is_refused(format, params):
    assert relative_error(format, {**params, "method": "writer"}) < 1
    with pytest.raises(subbyte.UnsupportedError, match="no other method than writer, not 'mse'"):
        relative_error(format, {**params, "method": "mse"})
