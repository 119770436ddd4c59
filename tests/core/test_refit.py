"""The refit against its dense definition, and what it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from fedrot.core import Adapter, Factors, adapter_broadcast_error, refit, rotate, weighted_mean
from fedrot.errors import AdapterError
from tests.core.strategies import normal, property_test, ranks, rotations, seeds

WEIGHTS = [3.0, 1.0, 2.0, 5.0]
SHAPES = {"q": (9, 11), "v": (8, 7)}
drifts = st.sampled_from([1e-3, 0.1, 1.0, 10.0])


def reference(seed: int, rank: int = 3) -> Adapter:
    sites = {
        s: Factors(normal(seed + i, rank, d_in), normal(seed + 50 + i, d_out, rank))
        for i, (s, (d_in, d_out)) in enumerate(SHAPES.items())
    }
    return Adapter(sites, {"head": normal(seed, 4)}, 2.0)


def clients(seed: int, start: Adapter, drift: float, count: int = 4) -> list[Adapter]:
    def drifted(client: int) -> Adapter:
        noise = iter(range(seed + 100 * client, seed + 100 * client + 50))
        return start.map(lambda t: t + drift * normal(next(noise) + 7919, *t.shape))

    return [drifted(client) for client in range(1, count + 1)]


def error(sent: list[Adapter], broadcast: Adapter) -> float:
    return float(adapter_broadcast_error(sent, WEIGHTS[: len(sent)], broadcast).absolute)


@property_test(seeds, ranks, drifts, st.integers(1, 3))
def test_refit_equals_alternating_ridge_regression_on_the_dense_update(
    seed: int, rank: int, drift: float, steps: int
) -> None:
    start = reference(seed, rank)
    sent = clients(seed, start, drift)
    shares = np.asarray(WEIGHTS) / sum(WEIGHTS)
    fitted = refit(sent, WEIGHTS, start, steps)
    for site, f in start.sites.items():
        ideal = sum(
            p * (c.sites[site].b @ c.sites[site].a).numpy() for p, c in zip(shares, sent, strict=True)
        )
        a, b = f.a.numpy(), f.b.numpy()

        def towards(matrix: np.ndarray, target: np.ndarray, held: np.ndarray) -> np.ndarray:
            """`argmin_x ||matrix x - target||^2 + mu ||x - held||^2` by stacked least squares."""
            mu = 1e-3 * np.mean(np.sum(matrix**2, 0))
            rows = np.vstack([matrix, np.sqrt(mu) * np.eye(matrix.shape[1])])
            return np.linalg.lstsq(rows, np.vstack([target, np.sqrt(mu) * held]))[0]

        for _ in range(steps):
            b = towards(a.T, ideal.T, b.T).T
            a = towards(b, ideal, a)
        b = towards(a.T, ideal.T, b.T).T
        np.testing.assert_allclose(fitted.sites[site].a, a, rtol=1e-6, atol=1e-8 * np.abs(a).max())
        np.testing.assert_allclose(fitted.sites[site].b, b, rtol=1e-6, atol=1e-8 * np.abs(b).max())


@property_test(seeds, ranks, drifts, st.integers(1, 3))
def test_a_refit_is_never_further_off_than_its_start_and_more_steps_never_worse(
    seed: int, rank: int, drift: float, steps: int
) -> None:
    start = reference(seed, rank)
    sent = clients(seed, start, drift)
    for begin in (start, weighted_mean(sent, WEIGHTS), start.map(torch.zeros_like)):
        near, nearer = (refit(sent, WEIGHTS, begin, k) for k in (steps, steps + 1))
        assert error(sent, near) <= error(sent, begin) * (1 + 1e-9)
        assert error(sent, nearer) <= error(sent, near) * (1 + 1e-9)


@property_test(seeds, drifts)
def test_the_frames_of_clients_do_not_matter(seed: int, drift: float) -> None:
    start = reference(seed)
    sent = clients(seed, start, drift)
    turned: list[Adapter] = []
    for i, client in enumerate(sent):
        turn = rotations(seed + i, 3, 3) * (1.0 + i)  # any invertible change of frame will do
        sites = {s: Factors(turn.mT @ f.a, f.b @ turn / (1.0 + i) ** 2) for s, f in client.sites.items()}
        turned.append(replace(client, sites=sites))
    plain, framed = refit(sent, WEIGHTS, start), refit(turned, WEIGHTS, start)
    for site, f in plain.sites.items():
        torch.testing.assert_close(framed.sites[site].a, f.a, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(framed.sites[site].b, f.b, rtol=1e-8, atol=1e-9)


def test_a_few_steps_in_the_first_round_come_near_the_best_of_its_rank() -> None:
    """From a reference with `b = 0`, and clients that differ by a fifth of their update."""
    start = reference(1)
    start = replace(start, sites={s: Factors(f.a, 0 * f.b) for s, f in start.sites.items()})
    sent = clients(7, reference(5), 0.2)
    shares = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    best = 0.0
    for site in SHAPES:
        ideal = sum(p * c.sites[site].b @ c.sites[site].a for p, c in zip(shares, sent, strict=True))
        best += float(4 * torch.linalg.svdvals(ideal)[3:].square().sum())
    assert error(sent, refit(sent, WEIGHTS, start)) < 1.3 * best**0.5
    assert error(sent, refit(sent, WEIGHTS, start, 5)) < 1.01 * best**0.5


def test_factors_that_represent_the_mean_update_stay_and_a_lone_client_is_reached() -> None:
    start = reference(1)
    agreeing = [
        replace(
            start, sites={s: Factors(*rotate(f.a, f.b, rotations(i, 3, 3))) for s, f in start.sites.items()}
        )
        for i in range(3)
    ]
    kept = refit(agreeing, [1, 2, 3], start)
    for site, f in start.sites.items():
        torch.testing.assert_close(kept.sites[site].a, f.a, atol=1e-12, rtol=0)
        torch.testing.assert_close(kept.sites[site].b, f.b, atol=1e-12, rtol=0)
    lone = clients(3, start, 0.3, count=1)
    assert adapter_broadcast_error(lone, [1.0], refit(lone, [1.0], start, 3)).relative < 1e-3


def test_nothing_learned_leaves_a_fresh_adapter_as_it_was() -> None:
    start = reference(1)
    fresh = replace(start, sites={s: Factors(f.a, 0 * f.b) for s, f in start.sites.items()})
    kept = refit([fresh] * 3, [1, 1, 1], fresh)
    assert all(
        torch.equal(kept.sites[s].a, f.a) and not kept.sites[s].b.any() for s, f in fresh.sites.items()
    )


def test_float32_clients_are_fitted_as_in_float64() -> None:
    start = reference(1)
    sent = clients(2, start, 0.3)
    narrow = [c.map(lambda t: t.float()) for c in sent]
    single = refit(narrow, WEIGHTS, start.map(lambda t: t.float()))
    double = refit(sent, WEIGHTS, start)
    for site, f in double.sites.items():
        assert single.sites[site].a.dtype == torch.float32
        product, expected = single.sites[site].b.double() @ single.sites[site].a.double(), f.b @ f.a
        assert float((product - expected).norm() / expected.norm()) < 1e-5


def test_padded_ranks_and_unusable_weights() -> None:
    start = reference(1)
    sent = [c.resized(rank).resized(3) for c, rank in zip(clients(2, start, 0.3), (1, 2, 1, 2), strict=True)]
    small = [c.resized(rank) for c, rank in zip(clients(2, start, 0.3), (1, 2, 1, 2), strict=True)]
    for site, f in refit(sent, WEIGHTS, start).sites.items():
        torch.testing.assert_close(refit(small, WEIGHTS, start).sites[site].a, f.a)
    with pytest.raises(AdapterError, match="zero"):
        refit(sent, [0, 0, 0, 0], start)
