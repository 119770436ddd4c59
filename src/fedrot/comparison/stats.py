"""Means over seeds, their intervals, and paired differences; Student's t without a statistics library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. `half` is half the width of its 95% interval; None for a single seed, which has none."""

    mean: float
    half: float | None
    seeds: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.mean + self.half

    def to_json(self) -> dict[str, float | int | None]:
        """As written to results.json."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "seeds": self.seeds}


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95% t-interval, `mean +- t(0.975, n - 1) * s / sqrt(n)`; None without values.

    >>> found = estimate([0.70, 0.72, 0.74])
    >>> f"{found.mean:.2f} +- {found.half:.4f}"
    '0.72 +- 0.0497'
    """
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, t_quantile(count - 1) * math.sqrt(variance / count), count)


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Mean difference `ours - baseline` over the seeds that both have, with the interval of the differences."""
    return estimate([ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())])


def t_within(t: float, freedom: int) -> float:
    """`P(|T| <= t)` of Student's t with a whole number of degrees of freedom: a finite sum.

    With `theta = atan(t / sqrt(n))`: for odd `n`, `2/pi (theta + sin theta (cos + 2/3 cos^3 + 2/3 4/5 cos^5 + ...))`
    up to `cos^(n-2)`; for even `n`, `sin theta (1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ...)` up to `cos^(n-2)`
    (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    theta = math.atan(t / math.sqrt(freedom))
    cosine, total = math.cos(theta), 0.0
    term = cosine if freedom % 2 else 1.0
    for power in range(freedom % 2, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if freedom % 2 else total


@cache
def t_quantile(freedom: int, within: float = 0.95) -> float:
    """The `t` with `P(|T| <= t) = within`, by bisection of the angle to the last bit.

    >>> round(t_quantile(2), 4)
    4.3027
    """
    if freedom < 1:
        raise ValueError(f"t_quantile: freedom = {freedom}: expected at least 1")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if t_within(math.sqrt(freedom) * math.tan(middle), freedom) < within:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)
