"""Intervals against an independent library, and by their own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedrot.comparison.stats import estimate, paired, t_quantile, t_within


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 9, 10, 19, 30, 99, 200])
@pytest.mark.parametrize("within", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(freedom: int, within: float) -> None:
    expected = stats.t.ppf(0.5 + within / 2, freedom)
    assert t_quantile(freedom, within) == pytest.approx(expected, rel=1e-10)


def test_probabilities_are_those_of_scipy() -> None:
    for freedom in (1, 2, 3, 6, 11):
        for t in (0.0, 0.3, 1.0, 4.0, 30.0):
            expected = stats.t.cdf(t, freedom) - stats.t.cdf(-t, freedom)
            assert t_within(t, freedom) == pytest.approx(expected, abs=1e-12)


def test_an_interval_is_that_of_scipy() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    found = estimate(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-10)


def test_ninety_five_of_a_hundred_intervals_hold_the_mean() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    found = [estimate(row.tolist()) for row in draws]
    held = np.mean([e is not None and e.low is not None and e.low <= 0 <= -e.low + 2 * e.mean for e in found])
    assert held == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = estimate([0.7])
    assert found is not None
    assert (found.mean, found.low, found.high, found.seeds) == (0.7, None, None, 1)
    assert estimate([]) is None


def test_pairing_removes_what_seeds_share() -> None:
    ours = {11: 0.6, 12: 0.7, 13: 0.8, 14: 0.5}
    found = paired(ours, {11: 0.5, 12: 0.6, 13: 0.7})
    assert found is not None
    assert found.seeds == 3, "only seeds that both have"
    assert found.mean == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-12)


def test_no_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(0)
    assert math.isfinite(t_quantile(1))
