"""Privacy over Flower: the local engine's numbers, and nothing said that must not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict

from fedrot.config import RunConfig
from fedrot.engines.flower.messages import (
    FACTS,
    HELLO,
    TRAIN,
    Hello,
    Welcome,
    read,
    written,
)
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.run import in_process_grid, run_over
from fedrot.engines.flower.versions import version
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError
from fedrot.privacy import noise_for
from fedrot.rundir import RunDirectory
from tests.flower.federation import asked_to_train

Make = Callable[..., RunConfig]


def private(recipe: Make, **keys: Any) -> RunConfig:
    given = {
        "privacy__mechanism": "local",
        "privacy__noise_source": "seed",
        "privacy__clip": 0.2,
        "privacy__noise": 0.1,
        "federation__weighting": "uniform",
    }
    return recipe(**(given | keys))


@pytest.mark.parametrize("mechanism", ["central", "local"])
@pytest.mark.parametrize("method", ["fedrot", "rolora"])
def test_a_private_run_ends_with_the_adapter_of_the_local_engine(
    recipe: Make, tmp_path: Path, mechanism: str, method: str
) -> None:
    keys: dict[str, Any] = {"privacy__mechanism": mechanism, "method": {"name": method}}
    local = run(private(recipe, **keys), out=tmp_path / "local")
    flower = run(private(recipe, engine__name="flower", engine__nodes=2, **keys), out=tmp_path / "flower")
    theirs = flower.adapter.tensors()
    # Noise moves Adam's first steps away from zero, so that rounding is not turned into whole steps.
    assert max(float((t - theirs[key]).abs().max()) for key, t in local.adapter.tensors().items()) <= 1e-5
    for mine, other in zip(local.records, flower.records, strict=True):
        assert mine["epsilon"] == other["epsilon"]
        assert mine.keys() - other.keys() == set()
    assert local.summary["privacy"] == flower.summary["privacy"]


def answer(config: RunConfig, settings: NodeSettings) -> tuple[Worker, RecordDict]:
    """What a node says to a training message for client 0."""
    federation = prepare(config)
    worker = Worker(settings)
    return worker, worker.handle(TRAIN, asked_to_train(federation, config, 2))


def test_with_local_privacy_a_node_sends_arrays_and_nothing_else(recipe: Make) -> None:
    settings = NodeSettings("one", (0,), trusts_recipe=True)
    _, told = answer(private(recipe, privacy__mechanism="central"), settings)
    assert set(told) == {"upload-0", "metrics-0"}
    _, silent = answer(private(recipe), settings)
    assert set(silent) == {"upload-0"}


def test_a_node_draws_new_noise_every_time_it_is_asked(recipe: Make) -> None:
    config = private(recipe, privacy__noise_source="system")
    settings = NodeSettings("one", (0,), trusts_recipe=True)
    replies = [answer(config, settings)[1].array_records["upload-0"] for _ in range(2)]
    first, second = ({key: array.numpy() for key, array in reply.items()} for reply in replies)
    assert all((first[key] != second[key]).any() for key in first)


def test_with_local_privacy_and_data_of_its_own_a_node_does_not_tell_how_much(
    recipe: Make, tiny_model: Path, corpus: Path
) -> None:
    node = NodeSettings("one", (0,), data=str(corpus), model=str(tiny_model))
    for mechanism, expected in (("central", 240), ("local", 1)):
        config = private(recipe, privacy__mechanism=mechanism, privacy__noise_source="system")
        task = config.task.model_copy(update={"data": "nodes", "test_data": str(corpus)})
        told = config.model_copy(update={"task": task})
        hello = Hello(version(), told.to_toml(), ["code", "money", "sport"])
        reply = Worker(node).handle(HELLO, RecordDict({FACTS: written(hello)}))
        assert read(Welcome, reply, "node").examples == [expected]


def test_noise_from_the_seed_is_refused_by_a_node_and_by_a_server_of_other_peoples_nodes(
    recipe: Make, tmp_path: Path, tiny_model: Path, corpus: Path
) -> None:
    config = private(recipe)
    hello = Hello(version(), config.to_toml(), ["code", "money", "sport"])
    worker = Worker(NodeSettings("one", (0,), data=str(corpus), model=str(tiny_model)))
    with pytest.raises(ConfigError, match=r"privacy\.noise_source = 'seed'"):
        worker.handle(HELLO, RecordDict({FACTS: written(hello)}))
    grid = in_process_grid(prepare(config))
    with pytest.raises(ConfigError, match=r"privacy\.noise_source = 'seed'"):
        run_over(grid, config, RunDirectory(tmp_path / "run"), Observer())


def test_a_node_with_a_rank_of_its_own_is_refused(recipe: Make, tmp_path: Path) -> None:
    from fedrot.engines.flower.roster import Roster

    federation = prepare(private(recipe))
    roster = Roster(in_process_grid(federation), federation, Observer())
    with pytest.raises(Exception, match=r"rank = 1: with privacy\.mechanism = 'local'"):
        roster._check_client("node 'one'", 0, len(federation.partition.rows[0]), 1)


def test_a_client_that_tells_its_loss_all_the_same_is_rejected_by_name(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Worker.handle

    def talkative(self: Worker, message_type: str, content: RecordDict) -> RecordDict:
        reply = original(self, message_type, content)
        if message_type == TRAIN and "upload-1" in reply:
            reply["metrics-1"] = MetricRecord({"loss": 0.5})
        return reply

    monkeypatch.setattr(Worker, "handle", talkative)
    result = run(private(recipe, engine__name="flower"), out=tmp_path / "run")
    for record in result.records:
        assert "sent loss with its update" in record["rejected_clients"]["1"]
        assert record["clients"] == 3


def test_a_node_stops_training_when_its_owners_budget_is_spent(recipe: Make, tmp_path: Path) -> None:
    config = private(
        recipe, privacy__noise_source="system", privacy__noise=noise_for(8.0, 1e-5, rounds=1) * 1.01
    )
    ledger = str(tmp_path / "privacy.json")
    settings = NodeSettings("one", (0,), trusts_recipe=True, epsilon=8.0, ledger=ledger)
    assert set(answer(config, settings)[1]) == {"upload-0"}
    with pytest.raises(ConfigError, match="one more message of client 0 would bring it to epsilon"):
        answer(config, settings)
    with pytest.raises(ConfigError, match=r"privacy\.mechanism = 'central'"):
        answer(private(recipe, privacy__mechanism="central"), settings)
