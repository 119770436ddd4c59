"""The server's side of a federation: who has joined, and the clients of a round trained wherever they are.

It works over any Flower `Grid`. Flower delivers messages; who hosts which client, until when to wait, and what a reply
must look like before anything is done with it, is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedrot.core.adapter import Adapter
from fedrot.engines.flower.messages import (
    FACTS,
    TRAIN,
    Order,
    array_record,
    failure,
    metrics_name,
    pack_broadcast,
    unpack_told,
    upload_name,
    written,
)
from fedrot.engines.flower.records import from_arrays, message_bytes, shapes
from fedrot.engines.flower.roster import Peer, Roster
from fedrot.engines.flower.versions import version
from fedrot.engines.observer import Observer
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation
from fedrot.errors import AdapterError
from fedrot.methods import Update
from fedrot.participation import Cohort, cohorts
from fedrot.server import ServerState, bare, truncated
from fedrot.wire import travelling


@dataclass(frozen=True)
class _Sent:
    """A message that awaits its reply."""

    peer: Peer
    clients: tuple[int, ...]
    received: Adapter
    weight: float
    """Factor of the weights of these clients, below 1 for stale ones."""


class Session:
    """Trains the clients of each round on the nodes that host them."""

    def __init__(self, grid: Grid, federation: Federation, roster: Roster, observer: Observer) -> None:
        self._grid = grid
        self._federation = federation
        self._roster = roster
        self._observer = observer
        self._recipe = federation.config.to_toml()
        self._late: dict[str, int] = {}
        """Messages that were not answered in their round, and the node each went to."""

    def train(self, state: ServerState, round: Round) -> None:
        """Let the reporting clients of a round train, and take in what they send until the deadline.

        A client whose node is away, still busy with an earlier round, fails or is late is dropped from the round with
        the reason. One whose reply is not what was asked for is rejected.

        Raises:
            TrainingError: no node that hosts one of these clients joined within `engine.wait` seconds.
        """
        engine = self._federation.config.engine
        self._free()
        self._roster.refresh(round.participation.reporting)
        sent: dict[str, _Sent] = {}
        down = 0
        for cohort in cohorts(round.participation, self._federation.ranks):
            hosts = self._hosts(cohort, round)
            if not hosts:
                continue
            received, arrays = self._broadcast(cohort, state)
            discount = self._federation.config.federation.stale_weight**cohort.lag
            messages = [
                Message(
                    RecordDict({FACTS: written(self._order(clients, received, round.number)), **arrays}),
                    peer.node,
                    TRAIN,
                    ttl=engine.deadline + 60,
                    group_id=str(round.number),
                )
                for peer, clients in hosts.items()
            ]
            names = self._grid.push_messages(messages)
            for name, (peer, clients) in zip(names, hosts.items(), strict=True):
                sent[name] = _Sent(peer, clients, received, discount)
            down += len(hosts) * sum(message_bytes(record) for record in arrays.values())
        replies = self._collect(sent, round, time.monotonic() + engine.deadline)
        up = 0
        for name, reply in sorted(replies.items(), key=lambda item: sent[item[0]].clients):
            up += self._take(sent[name], reply, round)
        round.traffic = {"bytes_up": up, "bytes_down": down}

    def _hosts(self, cohort: Cohort, round: Round) -> Mapping[Peer, tuple[int, ...]]:
        """A cohort's clients by the node that trains them; the others are dropped."""
        busy = set(self._late.values())
        found: dict[Peer, list[int]] = {}
        for client in cohort.clients:
            peer = self._roster.host(client)
            if peer is None:
                round.drop(client, "no node hosts it now")
            elif peer.node in busy:
                round.drop(client, f"node {peer.name!r} has not answered an earlier round yet")
            else:
                found.setdefault(peer, []).append(client)
        return {peer: tuple(clients) for peer, clients in found.items()}

    def _broadcast(self, cohort: Cohort, state: ServerState) -> tuple[Adapter, dict[str, ArrayRecord]]:
        """What a cohort receives, without its residual, and the arrays to send."""
        lag = self._federation.method.reference_lag
        received = truncated(state.broadcast(cohort.lag), cohort.rank)
        # A stale update is aligned to what its fellows hold now, not to what it was computed from.
        target = truncated(state.broadcast(0 if cohort.lag else lag), cohort.rank)
        arrays = pack_broadcast(received, bare(target) if cohort.lag or lag else None)
        return bare(received), arrays

    def _order(self, clients: tuple[int, ...], received: Adapter, number: int) -> Order:
        return Order(
            version=version(),
            base=self._roster.base,
            recipe=self._recipe,
            labels=list(self._federation.task.labels),
            round=number,
            clients=list(clients),
            scale=received.scale,
        )

    def _collect(self, sent: Mapping[str, _Sent], round: Round, until: float) -> dict[str, Message]:
        """Replies until all are there or time is up; who is missing then is dropped and remembered as late."""
        replies: dict[str, Message] = {}
        waiting = set(sent)
        pause = 0.02
        chosen, done = len(round.participation.reporting), 0
        while waiting:
            found = list(self._grid.pull_messages(waiting))
            for reply in found:
                name = reply.metadata.reply_to_message_id
                waiting.discard(name)
                replies[name] = reply
                done += len(sent[name].clients)
                self._observer.trained(round.number, done, chosen)
            if not waiting or (not found and time.monotonic() >= until):
                break
            if not found:
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
        limit = self._federation.config.engine.deadline
        for name in waiting:
            self._late[name] = sent[name].peer.node
            for client in sent[name].clients:
                round.drop(client, f"node {sent[name].peer.name!r} did not answer within {limit:g} s")
        return replies

    def _free(self) -> None:
        """Forget late messages that have been answered since, or whose node has left."""
        if not self._late:
            return
        for reply in self._grid.pull_messages(list(self._late)):
            self._late.pop(reply.metadata.reply_to_message_id, None)
        here = set(self._grid.get_node_ids())
        self._late = {name: node for name, node in self._late.items() if node in here}

    def _take(self, sent: _Sent, reply: Message, round: Round) -> int:
        """Take in a reply; returns the bytes of its arrays."""
        where = f"node {sent.peer.name!r}"
        if reply.has_error():
            reason = failure(reply)
            reason = reason if where in reason else f"{where}: {reason}"
            self._observer.note(f"round {round.number}: {reason}")
            for client in sent.clients:
                round.drop(client, reason)
            return 0
        size = sum(message_bytes(record) for record in reply.content.array_records.values())
        for client in sent.clients:
            try:
                update, told = self._update(client, sent, reply.content, round.number, where)
                round.receive(update, told)
            except AdapterError as error:
                round.rejected[client] = str(error)
                self._observer.note(f"round {round.number}: client {client} is rejected: {error}")
        return size

    def _update(
        self, client: int, sent: _Sent, content: RecordDict, number: int, where: str
    ) -> tuple[Update, dict[str, float]]:
        """A client's update, checked.

        Raises:
            AdapterError: it is not what was asked for.
        """
        method, received = self._federation.method, sent.received
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
        sends = method.uploads(number)
        expected = travelling(received, a=sends.a, b=sends.b, head=method.shares_head)
        record = array_record(content, upload_name(client), where)
        arrays = from_arrays(record, shapes(expected), where)
        device = self._federation.base.device
        own = {key: tensor.to(device) for key, tensor in arrays.items()}
        adapter = Adapter.from_tensors({**received.tensors(), **own}, received.scale)
        weight = sent.peer.weight(client, self._federation.config.federation.weighting) * sent.weight
        return Update(client, adapter, weight, loss), measured
