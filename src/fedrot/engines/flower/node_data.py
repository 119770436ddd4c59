"""What a node prepares of a recipe: the base model, its own clients' examples, nothing of the server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.flower.boundary import Boundary
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.groups import choose_group_size
from fedrot.engines.parts import assemble
from fedrot.engines.setup import Federation, prepare
from fedrot.engines.shared import Shared
from fedrot.engines.training import Clients
from fedrot.errors import ConfigError, DataError
from fedrot.methods import build
from fedrot.model import BaseModel, fingerprint
from fedrot.partition import partition
from fedrot.tasks import objective
from fedrot.tasks.fitting import fitting_rows
from fedrot.tasks.own import NODES


@dataclass(frozen=True)
class Local:
    """A node, ready to train."""

    clients: Clients
    initial: Adapter
    """For the names and widths of the sites."""
    base: str
    """Digest of the base model, taken before anything is folded into it."""
    model: BaseModel
    device: torch.device
    federation: Federation | None = None
    """With the splits to test on; None where this node has training data alone."""

    @classmethod
    def of(cls, federation: Federation) -> Local:
        """A node that shares the server's process and hosts whom it is asked to train."""
        return cls(
            Clients.of(federation),
            federation.initial,
            fingerprint(federation.base),
            federation.base,
            federation.base.device,
            federation,
        )


def prepare_node(
    settings: NodeSettings,
    recipe: RunConfig,
    labels: tuple[str, ...],
    shared: Shared,
    boundary: Boundary | None = None,
) -> Local:
    """Load what the recipe names, as far as the node's owner admits it.

    Args:
        settings: of the node.
        recipe: the server's.
        labels: names of the classes, in the server's order.
        shared: what an earlier recipe on this node left to use again.
        boundary: told what is done, and which errors do not come from the owner's data.

    Raises:
        ConfigError: a client number that the recipe does not have.
        DataError: no data of its own where the recipe needs it, labels that the server does not know, or a corpus that
            is not the server's.
        ModelError: a base model that the owner did not name, or that cannot be loaded.
    """
    boundary = boundary or Boundary(f"node {settings.name!r}", private=False)
    own = settings.data is not None and settings.sharding == "own"
    with boundary.openly():
        if recipe.task.data == NODES and not own:
            raise DataError(
                f"node {settings.name!r} has no data of its own: the recipe leaves data to the nodes (task.data = "
                "'nodes'); name the node's file as `data` in node.toml, and leave `sharding` out"
            )
        config = settings.admit(recipe)
    if own:
        return _own(settings, config, labels, shared, boundary)
    boundary.at("reading its own data")
    federation = prepare(config, shared)
    if federation.task.labels != labels:
        raise DataError(
            f"node {settings.name!r}: its copy of {config.task.data!r} has the labels {list(federation.task.labels)}, "
            f"the server's {list(labels)}; give both the same data"
        )
    if absent := [client for client in settings.clients if client >= federation.clients]:
        raise ConfigError(
            f"node {settings.name!r}: hosts client {absent[0]}, but the recipe has clients 0 to "
            f"{federation.clients - 1}; mend `clients` in node.toml or federation.clients"
        )
    local = Local.of(federation)
    hosted = {client: local.clients.rows[client] for client in settings.clients}
    if local.clients.train.cache is not None:
        local.clients.train.cache.compute_apart(torch.cat(list(hosted.values())))
    return replace(local, clients=replace(local.clients, rows=hosted))


def _own(
    settings: NodeSettings, config: RunConfig, labels: tuple[str, ...], shared: Shared, boundary: Boundary
) -> Local:
    goal = objective(config.task)
    who = f"node {settings.name!r}"
    with boundary.openly():
        parts = assemble(config, labels, shared)
    boundary.at("reading its own data")
    task = goal.load_own(labels, who)
    boundary.at("encoding its own data")
    task, _ = fitting_rows(goal, task, who, "its own", parts.base.processor, parts.base.opening)
    boundary.at("dealing its own data")
    dealt: Sequence[Tensor] = [torch.arange(len(task))]
    if len(settings.clients) > 1:
        dealt = partition(task, config.partition, len(settings.clients), config.seed).rows
    rows = dict(zip(settings.clients, dealt, strict=True))
    boundary.at("encoding its own data")
    train = parts.split("train", task)
    members = Clients(
        config,
        build(config.method.name, config.method.options, config.seed),
        parts.crew,
        goal,
        train,
        rows,
        choose_group_size(config, len(rows), parts.crew, goal, parts.initial, train.data),
    )
    return Local(members, parts.initial, fingerprint(parts.base), parts.base, parts.base.device)
