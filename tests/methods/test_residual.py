"""Methods whose broadcast corrects the base weights, and the one that leaves half of a client at home."""

from __future__ import annotations

import pytest
import torch

from fedrot.core import Adapter, Factors, generator
from fedrot.core.initial import initial_a
from fedrot.core.measure import adapter_broadcast_error
from fedrot.methods import build
from tests.methods.rounds import (
    WEIGHTS,
    aggregate,
    distance,
    ideal,
    products,
    received,
    same,
    send,
    train,
)


@pytest.mark.parametrize("name", ["fedex", "flora"])
@pytest.mark.parametrize("clients", [2, 3, 12])
def test_a_residual_of_many_clients_is_exact_and_no_larger_than_the_layer(name: str, clients: int) -> None:
    method, start = build(name, {}, seed=11), received()
    trained = [train(method, start, c) for c in range(clients)]
    broadcast = aggregate(method, send(method, trained, start), start)
    assert distance(products(broadcast), ideal(trained)) < 1e-6
    weights = [WEIGHTS[c % len(WEIGHTS)] for c in range(clients)]
    assert adapter_broadcast_error(trained, weights, broadcast).relative < 1e-6
    for f in broadcast.residual.values():
        assert f.rank == min(4 * clients, f.d_in, f.d_out)


def test_fresh_factors_are_drawn_like_the_first_ones_and_anew_every_round() -> None:
    method, start = build("flora", {}, seed=11), received()
    updates = send(method, [train(method, start, 0)], start)
    second, third = (aggregate(method, updates, start, round) for round in (2, 3))
    for index, (site, f) in enumerate(second.sites.items()):
        expected = initial_a(f.rank, f.d_in, generator(11, "init", 2, index))
        assert torch.equal(f.a, expected)
        assert float(f.a.abs().max()) <= f.d_in**-0.5
        assert not torch.allclose(f.a, third.sites[site].a)
    assert not torch.allclose(second.sites["layers.0.q"].a, second.sites["layers.1.q"].a)
    other = aggregate(build("flora", {}, seed=12), updates, start)
    assert not torch.allclose(other.sites["layers.0.q"].a, second.sites["layers.0.q"].a)


def test_the_residual_of_nearly_equal_clients_does_not_cancel() -> None:
    """Clients 1e-4 apart: the covariance is of order 1e-8, below what `W - mean(b) @ mean(a)` resolves."""
    method, start = build("fedex", {}, seed=11), received()
    trained = [train(method, start, c, drift=1e-4) for c in range(4)]
    broadcast = aggregate(method, send(method, trained, start), start)
    mean = Adapter(broadcast.sites, broadcast.head, broadcast.scale).map(torch.Tensor.double)
    shares = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    for site, f in broadcast.residual.items():
        apart = [
            (t.sites[site].a - mean.sites[site].a, t.sites[site].b - mean.sites[site].b) for t in trained
        ]
        expected = sum(p * b.double() @ a.double() for p, (a, b) in zip(shares, apart, strict=True))
        assert float((f.b.double() @ f.a.double() - expected).norm() / expected.norm()) < 1e-2


def test_fedsa_shares_a_and_nothing_else() -> None:
    method, start = build("fedsa", {}, seed=11), received()
    trained = [train(method, start, c) for c in range(3)]
    broadcast = aggregate(method, send(method, trained, start), start)
    kept = {site: Factors(broadcast.sites[site].a, f.b) for site, f in start.sites.items()}
    assert same(broadcast, Adapter(kept, start.head, start.scale))
    assert not torch.allclose(broadcast.sites["layers.0.q"].a, start.sites["layers.0.q"].a)
