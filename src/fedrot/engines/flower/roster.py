"""Which node hosts which client: the handshake, nodes that come and go, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrot.engines.flower.messages import FACTS, HELLO, Hello, Welcome, failure, read, written
from fedrot.engines.flower.until import waiting
from fedrot.engines.flower.versions import version
from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation
from fedrot.errors import AdapterError, FedrotError, TrainingError
from fedrot.model import fingerprint


@dataclass(frozen=True)
class Peer:
    """A node that has been admitted."""

    node: int
    """Flower's number for it."""
    name: str
    clients: tuple[int, ...]
    examples: tuple[int, ...]
    """Of each client."""
    ranks: tuple[int, ...]
    """Of each client; 0 for what the recipe says."""
    device: str

    def weight(self, client: int, weighting: str) -> float:
        """A client's unnormalised aggregation weight."""
        return float(self.examples[self.clients.index(client)]) if weighting == "samples" else 1.0


Vouch = Callable[[int, str, Sequence[int]], None]
"""Raises an `AdapterError` unless a node, by Flower's number and by its name, may host these clients."""


class Roster:
    """Admits nodes and knows who hosts whom."""

    def __init__(
        self,
        grid: Grid,
        federation: Federation,
        observer: Observer,
        *,
        patient: bool = True,
        vouch: Vouch | None = None,
    ) -> None:
        """Nobody is asked yet.

        Args:
            grid: where nodes are found.
            federation: the server's: what nodes must agree with.
            observer: hears who joins, leaves and is refused.
            patient: whether nodes may still come; if not, a missing one is an error at once.
            vouch: refuses a node that may not host the clients it names.
        """
        self.base = fingerprint(federation.base)
        self._grid = grid
        self._federation = federation
        self._observer = observer
        self._patient = patient
        self._vouch = vouch
        self._peers: dict[int, Peer] = {}
        self._hosts: dict[int, Peer] = {}
        self._asked: dict[str, int] = {}
        self._refused: dict[int, str] = {}
        self._fixed: dict[int, int] = {}

    def host(self, client: int) -> Peer | None:
        """The node that hosts a client now."""
        return self._hosts.get(client)

    def gather(self) -> None:
        """Wait until the nodes of `engine.start_clients` clients, or of all, have joined.

        Raises:
            TrainingError: they have not within `engine.wait` seconds; says who is missing and who was refused.
        """
        everyone = range(self._federation.clients)
        needed = self._federation.config.engine.start_clients or len(everyone)
        self._wait(lambda: len(self._hosted(everyone)) >= needed, needed, everyone)

    def refresh(self, wanted: Collection[int]) -> None:
        """See who has come and gone; wait if none of `wanted` has a node.

        Raises:
            TrainingError: none has one within `engine.wait` seconds.
        """
        with waiting(time.monotonic() + self._federation.config.engine.deadline):
            self._look()
        if wanted:
            self._wait(lambda: bool(self._hosted(wanted)), 1, wanted)

    def ranks(self, recipe: Sequence[int | None]) -> tuple[int | None, ...]:
        """Every client's rank: what its node says, else what the recipe says. Fixed from here on.

        Args:
            recipe: of every client, as the recipe deals them.
        """
        own = {
            c: rank for peer in self._peers.values() for c, rank in zip(peer.clients, peer.ranks, strict=True)
        }
        if not any(own.values()):
            return tuple(recipe)
        server = self._federation.config.lora.rank
        self._fixed = {client: own.get(client) or rank or server for client, rank in enumerate(recipe)}
        return tuple(self._fixed.values())

    def examples(self) -> tuple[int, ...] | None:
        """Every client's, where data lies with the nodes; 0 of clients that have none yet."""
        if not self._federation.data_with_nodes:
            return None
        told = {
            c: n for peer in self._peers.values() for c, n in zip(peer.clients, peer.examples, strict=True)
        }
        return tuple(told.get(client, 0) for client in range(self._federation.clients))

    def _hosted(self, clients: Collection[int]) -> list[int]:
        return [client for client in clients if self.host(client) is not None]

    def _wait(self, enough: Callable[[], bool], needed: int, wanted: Collection[int]) -> None:
        limit = self._federation.config.engine.wait
        until, told, pause = time.monotonic() + limit, 0.0, 5.0
        while not enough():
            now = time.monotonic()
            missing = [client for client in wanted if self.host(client) is None]
            if now >= until or (
                not self._patient and not self._asked and not self._new(self._grid.get_node_ids())
            ):
                raise TrainingError(self._shortage(needed, missing, limit))
            if now >= told and self._patient:
                shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
                loading = f"{len(self._asked)} nodes are loading; " if self._asked else ""
                self._observer.preparing(
                    f"waiting for nodes: clients {shown} have none yet ({loading}{until - now:.0f} s left)"
                )
                told, pause = now + pause, 2 * pause
            with waiting(until):
                self._look()
            if self._patient:
                time.sleep(0.1)

    def _shortage(self, needed: int, missing: Sequence[int], limit: float) -> str:
        waited = f"within engine.wait = {limit:g} s" if self._patient else "on this machine"
        refused = "".join(f"\n  refused: {reason}" for reason in self._refused.values())
        return (
            f"nodes of {needed} clients are needed, but none {waited} hosts clients "
            f"{', '.join(map(str, missing[:10]))}{' ...' if len(missing) > 10 else ''}; start their nodes, or lower "
            f"engine.start_clients; finished rounds are kept{refused}"
        )

    def _new(self, here: Iterable[int]) -> list[int]:
        known = {*self._peers, *self._asked.values(), *self._refused}
        return [node for node in here if node not in known]

    def _look(self) -> None:
        """Note who has left, ask who is new, and take in answers."""
        here = dict.fromkeys(self._grid.get_node_ids())
        for node in [node for node in self._peers if node not in here]:
            gone = self._peers.pop(node)
            for client in gone.clients:
                del self._hosts[client]
            self._observer.note(f"node {gone.name!r} has left (clients {_listed(gone.clients)})")
            self._refused.clear()  # whose clients it held may be asked again
        self._asked = {name: node for name, node in self._asked.items() if node in here}
        if new := self._new(here):
            recipe = self._federation.config.to_toml()
            hello = Hello(version(), recipe, list(self._federation.task.labels))
            ttl = self._federation.config.engine.wait + 60
            messages = [Message(RecordDict({FACTS: written(hello)}), node, HELLO, ttl=ttl) for node in new]
            self._asked |= dict(zip(self._grid.push_messages(messages), new, strict=True))
        if self._asked:
            for reply in self._grid.pull_messages(list(self._asked)):
                node = self._asked.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:  # else it answers nothing that was asked
                    self._answer(node, reply)

    def _answer(self, node: int, reply: Message) -> None:
        try:
            if reply.has_error():
                raise AdapterError(failure(reply))
            welcome = read(Welcome, reply.content, f"node {node}")
            self._admit(node, welcome)
        except FedrotError as error:
            self._refused[node] = str(error)
            self._observer.note(f"a node was refused: {error}")

    def _admit(self, node: int, welcome: Welcome) -> None:
        """Take a node in.

        Raises:
            AdapterError: another version or base model, clients that do not exist or have a node, another number of
                examples than the server's partition gives them, or a rank that cannot be.
        """
        who = f"node {welcome.name!r}"
        if welcome.version != version():
            raise AdapterError(
                f"{who} runs fedrot {welcome.version}, the server {version()}; install the same version on both"
            )
        if welcome.base != self.base:
            raise AdapterError(
                f"{who} has a base model with digest {welcome.base[:12]}, the server's is {self.base[:12]}; give both "
                "the same files and train.precision"
            )
        if not len(welcome.clients) == len(welcome.examples) == len(welcome.ranks):
            raise AdapterError(f"{who}: clients, examples and ranks of unequal number")
        if len({*welcome.clients}) < len(welcome.clients):
            raise AdapterError(f"{who} names a client twice: {welcome.clients}")
        if self._vouch is not None:
            self._vouch(node, who, welcome.clients)
        for client, examples, rank in zip(welcome.clients, welcome.examples, welcome.ranks, strict=True):
            self._check_client(who, client, examples, rank)
        peer = Peer(
            node,
            welcome.name,
            tuple(welcome.clients),
            tuple(welcome.examples),
            tuple(welcome.ranks),
            welcome.device,
        )
        self._peers[node] = peer
        self._hosts |= dict.fromkeys(peer.clients, peer)
        self._refused.pop(node, None)
        if self._patient:
            self._observer.note(f"{who} joined: clients {_listed(peer.clients)} on {peer.device}")

    def _check_client(self, who: str, client: int, examples: int, rank: int) -> None:
        federation = self._federation
        if not 0 <= client < federation.clients:
            raise AdapterError(
                f"{who} hosts client {client}: expected 0 to {federation.clients - 1} (federation.clients)"
            )
        if (other := self.host(client)) is not None:
            raise AdapterError(
                f"{who} hosts client {client}, which node {other.name!r} already hosts; give it to one"
            )
        if examples < 1:
            raise AdapterError(f"{who}: client {client} has no examples")
        dealt = None if federation.data_with_nodes else len(federation.partition.rows[client])
        private = federation.config.privacy.mechanism == "local"  # a node then need not say how many
        if dealt is not None and examples != dealt and not (private and examples == 1):
            raise AdapterError(
                f"{who}: client {client} has {examples} examples, the server's partition gives it {dealt}; give both "
                "the same data, or let nodes bring their own with task.data = 'nodes'"
            )
        if not 0 <= rank <= federation.config.lora.rank:
            raise AdapterError(
                f"{who}: rank = {rank}: expected 1 to lora.rank = {federation.config.lora.rank}, the server's"
            )
        if rank and rank != federation.config.lora.rank and not federation.method.laws.mixed_ranks:
            raise AdapterError(
                f"{who}: rank = {rank}: all clients of method {federation.method.name!r} need the server's rank, "
                f"{federation.config.lora.rank}"
            )
        mechanism = federation.config.privacy.mechanism
        if rank and rank != federation.config.lora.rank and mechanism != "none":
            raise AdapterError(
                f"{who}: rank = {rank}: with privacy.mechanism = {mechanism!r} all clients need the server's rank, "
                f"{federation.config.lora.rank}; take `rank` out of node.toml"
            )
        if self._fixed and rank and rank != self._fixed[client]:
            raise AdapterError(
                f"{who}: client {client} at rank {rank}, but this run has it at rank {self._fixed[client]}"
            )


def _listed(clients: Sequence[int]) -> str:
    if len(clients) > 2 and list(clients) == list(range(clients[0], clients[-1] + 1)):
        return f"{clients[0]} to {clients[-1]}"
    return ", ".join(map(str, clients))
