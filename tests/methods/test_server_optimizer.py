"""Server optimisers against numpy in float64, and what they do with frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrot.core import Adapter, Factors, rotate
from fedrot.errors import ConfigError
from fedrot.methods import Method, MethodState, build
from fedrot.methods.server_optimizer import Name, ServerOptimizer
from tests.core.strategies import rotations
from tests.methods.rounds import aggregate, distance, products, received, same, send, train

NAMES: tuple[Name, ...] = ("avgm", "adam", "yogi", "adagrad")


def make(name: Name, **options: float) -> ServerOptimizer:
    return ServerOptimizer(name=name, **{"lr": 0.1, **options})


def rounds(
    method: Method, optimizer: ServerOptimizer, count: int, *, resumed: bool = False
) -> list[tuple[Adapter, Adapter, Adapter, MethodState]]:
    """`(received, aggregated, broadcast, state)` of rounds 1, 2, ..."""
    start, state, done = received(1), MethodState(), []
    for round in range(1, count + 1):
        updates = send(method, [train(method, start, c + 10 * round, round) for c in range(3)], start, round)
        made = aggregate(method, updates, start, round)
        if resumed:
            state = MethodState({key: t.clone() for key, t in state.tensors.items()}, dict(state.numbers))
        broadcast, state = optimizer.step(method, start, made, state, round)
        done.append((start, made, broadcast, state))
        start = replace(broadcast, residual={})
    return done


@pytest.mark.parametrize("name", NAMES)
def test_every_number_moves_as_the_optimiser_says(name: Name) -> None:
    options = {"lr": 0.3, "momentum": 0.8, "beta2": 0.95, "tau": 0.01}
    history = rounds(build("fedit", {}, 11), ServerOptimizer(name=name, **options), 4)
    for key in ("sites/layers.0.q/a", "sites/layers.0.v/b", "head/classifier.weight"):
        x = history[0][0].tensors()[key].double().numpy()
        m, v = np.zeros_like(x), np.full_like(x, options["tau"] ** 2)
        for _, made, broadcast, _ in history:
            d = made.tensors()[key].double().numpy() - x
            if name == "avgm":
                m = 0.8 * m + d
                x = x + 0.3 * m
            else:
                m = 0.8 * m + 0.2 * d
                if name == "adam":
                    v = 0.95 * v + 0.05 * d**2
                elif name == "yogi":
                    v = v - 0.05 * d**2 * np.sign(v - d**2)
                else:
                    v = v + d**2
                x = x + 0.3 * m / (np.sqrt(v) + options["tau"])
            np.testing.assert_allclose(broadcast.tensors()[key].numpy(), x, rtol=1e-4, atol=1e-6)
            x = broadcast.tensors()[key].double().numpy()


@pytest.mark.parametrize("method", ["fedit", "fedrot", "ffa", "rolora", "fedsa", "fedex", "flora", "hetlora"])
def test_a_step_of_one_without_momentum_is_the_aggregate(method: str) -> None:
    for _, made, broadcast, _ in rounds(build(method, {}, 11), make("avgm", lr=1.0, momentum=0.0), 3):
        assert same(broadcast, made)


@pytest.mark.parametrize("method", ["flexlora", "fedsvd", "fedmomentum", "florist"])
def test_a_turned_aggregate_keeps_its_product(method: str) -> None:
    for _, made, broadcast, _ in rounds(build(method, {}, 11), make("avgm", lr=1.0, momentum=0.0), 3):
        assert distance(products(broadcast), products(made)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_freezes_keeps_its_numbers_and_its_moments(name: Name) -> None:
    history = rounds(build("rolora", {}, 11), make(name), 4)
    for round, (start, _, broadcast, state) in enumerate(history, 1):
        still, moving = ("a", "b") if round % 2 else ("b", "a")
        for site, f in broadcast.sites.items():
            assert torch.equal(getattr(f, still), getattr(start.sites[site], still))
            assert not torch.equal(getattr(f, moving), getattr(start.sites[site], moving))
            key = f"m/sites/{site}/{still}"
            assert (key in state.tensors) == (round > 1)
            if round > 1:
                assert torch.equal(state.tensors[key], history[round - 2][3].tensors[key])
    for start, _, broadcast, state in rounds(build("fedsa", {}, 11), make(name), 2):
        assert torch.equal(broadcast.head["classifier.weight"], start.head["classifier.weight"])
        assert not any("head" in key or key.endswith("/b") for key in state.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_an_svd_happens_to_give_does_not_matter(name: Name) -> None:
    """Reflected and rotated aggregates of `turned` methods move the server to the same place."""
    method, optimizer, start = build("flexlora", {}, 11), make(name), received()
    plain_state, framed_state = MethodState(), MethodState()
    plain_start = framed_start = start
    for round in (2, 3, 4):
        made = aggregate(
            method,
            send(method, [train(method, plain_start, c, round) for c in range(3)], plain_start),
            plain_start,
        )
        turn = rotations(round, 4, 4).float() @ torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
        framed = replace(made, sites={s: Factors(*rotate(f.a, f.b, turn)) for s, f in made.sites.items()})
        plain_start, plain_state = optimizer.step(method, plain_start, made, plain_state, round)
        framed_start, framed_state = optimizer.step(method, framed_start, framed, framed_state, round)
        assert same(framed_start, plain_start, 2e-4)
        assert not torch.allclose(framed.sites["layers.0.q"].a, made.sites["layers.0.q"].a, atol=0.1)


def test_factors_without_a_frame_to_continue_are_taken_as_aggregated_and_start_anew() -> None:
    for method, rounds_reset in (("flora", {1, 2, 3}), ("flexlora", {1})):
        for round, (start, made, broadcast, state) in enumerate(
            rounds(build(method, {}, 11), make("adam"), 3), 1
        ):
            taken = same(replace(broadcast, head={}), replace(made, head={}))
            assert taken == (round in rounds_reset)
            assert any(key.startswith("m/sites") for key in state.tensors) == (round not in rounds_reset)
            assert not torch.equal(broadcast.head["classifier.weight"], start.head["classifier.weight"])
            assert not torch.equal(broadcast.head["classifier.weight"], made.head["classifier.weight"])
            assert list(broadcast.residual) == list(made.residual)


def test_a_site_whose_rank_changed_starts_anew_and_the_others_go_on() -> None:
    method, start = build("florist", {"cap": 4}, 11), received()
    grown = dict(start.sites)
    grown["layers.0.v"] = Factors(grown["layers.0.v"].a[:2], grown["layers.0.v"].b[:, :2])
    made = replace(start.map(lambda t: 1.1 * t), sites={s: Factors(1.1 * f.a, f.b) for s, f in grown.items()})
    broadcast, state = make("adam").step(method, start, made, MethodState(), 2)
    assert same(Adapter({"x": broadcast.sites["layers.0.v"]}), Adapter({"x": made.sites["layers.0.v"]}))
    assert {key.split("/")[2] for key in state.tensors if "sites" in key} == {"layers.0.q", "layers.1.q"}


@pytest.mark.parametrize("name", NAMES)
def test_moments_survive_a_resume(name: Name) -> None:
    for method in ("fedit", "rolora", "flexlora", "flora"):
        whole, resumed = (rounds(build(method, {}, 11), make(name), 3, resumed=r) for r in (False, True))
        assert all(same(one[2], other[2]) for one, other in zip(whole, resumed, strict=True))
        assert all(t.dtype == torch.float32 for t in whole[-1][3].tensors.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamw"}, r"server\.optimizer = 'adamw'.*did you mean 'adam'"),
        ({"lr": 0.0}, r"server\.lr = 0\.0: expected a number > 0"),
        ({"lr": float("nan")}, r"server\.lr"),
        ({"momentum": 1.0}, r"server\.momentum = 1\.0: expected a number in \[0, 1\)"),
        ({"beta2": -0.1}, r"server\.beta2"),
        ({"tau": 0.0}, r"server\.tau"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerOptimizer(**({"name": "adam", "lr": 0.1} | options))  # type: ignore[arg-type]
