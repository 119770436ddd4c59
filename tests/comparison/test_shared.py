"""Runs that follow one another in a process give the numbers of runs on their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedrot.config import RunConfig
from fedrot.engines.local import run_local
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.engines.shared import Shared
from fedrot.rundir import RunDirectory

Make = Callable[..., RunConfig]
CLOCK = {"seconds", "training_seconds"}


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def assert_same_bits(one: RunResult, other: RunResult) -> None:
    assert without_clock(one.records) == without_clock(other.records)
    for key, tensor in one.adapter.tensors().items():
        assert torch.equal(tensor, other.adapter.tensors()[key]), key


def test_a_run_on_shared_parts_has_the_bits_of_a_run_on_its_own(recipe: Make, tmp_path: Path) -> None:
    frozen = {"lora__layers": "last:1", "train__cache_frozen": True}
    first = recipe(method={"name": "fedit"}, **frozen)
    second = recipe(**frozen)
    shared = Shared()
    run_local(first, RunDirectory(tmp_path / "first"), shared=shared)
    again = run_local(second, RunDirectory(tmp_path / "second"), shared=shared)
    assert shared.hits == {"task": 1, "base": 1, "train": 1, "validation": 1, "test": 1}
    assert_same_bits(again, run(second, out=tmp_path / "alone"))


def test_another_seed_or_depth_shares_nothing_that_depends_on_it(recipe: Make, tmp_path: Path) -> None:
    shared = Shared()
    run_local(recipe(federation__rounds=1), RunDirectory(tmp_path / "a"), shared=shared)
    other = recipe(federation__rounds=1, seed=4)
    seeded = run_local(other, RunDirectory(tmp_path / "b"), shared=shared)
    assert shared.hits == {}
    assert_same_bits(seeded, run(other, out=tmp_path / "b-alone"))
    deeper = recipe(federation__rounds=1, seed=4, lora__layers="last:1", train__cache_frozen=True)
    cached = run_local(deeper, RunDirectory(tmp_path / "c"), shared=shared)
    assert shared.hits == {"task": 1, "base": 1}
    assert_same_bits(cached, run(deeper, out=tmp_path / "c-alone"))


def test_what_is_forgotten_is_built_again() -> None:
    shared = Shared()
    assert shared.get("task", "a", lambda: [1]) is shared.get("task", "a", lambda: [1])
    shared.clear()
    assert shared.get("task", "a", lambda: [2]) == [2]
