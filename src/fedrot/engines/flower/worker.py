"""What a node does: it keeps base model and data ready, introduces itself, trains and tests clients when asked."""

from __future__ import annotations

import tomllib
from contextlib import closing
from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from fedrot.config import RunConfig, parse_config
from fedrot.core.adapter import Adapter
from fedrot.engines.flower.as_trained import check_open, goes_along, trained_name
from fedrot.engines.flower.budget import Budget
from fedrot.engines.flower.kept import Kept
from fedrot.engines.flower.messages import (
    EXAMINE,
    FACTS,
    HELLO,
    REFUSED,
    TRAIN,
    WRITE,
    Hello,
    Order,
    Welcome,
    metrics_name,
    pack_refusals,
    pack_told,
    read,
    recipe_digest,
    unpack_adapter,
    upload_name,
    written,
)
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.node_data import Local, prepare_node
from fedrot.engines.flower.own_models import examine, write
from fedrot.engines.flower.records import to_arrays
from fedrot.engines.flower.secagg.parties import Parties, Share
from fedrot.engines.flower.secagg.wire import SECURE, unpack_rules
from fedrot.engines.flower.sends import sends, share
from fedrot.engines.flower.versions import version
from fedrot.engines.shared import Shared
from fedrot.engines.training import Task, train_all
from fedrot.errors import AdapterError, ConfigError, DataError, ModelError, SecureAggregationError
from fedrot.privacy import check_secret
from fedrot.server import own_parts, starts
from fedrot.tasks.own import NODES


@dataclass(frozen=True)
class _Held:
    text: tuple[str, list[str]]
    """Recipe and labels as they came last, so that they are read once and not every round."""
    recipe: RunConfig
    """That recipe; `local` may be of an earlier one that is the same but for output, engine and rounds."""
    digest: str
    local: Local


class Worker:
    """Serves one node. It lives as long as the node does, so that nothing is loaded twice.

    A worker answers messages one at a time. Nothing of a round outlasts its reply but what a method leaves with clients
    (`Kept`) and, in a round of secure aggregation, the vectors and keys of this node's clients, until its last message
    or the next round.
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
        self._kept = Kept(settings.kept, self._where)

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
        if message_type == EXAMINE:
            return self._examine(content)
        if message_type == WRITE:
            return self._write(content)
        if message_type == SECURE:
            return self._parties.handle(content)
        known = ", ".join(repr(kind) for kind in (HELLO, TRAIN, EXAMINE, WRITE, SECURE))
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
        order, local, received = self._read(content)
        where = f"{self._where}, round {order.round}"
        reference = unpack_adapter(content, "reference", local.initial, order.scale, where)
        aligned_to = received if reference is None else reference.map(lambda tensor: tensor.to(local.device))
        rules = unpack_rules(content, where)
        if local.clients.config.privacy.secure_aggregation != (rules is not None):
            raise SecureAggregationError(
                f"{where}: the recipe has privacy.secure_aggregation = "
                f"{str(rules is None).lower()}, the server asks otherwise"
            )
        own, refused = self._own(order, local, received)
        assert self._held is not None
        along = goes_along(self._held.recipe, local.clients.method)
        self._budget.spend(list(own), local.clients.config.privacy)
        reply, hidden = RecordDict(), dict[int, Share | str]()

        def task_of(clients: tuple[int, ...]) -> Task:
            return Task(order.round, clients, received, starts(received, own, clients, None), aligned_to)

        started = dict(zip(order.clients, order.kept, strict=True))
        with closing(train_all(local.clients, order.round, list(own), task_of)) as results:
            for sent in (sent for _, group in results for sent in sends(group, local, order.round, along)):
                if sent.told is not None:
                    reply[metrics_name(sent.client)] = pack_told(sent.told)
                if rules is None:
                    reply[upload_name(sent.client)] = to_arrays(sent.arrays)
                    if sent.trained:
                        reply[trained_name(sent.client)] = to_arrays(sent.trained)
                else:
                    hidden[sent.client] = share(sent, local)
                if sent.keeps:
                    self._kept.save(order.run, sent.client, started[sent.client], order.round, sent.keeps)
        if rules is not None:
            self._parties.join(reply, rules.session(order.round), hidden)
        elif refused:
            reply[REFUSED] = pack_refusals(refused)
        local.clients.crew.unload()
        return reply

    def _examine(self, content: RecordDict) -> RecordDict:
        order, local, received = self._read(content)
        if local.federation is None:
            raise DataError(
                f"{self._where} has no test split to examine its clients' own models on: its data is its clients' alone"
            )
        own, refused = self._own(order, local, received)
        reply = examine(local.federation, received, own)
        reply[REFUSED] = pack_refusals(refused)
        return reply

    def _write(self, content: RecordDict) -> RecordDict:
        order, local, received = self._read(content)
        own, refused = self._own(order, local, received)
        write(self._kept, order, local, received, own)
        return RecordDict({REFUSED: pack_refusals(refused)})

    def _read(self, content: RecordDict) -> tuple[Order, Local, Adapter]:
        """An order, what it takes to carry it out, and the broadcast that came with it.

        Raises:
            ConfigError: a client that is not hosted here, or numbers of rounds that cannot be.
            FedrotError: as `handle`.
        """
        order = read(Order, content, self._where)
        self._check_version(order.version)
        local = self._prepare(order.recipe, order.labels)
        if order.base != local.base:
            raise ModelError(
                f"{self._where}: its base model has digest {local.base[:12]}, the server's {order.base[:12]}; "
                "give both the same files and train.precision"
            )
        if foreign := [client for client in order.clients if client not in local.clients.rows]:
            raise ConfigError(f"{self._where}: asked for client {foreign[0]}, which it does not host")
        if len(order.kept) != len(order.clients) or any(not 0 <= kept <= order.round for kept in order.kept):
            raise ConfigError(
                f"{self._where}: asked to go on in round {order.round} from what clients {order.clients} kept of "
                f"rounds {order.kept}: expected one round for each, from 0 to the order's own"
            )
        where = f"{self._where}, round {order.round}"
        received = unpack_adapter(content, "received", local.initial, order.scale, where)
        if received is None:
            raise AdapterError(f"{where}: no adapter came with the order")
        return order, local, received.map(lambda tensor: tensor.to(local.device))

    def _own(
        self, order: Order, local: Local, received: Adapter
    ) -> tuple[dict[int, dict[str, Tensor]], dict[int, str]]:
        """What each client goes on from beside the broadcast, and why some cannot.

        What was kept under one recipe must not leave under another, so nothing is loaded that would be uploaded.
        """
        method = local.clients.method
        stays = own_parts(method, received, order.round) if method.laws.personal else {}
        own: dict[int, dict[str, Tensor]] = {}
        refused: dict[int, str] = {}
        for client, kept in zip(order.clients, order.kept, strict=True):
            try:
                own[client] = self._kept.load(order.run, client, kept, stays)
            except AdapterError as error:
                refused[client] = str(error)
        return own, refused

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
        check_open(config, self._where)
        digest = recipe_digest(config) + repr(labels)
        if self._held is not None and self._held.digest == digest:
            self._held = _Held((recipe, labels), config, digest, self._held.local)
            return self._held.local
        if self._held is not None:
            self._held.local.clients.crew.lead.close()
            self._held = None
        local = self._given
        if local is None or recipe_digest(local.clients.config) != recipe_digest(config):
            local = prepare_node(self.settings, config, tuple(labels), self._shared)
        self._held = _Held((recipe, labels), config, digest, local)
        return local

    def _parse(self, recipe: str) -> RunConfig:
        try:
            return parse_config(tomllib.loads(recipe))
        except (tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(
                f"{self._where}: the server's recipe is not one that fedrot {version()} reads: {error}"
            ) from error
