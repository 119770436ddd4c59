"""Epsilon equals independent computations: integrals, many digits, another package's values, and Renyi bounds."""

from __future__ import annotations

import math

import mpmath
import pytest
from scipy import integrate, stats

from fedrot.config import PrivacyConfig
from fedrot.errors import ConfigError
from fedrot.privacy import Accountant, delta_of, epsilon_of, noise_for
from fedrot.server import choose_clients


def settings(**keys: object) -> PrivacyConfig:
    return PrivacyConfig.model_validate({"mechanism": "central", **keys})


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_delta_is_the_hockey_stick_divergence_of_two_gaussians(mu: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(0.0, stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x))

    crossing = epsilon / mu + mu / 2
    integral, _ = integrate.quad(excess, crossing, crossing + 12, epsabs=1e-13, epsrel=1e-11)
    assert delta_of(mu, epsilon) == pytest.approx(integral, rel=1e-7)


@pytest.mark.parametrize("mu", [0.02, 0.7, 5.0, 60.0, 900.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.01])
def test_epsilon_solves_the_equation_to_many_digits(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    with mpmath.workdps(500):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)

        def delta_at(e: mpmath.mpf) -> mpmath.mpf:
            return mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)

        if epsilon == 0:
            assert delta_at(e) <= delta
        else:
            assert delta_at(e * (1 + mpmath.mpf("1e-9"))) < delta < delta_at(e * (1 - mpmath.mpf("1e-9")))


# dp-accounting 0.6.0, dp_accounting.get_epsilon_gaussian(sigma=1 / mu, delta)
PUBLISHED = {
    (0.1, 1e-5): 0.34066936468434,
    (0.5, 1e-9): 2.90973238076383,
    (1.0, 1e-5): 4.37717809568114,
    (3.0, 1e-5): 16.6754944028281,
    (7.7, 0.01): 46.6867791100231,
    (30.0, 1e-5): 577.011973688017,
}


@pytest.mark.parametrize(("mu", "delta"), PUBLISHED)
def test_epsilon_equals_googles_accountant(mu: float, delta: float) -> None:
    assert epsilon_of(mu, delta) == pytest.approx(PUBLISHED[mu, delta], rel=1e-9)


@pytest.mark.parametrize("rounds", [1, 15, 100])
@pytest.mark.parametrize("noise", [0.7, 2.0, 10.0])
def test_epsilon_is_below_the_renyi_bound_and_close_to_it(noise: float, rounds: int) -> None:
    """Renyi divergence of order `a` is `rounds a / (2 noise^2)`; conversion of Canonne, Kamath and Steinke (2020)."""
    delta = 1e-5
    exact = Accountant(settings(noise=noise, adjacency="zero-out"), 0, 10, 1.0).epsilon(rounds)
    assert exact is not None
    orders = [1 + 1.02**k / 1000 for k in range(700)]
    bound = min(
        rounds * a / (2 * noise**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders
    )
    assert exact <= bound
    assert exact > 0.85 * bound


def test_many_rounds_are_one_with_less_noise() -> None:
    many = Accountant(settings(noise=3.0), 0, 10, 1.0).epsilon(9)
    once = Accountant(settings(noise=1.0), 0, 10, 1.0).epsilon(1)
    assert many == pytest.approx(once, rel=1e-10)


def test_replacing_a_client_costs_as_much_as_half_the_noise() -> None:
    replaced = Accountant(settings(noise=2.0), 0, 10, 1.0).epsilon(5)
    zeroed = Accountant(settings(noise=1.0, adjacency="zero-out"), 0, 10, 1.0).epsilon(5)
    assert replaced == zeroed


def test_epsilon_counts_the_rounds_of_the_client_that_was_chosen_most() -> None:
    seed, clients, fraction, rounds = 5, 12, 0.25, 30
    times = [0] * clients
    for number in range(1, rounds + 1):
        for client in choose_clients(seed, number, clients, fraction):
            times[client] += 1
    accountant = Accountant(settings(), seed, clients, fraction)
    assert 30 * 0.25 < accountant.taken(rounds) == max(times) < rounds
    assert accountant.taken(1) == 1, "in any order"
    full = Accountant(settings(), seed, clients, 1.0)
    assert full.taken(max(times)) == max(times)
    assert full.epsilon(max(times)) == accountant.epsilon(rounds)


def test_a_round_that_was_released_again_counts_again_for_those_who_were_chosen_for_it() -> None:
    seed, clients, fraction = 5, 12, 0.25
    accountant, full = (
        Accountant(settings(), seed, clients, fraction),
        Accountant(settings(), seed, clients, 1.0),
    )
    for releases, counted in (
        ([1, 2, 3, 3], [1, 2, 3, 3]),
        ([3, 3, 2, 1, 2, 3], [1, 2, 2, 3, 3, 3]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([3], [1, 2, 3]),
        ([], [1, 2, 3]),
    ):
        times = [0] * clients
        for number in counted:
            for client in choose_clients(seed, number, clients, fraction):
                times[client] += 1
        assert accountant.taken(3, releases) == max(times)
        assert full.taken(3, releases) == len(counted)
        assert full.epsilon(3, releases) == full.epsilon(len(counted))
    assert accountant.taken(0, [3] * 5) == 5, "the same clients every time"


def test_epsilon_never_falls_and_a_fresh_accountant_finds_the_same() -> None:
    accountant = Accountant(settings(noise=1.3), 1, 20, 0.2)
    spent = [accountant.epsilon(number) for number in range(1, 41)]
    assert spent == sorted(spent)  # type: ignore[type-var]
    assert Accountant(settings(noise=1.3), 1, 20, 0.2).epsilon(40) == spent[-1]


def test_without_noise_nothing_is_promised() -> None:
    assert Accountant(settings(noise=0.0), 0, 10, 1.0).epsilon(1) is None
    assert epsilon_of(math.inf, 1e-5) == math.inf


@pytest.mark.parametrize("adjacency", ["replace-one", "zero-out"])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 300.0])
def test_noise_for_an_epsilon_spends_just_that(epsilon: float, adjacency: str) -> None:
    noise = noise_for(epsilon, 1e-6, rounds=7, adjacency=adjacency)
    spent = Accountant(settings(noise=noise, delta=1e-6, adjacency=adjacency), 0, 9, 1.0).epsilon(7)
    assert spent == pytest.approx(epsilon, rel=1e-9)


def test_impossible_demands_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        epsilon_of(1.0, 0.0)
    with pytest.raises(ConfigError, match="epsilon = 0"):
        noise_for(0, 1e-5, rounds=3)
