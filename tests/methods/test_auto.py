"""`auto`: FedIT where frames agree, without what frames cost where they do not, and nothing much lost in any case."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrot.core import Adapter
from fedrot.core.adapter import Factors
from fedrot.core.frames import reframe
from fedrot.methods import MethodState, build
from tests.methods.rounds import ideal, normal, products, received, send, train


def aggregated(
    options: dict[str, object], trained: list[Adapter], start: Adapter, name: str = "auto"
) -> tuple[Adapter, MethodState]:
    method = build(name, options, seed=1)
    return method.aggregate(send(method, trained, start), start, MethodState(), 2)


def errors(broadcast: Adapter, trained: list[Adapter]) -> dict[str, float]:
    """Relative, by site, dense and in float64."""
    wanted, sent = ideal(trained), products(broadcast)
    return {site: float((sent[site] - wanted[site]).norm() / wanted[site].norm()) for site in wanted}


@pytest.mark.parametrize("drift", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_error_is_never_above_that_of_the_means(drift: float, seed: int) -> None:
    start = received()
    trained = [train(build("auto", {}, 1), start, 10 * seed + c, drift=drift) for c in range(4)]
    plain = errors(aggregated({}, trained, start, "fedit")[0], trained)
    ours = errors(aggregated({}, trained, start)[0], trained)
    assert all(ours[site] <= plain[site] * (1 + 1e-5) for site in plain)


@pytest.mark.parametrize("frame", ["svd", "random"])
def test_frames_cost_nothing(frame: str) -> None:
    """Clients that agree on an update and write it in factors of their own: reflections of one another included."""
    start = received()
    one = train(build("auto", {}, 1), start, 3, drift=0.3)
    turned = [reframe(one.expand(1), frame, client, 1, (client,)).select(0) for client in range(5)]
    signs = torch.tensor([-1.0, 1.0])
    mirrored = Adapter(
        {
            s: Factors(
                torch.cat([signs[:, None] * f.a[:2], f.a[2:]]), torch.cat([f.b[:, :2] * signs, f.b[:, 2:]], 1)
            )
            for s, f in turned[0].sites.items()
        },
        turned[0].head,
        turned[0].scale,
    )
    trained = [*turned[1:], mirrored]
    assert max(errors(aggregated({"tolerance": 1.0}, trained, start)[0], trained).values()) < 1e-4
    assert max(errors(aggregated({}, trained, start, "fedit")[0], trained).values()) > 0.1


def test_sites_that_lose_much_are_refitted_and_no_others() -> None:
    start = received()
    trained = [train(build("auto", {}, 1), start, c, drift=0.05) for c in range(4)]
    astray = next(iter(start.sites))
    for client, adapter in enumerate(trained):
        f = adapter.sites[astray]
        far = Factors(normal(70 + client, *f.a.shape), normal(80 + client, *f.b.shape))
        trained[client] = replace(adapter, sites={**adapter.sites, astray: far})
    broadcast, state = aggregated({}, trained, start)
    alone, none = aggregated({"tolerance": 1.0}, trained, start)
    assert (state.numbers["sites_refitted"], none.numbers["sites_refitted"]) == (1.0, 0.0)
    assert errors(broadcast, trained)[astray] < errors(alone, trained)[astray]
    others = [site for site in start.sites if site != astray]
    assert all(torch.equal(broadcast.sites[site].a, alone.sites[site].a) for site in others)
