"""Benchmarks ask for recipes that exist, and reckon right."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedrot.config import parse_config
from fedrot.core import align_adapter
from fedrot.methods import build

ROOT = Path(__file__).parent.parent
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    for folder in ("benchmarks/peers", "benchmarks", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module


def test_every_job_of_the_contest_is_a_recipe(load: Load) -> None:
    contest = load("contest")
    for options in contest.JOBS.values():
        config = parse_config(contest.recipe(**options, rounds=4, tiny=False))
        assert config.federation.clients == options["clients"]
        assert config.train.cache_frozen == (options["layers"] != "all")
    assert {job for contender in contest.CONTENDERS.values() for job in contender.jobs} == set(contest.JOBS)


def test_registered_clients_leave_the_cohort_alone(load: Load) -> None:
    scale = load("scale")
    for clients in (1_000, 10_000, 100_000):
        federation = parse_config(scale.recipe(Path("x.csv"), clients, 3)).federation
        assert round(federation.fraction * clients) == scale.COHORT


def test_growth_is_the_exponent_of_a_power_law(load: Load) -> None:
    server = load("server")
    points = [{"clients": n, "seconds": 0.5 * n**1.5, "memory_mb": 0.1} for n in (100, 1_000, 10_000)]
    overhead = {"clients": 10, "seconds": 99.0, "memory_mb": 0.1}
    assert server.growth([overhead, *points]) == {"seconds": 1.5, "memory": None}
    for name, options in server.VARIANTS.values():
        build(name, options, 1)


def test_bytes_of_an_8b_model_are_those_of_its_factors(load: Load) -> None:
    tables = load("scale_tables")
    assert tables.upload_bytes("q and v", 16) == 4 * 16 * 32 * (4096 + 4096 + 4096 + 1024)
    assert tables.upload_bytes("all linear", 16) == 167_772_160, "the size that the alignment benchmark has"
    assert (tables.size(167_772_160), tables.duration(7_200), tables.duration(90)) == (
        "168 MB",
        "2 h",
        "90 s",
    )


def test_alignment_is_compared_with_float64_at_every_strength(load: Load) -> None:
    alignment = load("alignment")
    device = torch.device("cpu")
    for clients in (1, 3):
        case = alignment.Case("MiniLM, q and v", 4, clients)
        soft, hard = alignment.measure(case, device, repeats=1)
        for found, words in ((soft, "chordal 0.5"), (hard, "hard")):
            assert found["case"].endswith(words)
            assert 0 < found["largest_deviation_from_float64"]["stacked"] < 1e-5
            assert ("client_loop" in found["median_seconds"]) == (clients > 1)
    clients, reference = alignment.draw(case, device)
    other, _ = align_adapter(clients, reference, "a", 0.25)
    worst = alignment.deviations(clients.select(-1), reference, 0.5, other.select(-1))
    assert worst["published_loop"] < 1e-5 < 1e-3 < worst["stacked"], "another strength is far off"
    shapes = {(case.shape, case.rank) for case in alignment.CASES if case.clients == 1}
    assert shapes == {(shape, rank) for shape in alignment.SHAPES for rank in (4, 16, 64)}


def test_alignment_tables_show_results_of_before_and_of_now(load: Load) -> None:
    tables = load("speed_tables")
    old: dict[str, Any] = {
        "case": "A, 1 client",
        "median_seconds": {"stacked": 0.1, "client_loop": 0.2, "published_loop": 0.3, "floor": 0.05},
        "times_faster_than_published_loop": 3.0,
        "stacked_over_floor": 2.0,
    }
    assert (
        tables.alignment({"cases": [old]}).splitlines()[2]
        == "| A, 1 client | 100 ms | 200 ms | 300 ms | 3 | 2 |"
    )
    new = {
        **old,
        "median_seconds": {"stacked": 0.1, "published_loop": 0.3},
        "largest_deviation_from_float64": {"stacked": 1.2e-6, "published_loop": 3e-6},
    }
    assert (
        tables.alignment({"cases": [new]}).splitlines()[2]
        == "| A, 1 client | 100 ms | – | 300 ms | 3 | 2 | 1e-06 |"
    )
