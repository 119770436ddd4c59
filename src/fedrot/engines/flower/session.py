"""The server's side of a federation: who has joined, and the clients of a round trained wherever they are.

It works over any Flower `Grid`. Flower delivers messages; who hosts which client, until when to wait, and what a reply
must look like before anything is done with it, is decided here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.engines.flower.as_trained import goes_along, told_apart, unpack_trained
from fedrot.engines.flower.examiner import Examiner
from fedrot.engines.flower.holders import Holders
from fedrot.engines.flower.messages import (
    FACTS,
    TRAIN,
    WRITE,
    array_record,
    metrics_name,
    unpack_refusals,
    unpack_told,
    upload_name,
)
from fedrot.engines.flower.messenger import Messenger, Request
from fedrot.engines.flower.orders import Orders
from fedrot.engines.flower.records import from_arrays, shapes
from fedrot.engines.flower.roster import Peer, Roster
from fedrot.engines.flower.secagg.uploads import SecureUploads
from fedrot.engines.flower.secagg.wire import RULES
from fedrot.engines.observer import Observer
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation
from fedrot.errors import AdapterError, OutputError
from fedrot.methods import Update
from fedrot.participation import cohorts
from fedrot.server import Apart, ServerState, bare
from fedrot.wire import uploaded


@dataclass(frozen=True)
class _Asked(Request):
    """Clients of one cohort and node that are asked to train."""

    clients: tuple[int, ...]
    received: Adapter
    weight: float
    """Factor of the weights of these clients, below 1 for stale ones."""


class Session:
    """Trains the clients of each round on the nodes that host them."""

    def __init__(self, grid: Grid, federation: Federation, roster: Roster, observer: Observer) -> None:
        self._federation = federation
        self._roster = roster
        self._observer = observer
        self._messenger = Messenger(grid, federation.config.engine.deadline)
        self._orders = Orders(federation, roster, self._messenger)
        self._name = secrets.token_hex(16)
        self._along = goes_along(federation.config, federation.method)
        self._holders = Holders(federation, roster, self._messenger, self._orders)
        self._examiner = Examiner(federation, self._holders, self._messenger, observer)

    def train(self, state: ServerState, round: Round) -> None:
        """Let the reporting clients of a round train, and take in what they send until the deadline.

        A client whose node is away, still busy with an earlier round, fails or is late is dropped from the round with
        the reason. One whose reply is not what was asked for is rejected. Where all of their nodes are busy, the round
        begins when one of them has answered, or after `engine.deadline` seconds.

        Raises:
            TrainingError: no node that hosts one of these clients joined within `engine.wait` seconds.
            OutputError: the state was made by the local engine and holds what clients keep.
        """
        self._messenger.start()
        apart = round.apart = self._apart(state)
        reporting = round.participation.reporting
        self._roster.refresh(reporting)
        if nodes := {peer.node for client in reporting if (peer := self._roster.host(client)) is not None}:
            self._messenger.await_one(nodes)
        placed = [
            (cohort, hosts)
            for cohort in cohorts(round.participation, self._federation.ranks)
            if (hosts := self._orders.hosts(cohort.clients, round.drop))
        ]
        peers = {c: peer for _, hosts in placed for peer, clients in hosts.items() for c in clients}
        if self._federation.config.privacy.secure_aggregation and len(peers) < 2:
            for client in peers:
                round.drop(client, "alone in the round: secure aggregation needs two clients at least")
            placed, peers = [], {}
        secure = self._secure(state, round, peers)
        asked: list[_Asked] = []
        for cohort, hosts in placed:
            received, arrays = self._orders.broadcast(cohort, state)
            discount = self._federation.config.federation.stale_weight**cohort.lag
            for peer, clients in hosts.items():
                order = self._orders.order(clients, received, round.number, apart)
                rules = {} if secure is None else {RULES: secure.rules}
                content = RecordDict({FACTS: order, **arrays, **rules})
                asked.append(_Asked(peer, content, clients, received, discount))
        replies = self._messenger.ask(TRAIN, asked, round.number, self._progress(round))
        for request, reply in sorted(zip(asked, replies, strict=True), key=lambda pair: pair[0].clients):
            self._take(request, reply, round, secure)
        if secure is not None:
            for who, why in secure.finish().items():
                self._observer.note(f"round {round.number}: {who}: {why}")
        traffic = self._messenger.traffic
        round.traffic = told_apart(traffic, replies) if self._along else traffic

    def evaluate(self, state: ServerState) -> dict[str, Any]:
        """Scores of a state, see `Examiner`. After the last round nodes write their clients' own models if asked to."""
        record, config = self._examiner.evaluate(state), self._federation.config
        if not (config.output.personal and state.round == config.federation.rounds):
            return record
        missing: dict[int, str] = {}
        self._holders.ask(WRITE, state, missing)
        for client, why in sorted(missing.items()):
            self._observer.note(f"client {client}'s own adapter is not written: {why}")
        unwritten = {str(client): why for client, why in sorted(missing.items())}
        return record | ({"unwritten_clients": unwritten} if unwritten else {})

    def _apart(self, state: ServerState) -> Apart | None:
        """What is known of the parts that clients keep on their nodes; None where the method leaves them none."""
        if state.personal:
            raise OutputError(
                "this run was begun by the local engine, and its checkpoint holds what the clients keep to themselves; "
                "nodes do not have it: go on with engine.name = 'local', or start a new run"
            )
        if not self._federation.method.laws.personal:
            return None
        return state.apart or Apart(self._name)

    def _progress(self, round: Round) -> Callable[[Request], None]:
        chosen, done = len(round.participation.reporting), 0

        def heard(request: Request) -> None:
            nonlocal done
            assert isinstance(request, _Asked)
            done += len(request.clients)
            self._observer.trained(round.number, done, chosen)

        return heard

    def _secure(self, state: ServerState, round: Round, hosts: Mapping[int, Peer]) -> SecureUploads | None:
        """Secure aggregation of these clients' uploads, if the recipe has it."""
        config = self._federation.config
        if not config.privacy.secure_aggregation or not hosts:
            return None
        by_node = {peer.node: peer for peer in hosts.values()}

        def exchange(kind: str, messages: Mapping[int, RecordDict]) -> dict[int, RecordDict | str]:
            requests = [Request(by_node[node], content) for node, content in messages.items()]
            return dict(zip(messages, self._messenger.ask(kind, requests, round.number), strict=True))

        nodes = {client: peer.node for client, peer in hosts.items()}
        weights = [peer.weight(client, config.federation.weighting) for client, peer in hosts.items()]
        return SecureUploads(self._federation, round, bare(state.adapter), nodes, weights, exchange)

    def _take(
        self, asked: _Asked, reply: RecordDict | str, round: Round, secure: SecureUploads | None
    ) -> None:
        """Take in a reply, or that there is none."""
        if isinstance(reply, str):
            self._observer.note(f"round {round.number}: {reply}")
            for client in asked.clients:
                round.drop(client, reply) if secure is None else secure.lose(client, reply)
            return
        where = f"node {asked.peer.name!r}"
        if secure is not None:
            secure.take(reply, asked.clients, where)
            return
        refused = unpack_refusals(reply, asked.clients)
        for client in asked.clients:
            if client in refused:
                round.drop(client, refused[client])
                self._observer.note(f"round {round.number}: {refused[client]}")
                continue
            try:
                update, told = self._update(client, asked, reply, round.number, where)
                before = self._trained(client, asked, reply, round.number, where, "rotation" in told)
                round.receive(update, told, *before)
            except AdapterError as error:
                round.rejected[client] = str(error)
                self._observer.note(f"round {round.number}: client {client} is rejected: {error}")

    def _update(
        self, client: int, asked: _Asked, content: RecordDict, number: int, where: str
    ) -> tuple[Update, dict[str, float]]:
        """A client's update, checked.

        Raises:
            AdapterError: it is not what was asked for.
        """
        received = asked.received
        where = f"{where}, client {client}"
        measurements = content.metric_records.get(metrics_name(client))
        if self._federation.config.privacy.mechanism == "local":
            loss: dict[str, float] = {}
            # None are expected, and the round refuses those that come.
            measured: dict[str, float] = dict.fromkeys(measurements or (), 0.0)
        else:
            told = unpack_told(measurements, where)
            loss = {"loss": told.loss}
            measured = {"steps": told.steps, "drift": told.drift, **told.rotation}
        expected = uploaded(self._federation.method, received, number)
        record = array_record(content, upload_name(client), where)
        arrays = from_arrays(record, shapes(expected), where)
        device = self._federation.base.device
        own = {key: tensor.to(device) for key, tensor in arrays.items()}
        adapter = Adapter.from_tensors({**received.tensors(), **own}, received.scale)
        weight = asked.peer.weight(client, self._federation.config.federation.weighting) * asked.weight
        return Update(client, adapter, weight, loss), measured

    def _trained(
        self, client: int, asked: _Asked, content: RecordDict, number: int, where: str, turned: bool
    ) -> tuple[Adapter | None, Tensor | None]:
        """What a client trained before the method changed it, and how far it rotated, where that comes as well.

        Raises:
            AdapterError: it is not what was asked for.
        """
        if not self._along:
            return None, None
        federation, where = self._federation, f"{where}, client {client}"
        trained, sizes = unpack_trained(
            content, client, federation.method, asked.received, number, turned, where
        )
        return trained.map(lambda tensor: tensor.to(federation.base.device)), sizes
