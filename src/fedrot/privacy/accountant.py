"""How much privacy a run has spent: the exact composition of Gaussian mechanisms, in closed form.

A release of noise multiplier `sigma` and sensitivity `s` (in units of the clip) is `mu`-GDP with `mu = s / sigma`; `k`
releases, each free to depend on what came before, are `mu`-GDP with `mu = s sqrt(k) / sigma` (Dong, Roth and Su,
"Gaussian differential privacy", JRSSB 2022, corollary 3.3), and `mu`-GDP is `(epsilon, delta)`-DP for exactly

    delta(epsilon) = Phi(-epsilon / mu + mu / 2) - exp(epsilon) Phi(-epsilon / mu - mu / 2)

(Balle and Wang, "Improving the Gaussian mechanism", ICML 2018, theorem 8). There is nothing to approximate, so no Renyi
orders and no numerical composition: accountants built on those give the same or a little more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch

from fedrot.config import PrivacyConfig
from fedrot.errors import ConfigError
from fedrot.server import choose_clients

SENSITIVITY = {"replace-one": 2.0, "zero-out": 1.0}
"""By how many clips one client moves the sum, under each `privacy.adjacency`."""


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta with which `mu`-GDP is `(epsilon, delta)`-DP."""
    return math.exp(_log_delta(mu, epsilon))


def _log_delta(mu: float, epsilon: float) -> float:
    if mu == 0:
        return -math.inf
    at = torch.tensor([-epsilon / mu + mu / 2, -epsilon / mu - mu / 2], dtype=torch.float64)
    first, second = torch.special.log_ndtr(at).tolist()
    ratio = epsilon + second - first
    return first + math.log1p(-math.exp(ratio)) if ratio < 0 else -math.inf


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon with which `mu`-GDP is `(epsilon, delta)`-DP; infinite where `mu` is.

    Found by bisection to a relative 1e-12, from above.

    >>> round(epsilon_of(1.0, 1e-5), 6)
    4.377178
    """
    if not 0 < delta < 1:
        raise ConfigError(f"privacy.delta = {delta!r}: expected a number in (0, 1)")
    if math.isinf(mu):
        return math.inf
    target = math.log(delta)
    if _log_delta(mu, 0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while _log_delta(mu, high) > target:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _log_delta(mu, middle) > target else (low, middle)
    return high


def noise_for(epsilon: float, delta: float, rounds: int, adjacency: str = "replace-one") -> float:
    """The smallest `privacy.noise` with which a client chosen in `rounds` rounds spends at most `epsilon`.

    Args:
        epsilon: positive.
        delta: in (0, 1).
        rounds: positive.
        adjacency: `replace-one` or `zero-out`.

    >>> round(noise_for(8.0, 1e-5, rounds=15), 3)
    4.649
    """
    if not epsilon > 0:
        raise ConfigError(f"epsilon = {epsilon!r}: expected a number > 0")
    low, high = 0.0, 1.0
    while epsilon_of(high, delta) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return SENSITIVITY[adjacency] * math.sqrt(rounds) / low


class Accountant:
    """Epsilon after every round of a run.

    Who is chosen for a round depends on the recipe alone. A client that was chosen counts, whether it reported or not,
    and a round that was released again counts again.

    Attributes:
        settings: of the recipe.
    """

    def __init__(self, settings: PrivacyConfig, seed: int, clients: int, fraction: float) -> None:
        self.settings = settings
        self._draw = (seed, clients, fraction)
        self._counted: Counter[int] = Counter()
        """Releases in `_times`, by round."""
        self._times: Counter[int] = Counter()
        """Releases that each client was chosen for."""

    def taken(self, round: int, releases: Iterable[int] = ()) -> int:
        """The largest number of releases that any one client was chosen for.

        Args:
            round: every round up to it counts once at least.
            releases: rounds of the releases begun so far, see `Releases`, in any order: one that is there twice counts
                twice, and one beyond `round` counts too.
        """
        seed, clients, fraction = self._draw
        begun = Counter(range(1, round + 1)) | Counter(releases)
        if fraction == 1:
            return begun.total()
        if not self._counted <= begun:
            self._counted, self._times = Counter(), Counter()
        for number, times in (begun - self._counted).items():
            self._times.update(dict.fromkeys(choose_clients(seed, number, clients, fraction), times))
        self._counted = begun
        return max(self._times.values(), default=0)

    def epsilon(self, round: int, releases: Iterable[int] = ()) -> float | None:
        """Spent by the client that spent most, in the releases that `taken` counts; None where nothing is promised."""
        if self.settings.noise == 0:
            return None
        sensitivity = SENSITIVITY[self.settings.adjacency]
        taken = self.taken(round, releases)
        return epsilon_of(sensitivity * math.sqrt(taken) / self.settings.noise, self.settings.delta)
