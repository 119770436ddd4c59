"""What a node refuses before it touches its owner's data: these checks read the recipe and the owner's settings alone.

Their messages do not say which columns and classes the owner named, only that the recipe names others.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedrot.config import RunConfig
from fedrot.engines.compat import method_of
from fedrot.engines.flower.as_trained import check_open
from fedrot.engines.flower.budget import Budget
from fedrot.engines.flower.node import NODE_FILE, NodeSettings
from fedrot.engines.setup import check_recipe
from fedrot.errors import ConfigError, DataError
from fedrot.privacy import check_secret
from fedrot.tasks.own import NODES

COLUMNS = {
    "classify": ("text", "text_pair", "label"),
    "image": ("image", "label"),
    "generate": ("prompt", "response"),
}
"""By task, the keys of `[task]` that name columns of the data."""


def check_admissible(settings: NodeSettings, config: RunConfig, labels: Sequence[str]) -> None:
    """Refuse a recipe that this node does not serve.

    Raises:
        ConfigError: keys that do not go together, here or anywhere, or that the owner's budget rules out.
        DataError: the recipe asks for other data, columns or labels than the owner named.
    """
    where = f"node {settings.name!r}"
    if not settings.trusts_recipe:
        check_secret(config.privacy)
    Budget(settings).check(config.privacy)
    check_open(config, where)
    check_recipe(config)
    if settings.data is None:
        return
    if settings.sharding == "own" and config.task.data != NODES:
        raise DataError(
            f"{where}: the recipe asks for task.data = {config.task.data!r}, and the node's data is its own: set "
            f"task.data = {NODES!r}; or sharding = 'recipe' in {NODE_FILE}, if the node's file is the whole corpus"
        )
    _check_columns(settings, config, where)
    if settings.labels is not None and sorted(settings.labels) != sorted(labels):
        raise DataError(
            f"{where}: the recipe's classes {sorted(labels)} are not those that the node's owner named; make "
            f"task.labels of the recipe and `labels` in {NODE_FILE} agree"
        )


def check_own_models(settings: NodeSettings, config: RunConfig) -> None:
    """Refuse to test or to write clients' own models where there are none, or where scores of them would tell too much.

    Raises:
        ConfigError: names the key.
    """
    where = f"node {settings.name!r}"
    if settings.epsilon is not None or config.privacy.mechanism == "local":
        why = (
            f"the node's owner allows epsilon = {settings.epsilon:g} ({NODE_FILE})"
            if settings.epsilon is not None
            else "the recipe has privacy.mechanism = 'local'"
        )
        raise ConfigError(f"{where}: asked for its clients' own models, which no noise covers, and {why}")
    method = method_of(config)
    if not method.laws.personal:
        raise ConfigError(
            f"{where}: asked for its clients' own models, and with method.name = {method.name!r} they have none"
        )


def _check_columns(settings: NodeSettings, config: RunConfig, where: str) -> None:
    """Refuse columns that the owner did not name.

    Raises:
        DataError: the first key of which recipe and owner say different things.
    """
    if settings.columns is None:
        return
    named = {f"task.{key}": getattr(config.task, key) for key in COLUMNS[config.task.name]}
    named["partition.partition_by"] = config.partition.options.get("partition_by")
    allowed = {_key_of(name): column for name, column in settings.columns.items()}
    for key in named | allowed:
        if named.get(key) != allowed.get(key):
            raise DataError(
                f"{where}: the recipe has {key} = {named.get(key)!r}, which is not what the node's owner named; make "
                f"the recipe and `columns` in {NODE_FILE} agree"
            )


def _key_of(name: str) -> str:
    return f"partition.{name}" if name == "partition_by" else f"task.{name}"
