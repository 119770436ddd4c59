"""Leading singular directions of many clients' mean update, against the dense singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedrot.core import Adapter, Factors, generator
from fedrot.core import leading as module
from fedrot.core.leading import leading, sketched
from fedrot.core.lowrank import product_svd, truncate, weighted_sum
from tests.core.strategies import normal, property_test, ranks, seeds


def federation(seed: int, count: int, drift: float, rank: int = 4) -> tuple[Adapter, list[Adapter]]:
    """A reference and clients that drifted from it, wide enough for subspace iteration.

    Forty clients' stack is smaller than the first layer, and larger than the second.
    """
    shapes = {"q": (170, 190), "v": (60, 50)}
    start = Adapter(
        {
            s: Factors(normal(seed + i, rank, d_in), normal(seed + 9 + i, d_out, rank))
            for i, (s, (d_in, d_out)) in enumerate(shapes.items())
        }
    )
    return start, [_drifted(start, drift, seed + 100 + 10 * c) for c in range(count)]


def _drifted(start: Adapter, drift: float, seed: int) -> Adapter:
    noise = iter(range(seed, seed + 10))
    return start.map(lambda t: t + drift * normal(next(noise), *t.shape))


def best(clients: list[Adapter], shares: np.ndarray, site: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The dense mean update and its best approximation."""
    ideal = np.asarray(
        sum(p * (c.sites[site].b @ c.sites[site].a).numpy() for p, c in zip(shares, clients, strict=True))
    )
    u, s, vh = np.linalg.svd(ideal, full_matrices=False)
    return ideal, (u[:, :rank] * s[:rank]) @ vh[:rank]


@pytest.mark.parametrize("drift", [0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_leading_directions_are_those_of_the_dense_update(
    drift: float, count: int, dtype: torch.dtype
) -> None:
    start, clients = federation(1, count, drift)
    weights = [1.0 + c % 3 for c in range(count)]
    shares = np.asarray(weights) / sum(weights)
    near = leading([c.map(lambda t: t.to(dtype)) for c in clients], weights, start.map(lambda t: t.to(dtype)))
    for site, f in near.items():
        _, expected = best(clients, shares, site, 4)
        product = (f.b.double() @ f.a.double()).numpy()
        assert f.a.dtype == dtype
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert np.linalg.norm(product - expected) < tolerance * np.linalg.norm(expected)
        balance = f.a.double() @ f.a.double().mT - f.b.double().mT @ f.b.double()
        assert float(balance.norm()) < (1e-9 if dtype == torch.float64 else 1e-5) * float(
            f.a.double().norm() ** 2
        )


def test_a_qr_is_needed_only_for_slow_spectra_of_stacks_larger_than_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(a: torch.Tensor, b: torch.Tensor, rank: int) -> object:
        calls.append(rank)
        return truncate(a, b, rank)

    monkeypatch.setattr(module, "truncate", counted)
    for drift, by_qr in ((0.05, []), (20.0, ["v"])):
        start, clients = federation(1, 40, drift)
        calls.clear()
        leading(clients, [1.0] * 40, start)
        assert len(calls) == len(by_qr)


def test_rank_deficient_and_zero_updates_have_finite_factors() -> None:
    start, clients = federation(1, 40, 0.0)
    lower = [c.resized(2).resized(4) for c in clients]
    for sent in (lower, [c.map(torch.zeros_like) for c in clients]):
        stack = weighted_sum([c.sites["q"] for c in sent], [1 / 40] * 40)
        for near in (
            leading(sent, [1.0] * 40, start)["q"],
            sketched(sent, [1.0] * 40, start, generator(0, "x"), 2)["q"],
        ):
            assert near.a.isfinite().all()
            assert near.b.isfinite().all()
            torch.testing.assert_close(near.b @ near.a, stack.b @ stack.a, atol=1e-9, rtol=0)


def test_a_sketch_comes_nearer_with_every_sweep() -> None:
    start, clients = federation(3, 6, 1.0)
    shares = np.full(6, 1 / 6)
    ideal, expected = best(clients, shares, "q", 4)
    errors = []
    for sweeps in (0, 1, 4, 12):
        f = sketched(clients, [1.0] * 6, start, generator(5, "sketch"), sweeps)["q"]
        errors.append(float(np.linalg.norm((f.b @ f.a).numpy() - ideal)))
    floor = float(np.linalg.norm(expected - ideal))
    assert errors[0] > errors[1] > errors[2] >= errors[3] >= floor * (1 - 1e-12)
    assert errors[3] < 1.001 * floor


@property_test(seeds, ranks)
def test_the_svd_of_a_product_is_that_of_the_dense_matrix(seed: int, rank: int) -> None:
    a, b = normal(seed, rank, 9), normal(seed + 1, 7, rank)
    u, s, vh = product_svd(a, b)
    torch.testing.assert_close((u * s) @ vh, b @ a, atol=1e-9, rtol=0)
    torch.testing.assert_close(u.mT @ u, torch.eye(len(s), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(vh @ vh.mT, torch.eye(len(s), dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(s, torch.linalg.svdvals(b @ a)[: len(s)], atol=1e-9, rtol=0)
