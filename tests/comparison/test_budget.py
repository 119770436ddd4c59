"""What a comparison is said to take: each method's server step counts, from injected times; no clock is waited for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedrot.comparison import budget
from fedrot.comparison.budget import Pace, estimate_budget
from fedrot.comparison.reading import make_design
from fedrot.comparison.server_step import BYTES, MOST, step_seconds, timed_uploads
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.methods import methods

Small = Callable[..., dict[str, Any]]
SHAPES = Adapter(
    {"x": Factors(torch.zeros(2, 8), torch.zeros(6, 2)), "y": Factors(torch.zeros(2, 5), torch.zeros(7, 2))},
    head={"w": torch.zeros(3, 4)},
)
STEP = {"fedit": 0.2, "auto": 15.0, "fedrot": 0.3, "ffa": 0.05}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A probe of one second a round, half of it the server's, and server steps as in `STEP`; what was asked for."""
    asked: list[tuple[str, int]] = []

    def step(config: RunConfig, shapes: Adapter, uploads: int) -> float:
        assert shapes is SHAPES
        asked.append((config.method.name, uploads))
        return STEP[config.method.name]

    pace = Pace(setup=0.0, step=0.01, round=1.0, evaluation=0.0, steps=3.0, shapes=SHAPES)
    monkeypatch.setattr(budget, "probe", lambda _config: pace)
    monkeypatch.setattr(budget, "step_seconds", step)
    return asked


def estimated(recipe: dict[str, Any], names: list[str], **more: Any) -> budget.Budget:
    return estimate_budget(make_design(recipe, {"methods": names, "seeds": [1, 2]}, {}), **more)


def test_an_expensive_server_step_makes_an_estimate_larger(small: Small, told: list[tuple[str, int]]) -> None:
    found = estimated(small(federation__rounds=10), ["fedit", "auto", "fedrot", "ffa"])
    training = 10 * 4 * 3 * 0.01  # rounds, clients, steps, seconds
    assert found.by_arm == pytest.approx(
        {
            "fedit": training + 10 * 1.0,
            "auto": training + 10 * (1.0 - 0.2 + 15.0),
            "fedrot": training + 10 * (1.0 - 0.2 + 0.3),
            "ffa": training + 10 * (1.0 - 0.2 + 0.05),
        }
    )
    assert found.seconds == pytest.approx(2 * sum(found.by_arm.values()))
    assert told == [("fedit", 4), ("auto", 4), ("fedrot", 4), ("ffa", 4)], "each once, at the round's uploads"


def test_the_probed_method_need_not_be_the_cheapest(small: Small, told: list[tuple[str, int]]) -> None:
    found = estimated(small(federation__rounds=1, federation__evaluate_every=1), ["auto", "fedit"])
    assert found.by_arm == pytest.approx({"auto": 0.12 + 1.0, "fedit": 0.12}), "never below nothing"
    assert len(told) == 2


def test_uploads_are_those_of_a_round_and_scaling_is_said(
    small: Small, told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("fedrot.comparison.server_step.MOST", 2)
    recipe = small(federation__clients=8, federation__fraction=0.5)
    estimated(recipe, ["fedit", "auto"], note=said.append)
    assert {uploads for _, uploads in told} == {4}
    assert "timing the server's step of auto with 2 of 4 uploads, taken in proportion" in said


@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_step_to_time(recipe: Callable[..., RunConfig], name: str) -> None:
    ticks = itertools.count()
    assert step_seconds(recipe(method={"name": name}), SHAPES, 4, clock=lambda: next(ticks)) == 1


def test_of_many_uploads_some_are_timed_and_the_rest_is_in_proportion(
    recipe: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrot.methods.fedit import FedIT

    seen: list[int] = []
    real = FedIT.aggregate

    def aggregate(self: FedIT, updates: Any, *rest: Any) -> Any:
        seen.append(len(updates))
        assert updates[0].adapter.sites["x"].a.shape == (2, 8)
        assert not torch.equal(updates[0].adapter.sites["x"].a, updates[1].adapter.sites["x"].a)
        return real(self, updates, *rest)

    monkeypatch.setattr(FedIT, "aggregate", aggregate)
    times = iter([0.0, 9.0, 10.0, 13.0, 20.0, 22.0])  # 9, which warms up, 3 and 2 seconds
    found = step_seconds(recipe(method={"name": "fedit"}), SHAPES, 20 * MOST, clock=lambda: next(times))
    assert seen == [MOST] * 3
    assert found == pytest.approx(20 * 2.0)


def test_large_adapters_are_timed_in_smaller_numbers() -> None:
    def of(megabytes: int) -> Adapter:
        return Adapter({"x": Factors(torch.empty(1, megabytes * 2**18 - 1), torch.empty(1, 1))})

    assert timed_uploads(of(1), 3) == 3
    assert timed_uploads(of(1), 1000) == MOST
    assert timed_uploads(of(BYTES // 2**20 // 8), 1000) == 8
    assert timed_uploads(of(BYTES // 2**20), 1000) == 2
