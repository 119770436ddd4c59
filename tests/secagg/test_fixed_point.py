"""Values as ring elements: the bounds that the docstring proves, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedrot.errors import SecureAggregationError
from fedrot.secagg import FixedPoint
from fedrot.secagg.fixed_point import MAX_WEIGHT


def fixed(clients: int, clip: float, max_weight: int, bits: int) -> FixedPoint:
    try:
        return FixedPoint(clients, clip, max_weight, bits)  # type: ignore[arg-type]
    except SecureAggregationError:
        assume(False)
        raise


numbers = st.builds(
    fixed,
    st.integers(1, 1000),
    st.floats(1e-6, 1e6),
    st.integers(1, MAX_WEIGHT),
    st.sampled_from([32, 64]),
)


@settings(deadline=None, max_examples=200)
@given(numbers)
def test_the_step_is_the_finest_for_which_no_sum_overflows(point: FixedPoint) -> None:
    largest = 2 ** (point.bits - 1) - 1

    def worst(exponent: int) -> Fraction:
        product = point.max_weight * Fraction(point.clip) * Fraction(2) ** exponent
        return point.clients * (product + Fraction(1, 2))

    assert worst(point.exponent) <= largest < worst(point.exponent + 1)
    assert point.clients * point.max_weight <= largest


@settings(deadline=None, max_examples=200)
@given(numbers, st.data())
def test_a_sum_is_off_by_at_most_half_a_step_per_client(point: FixedPoint, data: st.DataObject) -> None:
    clip = float(np.nextafter(np.float32(point.clip), np.float32(0)))
    value = st.floats(-clip, clip, width=32, allow_subnormal=True)
    count = data.draw(st.integers(1, min(point.clients, 5)))
    drawn = [data.draw(value) for _ in range(count)]
    weights = [data.draw(st.integers(1, point.max_weight)) for _ in range(count)]
    total = np.zeros(3, point.dtype)
    for x, weight in zip(drawn, weights, strict=True):
        total += point.encode(np.array([x], np.float32), weight)
    read = int(total[0])
    signed = read - 2**point.bits if read >= 2 ** (point.bits - 1) else read
    exact = sum(Fraction(x) * w for x, w in zip(drawn, weights, strict=True))
    assert abs(signed * Fraction(2) ** -point.exponent - exact) <= count * Fraction(point.step) / 2
    mean, weight = point.decode(total, count)
    assert weight == sum(weights)
    bound = point.bound(count, weight) + 2.0**-52 * abs(float(exact / weight))
    assert abs(Fraction(float(mean[0])) - exact / weight) <= bound * (1 + 1e-12)


def test_the_bound_is_reached() -> None:
    point = FixedPoint(clients=2, clip=1.0, max_weight=1)
    halves = np.array([point.step * 2.5, point.step * 3.5], np.float32)
    mean, _ = point.decode(point.encode(halves, 1), 1)
    assert np.abs(mean - halves).tolist() == [point.bound(1, 1)] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 4.0001, -5.0])
def test_a_value_that_cannot_be_represented_is_refused_and_not_clipped(bad: float) -> None:
    point = FixedPoint(clients=3, clip=4.0)
    with pytest.raises(
        SecureAggregationError, match=r"1 values .* clip = 4, the first .* at 2: nothing was sent"
    ):
        point.encode(np.array([1, -4, bad, 4], np.float32), 1)


@pytest.mark.parametrize("weight", [0, -1, 11, 1.0, True])
def test_a_weight_that_is_no_integer_in_range_is_refused(weight: object) -> None:
    with pytest.raises(SecureAggregationError, match=r"weight = .*: expected an integer from 1 to 10"):
        FixedPoint(clients=3, clip=4.0, max_weight=10).encode(np.zeros(2, np.float32), weight)  # type: ignore[arg-type]


def test_other_precisions_are_refused() -> None:
    with pytest.raises(SecureAggregationError, match="float64: expected float32"):
        FixedPoint(clients=3, clip=4.0).encode(np.zeros(2), 1)  # type: ignore[arg-type]


def test_too_coarse_a_step_is_refused_and_64_bits_are_the_remedy() -> None:
    with pytest.raises(SecureAggregationError, match=r"rounded by up to .* expected 64 bits"):
        FixedPoint(clients=100, clip=1.0, max_weight=10**6)
    assert FixedPoint(clients=100, clip=1.0, max_weight=10**6, bits=64).step < 1e-10


@pytest.mark.parametrize(
    ("clients", "clip", "weight", "bits"),
    [
        (0, 1.0, 1, 32),
        (3, 0.0, 1, 32),
        (3, math.nan, 1, 32),
        (3, 1.0, 0, 32),
        (3, 1.0, 2**30, 64),
        (3, 1.0, 1, 16),
    ],
)
def test_rules_out_of_range_are_refused(clients: int, clip: float, weight: int, bits: int) -> None:
    with pytest.raises(SecureAggregationError, match="expected"):
        FixedPoint(clients, clip, weight, bits)  # type: ignore[arg-type]


def test_a_sum_with_a_mask_left_in_it_is_refused() -> None:
    point = FixedPoint(clients=3, clip=4.0)
    total = point.encode(np.zeros(2, np.float32), 1)
    total[-1] += 12345
    with pytest.raises(SecureAggregationError, match="masks did not cancel"):
        point.decode(total, 1)
