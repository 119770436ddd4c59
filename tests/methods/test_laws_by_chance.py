"""The laws on federations drawn by chance, in float64: shapes, ranks, numbers and weights of clients, rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.core import Adapter, Factors
from fedrot.methods import Method, MethodState, Update, build, methods
from tests.core.strategies import normal, seeds


def start(seed: int, rank: int, d_in: int, d_out: int, round: int) -> Adapter:
    """One narrow site and one wide one, `b` zero in the first round."""
    sites = {
        name: Factors(
            normal(seed + i, rank, rank + wide), (round > 1) * normal(seed + 5 + i, rank + tall, rank)
        )
        for i, (name, (wide, tall)) in enumerate({"q": (d_in, d_out), "v": (d_out, d_in)}.items())
    }
    return Adapter(sites, {"head": normal(seed + 9, 3)}, 0.5)


def trained(method: Method, received: Adapter, seed: int, drift: float, round: int) -> Adapter:
    trains = method.trainable(round)
    sites = {
        s: Factors(
            f.a + trains.a * drift * normal(seed + i, *f.a.shape),
            f.b + trains.b * drift * normal(seed + 40 + i, *f.b.shape),
        )
        for i, (s, f) in enumerate(received.sites.items())
    }
    return replace(received, sites=sites)


def products(adapter: Adapter) -> dict[str, torch.Tensor]:
    found = {s: f.b @ f.a for s, f in adapter.sites.items()}
    return {s: p + (r.b @ r.a if (r := adapter.residual.get(s)) else 0) for s, p in found.items()}


@pytest.mark.parametrize("name", list(methods()))
@settings(deadline=None, max_examples=15)
@given(
    seed=seeds,
    rank=st.integers(1, 4),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    round=st.integers(1, 4),
    drift=st.sampled_from([1e-3, 0.3, 3.0]),
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=5),
)
def test_exactness_agreement_and_order(
    name: str, seed: int, rank: int, extra: tuple[int, int], round: int, drift: float, weights: list[float]
) -> None:
    method, received = build(name, {}, seed % 1000), start(seed, rank, *extra, round)
    sent = [trained(method, received, seed + 100 * c, drift, round) for c in range(1, len(weights) + 1)]

    def broadcast(adapters: list[Adapter], order: int = 1) -> Adapter:
        uploads = [
            method.before_upload(a, received, round, clients=[c]).adapter for c, a in enumerate(adapters)
        ]
        updates = [Update(c, a, w) for c, (a, w) in enumerate(zip(uploads, weights, strict=False))]
        return method.aggregate(updates[::order], received, MethodState(), round)[0]

    made, reversed_ = broadcast(sent), broadcast(sent, -1)
    assert all(torch.equal(t, reversed_.tensors()[key]) for key, t in made.tensors().items())
    agreed = products(broadcast([sent[0]] * len(weights)))
    total = sum(weights)
    for site, product in products(made).items():
        each = [products(a)[site] for a in sent]
        ideal = torch.stack([w / total * p for w, p in zip(weights, each, strict=True)]).sum(0)
        size = max(float(p.norm()) for p in each)
        if method.laws.exact:
            assert float((product - ideal).norm()) <= 1e-9 * size
        if method.laws.identical_clients or (len(weights) == 1 and method.laws.lone_client):
            # The root of rounding: a method may choose by squared errors, which tell no smaller ones apart.
            assert float((agreed[site] - each[0]).norm()) <= 1e-7 * size
