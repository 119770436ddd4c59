"""Rounds in which nobody has the server's rank, and what they leave of its last directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrot.core import Adapter, aggregation_error
from fedrot.core.initial import kept_trainable
from fedrot.errors import AdapterError
from fedrot.methods import MethodState, Update, build
from fedrot.methods.server_optimizer import ServerOptimizer
from tests.methods.rounds import WEIGHTS, aggregate, distance, products, received, train

SOLVING: list[tuple[str, dict[str, object]]] = [
    ("auto", {}),
    ("fedrot", {"reference": "consensus"}),
    ("fedrot", {"guard": "server", "strength": 1.0}),
    ("fedrot", {"guard": True, "reference": "two-back"}),
]
FITTING = [*SOLVING, ("refit-or-mean", {}), ("fedit", {"refit": 1})]


def small(ranks: list[int], start: Adapter, name: str, options: dict[str, object]) -> list[Update]:
    method = build(name, options, 11)
    own = [train(method, start.resized(rank), client, 2, drift=0.8) for client, rank in enumerate(ranks)]
    return [Update(i, adapter, WEIGHTS[i]) for i, adapter in enumerate(own)]


@pytest.mark.parametrize(("name", "options"), SOLVING)
@pytest.mark.parametrize("ranks", [[2, 2, 2], [3, 2, 3], [3]])
def test_the_server_turns_clients_of_smaller_rank_than_its_own(
    name: str, options: dict[str, object], ranks: list[int]
) -> None:
    """As a server of the largest client's rank does, with nothing in the directions beyond."""
    start, method = received(rank=4), build(name, options, 11)
    updates = small(ranks, start, name, options)
    made = aggregate(method, updates, start)
    alone = aggregate(method, updates, start.resized(max(ranks)))
    assert distance(products(made), products(alone)) < 1e-5
    assert all(not f.b[:, max(ranks) :].any() for f in made.sites.values())


def test_directions_that_nobody_sent_stay_trainable() -> None:
    start = received(rank=4)
    made = aggregate(build("fedit", {}, 11), small([2, 2], start, "fedit", {}), start)
    after = kept_trainable(made, start)
    assert distance(products(after), products(made)) == 0
    for site, f in after.sites.items():
        assert torch.equal(f.a[2:], start.sites[site].a[2:])
        assert torch.equal(f.a[:2], made.sites[site].a[:2])
    whole = aggregate(build("fedit", {}, 11), small([4, 2], start, "fedit", {}), start)
    assert kept_trainable(whole, start).tensors().keys() == whole.tensors().keys()
    assert all(
        torch.equal(t, whole.tensors()[key]) for key, t in kept_trainable(whole, start).tensors().items()
    )


def test_a_server_optimiser_takes_its_own_step_there_too() -> None:
    """A tenth of the way, not all of it, although the aggregate has fewer directions than what was received."""
    start, method = received(rank=4), build("flexlora", {}, 11)
    made = kept_trainable(aggregate(method, small([2], start, "flexlora", {}), start), start)
    optimizer = ServerOptimizer(name="avgm", lr=0.1, momentum=0.0)
    moved, state = optimizer.step(method, start, made, MethodState(), 2)
    before, target, after = products(start), products(made), products(moved)
    for site in before:
        way = (after[site] - before[site]).norm() / (target[site] - before[site]).norm()
        assert 0.01 < float(way) < 0.4
        assert f"m/sites/{site}/a" in state.tensors


@pytest.mark.parametrize(("name", "options"), FITTING)
def test_who_solves_refuses_numbers_that_are_not_finite(name: str, options: dict[str, object]) -> None:
    start = received()
    updates = small([4, 4], start, name, options)
    site, f = next(iter(updates[1].adapter.sites.items()))
    broken = replace(f, a=f.a.clone().fill_(float("nan")))
    spoilt = replace(updates[1].adapter, sites={**updates[1].adapter.sites, site: broken})
    with pytest.raises(AdapterError, match="client 1 sent numbers that are not finite"):
        aggregate(build(name, options, 11), [updates[0], replace(updates[1], adapter=spoilt)], start)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_of_numbers_that_are_not_finite_is_no_zero(bad: float) -> None:
    a, b = torch.full((2, 1, 3), bad), torch.ones(2, 4, 1)
    assert not aggregation_error(a, b, [1, 1]).relative.isfinite()


@pytest.mark.parametrize(("name", "options"), [*SOLVING, ("random-rotation", {}), ("fedrot", {})])
def test_half_precision_stays_half(name: str, options: dict[str, object]) -> None:
    start, method = received().map(torch.Tensor.bfloat16), build(name, options, 11)
    own = [train(method, received(), client).map(torch.Tensor.bfloat16) for client in range(3)]
    sent = [method.before_upload(one, start, 2, clients=[i]).adapter for i, one in enumerate(own)]
    made = aggregate(method, [Update(i, one, 1.0) for i, one in enumerate(sent)], start)
    assert {t.dtype for one in (*sent, made) for t in one.tensors().values()} == {torch.bfloat16}
