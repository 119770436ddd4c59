"""What the server does with nodes that fail, lie, come late or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord

import fedrot
from fedrot.config import RunConfig
from fedrot.engines.flower.messages import upload_name
from fedrot.engines.flower.run import in_process_grid, serve
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import TrainingError
from fedrot.report.page import CHARTS
from fedrot.rundir import RunDirectory
from tests.flower.federation import Heard, disturbed_run, round_of

Make = Callable[..., RunConfig]
Small = Callable[..., RunConfig]


@pytest.fixture
def small(recipe: Make) -> Small:
    """Two rounds of four clients, each on a node of its own."""

    def make(**options: Any) -> RunConfig:
        return recipe(**{"engine__name": "flower", "engine__nodes": 4, **options})

    return make


def client_of(reply: Message) -> int:
    """The one client of a node's reply."""
    return int(next(iter(reply.content.metric_records)).removeprefix("metrics-"))


def exhaust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 2 runs out of memory whenever it trains."""
    original = Worker.handle

    def handle(self: Worker, message_type: str, content: Any) -> Any:
        if self.settings.name == "node-2" and message_type == "train":
            raise MemoryError("no memory left")
        return original(self, message_type, content)

    monkeypatch.setattr(Worker, "handle", handle)


def test_a_client_that_raises_is_dropped_with_the_reason(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exhaust(monkeypatch)
    heard = Heard()
    result = run(small(), out=tmp_path / "run", observer=heard)
    for record in result.records:
        assert record["dropped_clients"] == [2]
        assert "no memory left" in record["lost_clients"]["2"]
        assert record["client_ids"] == [0, 1, 3]
    assert sum("no memory left" in note for note in heard.notes) == 2


def test_the_report_names_why_a_client_was_lost_and_draws_no_line_that_was_not_measured(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exhaust(monkeypatch)
    monkeypatch.setattr("fedrot.report.page.CHARTS", {"aggregation_error": CHARTS["aggregation_error"]})
    config = small(output__report=True, federation__rounds=3)
    result = run(config, out=tmp_path / "run")
    assert result.records[0]["aggregation_error_relative_unaligned"] > 0, "round 1 is not rotated"
    assert "aggregation_error_relative_unaligned" not in result.records[1]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "client 2 (node &#39;node-2&#39;: MemoryError: no memory left)" in page


def test_the_command_line_shows_a_run_over_flower(small: Small, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fedrot.cli import app

    config = small(engine__name="local")
    (tmp_path / "recipe.toml").write_text(config.to_toml(), "utf-8")
    arguments = ["run", str(tmp_path / "recipe.toml"), "--engine", "flower", "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "round 2/2" in shown.output


def poisoned(record: ArrayRecord, change: Callable[[np.ndarray], np.ndarray]) -> ArrayRecord:
    first = next(iter(record))
    return ArrayRecord(
        {key: Array(change(array.numpy())) if key == first else array for key, array in record.items()}
    )


def missing(record: ArrayRecord) -> ArrayRecord:
    return ArrayRecord(dict(list(record.items())[1:]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: poisoned(r, lambda x: x * math.nan), "non-finite"),
        (lambda r: poisoned(r, lambda x: x[:, :-1].copy()), "expected float32"),
        (lambda r: poisoned(r, lambda x: x.astype(np.float64)), "came as float64"),
        (missing, "missing 'sites/"),
        (
            lambda r: ArrayRecord({**r, "head/other": Array(np.zeros(3, np.float32))}),
            "unexpected 'head/other'",
        ),
    ],
    ids=["nan", "shape", "type", "missing", "unexpected"],
)
def test_an_update_that_is_not_what_was_asked_for_is_rejected_and_the_round_goes_on(
    small: Small, tmp_path: Path, change: Callable[[ArrayRecord], ArrayRecord], said: str
) -> None:
    def disturb(reply: Message) -> Message:
        if round_of(reply) and client_of(reply) == 1:
            name = upload_name(1)
            reply.content[name] = change(reply.content.array_records[name])
        return reply

    result = disturbed_run(small(), tmp_path / "run", disturb)
    for record in result.records:
        assert record["client_ids"] == [0, 2, 3]
        assert said in record["rejected_clients"]["1"]
    assert all(bool(tensor.isfinite().all()) for tensor in result.adapter.tensors().values())


def test_measurements_that_are_missing_reject_the_client(small: Small, tmp_path: Path) -> None:
    def disturb(reply: Message) -> Message:
        if round_of(reply) and client_of(reply) == 3:
            reply.content["metrics-3"] = MetricRecord({"loss": 1.0})
        return reply

    result = disturbed_run(small(), tmp_path / "run", disturb)
    assert "steps = None: expected a number" in result.records[0]["rejected_clients"]["3"]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"steps": math.nan}, "steps = nan: expected a whole number"),
        ({"examples": math.inf}, "examples = inf: expected a whole number"),
        ({"steps": -1}, "steps = -1: expected a whole number"),
        ({"drift": math.nan}, "non-finite"),
    ],
)
def test_counts_that_are_none_reject_the_client_and_not_the_run(
    small: Small, tmp_path: Path, lie: dict[str, float], said: str
) -> None:
    def disturb(reply: Message) -> Message:
        if round_of(reply) and client_of(reply) == 3:
            told = {**reply.content.metric_records["metrics-3"], **lie}
            reply.content["metrics-3"] = MetricRecord(told)
        return reply

    result = disturbed_run(small(federation__rounds=1), tmp_path / "run", disturb)
    assert result.records[0]["client_ids"] == [0, 1, 2]
    assert said in result.records[0]["rejected_clients"]["3"]


def test_where_all_nodes_are_late_the_next_round_waits_for_one_and_does_not_pass_without_training(
    small: Small, tmp_path: Path
) -> None:
    federation = prepare(small(engine__nodes=1, engine__deadline=0.5))
    grid = in_process_grid(federation)
    pull, kept, asked = grid.pull_messages, dict[str, Message](), dict[str, int]()

    def pulled(names: Any) -> list[Message]:
        """The reply of round 1 comes when it is asked for the third time after its round."""
        names, found = list(names), list[Message]()
        for reply in pull(names):
            if round_of(reply) == 1:
                kept[reply.metadata.reply_to_message_id] = reply
            else:
                found.append(reply)
        for name in names:
            if name in kept and ended:
                asked[name] = asked.get(name, 0) + 1
                found += [kept.pop(name)] if asked[name] == 3 else []
        return found

    class Watcher(Observer):
        def finished(self, record: Any) -> None:
            ended.append(record["round"])

    ended: list[int] = []
    grid.pull_messages = pulled  # type: ignore[method-assign]
    records = serve(grid, federation, RunDirectory(tmp_path / "run"), Watcher()).records
    assert [record["clients"] for record in records] == [0, 4]
    assert not kept


def test_a_node_that_is_late_is_dropped_at_the_deadline_and_joins_in_when_it_has_answered(
    small: Small, tmp_path: Path
) -> None:
    kept: list[Message] = []
    config = small(engine__deadline=0.5, federation__rounds=4)

    def disturb(reply: Message) -> Message | None:
        if round_of(reply) == 1 and client_of(reply) == 0:
            kept.append(reply)
            return None
        return reply

    federation = prepare(config)
    grid = in_process_grid(federation)
    pull = grid.pull_messages

    def pulled(names: Any) -> list[Message]:
        names = list(names)
        found = [disturb(reply) for reply in pull(names)]
        # The late reply comes once the second round is over.
        if kept and len(watcher.done) == 2 and kept[0].metadata.reply_to_message_id in names:
            found.append(kept.pop())
        return [reply for reply in found if reply is not None]

    class Watcher(Observer):
        def __init__(self) -> None:
            self.done: list[int] = []

        def finished(self, record: Any) -> None:
            self.done.append(record["round"])

    watcher = Watcher()
    grid.pull_messages = pulled  # type: ignore[method-assign]
    records = serve(grid, federation, RunDirectory(tmp_path / "run"), watcher).records
    assert "did not answer within 0.5 s" in records[0]["lost_clients"]["0"]
    assert "has not answered an earlier round yet" in records[1]["lost_clients"]["0"]
    assert records[2]["dropped"] == records[3]["dropped"] == 0


def test_a_node_that_leaves_is_dropped_and_its_clients_come_back_with_it(
    small: Small, tmp_path: Path
) -> None:
    federation = prepare(small(federation__rounds=3))
    grid = in_process_grid(federation)
    left: dict[str, Any] = {}

    class Leaving(Heard):
        def finished(self, record: Any) -> None:
            if record["round"] == 1:
                node = next(iter(grid.get_node_ids()))
                left[node] = grid._contexts[node]
                grid.remove(node)
            elif record["round"] == 2:
                grid._contexts.update(left)

    heard = Leaving()
    records = serve(grid, federation, RunDirectory(tmp_path / "run"), heard).records
    assert [record["dropped_clients"] for record in records] == [[], [0], []]
    assert records[1]["lost_clients"]["0"] == "no node hosts it now"
    assert any("'node-0' has left" in note for note in heard.notes)


def test_without_nodes_a_run_waits_then_fails_and_resumes_to_the_same_end(
    small: Small, tmp_path: Path
) -> None:
    whole = run(small(federation__rounds=3), out=tmp_path / "whole")
    config = small(federation__rounds=3, engine__wait=0.5)
    federation = prepare(config)
    grid = in_process_grid(federation)

    class Vanishing(Heard):
        def finished(self, record: Any) -> None:
            if record["round"] == 2:
                for node in list(grid.get_node_ids()):
                    grid.remove(node)

    heard = Vanishing()
    with pytest.raises(TrainingError, match=r"none within engine.wait = 0.5 s hosts clients 0, 1, 2, 3"):
        serve(grid, federation, RunDirectory(tmp_path / "run"), heard, patient=True)
    assert any("waiting for nodes: clients 0, 1, 2, 3" in told for told in heard.waits)
    federation.model.close()
    resumed = run(config, out=tmp_path / "run", resume=True)
    assert [record["round"] for record in resumed.records] == [1, 2, 3]
    for key, tensor in whole.adapter.tensors().items():
        assert torch.equal(tensor, resumed.adapter.tensors()[key])


def welcome_with(**other: Any) -> Callable[[Message], Message]:
    """Changes what the second node says of itself."""

    def disturb(reply: Message) -> Message:
        record = reply.content.config_records.get("fedrot")
        if record is not None and record["name"] == "node-1":
            record.update(other)
        return reply

    return disturb


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "0.0.9"}, r"node 'node-1' runs fedrot 0.0.9, the server"),
        ({"base": "f" * 64}, r"node 'node-1' has a base model with digest ffffffffffff, the server's is"),
        ({"clients": [0]}, r"node 'node-1' hosts client 0, which node 'node-0' already hosts"),
        ({"clients": [9]}, r"node 'node-1' hosts client 9: expected 0 to 3"),
        ({"examples": [5]}, r"client 1 has 5 examples, the server's partition gives it"),
        ({"examples": [0]}, r"client 1 has no examples"),
        ({"ranks": [7]}, r"rank = 7: expected 1 to lora.rank = 2"),
        ({"clients": "all"}, r"clients = 'all': expected"),
        ({"clients": ["1"]}, r"clients = \['1'\]: expected list\[int\]"),
        ({"clients": [1, 1], "examples": [60, 60], "ranks": [0, 0]}, r"names a client twice: \[1, 1\]"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_at_the_handshake(
    small: Small, tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        disturbed_run(small(), tmp_path / "run", welcome_with(**other))
    assert not (tmp_path / "run").exists(), "nothing is written before the federation stands"


def test_a_run_may_start_with_some_of_its_clients(small: Small, tmp_path: Path) -> None:
    config = small(engine__start_clients=3, engine__wait=5)
    heard = Heard()
    result = disturbed_run(
        config, tmp_path / "run", welcome_with(version="0.0.9"), observer=heard, patient=True
    )
    assert [record["lost_clients"] for record in result.records] == [{"1": "no node hosts it now"}] * 2
    assert any("0.0.9" in note for note in heard.notes)


def test_all_nodes_in_one_process_share_what_the_server_prepared(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedrot.engines.flower import worker

    def refuse(*_: Any) -> None:
        raise AssertionError("a node loaded the base model again")

    monkeypatch.setattr(worker, "prepare_node", refuse)
    assert run(small(), out=tmp_path / "run").summary["rounds"] == 2


def test_an_aligned_upload_is_as_long_as_a_plain_one(small: Small, tmp_path: Path) -> None:
    sizes: dict[str, list[int]] = {"fedit": [], "fedrot": []}
    for name, sent in sizes.items():

        def disturb(reply: Message, told: list[int] = sent) -> Message:
            if round_of(reply):
                client = client_of(reply)
                arrays = reply.content.array_records[upload_name(client)]
                told.append(sum(len(array.data) for array in arrays.values()))
                metrics = reply.content.metric_records[f"metrics-{client}"]
                assert sum(len(key) + 8 for key in metrics) < 1000
            return reply

        result = disturbed_run(small(method={"name": name}), tmp_path / name, disturb)
        assert sum(record["bytes_up"] for record in result.records) == sum(sizes[name])
    assert sizes["fedit"] == sizes["fedrot"]


@pytest.mark.parametrize(
    "options",
    [
        {"federation__stale": 0.5, "federation__stale_rounds": 2, "federation__stale_weight": 0.5},
        {"method": {"name": "fedrot", "reference": "two-back"}},
        {"federation__dropout": 0.3, "federation__fraction": 0.75},
        {"lora__ranks": {"1": 0.5, "2": 0.5}},
        {"server": {"optimizer": "adam"}},
        {"train__local_epochs": 1, "train__local_steps": None},
    ],
    ids=["stale", "two-back", "dropout", "ranks", "adam", "epochs"],
)
def test_every_kind_of_participation_gives_the_numbers_of_the_local_engine(
    recipe: Make, small: Small, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {key: value for key, value in options.items() if value is not None}
    build = (
        {"train": {"lr": 0.01, "batch_size": 4, "device": "cpu", "local_epochs": 1}}
        if ("train__local_epochs" in options)
        else options
    )
    local = run(recipe(federation__rounds=3, federation__group_size=1, **build), out=tmp_path / "local")
    flower = run(small(federation__rounds=3, federation__group_size=1, **build), out=tmp_path / "flower")
    for key, tensor in local.adapter.tensors().items():
        assert float((tensor - flower.adapter.tensors()[key]).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task__data": "nodes", "task__test_data": "corpus.csv"}, "nodes of a deployed federation"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(
    small: Small, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(fedrot.FedrotError, match=said):
        run(small(**options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
