"""Whole comparisons on a tiny model: what they compute, keep, refuse and survive."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedrot.comparison import Comparison, Watcher, compare
from fedrot.comparison.budget import estimate_budget
from fedrot.comparison.command import print_budget, run_command
from fedrot.comparison.pool import Task
from fedrot.comparison.reading import make_design
from fedrot.comparison.run import plan
from fedrot.comparison.store import Store
from fedrot.comparison.table import difference, rows
from fedrot.config import RunConfig, parse_config
from fedrot.engines.run import run
from fedrot.errors import ConfigError, OutputError, TrainingError
from tests.processes import fedrot, start

Small = Callable[..., dict[str, Any]]
Make = Callable[..., RunConfig]
CLOCK = {"seconds", "training_seconds"}


class Log(Watcher):
    """What was run, and how many cells were there already."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.there: list[int] = []

    def began(self, task: Task) -> None:
        self.ran.append(task.payload["name"])

    def phase(self, name: str, tasks: int, done: int, later: int) -> None:
        self.there.append(done)


def arm(found: Comparison, variant: str, **point: Any) -> dict[str, Any]:
    wanted = {key.replace("__", "."): value for key, value in point.items()}
    return next(a for a in found.results["arms"] if a["variant"] == variant and a["point"] == wanted)


def test_cells_are_the_runs_of_fedrot_run(small: Small, tmp_path: Path) -> None:
    recipe = small(lora__layers="last:1", train__cache_frozen=True)
    found = compare(recipe, methods=["fedit", "fedrot"], seeds=[3, 4], out=tmp_path / "c")
    assert found.failed == []
    store = Store(found.directory)
    for variant in ("fedit", "fedrot"):
        for seed in (3, 4):
            alone = parse_config(recipe | {"seed": seed, "method": {"name": variant}})
            result = run(alone, out=tmp_path / f"{variant}-{seed}")
            records = store.metrics(arm(found, variant)["keys"][str(seed)])
            assert [{k: v for k, v in r.items() if k not in CLOCK} for r in records] == [
                {k: v for k, v in r.items() if k not in CLOCK} for r in result.records
            ]
            assert arm(found, variant)["values"]["accuracy"][str(seed)] == result.records[-1]["accuracy"]
    left = {path.name for path in found.directory.iterdir()}
    assert left == {"plan.json", "cells", "results.json", "table.md", "compare.html"}
    assert not list(store.cells.glob("*.run")), "run directories are gone, adapters with them"
    difference = arm(found, "fedrot")["difference"]["accuracy"]
    ours, base = (arm(found, name)["values"]["accuracy"] for name in ("fedrot", "fedit"))
    assert difference["mean"] == pytest.approx(sum(ours[s] - base[s] for s in ours) / 2)


def test_the_best_setting_on_validation_runs_and_trials_are_not_repeated(
    small: Small, tmp_path: Path
) -> None:
    log = Log()
    found = compare(
        small(federation__rounds=1),
        methods=["fedit", "fedrot"],
        seeds=[3, 4],
        tune={"train.lr": [1e-4, 0.03]},
        out=tmp_path / "c",
        watcher=log,
    )
    assert len(log.ran) == len(set(log.ran)) == 2 * (2 + 1)
    assert log.there == [0, 2], "what was run to choose is not run again"
    for entry in found.results["arms"]:
        means = {trial["setting"]["train.lr"]: trial["mean"] for trial in entry["tuning"]}
        assert entry["chosen"]["train.lr"] == max(means, key=lambda lr: means[lr])
        for seed, key in entry["keys"].items():
            cell = Store(found.directory).cell(key)
            assert cell is not None
            assert cell["config"]["train"]["lr"] == entry["chosen"]["train.lr"]
            assert cell["config"]["seed"] == int(seed)
    tried = {
        trial["validation_accuracy"].keys() == {"3"} for a in found.results["arms"] for trial in a["tuning"]
    }
    assert tried == {True}, "the first seed chooses"


def test_a_comparison_is_extended_and_finished_cells_are_not_run_again(small: Small, tmp_path: Path) -> None:
    recipe, out = small(federation__rounds=1), tmp_path / "c"
    one = compare(recipe, methods=["fedit"], seeds=[3], out=out)
    assert any("One seed" in note for note in one.results["notes"])
    assert arm(one, "fedit")["mean"]["accuracy"]["low"] is None
    log = Log()
    more = compare(None, methods=["fedit", "ffa"], seeds=[3, 4], out=out, resume=True, watcher=log)
    assert sorted(log.ran) == ["fedit, seed 4", "ffa, seed 3", "ffa, seed 4"]
    assert arm(more, "fedit")["values"]["accuracy"]["3"] == arm(one, "fedit")["values"]["accuracy"]["3"]
    with pytest.raises(OutputError, match=r"already holds a comparison.*--resume"):
        compare(recipe, methods=["fedit"], seeds=[3], out=out)
    for changes, said in (
        ({"seeds": [4, 5]}, "seed 3: left out"),
        ({"methods": ["rolora"], "variants": {}, "baseline": "rolora"}, "variant 'fedit': left out"),
        ({"grid": {"lora.rank": [2, 4]}}, "grid point (the recipe): left out"),
        ({"overrides": ["train.lr=0.5"]}, "train.lr: 0.01 -> 0.5"),
    ):
        before = (out / "plan.json").read_text()
        with pytest.raises(OutputError) as refusal:
            compare(None, **({"out": out, "resume": True} | changes))
        assert said in str(refusal.value)
        assert (out / "plan.json").read_text() == before
    with pytest.raises(OutputError, match="holds no comparison"):
        compare(recipe, methods=["fedit"], seeds=[3], out=tmp_path / "empty", resume=True)


def test_clients_that_cannot_be_dealt_are_refused_before_anything_is_trained(
    small: Small, tmp_path: Path
) -> None:
    recipe, out = small(federation__rounds=1), tmp_path / "c"
    asked = {"methods": ["fedit", "ffa"], "seeds": [3, 4], "grid": {"federation.clients": [2, 5000, 6000]}}
    with pytest.raises(ConfigError) as refusal:
        compare(recipe, **asked, out=out)
    said = str(refusal.value)
    assert said.startswith("fedit at clients = 5000, seed 3: ")
    assert "(3 more of the partitions compared cannot be dealt)" in said, "the methods share partitions"
    assert not out.exists()
    quiet = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match="clients = 5000"):
        print_budget(plan(recipe, asked)[0], out, resume=False, jobs=1, console=quiet, errors=quiet)


def test_a_failing_cell_is_recorded_marked_and_tried_again(small: Small, tmp_path: Path) -> None:
    recipe = small(federation__rounds=1)
    variants = {"fine": {"method.name": "fedit"}, "broken": {"lora.target_modules": ["nowhere"]}}
    found = compare(recipe, variants=variants, seeds=[3], out=tmp_path / "c")
    assert len(found.failed) == 1
    assert "broken, seed 3: lora.target_modules" in found.failed[0]
    assert "accuracy" in arm(found, "fine")["mean"], "the others go on"
    table = {row[0]: row for row in rows(found.results, {})}
    assert table["broken"][3] == "0 of 1: 1 failed"
    assert "no layer matches" in (found.directory / "table.md").read_text("utf-8")
    log = Log()
    compare(None, out=tmp_path / "c", resume=True, watcher=log)
    assert log.ran == ["broken, seed 3"]


@pytest.mark.parametrize(
    ("variant", "unlike", "key"),
    [
        ({"partition.alpha": 50.0}, "partition", "partition.alpha: 1.0 -> 50.0"),
        ({"lora.rank": 4}, "initial adapter", "lora.rank: 2 -> 4"),
        ({"task.test_fraction": 0.3}, "test rows", "task.test_fraction: 0.2 -> 0.3"),
    ],
)
def test_variants_that_do_not_start_alike_are_refused(
    small: Small, tmp_path: Path, variant: Mapping[str, Any], unlike: str, key: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        compare(
            small(federation__rounds=1),
            variants={"one": {"method.name": "fedrot"}, "other": variant},
            seeds=[3],
            out=tmp_path / "c",
        )
    assert "'one' and 'other' do not start alike with seed 3" in str(refusal.value)
    assert unlike in str(refusal.value)
    assert key in str(refusal.value)


def test_grid_points_may_differ_in_what_variants_may_not(small: Small, tmp_path: Path) -> None:
    recipe = small(federation__rounds=1)
    grid = {"federation.clients": [2, 4], "method.strength": [0.5]}
    found = compare(recipe, methods=["fedit", "fedrot"], seeds=[3], grid=grid, out=tmp_path / "c")
    assert found.failed == []
    assert arm(found, "fedit", federation__clients=2, method__strength=0.5)["mean"]["bytes"][
        "mean"
    ] == pytest.approx(
        arm(found, "fedit", federation__clients=4, method__strength=0.5)["mean"]["bytes"]["mean"] / 2
    )


def test_differences_are_given_in_points_with_their_interval() -> None:
    entry = {
        "variant": "fedrot",
        "difference": {"accuracy": {"mean": 0.0123, "low": -0.004, "high": 0.0286, "seeds": 3}},
    }
    assert difference(entry, "fedit") == "+1.2 [−0.4, +2.9]"
    assert difference(entry, "fedrot") == "baseline"


def test_a_budget_counts_cells_and_takes_longer_for_longer_runs(small: Small) -> None:
    def budget(rounds: int, jobs: int = 1) -> Any:
        table = {"methods": ["fedit", "fedrot"], "seeds": [1, 2, 3], "grid": {"federation.rounds": [rounds]}}
        return estimate_budget(make_design(small(), table, {}), jobs=jobs)

    short, long = budget(10), budget(10_000)
    assert (short.cells, short.done) == (6, 0)
    assert 0 < short.seconds < long.seconds / 20
    assert set(short.by_arm) == {"fedit at rounds = 10", "fedrot at rounds = 10"}
    assert short.wall == short.seconds


def test_ctrl_c_ends_the_workers_and_the_comparison_goes_on_later(recipe: Make, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "c"
    path.write_text(recipe(federation__rounds=25, federation__evaluate_every=25).to_toml(), "utf-8")
    arguments = [str(path), "--methods", "fedit", "--seeds", "3", "--jobs", "2", "--out", str(out)]
    process = start("compare", *arguments)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*.run/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.signal(signal.SIGINT)
    ended = process.wait(60)
    assert ended.returncode == 130, ended.stderr
    assert f"fedrot compare --resume --out {out}" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    stopped = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.run/metrics.jsonl")}
    assert stopped
    time.sleep(0.3)
    assert {path: path.stat().st_mtime_ns for path in stopped} == stopped, "no worker is left"
    found = compare(None, out=out, resume=True)
    assert found.failed == []
    assert len(arm(found, "fedit")["by_round"]) == 25
    assert not list(out.glob("cells/*.run"))


def command(recipe: Path, out: Path, **options: Any) -> tuple[Callable[[], int], io.StringIO]:
    """`fedrot compare` in this process, and what it prints."""
    none = dict.fromkeys(("methods", "seeds", "variant", "grid", "tune", "trials", "tune_seeds", "baseline"))
    plain: dict[str, Any] = {
        "jobs": 1,
        "resume": False,
        "keep_adapters": False,
        "budget": False,
        "overrides": (),
    }
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    given = {
        **none,
        "one_factor": False,
        **plain,
        "console": console,
        "errors": console,
        "out": out,
    } | options
    return lambda: run_command(recipe, **given), printed


def test_the_command_prints_the_table_and_tells_of_failures(recipe: Make, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "c"
    path.write_text(recipe(federation__rounds=1).to_toml(), "utf-8")
    bad = ["bad: lora.target_modules=nowhere"]
    go, printed = command(path, out, methods="fedit", variant=bad, seeds="3", keep_adapters=True)
    with pytest.raises(TrainingError, match="1 cells have no result") as refusal:
        go()
    assert refusal.value.exit_code == 6
    assert "1/2  fedit, seed 3  accuracy" in printed.getvalue()
    assert "against fedit" in printed.getvalue()
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["baseline"] == "fedit"
    (key,) = results["arms"][0]["keys"].values()
    assert (out / "adapters" / key / "adapter_model.safetensors").exists()


def test_the_command_says_beforehand_how_long_it_takes(recipe: Make, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "c"
    path.write_text(recipe(federation__rounds=1).to_toml(), "utf-8")
    go, printed = command(path, out, methods="fedit,ffa", seeds="3,4", jobs=2, budget=True)
    assert go() == 0
    assert "4 runs, 0 done already, 4 to go: about" in printed.getvalue()
    assert not out.exists()
    compare(path, methods=["fedit"], seeds=[3], out=out)
    go, printed = command(path, out, methods="fedit,ffa", seeds="3,4", resume=True, budget=True)
    assert go() == 0
    assert "4 runs, 1 done already, 3 to go" in printed.getvalue()


def test_the_command_line_refuses_an_unknown_grid_key(recipe: Make, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe().to_toml(), "utf-8")
    asked = ["--methods", "fedit", "--seeds", "3", "--grid", "federation.client=3", "--budget"]
    refused = fedrot("compare", path, *asked)
    assert refused.returncode == 2
    assert "did you mean 'clients'" in refused.stderr
    assert "Traceback" not in refused.stderr
