"""What a node refuses before it looks at its owner's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

import fedrot
from fedrot.config import RunConfig
from fedrot.engines.flower.admission import check_admissible, check_own_models
from fedrot.engines.flower.messages import (
    EXAMINE,
    FACTS,
    HELLO,
    TRAIN,
    WRITE,
    Hello,
    Order,
    Welcome,
    read,
    written,
)
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.engines.flower.roster import Roster
from fedrot.engines.flower.run import in_process_grid
from fedrot.engines.flower.versions import version
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.engines.setup import prepare
from fedrot.errors import AdapterError, ConfigError, DataError, FedrotError
from tests.privacy.test_support import ABLE

Make = Callable[..., RunConfig]
LABELS = ["code", "money", "sport"]
NOWHERE = NodeSettings("one", (0,), data="/nowhere/mine.csv", model="/nowhere/model")
"""Whose data and model cannot be loaded, so that whatever is refused was refused before."""


def private(recipe: Make, **keys: Any) -> RunConfig:
    """A recipe with local privacy for nodes with data of their own."""
    given = {
        "task": {"data": "nodes", "test_data": "held-out.csv", "max_length": 24},
        "partition": {"kind": "iid"},
        "privacy": {"mechanism": "local", "clip": 0.2, "noise": 1e6},
        "federation": {"clients": 4, "rounds": 2, "weighting": "uniform"},
        "engine": {"name": "flower"},
    }
    return recipe(**{**given, **keys})


def say(settings: NodeSettings, config: RunConfig, labels: list[str] = LABELS) -> RecordDict:
    """The answer to a handshake."""
    hello = Hello(version(), config.to_toml(), labels)
    return Worker(settings).handle(HELLO, RecordDict({FACTS: written(hello)}))


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"method": {"name": name}}, f"method {name!r}") for name in fedrot.methods() if name not in ABLE),
    ({"method": {"name": "fedrot", "refit": 1}}, "method.refit = 1"),
    ({"method": {"name": "fedrot", "reference": "consensus"}}, "method.reference = 'consensus'"),
    ({"method": {"name": "fedrot", "guard": "server"}}, "method.guard = 'server'"),
    ({"federation__weighting": "samples"}, "federation.weighting = 'samples'"),
    ({"federation__stale": 0.5}, "federation.stale = 0.5"),
    ({"lora": {"rank": 2, "ranks": {"1": 0.5, "2": 0.5}}, "method": {"name": "fedit"}}, "lora.ranks"),
    ({"output": {"diagnostics": True}}, "output.diagnostics = true"),
    ({"privacy__noise_source": "seed"}, "privacy.noise_source = 'seed'"),
    (
        {"privacy__secure_aggregation": True, "federation__weighting": "samples"},
        "federation.weighting = 'samples'",
    ),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED)
@pytest.mark.parametrize("epsilon", [None, 1.0])
def test_a_node_itself_refuses_what_local_privacy_does_not_cover(
    recipe: Make, keys: dict[str, Any], said: str, epsilon: float | None
) -> None:
    settings = replace(NOWHERE, epsilon=epsilon, ledger="/nowhere/privacy.json")
    with pytest.raises(ConfigError) as caught:
        say(settings, private(recipe, **keys))
    assert said in str(caught.value)
    assert "while" not in str(caught.value).split(said)[0]


def test_a_node_itself_refuses_what_secure_aggregation_does_not_cover(recipe: Make) -> None:
    plain = {"privacy": {"secure_aggregation": True}, "method": {"name": "flora"}}
    with pytest.raises(ConfigError, match=r"secure_aggregation = true: the server of .*'flora'"):
        say(NOWHERE, private(recipe, **plain))


@pytest.mark.parametrize("kind", [EXAMINE, WRITE])
@pytest.mark.parametrize(
    ("keys", "epsilon", "said"),
    [
        ({"privacy": {}}, None, "with method.name = 'fedrot' they have none"),
        ({"method": {"name": "fedsa"}}, None, "privacy.mechanism = 'local'"),
        ({"method": {"name": "fedsa"}, "privacy": {}}, 1.0, "the node's owner allows epsilon = 1"),
    ],
)
def test_clients_own_models_are_tested_and_written_only_where_there_are_any_and_nothing_is_to_be_hidden(
    recipe: Make, kind: str, keys: dict[str, Any], epsilon: float | None, said: str
) -> None:
    config = private(recipe, **keys)
    settings = replace(NOWHERE, epsilon=epsilon, ledger="/nowhere/privacy.json", sharding="recipe")
    order = Order(version(), "", config.to_toml(), LABELS, "run", 1, [0], [0], 1.0)
    with pytest.raises(ConfigError, match=f"asked for its clients' own models.*{said}"):
        Worker(settings).handle(kind, RecordDict({FACTS: written(order)}))
    check_own_models(NOWHERE, private(recipe, method={"name": "fedsa"}, privacy={}))


@pytest.mark.parametrize("sharding", ["own", "recipe"])
def test_how_many_examples_its_owner_has_a_node_does_not_tell_where_noise_is_to_hide_them(
    recipe: Make, tiny_model: Path, corpus: Path, sharding: Any
) -> None:
    data = "nodes" if sharding == "own" else str(corpus)
    task = {"data": data, "max_length": 24}
    if sharding == "own":
        task["test_data"] = str(corpus)
    hidden = private(recipe, task=task, federation={"clients": 2, "weighting": "uniform"})
    bare = hidden.model_copy(update={"privacy": recipe().privacy})
    settings = NodeSettings("one", (0,), data=str(corpus), sharding=sharding, model=str(tiny_model))
    for config, fits in ((bare, lambda count: count > 1), (hidden, lambda count: count == 1)):
        (told,) = read(Welcome, say(settings, config), "node").examples
        assert fits(told)
    federation = prepare(hidden)
    roster = Roster(in_process_grid(federation), federation, Observer())
    roster._check_client("node 'one'", 0, 1, 0)
    if sharding == "recipe":
        with pytest.raises(AdapterError, match="client 0 has 7 examples"):
            roster._check_client("node 'one'", 0, 7, 0)


def test_a_node_with_a_file_of_its_own_serves_no_corpus_of_the_servers(recipe: Make) -> None:
    for data in ("tweets", "/server/corpus.csv"):
        config = private(recipe, task={"data": data})
        with pytest.raises(DataError, match=r"task.data = .*set task.data = 'nodes'; or sharding = 'recipe'"):
            say(NOWHERE, config)
        check_admissible(replace(NOWHERE, sharding="recipe"), config, LABELS)


@pytest.mark.parametrize(
    ("columns", "task", "key"),
    [
        ({"text": "note", "label": "kind"}, {"text": "note", "label": "kind"}, None),
        ({"text": "note", "label": "kind"}, {"text": "note", "label": "name"}, "task.label = 'name'"),
        ({"text": "note", "label": "kind"}, {"label": "kind"}, "task.text = 'text'"),
        (
            {"text": "note", "label": "kind"},
            {"text": "note", "label": "kind", "text_pair": "name"},
            "task.text_pair = 'name'",
        ),
        (
            {"text": "note", "text_pair": "name", "label": "kind"},
            {"text": "note", "label": "kind"},
            "task.text_pair = None",
        ),
        ({"text": "note", "label": "kind"}, {"name": "generate"}, "task.text = None"),
        (
            {"prompt": "ask", "response": "say"},
            {"name": "generate", "prompt": "ask", "response": "say"},
            None,
        ),
        (
            {"prompt": "ask", "response": "say"},
            {"name": "generate", "prompt": "ask", "response": "name"},
            "task.response = 'name'",
        ),
        ({}, {"name": "generate"}, None),
        ({}, {"name": "generate", "prompt": "name"}, "task.prompt = 'name'"),
        ({"image": "scan", "label": "kind"}, {"name": "image", "image": "scan", "label": "kind"}, None),
        (
            {"image": "scan", "label": "kind"},
            {"name": "image", "image": "name", "label": "kind"},
            "task.image = 'name'",
        ),
    ],
)
def test_columns_that_the_owner_did_not_name_are_refused(
    recipe: Make, columns: dict[str, str], task: dict[str, str], key: str | None
) -> None:
    config = private(recipe, task={"data": "nodes", "test_data": "held-out.csv", **task})
    settings = replace(NOWHERE, columns=columns)
    if key is None:
        check_admissible(settings, config, LABELS)
        return
    with pytest.raises(DataError) as caught:
        check_admissible(settings, config, LABELS)
    assert f"the recipe has {key}, which is not what the node's owner named" in str(caught.value)
    assert not {*columns.values()} & {*str(caught.value).replace("'", " ").split()}


def test_a_column_to_deal_by_is_one_of_them(recipe: Make) -> None:
    config = private(recipe, partition={"kind": "natural-id", "partition_by": "ward"})
    pinned = {"text": "text", "label": "label"}
    with pytest.raises(DataError, match=r"partition\.partition_by = 'ward'"):
        check_admissible(replace(NOWHERE, columns=pinned), config, LABELS)
    check_admissible(replace(NOWHERE, columns={**pinned, "partition_by": "ward"}), config, LABELS)


@pytest.mark.parametrize("labels", [["code", "money"], [*LABELS, "canary"], ["a", "b", "c"], []])
def test_classes_that_the_owner_did_not_name_are_refused(recipe: Make, labels: list[str]) -> None:
    settings = replace(NOWHERE, labels=["sport", "money", "code"])
    with pytest.raises(DataError, match="are not those that the node's owner named"):
        check_admissible(settings, private(recipe), labels)
    check_admissible(settings, private(recipe), LABELS)


def test_columns_and_classes_stand_in_the_nodes_file(tmp_path: Path, recipe: Make) -> None:
    file = tmp_path / "node.toml"
    head = 'name = "one"\nclients = [0]\nsuperlink = "fed.example.org:8000"\n'
    both = 'columns = { text = "note", label = "kind" }\nlabels = ["code", "money", "sport"]\n'
    file.write_text(head + both + 'data = "mine.csv"\n', "utf-8")
    settings = load_node(tmp_path).settings
    with pytest.raises(DataError, match=r"task\.text = 'text', which is not what the node's owner named"):
        Worker(settings).handle(TRAIN, order_of(private(recipe)))
    with pytest.raises(DataError, match="are not those that the node's owner named"):
        Worker(replace(settings, columns=None)).handle(TRAIN, order_of(private(recipe), ["canary"]))
    for line, told in (
        ('columns = { texts = "note" }', "columns.texts"),
        ('labels = ["one"]', "labels"),
    ):
        file.write_text(f'{head}data = "mine.csv"\n{line}\n', "utf-8")
        with pytest.raises(ConfigError, match=told):
            load_node(tmp_path)
    file.write_text(head + both, "utf-8")
    with pytest.raises(FedrotError, match="columns is for a node with `data`"):
        load_node(tmp_path)


def order_of(config: RunConfig, labels: list[str] = LABELS) -> RecordDict:
    return RecordDict({FACTS: written(Order(version(), "", config.to_toml(), labels, "", 1, [0], [0], 1.0))})
