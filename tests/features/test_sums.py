"""Exact sums and bounded quantiles: the same for every order and split."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest

from rayrec.features.counts import Counts
from rayrec.features.quantiles import Quantiles, rounded
from rayrec.features.sums import Sums

EXTREMES = np.array([5e-324, -5e-324, 1.7e308, -1.7e308, 1e-300, 2.0**-1022, 0.0, -0.0, 0.1, 1 / 3, -(2.0**53) - 2])


def columns() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        EXTREMES,
        random.normal(1e9, 1e-3, 500),
        random.normal(size=500) * 10.0 ** random.integers(-300, 300, 500),
        random.integers(-(1 << 62), 1 << 62, 500).astype(float),
        np.full(7, 0.1),
    ]


@pytest.mark.parametrize("numbers", columns())
def test_mean_and_deviation_are_the_nearest_doubles_to_the_true_ones(numbers: np.ndarray) -> None:
    sums = Sums()
    sums.add(numbers)
    exact = [Fraction(number) for number in numbers.tolist()]
    mean = sum(exact) / len(exact)
    variance = sum((number - mean) ** 2 for number in exact) / len(exact)
    assert sums.mean == float(mean)
    off = Fraction(sums.deviation) ** 2 - variance
    assert abs(off) <= variance * Fraction(1, 1 << 51)
    assert (sums.low, sums.high) == (numbers.min(), numbers.max())


@pytest.mark.parametrize("numbers", columns())
def test_sums_do_not_depend_on_order_or_split(numbers: np.ndarray) -> None:
    random, whole, merged = np.random.default_rng(1), Sums(), Sums()
    whole.add(numbers)
    for part in np.array_split(random.permutation(numbers), 4):
        sums = Sums()
        sums.add(part)
        merged.merge(Sums.from_json(sums.to_json()))
    assert merged.to_json() == whole.to_json()


def test_sums_of_nothing_are_zero() -> None:
    assert (Sums().mean, Sums().deviation) == (0.0, 0.0)


def quantiles(numbers: np.ndarray) -> Quantiles:
    counts = Counts(pl.Int32)
    counts.add(rounded(numbers))
    return Quantiles(counts)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_quantiles_are_off_by_at_most_the_stated_error(scale: float) -> None:
    numbers = np.random.default_rng(0).lognormal(sigma=3, size=2001) * scale
    found = quantiles(numbers)
    for share in (0, 0.01, 0.25, 0.5, 0.777, 0.99, 1):
        assert math.isclose(found(share), np.quantile(numbers, share), rel_tol=2**-13)


def test_quantiles_of_numbers_of_few_bits_are_exact() -> None:
    numbers = np.random.default_rng(0).integers(-8192, 8193, 1000) / 4.0
    found = quantiles(numbers)
    for share in (0.0, 0.25, 0.5, 1.0):
        assert found(share) == np.quantile(numbers, share)
    assert quantiles(np.array([0.0, -0.0]))(0.5) == 0
    assert quantiles(np.array([]))(0.5) == 0


def test_the_largest_doubles_stay_finite() -> None:
    assert math.isfinite(quantiles(np.array([1.797e308, -1.797e308, 1.797e308]))(1.0))
