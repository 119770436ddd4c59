"""Nodes with training data of their own: the same numbers as one machine that has it all, and clear refusals."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from rich.console import Console

from fedrot.config import RunConfig, parse_config
from fedrot.engines.finish import is_score
from fedrot.engines.flower.app import client_app
from fedrot.engines.flower.grid import InProcessGrid
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.run import run_over, serve
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError, TrainingError
from fedrot.outcome import print_outcome
from fedrot.rundir import RunDirectory
from tests.flower.federation import Heard
from tests.language import jsonl, rows, tiny_llama

Make = Callable[..., RunConfig]
SITES = ("north", "south", "west")


@pytest.fixture
def tables(corpus: Path, tmp_path: Path) -> Path:
    """A training table of three sites, each site's part in a file of its own, and a table held out for tests."""
    with corpus.open() as file:
        rows = list(csv.DictReader(file))
    parts = {"test": rows[:60], "train": [dict(row, site=SITES[i % 3]) for i, row in enumerate(rows[60:])]}
    parts |= {site: [row for row in parts["train"] if row["site"] == site] for site in SITES}
    for name, part in parts.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(part[0]))
            writer.writeheader()
            writer.writerows(part)
    return tmp_path


def nodes(tables: Path, **other: Any) -> list[NodeSettings]:
    """One node for each site."""
    return [
        NodeSettings(site, (index,), data=str(tables / f"{site}.csv"), model=other.get("model"), device="cpu")
        for index, site in enumerate(SITES)
    ]


def federate(config: RunConfig, settings: list[NodeSettings], out: Path, **options: Any) -> RunResult:
    workers = [Worker(one) for one in settings]

    def worker_of(message: Message, context: Context) -> Worker:
        return workers[int(context.node_config["number"])]

    grid = InProcessGrid(client_app(worker_of), [{"number": index} for index in range(len(workers))])
    return serve(grid, prepare(config), RunDirectory(out), options.pop("observer", Observer()), **options)


@pytest.fixture
def apart(recipe: Make, tables: Path) -> Callable[..., RunConfig]:
    """The recipe of a federation whose nodes bring their data."""

    def make(**options: Any) -> RunConfig:
        base = recipe()
        task = {"data": "nodes", "test_data": str(tables / "test.csv"), "max_length": 24}
        return recipe(
            **{
                "task": {**task, "validation_fraction": 0.0},
                "partition": {"kind": "iid"},
                "federation": {"clients": 3, "rounds": 3, "group_size": 1},
                "model": {"path": base.model.path, "pooling": "mean"},
                **options,
            }
        )

    return make


def test_nodes_with_their_own_files_give_the_adapter_of_one_machine_that_has_them_all(
    recipe: Make, apart: Make, tables: Path, tmp_path: Path
) -> None:
    task = {"data": str(tables / "train.csv"), "test_data": str(tables / "test.csv"), "max_length": 24}
    together = recipe(
        task={**task, "validation_fraction": 0.0},
        partition={"kind": "natural-id", "partition_by": "site"},
        federation={"clients": 3, "rounds": 3, "group_size": 1},
    )
    local = run(together, out=tmp_path / "local")
    model = together.model.path
    flower = federate(apart(), nodes(tables, model=model), tmp_path / "flower")
    for key, tensor in local.adapter.tensors().items():
        assert float((tensor - flower.adapter.tensors()[key]).abs().max()) <= 1e-6
    for mine, theirs in zip(local.records, flower.records, strict=True):
        assert mine["accuracy"] == theirs["accuracy"]
    assert flower.summary["examples"]["train"] == local.summary["examples"]["train"]


def test_own_parts_of_clients_are_trained_and_not_scored_where_no_node_has_a_test_split(
    apart: Make, tables: Path, tmp_path: Path
) -> None:
    config = apart(method={"name": "fedsa"}, federation__rounds=2, output={"report": True})
    heard = Heard()
    settings = [replace(one, kept=str(tmp_path / one.name)) for one in nodes(tables, model=config.model.path)]
    result = federate(config, settings, tmp_path / "run", observer=heard)
    assert any("clients' own models are not evaluated" in note for note in heard.notes)
    assert [record["client_ids"] for record in result.records] == [[0, 1, 2]] * 2
    assert not any(is_score(name) for record in result.records for name in record)
    assert all(len(list((tmp_path / one.name).rglob("*.safetensors"))) == 2 for one in settings)
    shown = io.StringIO()
    print_outcome(Console(file=shown), result.directory, result.summary)
    assert "no round was evaluated" in shown.getvalue()


def test_several_clients_of_a_node_share_its_data(apart: Make, tables: Path, tmp_path: Path) -> None:
    config = apart()
    both = NodeSettings("both", (0, 1), data=str(tables / "north.csv"), model=config.model.path, device="cpu")
    third = nodes(tables, model=config.model.path)[2]
    result = federate(config, [both, third], tmp_path / "run")
    assert result.records[-1]["client_ids"] == [0, 1, 2]


def test_nodes_of_lower_rank_train_at_it(apart: Make, tables: Path, tmp_path: Path) -> None:
    config = apart(method={"name": "fedit"})
    settings = nodes(tables, model=config.model.path)
    settings[1] = replace(settings[1], rank=1)
    mixed = federate(config, settings, tmp_path / "mixed")
    even = federate(config, nodes(tables, model=config.model.path), tmp_path / "even")
    assert mixed.records[0]["bytes_up"] < even.records[0]["bytes_up"]
    refusing = apart(method={"name": "florist"})
    with pytest.raises(TrainingError, match=r"node 'south'.*rank = 1.*all clients of method 'florist' need"):
        federate(refusing, settings, tmp_path / "refused")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": None}, r"node 'south' has no data"),
        (
            {"data": "missing.csv"},
            r"node 'south': DataError while reading its own data \(task\.data\); the node's log has the details",
        ),
        (
            {"model": None},
            r"node 'south': the recipe asks for model.path = .* which the node's owner did not name",
        ),
        ({"clients": (7,)}, r"node 'south' hosts client 7: expected 0 to 2"),
    ],
)
def test_a_node_that_cannot_train_is_named(
    apart: Make, tables: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = apart()
    settings = nodes(tables, model=config.model.path)
    settings[1] = replace(settings[1], **change)
    with pytest.raises(TrainingError, match=said):
        federate(config, settings, tmp_path / "run")


def test_a_label_that_the_server_does_not_know_is_named_with_its_row_in_the_nodes_log_alone(
    apart: Make, tables: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = apart()
    with (tables / "south.csv").open("a") as file:
        file.write("something else,poetry,south\n")
    with pytest.raises(TrainingError, match=r"node 'south': DataError while reading its own data") as caught:
        federate(config, nodes(tables, model=config.model.path), tmp_path / "run")
    assert "poetry" not in str(caught.value)
    assert "row 61 has the label 'poetry'" in caplog.text


def test_declared_labels_number_the_classes(apart: Make, tables: Path, tmp_path: Path) -> None:
    base = apart()
    task = base.task.model_copy(update={"labels": ["sport", "poetry", "money", "code"]})
    config = base.model_copy(update={"task": task})
    with (tables / "south.csv").open("a") as file:
        file.write("something else,poetry,south\n")
    result = federate(config, nodes(tables, model=config.model.path), tmp_path / "run")
    assert result.summary["labels"] == ["sport", "poetry", "money", "code"]


@pytest.mark.parametrize("engine", [{"name": "local"}, {"name": "flower"}])
def test_on_one_machine_data_that_lies_with_nodes_is_refused(
    apart: Make, tmp_path: Path, engine: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"task.data = 'nodes'.*fedrot deploy run"):
        run(apart(engine=engine), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_server_needs_examples_to_test_on(apart: Make) -> None:
    with pytest.raises(ConfigError, match=r"task.test_data: missing"):
        prepare(apart(task={"data": "nodes"}))


def test_without_nodes_the_server_says_whom_it_waits_for(apart: Make, tmp_path: Path) -> None:
    grid = InProcessGrid(client_app(lambda message, context: None), [])  # type: ignore[arg-type, return-value]
    heard = Heard()
    with pytest.raises(
        TrainingError, match=r"nodes of 3 clients are needed, but none within engine.wait = 0.3 s"
    ):
        run_over(grid, apart(engine={"name": "flower", "wait": 0.3}), RunDirectory(tmp_path / "run"), heard)
    assert any("clients 0, 1, 2 have none yet" in told for told in heard.waits)


def test_nodes_teach_a_language_model_from_files_of_their_own(tmp_path: Path) -> None:
    """The same numbers as one machine that has all conversations, dealt by who asks; long ones are dropped on both."""
    model = tiny_llama(tmp_path / "model")
    told = list({row["prompt"]: row for row in rows(120)}.values())  # none twice, so that none is left out
    jsonl(tmp_path / "test.jsonl", told[:16])
    jsonl(tmp_path / "train.jsonl", told[16:])
    askers = sorted({row["who"] for row in told})
    for who in askers:
        jsonl(tmp_path / f"{who}.jsonl", [row for row in told[16:] if row["who"] == who])
    task = {
        "name": "generate",
        "test_data": str(tmp_path / "test.jsonl"),
        "max_length": 14,
        "overlong": "drop",
        "validation_fraction": 0.0,
    }

    def recipe(data: str) -> RunConfig:
        return parse_config(
            {
                "seed": 3,
                "model": {"path": str(model)},
                "lora": {"rank": 2, "alpha": 4.0},
                "task": {**task, "data": data},
                "partition": {"kind": "natural-id", "partition_by": "who"}
                if data != "nodes"
                else {"kind": "iid"},
                "train": {"lr": 0.1, "optimizer": "sgd", "local_steps": 2, "batch_size": 4, "device": "cpu"},
                "federation": {"clients": 3, "rounds": 2, "group_size": 1},
                "output": {"report": False},
            }
        )

    settings = [
        NodeSettings(who, (index,), data=str(tmp_path / f"{who}.jsonl"), model=str(model), device="cpu")
        for index, who in enumerate(askers)
    ]
    apart = federate(recipe("nodes"), settings, tmp_path / "apart")
    together = run(recipe(str(tmp_path / "train.jsonl")), out=tmp_path / "together")
    assert any("examples of train dropped" in note for note in together.summary["notes"])
    assert apart.records[-1]["perplexity"] < apart.records[0]["perplexity"]
    for key, tensor in together.adapter.tensors().items():
        assert float((tensor - apart.adapter.tensors()[key]).abs().max()) <= 1e-6
