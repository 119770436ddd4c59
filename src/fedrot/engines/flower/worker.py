"""What a node does: it keeps base model and data ready, introduces itself, trains and tests clients when asked."""

from __future__ import annotations

import tomllib
from contextlib import closing
from dataclasses import dataclass

from flwr.app import RecordDict

from fedrot.config import RunConfig, parse_config
from fedrot.core.adapter import Adapter
from fedrot.engines.flower.admission import check_admissible, check_own_models
from fedrot.engines.flower.as_trained import goes_along, trained_name
from fedrot.engines.flower.boundary import Boundary
from fedrot.engines.flower.brought import broadcast_of, parts_of
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
from fedrot.errors import AdapterError, ConfigError, DataError, SecureAggregationError
from fedrot.server import starts


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
        self._boundary = Boundary(self._where, private=settings.data is not None)

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """The reply to a message.

        Raises:
            FedrotError: another version, model or recipe than can be served here, unusable data, or a message that is
                not as expected. Each names the node. Where the node holds its owner's data, none quotes it (see
                `Boundary`).
        """
        with self._boundary.answering():
            return self._answer(message_type, content)

    def _answer(self, message_type: str, content: RecordDict) -> RecordDict:
        if message_type == HELLO:
            return self._hello(content)
        if message_type == TRAIN:
            return self._train(content)
        if message_type == EXAMINE:
            return self._examine(content)
        if message_type == WRITE:
            return self._write(content)
        with self._boundary.openly():
            if message_type == SECURE:
                return self._parties.handle(content)
            known = ", ".join(repr(kind) for kind in (HELLO, TRAIN, EXAMINE, WRITE, SECURE))
            raise AdapterError(f"{self._where}: message type {message_type!r}: expected one of {known}")

    @property
    def _where(self) -> str:
        return f"node {self.settings.name!r}"

    def _hello(self, content: RecordDict) -> RecordDict:
        with self._boundary.openly():
            hello = read(Hello, content, self._where)
            self._check_version(hello.version)
        local = self._prepare(hello.recipe, hello.labels)
        rank = self.settings.rank or 0
        told = Welcome(
            name=self.settings.name,
            version=version(),
            base=local.base,
            clients=list(self.settings.clients),
            examples=self._examples(local),
            ranks=[rank] * len(self.settings.clients),
            device=str(local.device),
        )
        return RecordDict({FACTS: written(told)})

    def _train(self, content: RecordDict) -> RecordDict:
        order, local, received = self._read(content)
        with self._boundary.openly():
            where = f"{self._where}, round {order.round}"
            reference = unpack_adapter(content, "reference", local.initial, order.scale, where)
            aligned_to = (
                received if reference is None else reference.map(lambda tensor: tensor.to(local.device))
            )
            rules = unpack_rules(content, where)
            if local.clients.config.privacy.secure_aggregation != (rules is not None):
                raise SecureAggregationError(
                    f"{where}: the recipe has privacy.secure_aggregation = "
                    f"{str(rules is None).lower()}, the server asks otherwise"
                )
            session = None if rules is None else rules.session(order.round)
            own, refused = parts_of(self._kept, order, local, received)
            self._budget.spend(list(own), local.clients.config.privacy)
        assert self._held is not None
        along = goes_along(self._held.recipe, local.clients.method)
        self._boundary.at("training")
        reply, hidden = RecordDict(), dict[int, Share | str]()

        def task_of(clients: tuple[int, ...]) -> Task:
            return Task(order.round, clients, received, starts(received, own, clients, None), aligned_to)

        started = dict(zip(order.clients, order.kept, strict=True))
        with closing(train_all(local.clients, order.round, list(own), task_of)) as results:
            for sent in (sent for _, group in results for sent in sends(group, local, order.round, along)):
                if sent.told is not None:
                    reply[metrics_name(sent.client)] = pack_told(sent.told)
                if session is None:
                    reply[upload_name(sent.client)] = to_arrays(sent.arrays)
                    if sent.trained:
                        reply[trained_name(sent.client)] = to_arrays(sent.trained)
                else:
                    hidden[sent.client] = share(sent, local)
                if sent.keeps:
                    self._kept.save(order.run, sent.client, started[sent.client], order.round, sent.keeps)
        if session is not None:
            self._parties.join(reply, session, hidden)
        elif refused:
            reply[REFUSED] = pack_refusals(refused)
        local.clients.crew.unload()
        return reply

    def _examine(self, content: RecordDict) -> RecordDict:
        order, local, received = self._read(content, own_models=True)
        with self._boundary.openly():
            if local.federation is None:
                raise DataError(
                    f"{self._where} has no test split to examine its clients' own models on: its data is its clients' "
                    "alone"
                )
            own, refused = parts_of(self._kept, order, local, received)
        self._boundary.at("testing its clients' own models")
        reply = examine(local.federation, received, own)
        reply[REFUSED] = pack_refusals(refused)
        return reply

    def _write(self, content: RecordDict) -> RecordDict:
        order, local, received = self._read(content, own_models=True)
        with self._boundary.openly():
            own, refused = parts_of(self._kept, order, local, received)
        self._boundary.at("writing its clients' own models")
        write(self._kept, order, local, received, own)
        return RecordDict({REFUSED: pack_refusals(refused)})

    def _read(self, content: RecordDict, *, own_models: bool = False) -> tuple[Order, Local, Adapter]:
        """An order, what it takes to carry it out, and the broadcast that came with it.

        Args:
            content: of the message.
            own_models: it is about the models that clients have to themselves.

        Raises:
            ConfigError: a client that is not hosted here, or numbers of rounds that cannot be.
            FedrotError: as `handle`.
        """
        with self._boundary.openly():
            order = read(Order, content, self._where)
            self._check_version(order.version)
        local = self._prepare(order.recipe, order.labels, own_models=own_models)
        with self._boundary.openly():
            return order, local, broadcast_of(order, local, content, self._where)

    def _examples(self, local: Local) -> list[int]:
        """How many every client has; of its owner's data, where that is to stay private, only that there are some."""
        counts = [len(local.clients.rows[client]) for client in self.settings.clients]
        local_noise = local.clients.config.privacy.mechanism == "local" or self.settings.epsilon is not None
        hidden = self.settings.data is not None and local_noise
        return [min(1, count) for count in counts] if hidden else counts

    def _check_version(self, server: str) -> None:
        if server != version():
            raise ConfigError(
                f"{self._where} runs fedrot {version()}, the server fedrot {server}; install the same version on both"
            )

    def _prepare(self, recipe: str, labels: list[str], *, own_models: bool = False) -> Local:
        with self._boundary.openly():
            held = self._held if self._held is not None and self._held.text == (recipe, labels) else None
            config = self._parse(recipe) if held is None else held.recipe
            if own_models:
                check_own_models(self.settings, config)
            if held is not None:
                return held.local
            check_admissible(self.settings, config, labels)
        digest = recipe_digest(config) + repr(labels)
        if self._held is not None and self._held.digest == digest:
            self._held = _Held((recipe, labels), config, digest, self._held.local)
            return self._held.local
        if self._held is not None:
            self._held.local.clients.crew.lead.close()
            if self._held.text[1] != labels:
                self._shared.clear()  # its things are known by their recipe alone
            self._held = None
        local = self._given
        if local is None or recipe_digest(local.clients.config) != recipe_digest(config):
            local = self._prepared(config, tuple(labels))
        self._held = _Held((recipe, labels), config, digest, local)
        return local

    def _prepared(self, config: RunConfig, labels: tuple[str, ...]) -> Local:
        try:
            return prepare_node(self.settings, config, labels, self._shared, self._boundary)
        except Exception:
            self._shared.clear()  # what was built is half in use
            raise

    def _parse(self, recipe: str) -> RunConfig:
        try:
            return parse_config(tomllib.loads(recipe))
        except (tomllib.TOMLDecodeError, ConfigError) as error:
            raise ConfigError(
                f"{self._where}: the server's recipe is not one that fedrot {version()} reads: {error}"
            ) from error
