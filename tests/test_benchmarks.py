"""Benchmarks ask for recipes that exist, and reckon right."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fedrot.config import parse_config
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


def test_results_of_a_gpu_lie_beside_those_of_a_cpu(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = load("environment")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.choose("auto") == torch.device("cpu")
    with pytest.raises(SystemExit, match="--device cuda: no GPU"):
        environment.choose("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert environment.choose("auto").type == "cuda"
    assert environment.choose("cpu").type == "cpu"
    stems = load("speed_tables").SUITES["server"][1]
    assert stems == tuple(environment.results("server", torch.device(d)).stem for d in ("cpu", "cuda"))
