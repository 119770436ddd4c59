"""What sets the rivals of FedRot apart, each against a dense computation or a law of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from fedrot.core import Adapter, Factors, adapter_broadcast_error, procrustes, rotate, weighted_mean
from fedrot.methods import Method, MethodState, build, methods
from tests.core.strategies import normal as wide_normal
from tests.core.strategies import property_test, ranks, rotations, seeds
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


def make(name: str, **options: object) -> Method:
    return build(name, options, seed=11)


def off(trained: list[Adapter], broadcast: Adapter) -> float:
    """The broadcast's distance from the mean update."""
    weights = [WEIGHTS[c % len(WEIGHTS)] for c in range(len(trained))]
    return float(adapter_broadcast_error(trained, weights, broadcast).absolute)


@pytest.mark.parametrize("drift", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("round", [1, 2])
def test_no_broadcast_of_the_same_rank_is_nearer_than_flexlora(drift: float, round: int) -> None:
    start = received(round)
    both = [train(make("fedit"), start, c, round, drift) for c in range(4)]
    least = off(both, aggregate(make("flexlora"), send(make("fedit"), both, start, round), start, round))
    for name in methods():
        rivals: list[dict[str, object]] = [{}]
        if name in ("fedit", "fedrot", "hetlora"):
            rivals += [{"refit": 1}, {"refit": 3, "start": "mean"}]
        for options in rivals:
            method = make(name, **options)
            broadcast = aggregate(method, send(method, both, start, round), start, round)
            if any(f.rank > 4 for f in broadcast.sites.values()):
                continue  # florist may keep more
            assert off(both, replace(broadcast, residual={})) >= least * (1 - 1e-6)


@pytest.mark.parametrize("name", ["fedit", "fedrot", "hetlora", "rescale"])
@pytest.mark.parametrize("drift", [0.01, 0.3, 2.0])
def test_a_refit_from_the_mean_is_never_further_off_than_the_mean(name: str, drift: float) -> None:
    start = received()
    trained = [train(make(name), start, c, drift=drift) for c in range(4)]
    updates = send(make(name), trained, start, 3)
    plain = aggregate(make(name), updates, start, 3)
    fitted = aggregate(make(name, refit=1, start="mean"), updates, start, 3)
    assert off(trained, fitted) <= off(trained, plain) * (1 + 1e-5)
    assert torch.equal(fitted.head["classifier.weight"], plain.head["classifier.weight"])


@pytest.mark.parametrize("name", ["fedit", "fedrot", "hetlora", "rescale", "random-rotation"])
def test_a_refit_from_the_reference_is_the_same_whatever_the_clients_frames(name: str) -> None:
    method, start = make(name, refit=1), received()
    trained = [train(method, start, c) for c in range(4)]
    turned: list[Adapter] = []
    for c, adapter in enumerate(trained):
        turn = rotations(c, 4, 4).float()
        sites = {s: Factors(*rotate(f.a, f.b, turn)) for s, f in adapter.sites.items()}
        turned.append(replace(adapter, sites=sites))
    plain, framed = (aggregate(method, send(method, sent, start, 3), start, 3) for sent in (trained, turned))
    assert same(framed, plain, 1e-4)
    assert distance(products(framed), products(plain)) < 1e-5
    assert not method.secure_aggregation


@property_test(seeds, ranks)
def test_no_orthogonal_matrix_of_scipy_beats_procrustes(seed: int, rank: int) -> None:
    source, target = wide_normal(seed, 9, rank), wide_normal(seed + 1, 9, rank)
    theirs, _ = orthogonal_procrustes(source.numpy(), target.numpy())
    mine = procrustes(source, target, "orthogonal").numpy()
    assert (
        abs(
            ((source.numpy() @ mine - target.numpy()) ** 2).sum()
            - ((source.numpy() @ theirs - target.numpy()) ** 2).sum()
        )
        < 1e-8
    )


def test_lora_fair_solves_its_ridge_regression() -> None:
    start, mu = received(), 0.05
    method = make("lora-fair", mu=mu)
    trained = [train(method, start, c, drift=1.0) for c in range(4)]
    broadcast = aggregate(method, send(method, trained, start), start)
    mean, wanted = weighted_mean(trained, WEIGHTS), ideal(trained)
    for site, m in mean.sites.items():
        a, b = m.a.double(), m.b.double()
        assert torch.equal(broadcast.sites[site].a, m.a)
        ridge = mu * float((a @ a.T).diagonal().mean())
        missed = wanted[site] / start.scale - b @ a
        rows = torch.cat([a.T, ridge**0.5 * torch.eye(4, dtype=torch.float64)])
        target = torch.cat([missed.T, torch.zeros(4, len(b), dtype=torch.float64)])
        correction = torch.linalg.lstsq(rows, target).solution.T
        torch.testing.assert_close(broadcast.sites[site].b.double(), b + correction, atol=1e-5, rtol=0)
    assert off(trained, broadcast) < off(trained, mean)
    still = aggregate(make("lora-fair", mu=1e9), send(method, trained, start), start)
    assert same(still, mean, 1e-5)


def test_hetlora_weighs_clients_by_the_size_of_their_update() -> None:
    method, start = make("hetlora"), received()
    trained = [train(method, start, c, drift=0.1 + c) for c in range(3)]
    broadcast = aggregate(method, send(method, trained, start), start)
    sizes = [sum(float(p.norm()) ** 2 for p in products(t).values()) ** 0.5 for t in trained]
    expected = weighted_mean(trained, [w * s for w, s in zip(WEIGHTS, sizes, strict=False)])
    assert same(replace(broadcast, head={}), replace(expected, head={}), 1e-5)
    assert sizes[2] > 2 * sizes[0]
    nothing = [replace(t, sites={s: Factors(f.a, 0 * f.b) for s, f in t.sites.items()}) for t in trained]
    assert same(
        aggregate(method, send(method, nothing, start), start), weighted_mean(nothing, WEIGHTS[:3]), 1e-6
    )


def test_hetlora_leaves_out_tails_that_became_weaker() -> None:
    method, start = make("hetlora", prune=0.5), received()
    weaker, stronger = (
        replace(
            start,
            sites={
                s: Factors(f.a * torch.tensor([1, 1, tail, tail])[:, None], f.b)
                for s, f in start.sites.items()
            },
        )
        for tail in (0.9, 1.1)
    )
    for s, f in method.before_upload(weaker, start, 2).adapter.sites.items():
        assert torch.equal(f.a[:2], start.sites[s].a[:2])
        assert torch.equal(f.b[:, :2], start.sites[s].b[:, :2])
        assert not f.a[2:].any()
        assert not f.b[:, 2:].any()
    assert same(method.before_upload(stronger, start, 2).adapter, stronger)
    first = received(1)  # `b` is zero: no tail was there to become weaker
    assert same(method.before_upload(first, first, 1).adapter, first)


def test_fedsvd_broadcasts_orthonormal_rows_and_singular_directions() -> None:
    method, start = make("fedsvd"), received()
    trained = [train(method, start, c) for c in range(4)]
    broadcast = aggregate(method, send(method, trained, start), start)
    for site, f in broadcast.sites.items():
        torch.testing.assert_close(f.a @ f.a.T, torch.eye(4), atol=1e-5, rtol=0)
        gram = (f.b.T @ f.b).double()
        values = torch.linalg.svdvals(ideal(trained)[site] / start.scale)[:4]
        torch.testing.assert_close(gram, values.square().diag(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99, 1.0])
def test_florist_keeps_the_smallest_rank_with_the_energy_asked_for(energy: float) -> None:
    method, start = make("florist", energy=energy), received()
    trained = [train(method, start, c, drift=1.0) for c in range(4)]
    broadcast, state = method.aggregate(send(method, trained, start), start, MethodState(), 2)
    for site, f in broadcast.sites.items():
        squares = torch.linalg.svdvals(ideal(trained)[site]).square()
        held = squares.cumsum(0) / squares.sum()
        assert held[f.rank - 1] >= energy * (1 - 1e-9)
        assert f.rank == 1 or held[f.rank - 2] < energy
        assert f.rank <= 16
    found = [f.rank for f in broadcast.sites.values()]
    assert state.numbers["broadcast_rank"] == pytest.approx(sum(found) / 3)
    if energy == 1:
        assert distance(products(broadcast), ideal(trained)) < 1e-6
    capped = aggregate(make("florist", energy=energy, cap=2), send(method, trained, start), start)
    assert max(f.rank for f in capped.sites.values()) <= 2
    again = [train(method, broadcast, c) for c in range(4)]  # the next round starts from those ranks
    assert aggregate(method, send(method, again, broadcast, 3), broadcast, 3).finite()


def test_fedmomentum_is_exact_and_its_factors_are_nearly_the_best() -> None:
    start = received()
    method = make("fedmomentum")
    trained = [train(method, start, c, drift=1.0) for c in range(12)]
    broadcast = aggregate(method, send(method, trained, start), start)
    best = aggregate(make("flexlora"), send(method, trained, start), start)
    assert distance(products(broadcast), ideal(trained)) < 1e-6
    factors = replace(broadcast, residual={})
    assert off(trained, best) * (1 - 1e-6) <= off(trained, factors) < 1.02 * off(trained, best)
    for f in broadcast.sites.values():
        torch.testing.assert_close(f.a @ f.a.T, f.b.T @ f.b, atol=1e-5, rtol=0)
    other = build("fedmomentum", {"sweeps": 0}, seed=12)
    assert off(trained, replace(aggregate(other, send(method, trained, start), start), residual={})) > off(
        trained, factors
    )


@pytest.mark.parametrize("name", ["flexlora", "flora", "fedex", "lora-fair", "fedmomentum", "hetlora"])
def test_methods_of_mixed_ranks_take_every_client_at_its_own_rank(name: str) -> None:
    method, start = make(name), received()
    trained = [train(method, start.resized(rank), c) for c, rank in enumerate((1, 2, 4, 3))]
    broadcast = aggregate(method, send(method, trained, start), start)
    padded = [t.resized(4) for t in trained]
    assert same(broadcast, aggregate(method, send(method, padded, start), start), 1e-5)
    if method.laws.exact:
        assert distance(products(broadcast), ideal(trained)) < 1e-6


def test_five_clients_in_frames_of_their_own_average_exactly_by_rotation_and_not_without() -> None:
    start = received()
    trained = train(make("fedit"), start, 0, drift=0.1)
    framed = []
    for c in range(5):
        turn = rotations(c, 4, 4).float()
        framed.append(
            replace(trained, sites={s: Factors(*rotate(f.a, f.b, turn)) for s, f in trained.sites.items()})
        )
    for name, options, exact in (
        ("fedrot", {"strength": 1.0}, True),
        ("flexlora", {}, True),
        ("fedex", {}, True),
        ("fedit", {}, False),
        ("hetlora", {}, False),
    ):
        method = make(name, **options)
        broadcast = aggregate(method, send(method, framed, start, 3), start, 3)
        assert (distance(products(broadcast), products(trained)) < 1e-5) == exact
