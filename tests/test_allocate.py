"""The solver: never over the limit, equal to brute force, independent of names and order."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import subbyte
from subbyte.planning.allocate import Allocation, Option, allocate
from subbyte.planning.budget import parse_bits, parse_size

Units = dict[str, list[Option]]


def oracle() -> Units:
    """Eight units of a published integer example."""
    x, units = 1, {}

    def following() -> int:
        nonlocal x
        x = (1664525 * x + 1013904223) % 2**32
        return x

    for i in range(8):
        z = 1 + (following() >> 28)
        a = (1 + (following() >> 24)) ** 2
        units[f"unit{i}"] = [Option(128 * z * bits, float(a * z * 2 ** (16 - 2 * bits))) for bits in (2, 3, 4, 6)]
    return units


@pytest.mark.parametrize(
    ("limit", "loss", "nbytes", "chosen"),
    [
        (13536, 4266059776, 13440, [0, 0, 0, 0, 1, 0, 1, 0]),
        (15040, 2662571008, 14976, [0, 1, 0, 0, 0, 0, 1, 1]),
        (18048, 1357993984, 18048, [0, 1, 1, 1, 1, 1, 1, 2]),
        (21056, 665642752, 20992, [1, 2, 1, 1, 1, 1, 2, 2]),
        (24064, 360544768, 24064, [2, 2, 2, 2, 2, 2, 2, 2]),
        (27072, 223296928, 27008, [1, 2, 1, 2, 2, 2, 3, 3]),
        (30080, 117877168, 29952, [2, 3, 2, 2, 2, 2, 3, 3]),
    ],
)
def test_the_integer_example(limit: int, loss: int, nbytes: int, chosen: list[int]) -> None:
    found = allocate(oracle(), limit)
    assert (found.loss, found.nbytes, list(found.chosen.values()), found.solver) == (loss, nbytes, chosen, "exact")
    assert found.bound <= found.loss


def brute_force(units: Units, limit: int) -> tuple[float, int, tuple[int, ...]] | None:
    """Loss, bytes and options of the canonical optimum."""
    names = sorted(units)
    best = None
    for picks in itertools.product(*(range(len(units[name])) for name in names)):
        nbytes = sum(units[name][pick].nbytes for name, pick in zip(names, picks, strict=True))
        loss = math.fsum(units[name][pick].loss for name, pick in zip(names, picks, strict=True))
        if nbytes <= limit and (best is None or (loss, nbytes, picks) < best):
            best = (loss, nbytes, picks)
    return best


options = st.lists(st.builds(Option, st.integers(0, 12), st.integers(0, 12).map(float)), min_size=1, max_size=4)
problems = st.lists(options, min_size=1, max_size=6).map(
    lambda found: {f"u{index}": unit for index, unit in enumerate(found)}
)


@settings(max_examples=400, deadline=None)
@given(problems, st.integers(0, 72))
def test_equal_to_brute_force(units: Units, limit: int) -> None:
    best = brute_force(units, limit)
    if best is None:
        with pytest.raises(subbyte.ArgumentError, match="too few: the smallest choice"):
            allocate(units, limit)
        return
    found = allocate(units, limit)
    assert found.nbytes <= limit
    assert (found.loss, found.nbytes) == best[:2]
    assert found.bound <= found.loss
    assert found.nbytes == sum(units[name][at].nbytes for name, at in found.chosen.items())


@settings(max_examples=100, deadline=None)
@given(problems, st.integers(0, 72), st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(units: Units, limit: int, random: object) -> None:
    if brute_force(units, limit) is None:
        return
    names = list(units)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert allocate({name: units[name] for name in names}, limit) == allocate(units, limit)


@settings(max_examples=100, deadline=None)
@given(problems)
def test_more_bytes_never_lose_more(units: Units) -> None:
    least = sum(min(option.nbytes for option in unit) for unit in units.values())
    losses = [allocate(units, limit).loss for limit in range(least, least + 30)]
    assert losses == sorted(losses, reverse=True)


def model(units: int, options: int) -> Units:
    rng = np.random.default_rng(0)
    rates = np.linspace(1, 8.5, options)
    sizes, scales = 2 ** rng.integers(20, 26, units), np.exp(rng.standard_normal(units))
    return {
        f"{i:05d}": [Option(int(sizes[i] * rate / 8), float(scales[i] * sizes[i] * 4.0**-rate)) for rate in rates]
        for i in range(units)
    }


@pytest.mark.parametrize(("count", "options"), [(32, 15), (224, 15), (1000, 8)])
def test_models_of_real_size(count: int, options: int) -> None:
    units = model(count, options)
    limit = sum(unit[0].nbytes for unit in units.values()) * 13 // 4
    start = time.perf_counter()
    found: Allocation = allocate(units, limit)
    assert time.perf_counter() - start < 20
    assert found.solver == "exact"
    assert found.nbytes <= limit
    assert found.loss < found.bound * 1.01


def test_the_bound_holds_for_losses_of_any_size() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        units = {
            f"u{unit}": [
                Option(int(size), float(10.0**power))
                for size, power in zip(rng.integers(0, 1000, 4), rng.uniform(-300, 300, 4), strict=True)
            ]
            for unit in range(5)
        }
        limit = int(rng.integers(2000, 4000))
        best = brute_force(units, limit)
        if best is not None:
            found = allocate(units, limit)
            assert 0 <= found.bound <= found.loss
            assert found.nbytes <= limit
            if found.solver == "exact":
                assert found.loss == pytest.approx(best[0], rel=1e-9)


@pytest.mark.parametrize("options", [4, 9])
def test_problems_that_are_too_hard_are_left_soon(options: int) -> None:
    rng = np.random.default_rng(0)
    units = {  # loss and bytes make nearly the same sum everywhere: nothing can be ruled out
        f"{unit:02d}": [
            Option(int(size), float(2e9 - size + 3 * rng.random()))
            for size in np.sort(rng.integers(10**8, 10**9, options))
        ]
        for unit in range(30)
    }
    limit = sum(unit[0].nbytes for unit in units.values()) * 3 // 2
    tracemalloc.start()
    start = time.perf_counter()
    found = allocate(units, limit)
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.solver == "greedy"
    assert found.bound <= found.loss < found.bound * 1.01
    assert found.nbytes <= limit
    assert took < 30
    assert peak < 400 << 20


@pytest.mark.parametrize(
    "bad", [Option(-1, 0.0), Option(1, -1.0), Option(1, math.nan), Option(1, math.inf), Option(1, 1e301)]
)
def test_numbers_that_mean_nothing_are_refused(bad: Option) -> None:
    with pytest.raises(subbyte.ArgumentError, match="'b'"):
        allocate({"a": [Option(1, 1.0)], "b": [bad]}, 10)
    with pytest.raises(subbyte.ArgumentError, match="no options"):
        allocate({"a": []}, 10)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4.0GiB", 4 << 30), ("1.5g", 1_500_000_000), ("3400000000", 3_400_000_000), (7, 7), ("2 MiB", 2 << 20),
     ("512kb", 512_000), ("1TiB", 1 << 40)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "4 bits", "1e9", "0x10", "4.GiB", "0", "9" * 400 + ".0T", "9" * 5000, "9999999999999999999",
     "9999999T", "\u0664", 0, -1, 1 << 63, 10**4000, True, 1.5, b"4GiB", ["4GiB"]],
)  # fmt: skip
def test_sizes_that_are_none(text: Any) -> None:
    with pytest.raises(subbyte.ArgumentError, match="expected a size") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bits", [math.nan, math.inf, -math.inf, 1e308, 0, -1, 65, 10**400, True, "4", b"x", [4]])
def test_bits_that_are_none(bits: Any) -> None:
    with pytest.raises(subbyte.ArgumentError, match="expected a number of bits") as caught:
        parse_bits(bits)
    assert len(str(caught.value)) < 200
