"""The Flower engine in one process: the same numbers as the local engine, and the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedrot
from fedrot.config import RunConfig
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run

Make = Callable[..., RunConfig]
METHODS = [name for name, cls in fedrot.methods().items() if not cls.laws.personal]


def both(recipe: Make, tmp_path: Path, **options: Any) -> tuple[RunResult, RunResult]:
    """One recipe on both engines."""
    local = run(recipe(**options), out=tmp_path / "local")
    flower = run(recipe(engine__name="flower", **options), out=tmp_path / "flower")
    return local, flower


def largest_difference(one: RunResult, other: RunResult) -> float:
    mine, theirs = one.adapter.tensors(), other.adapter.tensors()
    assert list(mine) == list(theirs)
    return max(float((mine[key] - theirs[key]).abs().max()) for key in mine)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_with_the_adapter_of_the_local_engine(
    recipe: Make, tmp_path: Path, method: str
) -> None:
    local, flower = both(recipe, tmp_path, method={"name": method}, federation__rounds=3)
    assert largest_difference(local, flower) <= 1e-6
    for mine, theirs in zip(local.records, flower.records, strict=True):
        assert mine["client_ids"] == theirs["client_ids"]
        assert mine["accuracy"] == theirs["accuracy"]
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-6)
        assert theirs["drift"] == pytest.approx(mine["drift"], abs=1e-6)
        assert theirs["aggregation_error"] == pytest.approx(mine["aggregation_error"], rel=1e-4, abs=1e-7)
        assert theirs["rotation"] == pytest.approx(mine["rotation"], abs=1e-6)


def test_a_node_for_every_client_gives_the_adapter_of_clients_trained_one_at_a_time(
    recipe: Make, tmp_path: Path
) -> None:
    local, flower = both(recipe, tmp_path, engine__nodes=4, federation__group_size=1, federation__rounds=3)
    assert largest_difference(local, flower) == 0


@pytest.mark.parametrize("nodes", [1, 3])
def test_who_hosts_which_client_changes_nothing(recipe: Make, tmp_path: Path, nodes: int) -> None:
    # Without Adam, whose first steps are signs: they turn the last bit of a sum into a whole step.
    sgd = {"optimizer": "sgd", "lr": 0.1, "local_steps": 3, "batch_size": 4, "device": "cpu"}
    local, flower = both(recipe, tmp_path, train=sgd, engine__nodes=nodes, federation__group_size=2)
    assert largest_difference(local, flower) <= 1e-6
