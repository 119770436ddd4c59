"""Methods that leave a part of the model with clients, over Flower: as locally, and through kills and resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from safetensors.torch import load_file

import fedrot
from fedrot.checkpoint import load_checkpoint
from fedrot.config import RunConfig
from fedrot.config.sections import EngineConfig, MethodConfig
from fedrot.engines import rounds, training
from fedrot.engines.export import export
from fedrot.engines.finish import is_score
from fedrot.engines.flower.messages import FACTS, REFUSED, TRAIN, Order, pack_broadcast, written
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.run import run_flower
from fedrot.engines.flower.versions import version
from fedrot.engines.flower.worker import Worker
from fedrot.engines.local import run_local
from fedrot.engines.rounds import RunResult
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import OutputError
from fedrot.model import fingerprint
from fedrot.rundir import RunDirectory
from fedrot.server import ServerState
from tests.flower.federation import disturbed_run

Make = Callable[..., RunConfig]


@pytest.fixture
def personal(recipe: Make) -> Make:
    """Three rounds of `fedsa`, half of four clients in each, two nodes."""

    def make(**options: Any) -> RunConfig:
        sgd = {"optimizer": "sgd", "lr": 0.1, "local_steps": 3, "batch_size": 4, "device": "cpu"}
        own = {
            "method": {"name": "fedsa"},
            "train": sgd,
            "federation__fraction": 0.5,
            "federation__rounds": 3,
            "engine__name": "flower",
            "engine__nodes": 2,
        }
        return recipe(**{**own, **options})

    return make


def state_of(out: Path) -> ServerState:
    stored = load_checkpoint(out / "checkpoint")
    assert stored is not None
    return stored.state


def check_alike(local: Path, flower: Path, one: RunResult, other: RunResult) -> None:
    mine, theirs = state_of(local), state_of(flower)
    for key, tensor in mine.adapter.tensors().items():
        assert float((tensor - theirs.adapter.tensors()[key]).abs().max()) <= 1e-6, key
    assert theirs.apart is not None
    assert sorted(mine.personal) == sorted(theirs.apart.rounds)
    assert not theirs.personal
    for client, round in theirs.apart.rounds.items():
        (path,) = (flower / "kept").glob(f"*/client-{client:06d}/round-{round:06d}.safetensors")
        for key, tensor in load_file(path).items():
            assert float((tensor - mine.personal[client][key]).abs().max()) <= 1e-6, (client, key)
    for here, there in zip(one.records, other.records, strict=True):
        assert here["client_ids"] == there["client_ids"]
        scores = [name for name in here if is_score(name)]
        assert {"accuracy", "local_accuracy", "eval_loss"} <= {*scores}
        assert scores == [name for name in there if is_score(name)]
        for name in (*scores, "loss", "drift"):
            assert there[name] == pytest.approx(here[name], abs=1e-6), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "task__validation_fraction": 0.2,
            "lora__ranks": [1, 2, 1, 2],
            "engine__nodes": 3,
            "federation__stale": 0.5,
            "federation__dropout": 0.3,
        },
    ],
    ids=["plain", "mixed, stale and dropped"],
)
def test_shared_part_and_metrics_are_those_of_the_local_engine(
    personal: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {**options, "output__personal": True}
    local = run(personal(**options, engine={"name": "local"}), out=tmp_path / "local")
    flower = run(personal(**options), out=tmp_path / "flower")
    check_alike(tmp_path / "local", tmp_path / "flower", local, flower)
    written = sorted(path.name for path in (tmp_path / "local" / "personal").iterdir())
    assert written
    for name in written:
        client = f"client-{int(name.removeprefix('client-')):06d}"
        (there,) = (tmp_path / "flower" / "kept").glob(f"*/{client}/adapter/adapter_model.safetensors")
        theirs = load_file(there)
        for key, tensor in load_file(tmp_path / "local" / "personal" / name / there.name).items():
            assert float((tensor - theirs[key]).abs().max()) <= 1e-6, (client, key)
    assert "aggregation_error" not in flower.records[0], "the server sees one factor alone"
    assert flower.records[-1]["bytes_evaluation"] > 0


class Crash(Exception):
    """The server ends here."""


def crash_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The server ends when nodes have trained round `number` and before it has saved it."""
    save = rounds.save_checkpoint

    def saved(directory: Path, state: ServerState, *rest: Any, **options: Any) -> Path:
        if state.round == number:
            raise Crash
        return save(directory, state, *rest, **options)

    monkeypatch.setattr(rounds, "save_checkpoint", saved)


def test_a_resumed_run_goes_on_from_parts_of_its_checkpoint_and_not_from_those_one_round_ahead(
    personal: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = personal(federation__rounds=4, federation__fraction=0.75)
    local = run(config.model_copy(update={"engine": EngineConfig()}), out=tmp_path / "local")
    with monkeypatch.context() as patch:
        crash_after(patch, 3)
        with pytest.raises(Crash):
            run(config, out=tmp_path / "part")
    ahead = {path.stem for path in (tmp_path / "part" / "kept").rglob("*.safetensors")}
    assert "round-000003" in ahead
    assert state_of(tmp_path / "part").round == 2
    resumed = run(config, out=tmp_path / "part", resume=True)
    check_alike(tmp_path / "local", tmp_path / "part", local, resumed)


def test_a_client_whose_parts_are_gone_is_dropped_by_name_and_round_and_not_begun_anew(
    personal: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = personal(federation__rounds=2, federation__fraction=1.0)
    crash_after(monkeypatch, 2)
    with pytest.raises(Crash):
        run(config, out=tmp_path / "run")
    monkeypatch.undo()
    for path in (tmp_path / "run" / "kept").glob("*/client-000003/*"):
        path.unlink()
    result = run(config, out=tmp_path / "run", resume=True)
    last = result.records[-1]
    assert last["client_ids"] == [0, 1, 2]
    assert last["lost_clients"].keys() == {"3"}
    assert "node 'node-1': what client 3 kept of round 1 of this run is not here" in last["lost_clients"]["3"]
    assert "what client 3 kept of round 1" in last["unevaluated_clients"]["3"]
    apart = state_of(tmp_path / "run").apart
    assert apart is not None
    assert apart.rounds == {0: 2, 1: 2, 2: 2, 3: 1}


def test_a_node_whose_scores_are_no_numbers_is_left_out_of_the_mean_with_the_reason(
    personal: Make, tmp_path: Path
) -> None:
    def disturb(reply: Message) -> Message:
        for name, record in reply.content.metric_records.items():
            if name.startswith("marks-0-"):
                record["accuracy"] = math.nan
        return reply

    config = personal(federation__fraction=1.0, federation__rounds=1)
    result = disturbed_run(config, tmp_path / "run", disturb)
    told = result.records[0]["unevaluated_clients"]
    assert told == {"0": "node 'node-0': client 0, split 'test': accuracy = nan: expected a finite number"}
    assert 0 <= result.records[0]["accuracy"] <= 1


def test_parts_that_are_no_numbers_reject_the_client_although_its_upload_is_sound(
    personal: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = training.train_group

    def trained(*arguments: Any, **options: Any) -> Any:
        found = train(*arguments, **options)
        next(iter(found.adapter.head.values()))[0] = math.nan
        return replace(found, finite=found.adapter.finite(stacked=True))

    monkeypatch.setattr(training, "train_group", trained)
    result = run(personal(federation__fraction=1.0, federation__rounds=1), out=tmp_path / "run")
    assert result.records[0]["rejected_clients"] == dict.fromkeys(["0", "2"], "non-finite loss or update")
    apart = state_of(tmp_path / "run").apart
    assert apart is not None
    assert sorted(apart.rounds) == [1, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output__samples": 2}, r"output.samples = 2: what clients of method.name = 'fedsa' keep"),
        (
            {"privacy__secure_aggregation": True},
            "secure_aggregation = true: clients of method.name = 'fedsa'",
        ),
        ({"privacy": {"mechanism": "local", "noise": 1.0, "clip": 1.0}}, "method 'fedsa'"),
    ],
)
def test_what_does_not_go_together_with_own_parts_is_refused(
    personal: Make, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(fedrot.FedrotError, match=said):
        run(personal(**options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_taken_over_by_the_engine_that_has_not_its_parts(personal: Make, tmp_path: Path) -> None:
    config = personal(federation__rounds=1)
    here = config.model_copy(update={"engine": EngineConfig()})
    longer = {"federation": config.federation.model_copy(update={"rounds": 2})}
    run(config, out=tmp_path / "flower")
    run(here, out=tmp_path / "local")
    with pytest.raises(OutputError, match="begun over Flower"):
        run_local(here.model_copy(update=longer), RunDirectory(tmp_path / "flower"), resume=True)
    with pytest.raises(OutputError, match="begun by the local engine"):
        run_flower(config.model_copy(update=longer), RunDirectory(tmp_path / "local"), resume=True)
    with pytest.raises(OutputError, match="is no trained model without it"):
        export(tmp_path / "flower", merge=True)
    card = json.loads((tmp_path / "flower" / "adapter" / "fedrot.json").read_text("utf-8"))
    assert "what they share" in card["note"]


def test_what_one_recipe_left_with_a_client_does_not_leave_it_under_another(
    personal: Make, tmp_path: Path
) -> None:
    config = personal(federation__rounds=1, federation__fraction=1.0)
    run(config, out=tmp_path / "run")
    state = state_of(tmp_path / "run")
    assert state.apart is not None
    other = config.model_copy(update={"method": MethodConfig(name="fedit")})
    worker = Worker(NodeSettings("one", (0, 1), trusts_recipe=True, kept=str(tmp_path / "run" / "kept")))
    order = Order(
        version=version(),
        base=fingerprint(prepare(other).base),
        recipe=other.to_toml(),
        labels=["code", "money", "sport"],
        run=state.apart.run,
        round=2,
        clients=[0],
        kept=[1],
        scale=state.adapter.scale,
    )
    content = RecordDict({FACTS: written(order), **pack_broadcast(state.adapter, None)})
    reply = worker.handle(TRAIN, content)
    assert not reply.array_records
    assert "has the recipe's method" in str(reply.config_records[REFUSED]["0"])
