"""Clipping bounds what one client can do, noise has the size that is accounted for, and rotation comes first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedrot.config import PrivacyConfig
from fedrot.core import Adapter, Factors
from fedrot.core.adapter import stack, weighted_mean
from fedrot.errors import AdapterError
from fedrot.methods import Method, Update, build
from fedrot.privacy import Noise, clip, private_mean, protect, seeded_noise
from fedrot.wire import uploaded
from tests.methods.rounds import received, train

METHODS = ("fedit", "fedrot", "ffa", "rolora", "rescale", "random-rotation")


def make(name: str = "fedit") -> Method:
    return build(name, {}, seed=11)


def settings(**keys: object) -> PrivacyConfig:
    return PrivacyConfig.model_validate({"mechanism": "central", "noise_source": "seed", **keys})


def no_noise(shape: Sequence[int]) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def update_norms(uploads: Adapter, start: Adapter, keys: Sequence[str]) -> list[float]:
    """Reference: one client after the other, in float64."""
    found: list[float] = []
    for index in range(uploads.batch[0]):
        one, origin = uploads.select(index).tensors(), start.tensors()
        found.append(
            math.sqrt(
                math.fsum(float((one[key].double() - origin[key].double()).square().sum()) for key in keys)
            )
        )
    return found


def group(method: Method, start: Adapter, count: int = 5, round: int = 2) -> Adapter:
    """Clients that drift more and more: small updates and large ones in one stack."""
    trained = stack([train(method, start, client, round, drift=0.05 * 3**client) for client in range(count)])
    return method.before_upload(trained, start, round, clients=range(count)).adapter


@pytest.mark.parametrize("round", [2, 3])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("limit", [1e-9, 1e-3, 0.5, 3.0])
def test_no_client_of_a_stack_exceeds_the_clip_and_those_below_keep_their_bits(
    name: str, limit: float, round: int
) -> None:
    method, start = make(name), received()
    uploads = group(method, start, round=round)
    keys = tuple(uploaded(method, start, round))
    clipped = clip(uploads, start, keys, limit)
    before, after = update_norms(uploads, start, keys), update_norms(clipped.adapter, start, keys)
    assert clipped.norm.tolist() == pytest.approx(before, rel=1e-12)
    assert max(after) <= limit
    for index, norm in enumerate(before):
        if norm <= limit:
            ours, theirs = clipped.adapter.select(index).tensors(), uploads.select(index).tensors()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        elif limit > 1e-4:  # else float32 around what was received is coarser than the limit
            assert after[index] == pytest.approx(limit, rel=1e-4)


def test_a_stack_is_clipped_as_its_clients_one_by_one() -> None:
    method, start = make(), received()
    uploads, keys = group(method, start), tuple(uploaded(method, start, 2))
    together = clip(uploads, start, keys, 0.5).adapter
    for index in range(5):
        alone = clip(stack([uploads.select(index)]), start, keys, 0.5).adapter.select(0).tensors()
        assert all(
            torch.equal(tensor, together.select(index).tensors()[key]) for key, tensor in alone.items()
        )


def test_clipping_keeps_the_direction() -> None:
    method, start = make(), received()
    uploads, keys = group(method, start), tuple(uploaded(method, start, 2))
    made = clip(uploads, start, keys, 0.5).adapter
    for key in keys:
        was, now = (x.tensors()[key][4].double() - start.tensors()[key].double() for x in (uploads, made))
        assert float(torch.cosine_similarity(was.flatten(), now.flatten(), 0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broadcast_that_is_not_finite_is_refused(bad: float) -> None:
    method, start = make(), received()
    uploads, keys = group(method, start), tuple(uploaded(method, start, 2))
    with pytest.raises(AdapterError, match="the adapter received holds numbers that are not finite"):
        clip(uploads, start.map(lambda t: torch.full_like(t, bad)), keys, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_becomes_zero_and_leaves_its_neighbours_alone(bad: float) -> None:
    method, start = make(), received()
    uploads, keys = group(method, start), tuple(uploaded(method, start, 2))
    clean = clip(uploads, start, keys, 0.5).adapter.select(1).tensors()
    uploads.head["classifier.weight"][2, 0, 0] = bad
    made = clip(uploads, start, keys, 0.5)
    assert made.finite.tolist() == [True, True, False, True, True]
    assert all(torch.equal(made.adapter.select(2).tensors()[key], start.tensors()[key]) for key in keys)
    assert all(torch.equal(made.adapter.select(1).tensors()[key], tensor) for key, tensor in clean.items())


def test_only_what_travels_is_measured_clipped_and_noised() -> None:
    method, start = make("ffa"), received()
    keys = tuple(uploaded(method, start, 2))
    assert all(not key.endswith("/a") for key in keys)
    uploads = group(method, start, 3)
    made = protect(
        method, uploads, start, 2, settings(mechanism="local"), [seeded_noise(1, 2, c) for c in range(3)]
    )
    for key, tensor in made.adapter.tensors().items():
        changed = not torch.equal(tensor[0], start.tensors()[key])
        assert changed == (key in keys), key


def flat(adapter: Adapter, keys: Sequence[str]) -> Tensor:
    return torch.cat([adapter.tensors()[key].double().flatten() for key in keys])


@pytest.mark.parametrize("name", METHODS)
def test_one_client_moves_the_mean_by_no_more_than_the_accounted_sensitivity(name: str) -> None:
    """Every pair of neighbouring federations of three clients with four candidate data sets each."""
    method, start, limit, chosen = make(name), received(), 0.4, 3
    keys, spec = tuple(uploaded(method, start, 2)), settings(clip=0.4)
    candidates = [
        method.before_upload(train(method, start, 10 * seed, drift=drift), start, 2, clients=[seed]).adapter
        for seed, drift in enumerate((0.01, 0.2, 1.0, 50.0))
    ]
    opposite = replace(  # the farthest that two updates can be apart
        start,
        sites={
            site: Factors(2 * f.a - candidates[3].sites[site].a, 2 * f.b - candidates[3].sites[site].b)
            for site, f in start.sites.items()
        },
        head={name: 2 * t - candidates[3].head[name] for name, t in start.head.items()},
    )
    options = [*candidates, opposite, start]

    def mean(members: Sequence[Adapter]) -> Tensor:
        updates = [Update(client, adapter, 1.0) for client, adapter in enumerate(members)]
        return flat(private_mean(method, updates, start, 2, spec, chosen, no_noise).update.adapter, keys)

    worst_replace = worst_zero = 0.0
    for others in itertools.combinations_with_replacement(candidates, 2):
        means = [mean([one, *others]) for one in options]
        for left, right in itertools.combinations(range(len(options)), 2):
            moved = float((means[left] - means[right]).norm())
            worst_replace = max(worst_replace, moved)
            if right == len(options) - 1:
                worst_zero = max(worst_zero, moved)
    rounding = 1 + 1e-4  # of the result to float32
    assert worst_replace <= 2 * limit / chosen * rounding
    assert worst_zero <= limit / chosen * rounding
    assert worst_replace > 1.9 * limit / chosen, "the bound is met, not only respected"
    assert worst_zero > 0.95 * limit / chosen


def test_weights_are_not_read_and_a_client_that_drops_out_counts_as_no_change() -> None:
    method, start = make(), received()
    keys = tuple(uploaded(method, start, 2))
    one = train(method, start, 1)
    updates = [Update(3, one, 1e6)]
    alone = private_mean(method, updates, start, 2, settings(clip=1e6, noise=0.0), 4, no_noise).update.adapter
    change, whole = flat(alone, keys) - flat(start, keys), flat(one, keys) - flat(start, keys)
    torch.testing.assert_close(change, whole / 4, rtol=1e-4, atol=1e-6)


def test_noise_stays_the_same_when_clients_drop_out() -> None:
    method, start = make(), received()
    spec, keys = settings(clip=0.5, noise=2.0), tuple(uploaded(method, start, 2))
    updates = [Update(c, train(method, start, c), 1.0) for c in range(4)]
    for count in (0, 1, 4):
        noisy, clean = (
            flat(private_mean(method, updates[:count], start, 2, spec, 4, noise).update.adapter, keys)
            for noise in (seeded_noise(5, 2), no_noise)
        )
        if count == 0:
            first = noisy - clean
        torch.testing.assert_close(noisy - clean, first, rtol=0, atol=1e-6)
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.05)


def constant(value: float) -> Noise:
    return lambda shape: torch.full(tuple(shape), value, dtype=torch.float64)


def test_local_noise_is_each_clients_own_and_of_the_accounted_size() -> None:
    method, start = make(), received()
    uploads = group(method, start, 40)
    keys = tuple(uploaded(method, start, 2))
    spec = settings(mechanism="local", clip=0.3, noise=1.5)
    made = protect(method, uploads, start, 2, spec, [seeded_noise(9, 2, client) for client in range(40)])
    clean = clip(uploads, start, keys, 0.3).adapter
    noise = torch.stack([flat(made.adapter.select(i), keys) - flat(clean.select(i), keys) for i in range(40)])
    count = noise.numel()
    assert abs(float(noise.mean())) < 4 * 0.45 / math.sqrt(count)
    assert float(noise.std()) == pytest.approx(0.45, rel=4 / math.sqrt(2 * count))
    correlation = torch.corrcoef(noise) - torch.eye(40, dtype=torch.float64)
    assert float(correlation.abs().max()) < 6 / math.sqrt(noise.shape[1])
    assert float(noise.pow(4).mean() / noise.pow(2).mean() ** 2) == pytest.approx(3, abs=0.2)


def test_noise_lies_on_a_grid_that_does_not_depend_on_the_data() -> None:
    method, start = make(), received(round=1)
    start = start.map(torch.zeros_like)  # so that nothing is added to the noised update
    uploads = group(method, start, 2)
    keys, spec = tuple(uploaded(method, start, 2)), settings(mechanism="local", clip=1.0, noise=1.0)
    made = protect(method, uploads, start, 2, spec, [seeded_noise(9, 2, client) for client in range(2)])
    steps = flat(made.adapter, keys) * 2.0**20
    assert torch.equal(steps, steps.round())


def test_the_server_clips_what_a_client_did_not() -> None:
    method, start = make(), received()
    keys = tuple(uploaded(method, start, 2))
    wild = train(method, start, 1, drift=1e4)
    mean = private_mean(
        method, [Update(0, wild, 1.0)], start, 2, settings(clip=0.5), 1, no_noise
    ).update.adapter
    assert float((flat(mean, keys) - flat(start, keys)).norm()) <= 0.5 * (1 + 1e-4)


def test_the_mean_does_not_depend_on_the_order_of_arrival() -> None:
    method, start = make(), received()
    updates = [Update(c, train(method, start, c), 1.0) for c in range(5)]
    results = [
        flat(
            private_mean(method, order, start, 2, settings(), 5, seeded_noise(1, 2)).update.adapter,
            ["head/classifier.weight"],
        )
        for order in (updates, updates[::-1])
    ]
    assert torch.equal(*results)


def test_a_foreign_update_is_refused_by_name() -> None:
    method, start = make(), received()
    with pytest.raises(AdapterError, match="client 7"):
        private_mean(method, [Update(7, received(rank=3), 1.0)], start, 2, settings(), 1, no_noise)


def test_without_noise_and_with_a_wide_clip_the_private_mean_is_the_mean() -> None:
    method, start = make("fedrot"), received()
    uploads = group(method, start)
    updates = [Update(c, uploads.select(c), 1.0) for c in range(5)]
    ours = private_mean(method, updates, start, 2, settings(clip=1e9, noise=0.0), 5, no_noise).update.adapter
    plain = weighted_mean([update.adapter for update in updates], [1.0] * 5)
    for key, tensor in ours.tensors().items():
        torch.testing.assert_close(tensor, plain.tensors()[key], rtol=1e-5, atol=1e-6)


def test_rotation_comes_before_the_clip_which_would_not_bound_it() -> None:
    """Two directions with tiny rows of `a` and large columns of `b`: a small step in `a` turns them by half a turn."""
    method = build("fedrot", {"strength": 1.0, "anchor": "a"}, seed=0)
    a = torch.tensor([[1.0, 0, 0], [0, 1e-3, 0], [0, 0, 1e-3]])
    start = Adapter({"site": Factors(a, torch.eye(3).repeat(2, 1))})
    turned = Adapter({"site": Factors(torch.diag(torch.tensor([1.0, -1e-3, -1e-3])), start.sites["site"].b)})
    keys, limit = tuple(uploaded(method, start, 3)), 0.01
    small = stack([turned])
    assert max(update_norms(small, start, keys)) < limit, "the trained update is within the clip"
    first = method.before_upload(clip(small, start, keys, limit).adapter, start, 3).adapter
    assert max(update_norms(first, start, keys)) > 1.0, "but rotating it afterwards leaves the bound"
    rotated = method.before_upload(small, start, 3).adapter
    made = protect(method, rotated, start, 3, settings(clip=limit), [constant(0.0)])
    assert max(update_norms(made.adapter, start, keys)) <= limit
