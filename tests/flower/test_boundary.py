"""Nothing of a node's own data leaves it in an error, whatever the server's recipe makes of the columns."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedrot.config import RunConfig
from fedrot.engines.flower import worker as worker_module
from fedrot.engines.flower.app import client_app
from fedrot.engines.flower.boundary import Boundary
from fedrot.engines.flower.deploy.channel import receive, send
from fedrot.engines.flower.deploy.worker_main import serve
from fedrot.engines.flower.grid import InProcessGrid
from fedrot.engines.flower.messages import FACTS, HELLO, TRAIN, Hello, Order, pack_broadcast, written
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.packing import to_bytes
from fedrot.engines.flower.versions import version
from fedrot.engines.flower.worker import Worker
from fedrot.errors import ConfigError, DataError, FedrotError
from tests.flower.federation import asked_to_train
from tests.language import tiny_llama

Make = Callable[..., RunConfig]
CANARY = "canary"
COLUMNS = ("note", "second", "kind", "said", "odd", "age", "messages")


def cell(column: str, row: int) -> str:
    return f"{CANARY}-{column}-{row}"


def rows() -> list[dict[str, Any]]:
    """Every text holds the canary; no column is without a row that some reader of it cannot use."""
    table: list[dict[str, Any]] = [
        {**{name: cell(name, row) for name in COLUMNS}, "kind": cell("kind", row % 2), "age": row + 0.5}
        for row in range(12)
    ]
    for row, one in enumerate(table):
        one["odd"] = [cell("odd", row)]
        one["messages"] = json.dumps([{"role": cell("role", row), "content": cell("content", row)}])
    table[3]["note"] = " ".join([cell("note", 3)] * 80)  # more tokens than the model has positions for
    table[5]["second"] = ""
    table[7]["said"] = None
    return table


FILES = {
    "table.jsonl": "".join(json.dumps(row) + "\n" for row in rows()),
    "table.csv": "note,kind\n"
    + "".join(f"{cell('note', row)},{cell('kind', row % 2)}\n" for row in range(12)),
    "mixed.jsonl": "".join(json.dumps({"note": value, "kind": CANARY}) + "\n" for value in (1, CANARY)),
    "torn.jsonl": json.dumps({"note": CANARY}) + "\n{" + CANARY + "\n",
    "torn.csv": f"note,kind\n{CANARY},{CANARY},{CANARY}\n",
    "twice.csv": f"{CANARY},{CANARY}\n1,2\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


TASKS: list[tuple[str, dict[str, Any], list[str]]] = [
    *(("table.jsonl", {"text": "kind", "label": name}, ["x", "y"]) for name in COLUMNS),
    *(("table.jsonl", {"text": name, "label": "kind"}, ["x", "y"]) for name in COLUMNS),
    *(("table.jsonl", {"text": "note", "text_pair": name, "label": "kind"}, ["x", "y"]) for name in COLUMNS),
    ("table.jsonl", {"text": "note", "label": "kind"}, [cell("kind", 0), "y"]),
    ("table.jsonl", {"text": "note", "label": "kind", "max_length": 500}, [cell("kind", 0), cell("kind", 1)]),
    *((name, {"text": "note", "label": "kind"}, ["x", "y"]) for name in FILES),
]
SPOKEN: list[dict[str, Any]] = [
    *({"prompt": "note", "response": name} for name in COLUMNS),
    *({"prompt": name, "response": "kind"} for name in ("odd", "second", "said")),
    {},
    {"prompt": "note", "response": "kind", "overlong": "error", "max_length": 4},
    {"prompt": "note", "response": "kind", "overlong": "drop", "max_length": 1},
]


class Asked:
    """Asks one node, and keeps all that comes back as bytes."""

    def __init__(self, settings: NodeSettings) -> None:
        self.worker = Worker(settings)
        self.heard: list[bytes] = []

    def ask(self, kind: str, content: RecordDict) -> str | None:
        """The error's words, or None."""
        try:
            self.heard.append(to_bytes(self.worker.handle(kind, content)))
        except FedrotError as error:
            self.heard.append(repr(error).encode())
            return str(error)
        return None


def messages(config: RunConfig, labels: list[str]) -> Iterator[tuple[str, RecordDict]]:
    """A handshake, and an order to train with no broadcast."""
    text = config.to_toml()
    yield HELLO, RecordDict({FACTS: written(Hello(version(), text, labels))})
    order = Order(version(), "no digest", text, labels, "", 1, [0], [0], 1.0)
    yield TRAIN, RecordDict({FACTS: written(order)})


def own(recipe: Make, task: dict[str, Any], **keys: Any) -> RunConfig:
    given = {"data": "nodes", "test_data": "held-out.csv", "max_length": 24, **task}
    return recipe(task=given, partition={"kind": "iid"}, **keys)


def test_no_recipe_makes_a_node_quote_its_rows(
    recipe: Make, folder: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: set[str] = set()
    for name, task, labels in TASKS:
        node = Asked(NodeSettings("one", (0,), data=str(folder / name), model=str(tiny_model), device="cpu"))
        for kind, content in messages(own(recipe, task), labels):
            told.add(node.ask(kind, content) or "")
        for heard in node.heard:
            assert CANARY.encode() not in heard, (name, task, heard)
    assert (
        "node 'one': DataError while reading its own data (task.data); the node's log has the details" in told
    )
    assert any(
        line.endswith("encoding its own data (task.max_length); the node's log has the details")
        for line in told
    )
    for quoted in ("has the label 'canary-note-0'", "as text (expected a string)", "mixes types (Could not"):
        assert quoted in caplog.text, "the owner is told"


def test_no_recipe_makes_a_node_quote_its_conversations(
    recipe: Make, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama(tmp_path / "model")
    told: list[str | None] = []
    node = Asked(NodeSettings("one", (0,), data=str(folder / "table.jsonl"), model=str(model), device="cpu"))
    for task in SPOKEN:
        config = own(recipe, {"name": "generate", **task}, model={"path": str(model)})
        told += [node.ask(kind, content) for kind, content in messages(config, [])]
    assert not any(CANARY.encode() in heard for heard in node.heard)
    assert any(line is not None and "DataError while reading its own data" in line for line in told)
    assert "canary" in caplog.text


@pytest.mark.parametrize("partition", ["note", "odd", "age"])
def test_no_way_of_dealing_makes_a_node_quote_its_rows(
    recipe: Make, folder: Path, tiny_model: Path, partition: str
) -> None:
    config = own(recipe, {"text": "note", "label": "kind"})
    dealt = {"kind": "natural-id", "partition_by": partition, "min_size": 100}
    config = config.model_copy(update={"partition": config.partition.model_validate(dealt)})
    node = Asked(
        NodeSettings("one", (0, 1), data=str(folder / "table.csv"), model=str(tiny_model), device="cpu")
    )
    for kind, content in messages(config, [cell("kind", 0), cell("kind", 1)]):
        assert "while dealing its own data" in str(node.ask(kind, content))
    assert not any(CANARY.encode() in heard for heard in node.heard)


@pytest.mark.parametrize(("name", "text"), [("table.csv", "note"), ("table.jsonl", "odd")])
def test_the_whole_corpus_of_a_recipe_is_not_quoted_either(
    recipe: Make, folder: Path, tiny_model: Path, name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = NodeSettings(
        "one", (0,), data=str(folder / name), sharding="recipe", model=str(tiny_model), device="cpu"
    )
    task = {"text": text, "label": "kind"}
    config = recipe(task={"data": "elsewhere.csv", "max_length": 24, **task}, partition={"kind": "iid"})
    node = Asked(settings)
    for kind, content in messages(config, ["x", "y"]):
        assert "DataError while reading its own data" in str(node.ask(kind, content))
    assert not any(CANARY.encode() in heard for heard in node.heard)
    assert CANARY in caplog.text


def test_over_a_grid_and_from_a_warm_process_comes_the_same(
    recipe: Make, folder: Path, tiny_model: Path
) -> None:
    """Whatever carries the worker's answers: Flower's app, or the process of a deployed node."""
    settings = NodeSettings(
        "one", (0,), data=str(folder / "table.jsonl"), model=str(tiny_model), device="cpu"
    )
    config = own(recipe, {"text": "kind", "label": "note"})
    expected = "node 'one': DataError while reading its own data (task.data); the node's log has the details"

    def worker_of(message: Message, context: Context) -> Worker:
        del message, context
        return Worker(settings)

    grid = InProcessGrid(client_app(worker_of), [{}])
    asked = [Message(content, 2, kind, group_id="1") for kind, content in messages(config, ["x", "y"])]
    for reply in grid.send_and_receive(asked):
        assert str(reply.error.reason).endswith(f"<'{expected}'>")
    here, there = socket.socketpair()
    process = threading.Thread(target=serve, args=(there, Worker), daemon=True)
    process.start()
    with there:
        with here:
            send(here, {"node": {**vars(settings), "clients": [0]}})
            assert receive(here) is not None
            for kind, content in messages(config, ["x", "y"]):
                send(here, {"type": kind}, to_bytes(content))
                assert receive(here) == ({"error": expected, "kind": "DataError"}, b"")
        process.join(20)


@pytest.mark.parametrize("raised", [DataError(f"row 3: {CANARY}"), KeyError(CANARY), MemoryError(CANARY)])
def test_what_goes_wrong_in_training_is_told_by_its_kind(
    recipe: Make,
    tiny_model: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raised: Exception,
) -> None:
    from fedrot.engines.setup import prepare

    def fails(*_: Any) -> Any:
        raise raised

    config = own(recipe, {"test_data": str(corpus)})
    order = asked_to_train(prepare(config), config, 1)
    node = Asked(NodeSettings("one", (0,), data=str(corpus), model=str(tiny_model), device="cpu"))
    assert node.ask(TRAIN, order) is None
    monkeypatch.setattr(worker_module, "train_all", fails)
    kind = type(raised).__name__
    assert node.ask(TRAIN, order) == f"node 'one': {kind} while training; the node's log has the details"
    assert CANARY in caplog.text
    here = Worker(NodeSettings("here", (0,), trusts_recipe=True))
    with pytest.raises(type(raised), match=CANARY):
        here.handle(TRAIN, asked_to_train(prepare(recipe()), recipe(), 1))


def test_what_does_not_come_from_data_is_told_in_its_own_words(
    recipe: Make, tiny_model: Path, corpus: Path
) -> None:
    from fedrot.engines.setup import prepare

    node = Asked(NodeSettings("one", (0,), data=str(corpus), model=str(tiny_model), device="cpu"))
    config = own(recipe, {"test_data": str(corpus)})
    labels = ["code", "money", "sport"]
    hello = Hello("0.0", config.to_toml(), labels)
    assert "the server fedrot 0.0; install the same" in str(
        node.ask(HELLO, RecordDict({FACTS: written(hello)}))
    )
    torn = Hello(version(), "seed = ", labels)
    assert "is not one that fedrot" in str(node.ask(HELLO, RecordDict({FACTS: written(torn)})))
    assert "no record 'fedrot'" in str(node.ask(TRAIN, RecordDict()))
    assert "message type 'nod'" in str(node.ask("nod", RecordDict()))
    wide = own(recipe, {"test_data": str(corpus)}, lora={"rank": 2, "target_modules": ["nothing"]})
    assert "nothing" in str(node.ask(*next(messages(wide, labels))))
    (_, _), (_, order) = messages(config, labels)
    assert "its base model has digest" in str(node.ask(TRAIN, order))
    federation = prepare(config)
    order = asked_to_train(federation, config, 1)
    bare = RecordDict({FACTS: order.config_records[FACTS]})
    assert "no adapter came with the order" in str(node.ask(TRAIN, bare))
    facts = written(Order(version(), "", config.to_toml(), labels, "", 1, [4], [0], 1.0))
    facts["base"] = order.config_records[FACTS]["base"]
    foreign = RecordDict({FACTS: facts, **pack_broadcast(federation.initial, None)})
    assert "asked for client 4" in str(node.ask(TRAIN, foreign))


def test_a_key_is_told_only_if_it_is_one_of_the_recipe(caplog: pytest.LogCaptureFixture) -> None:
    boundary = Boundary("node 'one'", private=True)
    for words, shown in (
        ("task.max_length = 500: too long", " (task.max_length)"),
        ("node 'one': task.max_length = 500", " (task.max_length)"),
        (f"task.{CANARY} = 1", ""),
        (f"{CANARY} task.max_length", ""),
        ("", ""),
    ):
        with pytest.raises(ConfigError) as caught, boundary.answering():
            raise ConfigError(words)
        assert (
            str(caught.value)
            == f"node 'one': ConfigError while answering{shown}; the node's log has the details"
        )
    assert caplog.records[0].levelno == logging.ERROR


def test_a_mended_file_is_read_as_if_nothing_had_been_wrong(
    recipe: Make, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    lines = [f"{'goal ' * (80 if row == 3 else 5)}{row},{'ab'[row % 2]}" for row in range(12)]
    config = own(recipe, {"max_length": 500})
    settings = NodeSettings("one", (0,), data=str(path), model=str(tiny_model), device="cpu")
    path.write_text("text,label\n" + "\n".join(lines) + "\n", "utf-8")
    node = Asked(settings)
    (kind, hello), _ = messages(config, ["a", "b"])
    assert "encoding its own data (task.max_length)" in str(node.ask(kind, hello))
    del lines[3]
    path.write_text("text,label\n" + "\n".join(lines) + "\n", "utf-8")
    assert node.ask(kind, hello) is None
    fresh = Asked(settings)
    assert fresh.ask(kind, hello) is None
    assert node.heard[-1] == fresh.heard[-1]


def test_classes_in_another_order_are_numbered_anew(recipe: Make, tiny_model: Path, corpus: Path) -> None:
    worker = Worker(NodeSettings("one", (0,), data=str(corpus), model=str(tiny_model), device="cpu"))
    found: list[list[int]] = []
    for labels in (["code", "money", "sport"], ["sport", "money", "code"]):
        kind, hello = next(messages(own(recipe, {}), labels))
        worker.handle(kind, hello)
        assert worker._held is not None
        found.append(worker._held.local.clients.train.data.labels.tolist())
    assert found[0] == [2 - number for number in found[1]]
