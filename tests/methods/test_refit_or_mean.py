"""What `refit-or-mean` broadcasts is at no site further from the mean update than the plain means or the refit."""

from __future__ import annotations

import pytest

from fedrot.core import Adapter
from fedrot.core.adapter import Factors
from fedrot.methods import MethodState, build
from tests.methods.rounds import ideal, normal, products, received, send, train


def errors(method: str, options: dict[str, object], trained: list[Adapter], start: Adapter) -> list[float]:
    """By site, dense and in float64."""
    chosen = build(method, options, seed=1)
    broadcast = products(chosen.aggregate(send(chosen, trained, start), start, MethodState(), 2)[0])
    wanted = ideal(trained)
    return [float((broadcast[site] - wanted[site]).norm()) for site in wanted]


@pytest.mark.parametrize("drift", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_as_near_as_the_nearer_of_mean_and_refit_at_every_site(drift: float, seed: int) -> None:
    start = received()
    trained = [train(build("refit-or-mean", {}, 1), start, 10 * seed + c, drift=drift) for c in range(4)]
    best = map(min, errors("fedit", {}, trained, start), errors("fedit", {"refit": 1}, trained, start))
    for ours, other in zip(errors("refit-or-mean", {}, trained, start), best, strict=True):
        assert ours <= other * (1 + 1e-5)


def test_it_takes_the_mean_where_the_reference_leads_nowhere() -> None:
    def elsewhere(
        client: int,
    ) -> Adapter:  # every client agrees on an update whose rows the reference cannot see
        start = received()
        sites = {
            site: Factors(normal(7 + i, *f.a.shape), normal(8 + i, *f.b.shape))
            for i, (site, f) in enumerate(start.sites.items())
        }
        return Adapter(sites, start.head, start.scale)

    start, trained = received(), [elsewhere(client) for client in range(3)]
    method = build("refit-or-mean", {"steps": 1}, 1)
    _, state = method.aggregate(send(method, trained, start), start, MethodState(), 2)
    assert state.numbers["sites_at_mean"] == len(start.sites)
    assert max(errors("refit-or-mean", {}, trained, start)) < 1e-5
