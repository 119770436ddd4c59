"""Rounds on synthetic adapters: what a client's training would send, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core import Adapter, Factors
from fedrot.methods import Method, MethodState, Update

SHAPES = {"layers.0.q": (24, 20), "layers.0.v": (12, 16), "layers.1.q": (24, 20)}
WEIGHTS = (3.0, 1.0, 2.0, 5.0)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def received(round: int = 2, rank: int = 4, scale: float = 2.0) -> Adapter:
    """What a round starts from; in the first one `b` is zero."""
    sites = {
        site: Factors(normal(i, rank, d_in), (round > 1) * normal(50 + i, d_out, rank))
        for i, (site, (d_in, d_out)) in enumerate(SHAPES.items())
    }
    return Adapter(sites, {"classifier.weight": normal(99, 3, 5)}, scale)


def train(method: Method, start: Adapter, client: int, round: int = 2, drift: float = 0.3) -> Adapter:
    """`start` with noise of its own on what the method trains."""
    trains = method.trainable(round)
    sites: dict[str, Factors] = {}
    for i, (site, f) in enumerate(start.sites.items()):
        seed = 1000 * client + 10 * i
        a = f.a + trains.a * drift * normal(seed, *f.a.shape)
        sites[site] = Factors(a, f.b + trains.b * drift * normal(seed + 1, *f.b.shape))
    head = {name: t + drift * normal(1000 * client + 77, *t.shape) for name, t in start.head.items()}
    return replace(start, sites=sites, head=head)


def send(method: Method, trained: Sequence[Adapter], start: Adapter, round: int = 2) -> list[Update]:
    """Every client's upload, with weights."""
    return [
        Update(i, method.before_upload(adapter, start, round, clients=[i]).adapter, WEIGHTS[i % len(WEIGHTS)])
        for i, adapter in enumerate(trained)
    ]


def aggregate(method: Method, updates: Sequence[Update], start: Adapter, round: int = 2) -> Adapter:
    return method.aggregate(updates, start, MethodState(), round)[0]


def products(adapter: Adapter) -> dict[str, Tensor]:
    """The represented update of every site, dense and in float64."""
    found: dict[str, Tensor] = {}
    for site, f in adapter.sites.items():
        found[site] = adapter.scale * f.b.double() @ f.a.double()
        if site in adapter.residual:
            found[site] += (
                adapter.scale * adapter.residual[site].b.double() @ adapter.residual[site].a.double()
            )
    return found


def ideal(trained: Sequence[Adapter]) -> dict[str, Tensor]:
    """The weighted mean of the clients' updates."""
    total = sum(WEIGHTS[i % len(WEIGHTS)] for i in range(len(trained)))
    each = [products(adapter) for adapter in trained]
    return {
        site: sum(WEIGHTS[i % len(WEIGHTS)] / total * p[site] for i, p in enumerate(each))  # type: ignore[misc]
        for site in each[0]
    }


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative distance of a site; of a site that is zero in `other`, the absolute one."""
    return max(float((one[s] - other[s]).norm() / (float(other[s].norm()) or 1)) for s in other)


def same(one: Adapter, other: Adapter, tolerance: float = 0.0) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return list(mine) == list(theirs) and all(
        torch.allclose(mine[key], theirs[key], atol=tolerance, rtol=0) for key in mine
    )
