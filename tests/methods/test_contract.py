"""The laws of aggregation, held over every registered method and, for FedRot, over its variants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedrot.core import Adapter, Factors, stack, weighted_mean
from fedrot.errors import AdapterError, ConfigError
from fedrot.methods import Method, MethodState, Update, build, methods
from fedrot.methods.averaging import Averaging
from fedrot.methods.base import travelled
from fedrot.methods.options import option_hints
from tests.methods.rounds import aggregate, distance, ideal, products, received, same, send, train

VARIANTS: dict[str, list[dict[str, object]]] = {
    "fedit": [{"refit": 1}, {"refit": 2, "start": "mean"}],
    "rescale": [{"refit": 1}],
    "random-rotation": [{"refit": 1, "start": "mean"}],
    "fedrot": [
        {"strength": 1.0, "anchor": "joint", "path": "geodesic"},
        {"anchor": "b", "group": "orthogonal", "guard": "client"},
        {"guard": True, "reference": "two-back"},
        {"reference": "consensus", "strength": 1.0},
        {"refit": 1},
        {"guard": True, "refit": 2, "start": "mean"},
    ],
}
CASES = [(name, options) for name in methods() for options in [{}, *VARIANTS.get(name, [])]]


def from_reference(method: Method) -> bool:
    """Whether the broadcast is fitted from the adapter received, and so comes near agreement, not upon it."""
    return isinstance(method, Averaging) and method.refit > 0 and method.start == "reference"


@pytest.fixture(
    params=CASES, ids=[f"{name}-{'-'.join(map(str, o.values()))}".rstrip("-") for name, o in CASES]
)
def method(request: pytest.FixtureRequest) -> Method:
    name, options = request.param
    return build(name, options, seed=11)


@pytest.fixture(params=[1, 2, 3])
def round(request: pytest.FixtureRequest) -> int:
    return request.param


def test_the_order_of_clients_changes_nothing(method: Method, round: int) -> None:
    start = received(round)
    updates = send(method, [train(method, start, c, round) for c in range(4)], start, round)
    shuffled = [updates[i] for i in (2, 0, 3, 1)]
    assert same(aggregate(method, updates, start, round), aggregate(method, shuffled, start, round))


def test_inputs_are_never_modified(method: Method, round: int) -> None:
    start = received(round)
    trained = [train(method, start, c, round) for c in range(3)]
    copies = [adapter.map(torch.clone) for adapter in (start, *trained)]
    updates = send(method, trained, start, round)
    uploads = [update.adapter.map(torch.clone) for update in updates]
    aggregate(method, updates, start, round)
    after = (start, *trained, *(update.adapter for update in updates))
    assert all(same(adapter, copy) for adapter, copy in zip(after, (*copies, *uploads), strict=True))


def test_the_broadcast_has_the_form_of_the_adapter_received(method: Method, round: int) -> None:
    start = received(round)
    updates = send(method, [train(method, start, c, round) for c in range(3)], start, round)
    broadcast = aggregate(method, updates, start, round)
    assert list(broadcast.sites) == list(start.sites)
    assert list(broadcast.head) == list(start.head)
    assert {t.dtype for t in broadcast.tensors().values()} == {torch.float32}
    assert broadcast.scale == start.scale
    assert broadcast.finite()


def test_a_lone_client_gets_its_own_update_back(method: Method, round: int) -> None:
    if not method.laws.lone_client or from_reference(method):
        pytest.skip("not promised")
    start = received(round)
    trained = train(method, start, 0, round)
    broadcast = aggregate(method, send(method, [trained], start, round), start, round)
    assert distance(products(broadcast), products(trained)) < 2e-6
    assert method.laws.personal or torch.equal(
        broadcast.head["classifier.weight"], trained.head["classifier.weight"]
    )


def test_identical_clients_get_the_update_they_agree_on(method: Method, round: int) -> None:
    if not method.laws.identical_clients or from_reference(method):
        pytest.skip("not promised")
    start = received(round)
    trained = train(method, start, 0, round)
    broadcast = aggregate(method, send(method, [trained] * 4, start, round), start, round)
    assert distance(products(broadcast), products(trained)) < 2e-6


def test_exact_methods_broadcast_the_mean_of_the_updates(method: Method, round: int) -> None:
    start = received(round)
    trained = [train(method, start, c, round) for c in range(4)]
    error = distance(
        products(aggregate(method, send(method, trained, start, round), start, round)), ideal(trained)
    )
    assert not method.laws.exact or error < 1e-6


def test_factor_means_are_means_of_the_uploads(method: Method, round: int) -> None:
    if not method.laws.factor_mean or not method.secure_aggregation:
        pytest.skip("not promised with these options")
    start = received(round)
    updates = send(method, [train(method, start, c, round) for c in range(4)], start, round)
    mean = weighted_mean([u.adapter for u in updates], [u.weight for u in updates])
    expected = travelled(mean, start, method.uploads(round))
    head = mean.head if method.shares_head else start.head
    assert same(aggregate(method, updates, start, round), replace(expected, head=head), 1e-6)


def test_secure_aggregation_needs_only_weighted_sums(method: Method, round: int) -> None:
    if not method.secure_aggregation:
        pytest.skip("not promised with these options")
    start = received(round)
    updates = send(method, [train(method, start, c, round) for c in range(4)], start, round)
    weights = [u.weight for u in updates]
    merged = Update(0, weighted_mean([u.adapter for u in updates], weights), sum(weights))
    assert same(aggregate(method, updates, start, round), aggregate(method, [merged], start, round), 1e-6)


def test_every_head_is_averaged_with_the_same_weights(method: Method, round: int) -> None:
    if method.laws.personal:
        pytest.skip("clients keep their heads")
    start = received(round)
    trained = [train(method, start, c, round) for c in range(4)]
    updates = send(method, trained, start, round)
    mean = weighted_mean(trained, [u.weight for u in updates]).head["classifier.weight"]
    torch.testing.assert_close(aggregate(method, updates, start, round).head["classifier.weight"], mean)


def test_what_does_not_travel_comes_back_to_the_bit(method: Method, round: int) -> None:
    start, travels = received(round), method.uploads(round)
    updates = send(method, [train(method, start, c, round) for c in range(3)], start, round)
    broadcast, changes = aggregate(method, updates, start, round), method.changes(round)
    for site, f in start.sites.items():
        assert travels.a or changes.a or torch.equal(broadcast.sites[site].a, f.a)
        assert travels.b or changes.b or torch.equal(broadcast.sites[site].b, f.b)


def test_what_clients_keep_to_themselves_is_ignored(method: Method, round: int) -> None:
    start, travels = received(round), method.uploads(round)
    trained = [train(method, start, c, round) for c in range(3)]
    updates = send(method, trained, start, round)

    def spoiled(adapter: Adapter) -> Adapter:
        sites = {
            site: Factors(f.a if travels.a else 7 * f.a, f.b if travels.b else 7 * f.b)
            for site, f in adapter.sites.items()
        }
        head = adapter.head if method.shares_head else {name: 7 * t for name, t in adapter.head.items()}
        return replace(adapter, sites=sites, head=head)

    others = [replace(update, adapter=spoiled(update.adapter)) for update in updates]
    assert same(aggregate(method, others, start, round), aggregate(method, updates, start, round))
    assert method.laws.personal == (not method.shares_head)


def test_residuals_come_from_the_methods_that_declare_them(method: Method, round: int) -> None:
    start = received(round)
    updates = send(method, [train(method, start, c, round) for c in range(3)], start, round)
    broadcast = aggregate(method, updates, start, round)
    assert list(broadcast.residual) == (list(start.sites) if method.laws.residual else [])
    for site, f in broadcast.residual.items():
        assert (f.d_in, f.d_out) == (start.sites[site].d_in, start.sites[site].d_out)
        assert f.rank <= min(f.d_in, f.d_out)


def test_a_kept_frame_returns_untrained_factors_as_they_were(method: Method, round: int) -> None:
    start = received(round)
    broadcast = aggregate(method, send(method, [start] * 3, start, round), start, round)
    if method.laws.frame == "kept" and method.laws.identical_clients:
        assert same(replace(broadcast, residual={}), start, 1e-6)
    if method.laws.frame == "fresh":
        assert all(bool((f.b == 0).all()) for f in broadcast.sites.values())


def test_doubling_alpha_and_halving_b_changes_no_merged_model(method: Method, round: int) -> None:
    start = received(round)
    trained = [train(method, start, c, round) for c in range(4)]

    def halved(adapter: Adapter) -> Adapter:
        sites = {site: Factors(f.a, f.b / 2) for site, f in adapter.sites.items()}
        return Adapter(sites, adapter.head, 2 * adapter.scale)

    plain = aggregate(method, send(method, trained, start, round), start, round)
    updates = send(method, [halved(t) for t in trained], halved(start), round)
    assert distance(products(aggregate(method, updates, halved(start), round)), products(plain)) < 2e-6


def test_rotated_uploads_represent_the_same_update(method: Method, round: int) -> None:
    start = received(round)
    trained = train(method, start, 0, round)
    upload = method.before_upload(trained, start, round)
    if upload.rotation is None:
        assert same(upload.adapter, trained)
    assert distance(products(upload.adapter), products(trained)) < 1e-6
    assert torch.equal(upload.adapter.head["classifier.weight"], trained.head["classifier.weight"])


def test_stacked_clients_upload_what_each_would_alone(method: Method, round: int) -> None:
    start = received(round)
    trained = [train(method, start, c, round) for c in range(3)]
    whole = method.before_upload(stack(trained), start, round, clients=[4, 7, 9])
    for i, client in enumerate([4, 7, 9]):
        alone = method.before_upload(trained[i], start, round, clients=[client])
        assert same(whole.adapter.select(i), alone.adapter, 1e-5)
        if whole.rotation is not None and alone.rotation is not None:
            torch.testing.assert_close(whole.rotation.size[:, i], alone.rotation.size, atol=1e-5, rtol=0)


def test_smaller_ranks_are_padded_or_refused(method: Method, round: int) -> None:
    start = received(round)
    full = [train(method, start, c, round) for c in range(3)]
    trained = [full[0], train(method, start.resized(2), 1, round), full[2]]
    if not method.laws.mixed_ranks:
        with pytest.raises(AdapterError, match="client 1 sent"):
            aggregate(method, send(method, trained, start, round), start, round)
        return
    updates = send(method, trained, start, round)
    assert distance(products(updates[1].adapter), products(trained[1])) < 1e-6
    broadcast = aggregate(method, updates, start, round)
    assert {f.rank for f in broadcast.sites.values()} == {4}
    assert not method.laws.exact or distance(products(broadcast), ideal(trained)) < 1e-6


def test_state_survives_a_resume(method: Method) -> None:
    start, state, resumed = received(2), MethodState(), MethodState()
    for round in (2, 3, 4):
        updates = send(method, [train(method, start, c, round) for c in range(3)], start, round)
        again, resumed = method.aggregate(updates, start, resumed, round)
        start, state = method.aggregate(updates, start, state, round)
        assert same(start, again)
        start = replace(start, residual={})  # which receivers have folded into their base weights
        numbers = {key: float(value) for key, value in resumed.numbers.items()}
        resumed = MethodState({key: t.clone() for key, t in resumed.tensors.items()}, numbers)


def test_unusable_updates_are_refused_by_client(method: Method) -> None:
    start = received(2)
    good, other = (Update(c, train(method, start, c), 1.0) for c in (3, 7))
    fewer = Adapter(dict(list(other.adapter.sites.items())[:2]), other.adapter.head, start.scale)
    for updates, message in (
        ([], "no updates"),
        ([good, good], "client 3 sent two"),
        ([good, Update(7, fewer, 1.0)], r"client 7 sent 2 sites, expected 3; missing 'layers\.1\.q'"),
        ([good, Update(7, other.adapter, -1.0)], r"weights\[1\] = -1\.0"),
        ([Update(3, good.adapter, 0.0)], "zero"),
    ):
        with pytest.raises(AdapterError, match=message):
            aggregate(method, updates, start)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_client_is_visible_or_refused_by_number(method: Method, value: float) -> None:
    start = received(3)
    trained = [train(method, start, c, 3) for c in range(3)]
    updates = send(method, trained, start, 3)
    updates[1] = replace(updates[1], adapter=trained[1].map(lambda t: t * value))
    if method.factorises:
        with pytest.raises(AdapterError, match="client 1 sent numbers that are not finite"):
            aggregate(method, updates, start, 3)
    else:
        assert not aggregate(method, updates, start, 3).finite()


@pytest.mark.parametrize("name", list(methods()))
def test_every_option_is_refused_out_of_range(name: str) -> None:
    for option in option_hints(methods()[name]):
        for value in ("no such value", math.nan, None, -(10**9), [[2, 0.1]], {}):
            with pytest.raises(ConfigError, match=f"method.{option} = .*: expected"):
                build(name, {option: value}, seed=11)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"method\.name = 'fedrott'.*did you mean 'fedrot'"):
        build("fedrott", {}, seed=11)
    with pytest.raises(ConfigError, match=r"method\.strenght.*did you mean 'strength'"):
        build("fedrot", {"strenght": 0.5}, seed=11)
    with pytest.raises(
        ConfigError, match=r"method\.anchor = 'alternating': expected .*did you mean 'alternate'"
    ):
        build("fedrot", {"anchor": "alternating"}, seed=11)


def test_methods_are_final_and_documented() -> None:
    for name, cls in methods().items():
        assert cls.name == name
        assert cls.__doc__
        assert getattr(cls, "__final__", False)
        with pytest.raises(AttributeError):
            build(name, {}, seed=11).laws = None  # type: ignore[assignment,misc]
