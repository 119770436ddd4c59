"""Benchmarks ask for recipes that exist, and reckon right."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fedrot import client
from fedrot.config import RunConfig, parse_config
from fedrot.core import align_adapter
from fedrot.engines.setup import prepare
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
        config = parse_config(contest.recipe(**options, rounds=4, steps=2, tiny=False))
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


def event(name: str, own: float, parent: Any = None, number: int = -1, start: int = 0) -> Any:
    return SimpleNamespace(
        name=name,
        self_cpu_time_total=own,
        cpu_parent=parent,
        sequence_nr=number,
        scope=0,
        device_type=SimpleNamespace(name="CPU"),
        time_range=SimpleNamespace(start=start),
    )


def test_gradients_belong_to_what_they_are_gradients_of(load: Load) -> None:
    attribution = load("attribution")
    model, attention = event("part:elementwise", 9), event("part:attention", 9)
    block = event("part:frozen", 9)
    layer = event("part:stacked", 9, model)
    back = {n: event(f"autograd::engine::evaluate_function: {n}", 9, number=k) for n, k in BACKWARD.items()}
    events = [
        *(model, attention, block, layer, *back.values()),
        event("aten::mul", 1, model, number=7, start=1),
        event("aten::softmax", 2, attention, number=7, start=2),
        event("aten::addmm", 4, layer),
        event("aten::bmm", 8, layer),
        event("aten::addmm", 16, event("part:dense", 0, block)),
        event("aten::softmax_backward", 32, back["SoftmaxBackward0"]),
        event("aten::mm", 64, back["_StackedLinearBackward"]),
        event("aten::bmm", 128, back["_StackedLinearBackward"]),
        event("aten::add", 256, back["_StackedLinearBackward"]),
        event("aten::_fused_adamw_", 512, event("Optimizer.step#AdamW.step", 9)),
        event("aten::copy_", 1024, back["torch::autograd::AccumulateGrad"]),
    ]
    found = attribution.attribute(events, 4096.0, gpu=False)
    assert found == {
        **dict.fromkeys(attribution.PARTS, 0.0),
        **{"elementwise": 1 + 256, "attention": 2 + 32, "base_forward": 4, "low_rank": 8 + 128},
        **{"frozen": 16, "base_backward": 64, "optimiser": 512, "other": 1024, "between": 4096 - 2047},
    }
    with pytest.raises(ValueError, match="operations took 2047 of 1000"):
        attribution.attribute(events, 1000.0, gpu=False)


BACKWARD = {"SoftmaxBackward0": 7, "_StackedLinearBackward": 8, "torch::autograd::AccumulateGrad": -1}


def test_parts_of_a_step_add_up_to_it(load: Load, recipe: Callable[..., RunConfig]) -> None:
    profile = load("step_profile")
    clip = client.clip_per_client
    federation = prepare(
        recipe(
            lora__layers="last:1",
            train__local_steps=3,
            train__cache_frozen=False,
            federation__clients=3,
            federation__group_size=1,
            federation__workers=1,
        )
    )
    run = profile.once(federation, 3)
    parts = run["milliseconds"]
    assert sum(parts.values()) == pytest.approx(run["profiled_milliseconds"], abs=1e-3)
    assert all(spent > 0 for part, spent in parts.items() if part != "other"), parts
    assert client.clip_per_client is clip
    assert not any("forward" in vars(module) for module in federation.base.module.modules())


def test_table_of_a_profile_has_a_column_for_every_stack(load: Load) -> None:
    runs = [
        {"clients": size, "milliseconds": {"head": 1.5, "between": 2.25}}
        | {"profiled_milliseconds": 3.75, "plain_milliseconds": 3.5}
        for size in (1, 10)
    ]
    found = {
        "parts": {"head": "head and loss", "between": "between operations"},
        "cases": [{"case": "MiniLM", "runs": runs}],
        "precision": "float32",
        "threads": 2,
    }
    lines = load("speed_tables").step_profile(found).splitlines()
    assert lines[0] == "|  | MiniLM: one at a time | MiniLM: 10 stacked |"
    assert lines[2:6] == [
        "| head and loss | 1.50 | 1.50 |",
        "| between operations | 2.25 | 2.25 |",
        "| all | 3.75 | 3.75 |",
        "| without the profiler | 3.50 | 3.50 |",
    ]


def test_table_of_stacks_reads_results_with_and_without_a_dense_rate(load: Load) -> None:
    table = load("speed_tables").stacked
    old = {
        "targets": ["query", "value"],
        "batch": 4,
        "client_steps_per_second": {"group_size 1": 10.0, "plain PEFT loop": 8.0},
        "times_plain_peft_loop": {"group_size 1": 1.25, "plain PEFT loop": 1.0},
    }
    assert table({"cases": [old]}).splitlines()[2] == "| query, value, 4 | 10 | 8 | 1.25 |"
    shares = {"group_size 1": 0.5, "group_size 8": 0.614, "plain PEFT loop": 0.9}
    new = {
        **old,
        "shape": "roberta-large",
        "blocks": 2,
        "client_steps_per_second": {"group_size 1": 10.0, "group_size 8": 12.0, "plain PEFT loop": 8.0},
        "share_of_dense_rate": shares,
    }
    small = {**new, "blocks": None, "client_steps_per_second": old["client_steps_per_second"]}
    first, second = table({"cases": [small, new]}).splitlines()[2:]
    assert first == "| roberta-large: query, value, 4 | 10 | 8 | – | 1.25 | 50% |"
    assert second == "| roberta-large, 2 blocks: query, value, 4 | 10 | 8 | 12 | 1.25 | 61% |"


def test_repeats_are_added_only_to_those_of_the_same_job(load: Load) -> None:
    peers = load("peers")
    run = {"rounds": [3.0, 1.0, 2.0], "start_up": 5.0, "total": 11.0, "peak_mb": 7}
    slow = {"rounds": [9.0, 4.0, 4.0], "start_up": 7.0, "total": 24.0, "peak_mb": 8}
    found = peers.summarise([run, slow])
    assert (found["seconds_a_round"], found["seconds_of_first_round"], found["peak_mb"]) == (3.0, 6.0, 8)
    assert peers.summarise(found["runs"]) == found, "what is written is enough to go on from"
    before = {"job": {"steps": 2}, "contenders": {"fedrot": {}, "plain": {}}}
    peers.check_same("--add: partial", before, {"job": {"steps": 2}, "contenders": ["fedrot", "plain"]})
    with pytest.raises(SystemExit, match=r"job was \{'steps': 2\}, now it is \{'steps': 5\}"):
        peers.check_same("--add: partial", before, {"job": {"steps": 5}})
    with pytest.raises(SystemExit, match=r"contenders was .* leave --add out"):
        peers.check_same("--add: partial", before, {"contenders": ["fedrot"]})


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
