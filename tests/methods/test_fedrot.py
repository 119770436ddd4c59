"""What sets FedRot and its ablations apart from plain averaging."""

from __future__ import annotations

import math

import pytest
import torch

from fedrot.core import Adapter, Factors, adapter_aggregation_error, align, rotate
from fedrot.core.measure import adapter_broadcast_error
from fedrot.errors import ConfigError
from fedrot.methods import Method, MethodState, Update, build
from tests.core.strategies import rotations
from tests.methods.rounds import WEIGHTS, aggregate, distance, products, received, same, send, train


def make(**options: object) -> Method:
    return build("fedrot", options, seed=11)


def in_own_frames(adapter: Adapter, count: int) -> list[Adapter]:
    """Clients that represent one update in frames of their own."""
    return [
        Adapter(
            {
                site: Factors(*rotate(f.a, f.b, rotations(17 * c + i, f.rank, f.rank).float()))
                for i, (site, f) in enumerate(adapter.sites.items())
            },
            adapter.head,
            adapter.scale,
        )
        for c in range(count)
    ]


@pytest.mark.parametrize("round", [2, 3])
@pytest.mark.parametrize("anchor", ["alternate", "a", "b", "joint"])
def test_frames_cancel_under_hard_alignment_and_not_under_plain_averaging(anchor: str, round: int) -> None:
    start = received()
    method = make(strength=1.0, anchor=anchor)
    trained = in_own_frames(train(method, start, 0), 5)
    expected = products(trained[0])
    assert (
        distance(products(aggregate(method, send(method, trained, start, round), start, round)), expected)
        < 1e-5
    )
    plain = build("fedit", {}, seed=11)
    assert (
        distance(products(aggregate(plain, send(plain, trained, start, round), start, round)), expected) > 0.1
    )


def test_consensus_needs_no_reference_to_cancel_frames() -> None:
    blank = received(round=1)
    method = make(reference="consensus", strength=1.0, sweeps=60)
    trained = in_own_frames(train(method, received(), 0), 5)
    broadcast, state = method.aggregate(send(method, trained, blank, 1), blank, MethodState(), 1)
    assert distance(products(broadcast), products(trained[0])) < 1e-3
    assert state.numbers["rotation"] > 0.1
    assert state.numbers["degenerate"] == 0


def test_strength_zero_is_fedit_to_the_bit() -> None:
    start = received()
    plain = build("fedit", {}, seed=11)
    trained = [train(plain, start, c) for c in range(4)]
    for options in ({}, {"reference": "consensus"}, {"guard": True}):
        method = make(strength=0, **options)
        broadcast = aggregate(method, send(method, trained, start), start)
        assert same(broadcast, aggregate(plain, send(plain, trained, start), start))


@pytest.mark.parametrize("anchor", ["alternate", "a", "b", "joint"])
def test_the_first_round_is_not_rotated(anchor: str) -> None:
    start = received(round=1)
    method = make(anchor=anchor, strength=1.0)
    trained = train(method, start, 0, 1)
    assert same(method.before_upload(trained, start, 1).adapter, trained)


def test_a_reference_without_direction_is_counted() -> None:
    method, start = make(anchor="alternate", strength=1.0), received(round=1)
    upload = method.before_upload(train(method, start, 0), start, 2)
    assert upload.rotation is not None
    assert upload.rotation.degenerate.all()
    assert not upload.rotation.kept.any()


def test_anchors_alternate_beginning_with_a() -> None:
    start = received()
    method = make(strength=1.0)
    trained = train(method, start, 0)
    for round, anchor in ((3, "a"), (4, "b"), (5, "a")):
        upload = method.before_upload(trained, start, round).adapter
        for site, f in trained.sites.items():
            ref = start.sites[site]
            a, b, _ = align(f.a, f.b, ref.a, ref.b, anchor, 1.0)
            torch.testing.assert_close(upload.sites[site].a, a, atol=1e-6, rtol=0)
            torch.testing.assert_close(upload.sites[site].b, b, atol=1e-6, rtol=0)


def test_a_schedule_sets_the_strength_by_round() -> None:
    start = received()
    scheduled = make(strength=[[1, 0.0], [4, 0.5], [6, 1]], anchor="a")
    trained = train(scheduled, start, 0)
    for round, strength in ((3, 0.0), (4, 0.5), (5, 0.5), (6, 1.0), (60, 1.0)):
        fixed = make(strength=strength, anchor="a")
        assert same(
            scheduled.before_upload(trained, start, round).adapter,
            fixed.before_upload(trained, start, round).adapter,
        )


@pytest.mark.parametrize(
    "schedule",
    [[], [[2, 0.5]], [[1, 0.5], [1, 0.6]], [[1, 0.5], [5, 1.5]], [[1]], [[1.0, 0.5]], [1, 0.5], "0.5", True],
)
def test_malformed_schedules_are_refused(schedule: object) -> None:
    with pytest.raises(
        ConfigError, match=r"method\.strength = .*expected a number in \[0, 1\], or a schedule"
    ):
        make(strength=schedule)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="geodesic"):
        make(path="geodesic", group="orthogonal")
    with pytest.raises(ConfigError, match="consensus"):
        make(guard="client", reference="consensus")


def test_which_options_need_individual_uploads() -> None:
    assert make().secure_aggregation
    assert make(guard="client").secure_aggregation
    assert make(reference="two-back").secure_aggregation
    assert not make(guard=True).secure_aggregation
    assert not make(reference="consensus").secure_aggregation


def test_the_stale_reference_is_the_one_given() -> None:
    method, start, older = make(reference="two-back", anchor="a", strength=1.0), received(), received(rank=4)
    older = train(method, older, 42, drift=3.0)
    assert method.reference_lag == 1
    trained = train(method, start, 0)
    stale = method.before_upload(trained, start, 3, reference=older).adapter
    assert same(stale, make(anchor="a", strength=1.0).before_upload(trained, older, 3).adapter)
    assert not same(stale, method.before_upload(trained, start, 3).adapter, 1e-3)


def test_the_server_guard_keeps_its_own_stale_reference() -> None:
    method, first = make(reference="two-back", guard=True, anchor="a", strength=1.0), received()
    updates = send(method, [train(method, first, c) for c in range(3)], first, 2)
    second, state = method.aggregate(updates, first, MethodState(), 2)
    assert same(Adapter.from_tensors(state.tensors, first.scale), first)
    _, state = method.aggregate(
        send(method, [train(method, second, c) for c in range(3)], second, 3), second, state, 3
    )
    assert same(Adapter.from_tensors(state.tensors, first.scale), second)


@pytest.mark.parametrize("drift", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("reference", ["previous", "consensus"])
def test_the_server_guard_never_raises_the_error(drift: float, reference: str) -> None:
    method, start = make(guard="server", reference=reference, strength=1.0, anchor="a"), received()
    trained = [train(method, start, c, drift=drift) for c in range(4)]
    broadcast, state = method.aggregate(send(method, trained, start, 3), start, MethodState(), 3)
    plain = adapter_aggregation_error(trained, WEIGHTS)
    guarded = adapter_broadcast_error(trained, WEIGHTS, broadcast)
    assert guarded.absolute <= plain.absolute * (1 + 1e-6)
    assert 0 <= state.numbers["kept"] <= 4 * len(start.sites)


def test_the_server_guard_keeps_what_helps_and_drops_what_does_not() -> None:
    method, start = make(guard="server", strength=1.0, anchor="a"), received()
    framed = in_own_frames(train(method, start, 0), 4)
    plain = [train(method, start, 0)] * 4  # nothing to gain: all clients agree
    name = "layers.0.v"
    mixed = [
        Adapter({**f.sites, name: p.sites[name]}, f.head, f.scale) for f, p in zip(framed, plain, strict=True)
    ]
    _, state = method.aggregate(send(method, mixed, start, 3), start, MethodState(), 3)
    assert state.numbers["kept"] == 4 * 2


def test_the_client_guard_keeps_only_rotations_that_lower_the_joint_distance() -> None:
    start = received()
    method, free = make(guard="client", strength=1.0, anchor="a"), make(strength=1.0, anchor="a")
    decisions: set[bool] = set()
    for client in range(12):
        trained = train(method, start, client, drift=1.0)
        upload, rotated = (
            method.before_upload(trained, start, 3),
            free.before_upload(trained, start, 3).adapter,
        )
        assert upload.rotation is not None
        for index, (site, f) in enumerate(trained.sites.items()):
            ref, turned = start.sites[site], rotated.sites[site]

            def joint(x: Factors, ref: Factors = ref) -> float:
                on_a, on_b = (x.a - ref.a).norm() / ref.a.norm(), (x.b - ref.b).norm() / ref.b.norm()
                return float(on_a**2 + on_b**2)

            kept = bool(upload.rotation.kept[index])
            decisions.add(kept)
            gain = joint(f) - joint(turned)
            assert abs(gain) < 1e-5 or kept == (gain > 0)
            assert torch.equal(upload.adapter.sites[site].a, turned.a if kept else f.a)
    assert decisions == {True, False}


def test_random_rotations_are_proper_reproducible_and_their_own_for_every_client() -> None:
    method, start = build("random-rotation", {}, seed=11), received()
    trained = train(method, start, 0)

    def matrices(client: int, round: int = 2, seed: int = 11) -> torch.Tensor:
        rotation = (
            build("random-rotation", {}, seed).before_upload(trained, start, round, clients=[client]).rotation
        )
        assert rotation is not None
        return rotation.matrix

    first = matrices(0)
    assert torch.equal(first, matrices(0))
    torch.testing.assert_close(first.mT @ first, torch.eye(4).expand(3, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(first), torch.ones(3))
    assert not torch.allclose(first[0], first[2])
    for other in (matrices(1), matrices(0, round=3), matrices(0, seed=12)):
        assert not torch.allclose(first, other)


def test_rescaling_brings_the_anchored_factor_nearest_and_is_guarded_near_zero() -> None:
    method, start = build("rescale", {"anchor": "a"}, seed=11), received()
    scaled = Adapter({s: Factors(f.a * 4, f.b) for s, f in start.sites.items()}, start.head, start.scale)
    assert same(
        method.before_upload(scaled, start, 2).adapter,
        Adapter({s: Factors(f.a, f.b * 4) for s, f in start.sites.items()}, start.head, start.scale),
        1e-6,
    )
    sites = dict(scaled.sites)
    f = sites["layers.0.v"]
    sites["layers.0.v"] = Factors(torch.zeros_like(f.a), f.b)
    upload = method.before_upload(Adapter(sites, start.head, start.scale), start, 2)
    assert upload.rotation is not None
    assert upload.rotation.degenerate.tolist() == [False, True, False]
    assert torch.equal(upload.adapter.sites["layers.0.v"].b, f.b)


def test_a_diverged_client_is_visible_in_the_average() -> None:
    method, start = make(strength=1.0), received()
    broken = train(method, start, 1).map(lambda t: t * math.nan)
    upload = method.before_upload(broken, start, 3)
    assert upload.rotation is not None
    assert upload.rotation.degenerate.all()
    updates = [Update(0, train(method, start, 0), 1.0), Update(1, upload.adapter, 1.0)]
    assert not aggregate(method, updates, start, 3).finite()
