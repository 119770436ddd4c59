"""What a node does: it keeps base model and data ready, introduces itself, and trains its clients when asked."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from flwr.app import RecordDict
from torch import Tensor

from fedrot.config import RunConfig, parse_config
from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation
from fedrot.core.diagnostics import drift
from fedrot.engines.flower.budget import Budget
from fedrot.engines.flower.messages import (
    FACTS,
    HELLO,
    TRAIN,
    Hello,
    Order,
    Told,
    Welcome,
    metrics_name,
    pack_told,
    read,
    recipe_digest,
    unpack_adapter,
    upload_name,
    written,
)
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.node_data import Local, prepare_node
from fedrot.engines.flower.records import to_arrays
from fedrot.engines.flower.secagg.parties import Parties, Share
from fedrot.engines.flower.secagg.wire import SECURE, unpack_rules
from fedrot.engines.flower.versions import version
from fedrot.engines.shared import Shared
from fedrot.engines.training import Group, Task, train_all
from fedrot.errors import AdapterError, ConfigError, ModelError, SecureAggregationError
from fedrot.privacy import check_secret
from fedrot.server import bare
from fedrot.tasks.own import NODES
from fedrot.wire import uploaded


@dataclass(frozen=True)
class _Held:
    text: tuple[str, list[str]]
    """Recipe and labels as they came last, so that they are read once and not every round."""
    digest: str
    local: Local


class Worker:
    """Serves one node. It lives as long as the node does, so that nothing is loaded twice.

    A worker answers messages one at a time. Nothing of a round outlasts its reply, but in a round of secure aggregation
    the vectors and keys of this node's clients, until its last message or the next round.
    """

    def __init__(self, settings: NodeSettings, local: Local | None = None) -> None:
        """Nothing is loaded before the first message.

        Args:
            settings: of the node.
            local: what the server in the same process has prepared already, for its own recipe.
        """
        self.settings = settings
        self._given = local
        self._shared = Shared()
        self._held: _Held | None = None
        self._budget = Budget(settings)
        self._parties = Parties(self._where)

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """The reply to a message.

        Raises:
            FedrotError: another version, model or recipe than can be served here, unusable data, or a message that is
                not as expected. Each names the node.
        """
        if message_type == HELLO:
            return self._hello(read(Hello, content, self._where))
        if message_type == TRAIN:
            return self._train(content)
        if message_type == SECURE:
            return self._parties.handle(content)
        known = ", ".join(repr(kind) for kind in (HELLO, TRAIN, SECURE))
        raise AdapterError(f"{self._where}: message type {message_type!r}: expected one of {known}")

    @property
    def _where(self) -> str:
        return f"node {self.settings.name!r}"

    def _hello(self, hello: Hello) -> RecordDict:
        self._check_version(hello.version)
        local = self._prepare(hello.recipe, hello.labels)
        rank = self.settings.rank or 0
        told = Welcome(
            name=self.settings.name,
            version=version(),
            base=local.base,
            clients=list(self.settings.clients),
            examples=self._examples(local, self._parse(hello.recipe)),
            ranks=[rank] * len(self.settings.clients),
            device=str(local.device),
        )
        return RecordDict({FACTS: written(told)})

    def _train(self, content: RecordDict) -> RecordDict:
        order = read(Order, content, self._where)
        self._check_version(order.version)
        local = self._prepare(order.recipe, order.labels)
        if order.base != local.base:
            raise ModelError(
                f"{self._where}: its base model has digest {local.base[:12]}, the server's {order.base[:12]}; "
                "give both the same files and train.precision"
            )
        if foreign := [client for client in order.clients if client not in local.clients.rows]:
            raise ConfigError(f"{self._where}: asked to train client {foreign[0]}, which it does not host")
        where = f"{self._where}, round {order.round}"
        received = unpack_adapter(content, "received", local.initial, order.scale, where)
        if received is None:
            raise AdapterError(f"{where}: no adapter to train from")
        received = received.map(lambda tensor: tensor.to(local.device))
        reference = unpack_adapter(content, "reference", local.initial, order.scale, where)
        aligned_to = received if reference is None else reference.map(lambda tensor: tensor.to(local.device))
        rules = unpack_rules(content, where)
        if local.clients.config.privacy.secure_aggregation != (rules is not None):
            raise SecureAggregationError(
                f"{where}: the recipe has privacy.secure_aggregation = "
                f"{str(rules is None).lower()}, the server asks otherwise"
            )
        self._budget.spend(order.clients, local.clients.config.privacy)
        reply, hidden = RecordDict(), dict[int, Share | str]()

        def task_of(clients: tuple[int, ...]) -> Task:
            return Task(order.round, clients, received, bare(received), aligned_to)

        with closing(train_all(local.clients, order.round, order.clients, task_of)) as results:
            for sends in (sends for _, group in results for sends in _sends(group, local, order.round)):
                if sends.told is not None:
                    reply[metrics_name(sends.client)] = pack_told(sends.told)
                if rules is None:
                    reply[upload_name(sends.client)] = to_arrays(sends.arrays)
                else:
                    hidden[sends.client] = _share(sends, local)
        if rules is not None:
            self._parties.join(reply, rules.session(order.round), hidden)
        local.clients.crew.unload()
        return reply

    def _examples(self, local: Local, recipe: RunConfig) -> list[int]:
        """How many every client has; where that is private and not dealt by the server, only that there are some."""
        counts = [len(local.clients.rows[client]) for client in self.settings.clients]
        hidden = recipe.privacy.mechanism == "local" and recipe.task.data == NODES
        return [min(1, count) for count in counts] if hidden else counts

    def _check_version(self, server: str) -> None:
        if server != version():
            raise ConfigError(
                f"{self._where} runs fedrot {version()}, the server fedrot {server}; install the same version on both"
            )

    def _prepare(self, recipe: str, labels: list[str]) -> Local:
        if self._held is not None and self._held.text == (recipe, labels):
            return self._held.local
        config = self._parse(recipe)
        if not self.settings.trusts_recipe:
            check_secret(config.privacy)
        self._budget.check(config.privacy)
        digest = recipe_digest(config) + repr(labels)
        if self._held is not None and self._held.digest == digest:
            self._held = _Held((recipe, labels), digest, self._held.local)
            return self._held.local
        if self._held is not None:
            self._held.local.clients.crew.lead.close()
            self._held = None
        local = self._given
        if local is None or recipe_digest(local.clients.config) != recipe_digest(config):
            local = prepare_node(self.settings, config, tuple(labels), self._shared)
        self._held = _Held((recipe, labels), digest, local)
        return local

    def _parse(self, recipe: str) -> RunConfig:
        try:
            return parse_config(tomllib.loads(recipe))
        except (tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(
                f"{self._where}: the server's recipe is not one that fedrot {version()} reads: {error}"
            ) from error


@dataclass(frozen=True)
class _Sends:
    """What one client has to send."""

    client: int
    arrays: Mapping[str, Tensor]
    told: Told | None
    """None where its privacy forbids to tell anything."""
    finite: bool


def _sends(group: Group, local: Local, round: int) -> Iterator[_Sends]:
    """What each client of a group has to send."""
    method = local.clients.method
    silent = local.clients.config.privacy.mechanism == "local"  # not even that training failed
    losses = group.trained.loss.tolist()
    drifts = drift(group.trained.adapter, group.start).tolist()
    usable = group.upload.adapter.finite(stacked=True)
    finite = (usable if silent else group.trained.finite & usable).tolist()
    turns = _turns(group.upload.rotation)
    for index, client in enumerate(group.trained.clients):
        adapter: Adapter = replace(group.upload.adapter.select(index), residual={})
        arrays = uploaded(method, adapter, round)
        turned = {name: values[index] for name, values in turns.items()}
        told = Told(losses[index], group.steps[index], len(local.clients.rows[client]), drifts[index], turned)
        yield _Sends(client, arrays, None if silent else told, finite[index])


def _turns(rotation: SiteRotation | None) -> dict[str, list[float]]:
    """What is told of the rotations of a group, by client: one transfer from the device a figure, not one a client."""
    if rotation is None:
        return {}
    return {
        "rotation": rotation.size.mean(0).tolist(),
        "rotation_angle": rotation.angle.amax(0).tolist(),
        "degenerate": rotation.degenerate.sum(0).double().tolist(),
        "flips": rotation.flipped.sum(0).double().tolist(),
    }


def _share(sends: _Sends, local: Local) -> Share | str:
    """What a client brings to secure aggregation: arrays and a weight, or why it stays away."""
    if not sends.finite:
        return "non-finite loss or update"
    weighted = local.clients.config.federation.weighting == "samples"
    # The reply must not keep a stack of clients in memory, of which this is a view.
    arrays = {key: tensor.clone() for key, tensor in sends.arrays.items()}
    return arrays, len(local.clients.rows[sends.client]) if weighted else 1
