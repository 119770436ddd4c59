"""The server's side of a round of secure aggregation over Flower: asks the nodes, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedrot.engines.flower.messages import unpack_refusals
from fedrot.engines.flower.secagg.parties import ROSTER, SURVIVORS
from fedrot.engines.flower.secagg.wire import (
    SECURE,
    STEP,
    Step,
    name_of,
    pack_bytes,
    unpack_bytes,
)
from fedrot.errors import SecureAggregationError
from fedrot.secagg import (
    Advert,
    Aggregate,
    Consent,
    Masked,
    Reveal,
    Sealed,
    SecAggServer,
    Session,
    decode,
    encode,
)
from fedrot.secagg.keys import Identities

Exchange: TypeAlias = Callable[[str, Mapping[int, RecordDict]], Mapping[int, RecordDict | str]]
"""Sends messages of one type, by node, and gives what each replied until the deadline, or why it did not."""


class SecureRound:
    """Runs the protocol for the clients of one round; who leaves it is kept, with the reason.

    Attributes:
        lost: clients that did not answer before their vectors were in the sum, and why.
        refused: those that left the round by themselves, or sent something else than was asked for, and why.
        late: clients that left after their vectors had come, and why; they are in the sum.
    """

    def __init__(
        self,
        session: Session,
        hosts: Mapping[int, int],
        exchange: Exchange,
        identities: Identities | None = None,
    ) -> None:
        """Before training.

        Args:
            session: of the round.
            hosts: by client, its node.
            exchange: the network.
            identities: of the clients, if they sign.
        """
        self.session, self.late = session, dict[int, str]()
        self.lost, self.refused = dict[int, str](), dict[int, str]()
        self._hosts, self._exchange = dict(hosts), exchange
        self._server = SecAggServer(session, identities)
        self._active: list[int] = []

    def join(self, content: RecordDict, clients: Iterable[int], where: str) -> list[int]:
        """Stage 0: take the keys in a node's reply to the training message.

        Returns:
            Those of `clients` that take part.
        """
        came = self._take(content, clients, Advert, self.refused, where)
        self._active += came
        return came

    def leave(self, client: int, reason: str) -> None:
        """Refuse a client whose keys have come already: it counts as one that stopped answering."""
        self.refused[client] = reason
        self._active.remove(client)

    def finish(self) -> Aggregate:
        """All stages after training.

        Raises:
            SecureAggregationError: too few clients were left; nothing was revealed.
        """
        server = self._server
        roster = pack_bytes(encode(server.close_keys()))
        self._ask("share", Sealed, {ROSTER: roster}, {})
        inboxes = {c: pack_bytes(encode(inbox)) for c, inbox in server.close_shares().items()}
        self._ask("mask", Masked, {}, inboxes)
        survivors = server.close_vectors()
        if self.session.signed:
            self._ask("consent", Consent, {SURVIVORS: pack_bytes(encode(survivors))}, {}, late=True)
            survivors = server.close_consents()
        self._ask("reveal", Reveal, {SURVIVORS: pack_bytes(encode(survivors))}, {}, late=True)
        return server.close_reveals()

    def _ask(
        self,
        step: Step,
        kind: type[Sealed] | type[Masked] | type[Consent] | type[Reveal],
        common: Mapping[str, ArrayRecord],
        own: Mapping[int, ArrayRecord],
        *,
        late: bool = False,
    ) -> None:
        lost, refused = (self.late, self.late) if late else (self.lost, self.refused)
        by_node: dict[int, list[int]] = {}
        for client in self._active:
            by_node.setdefault(self._hosts[client], []).append(client)
        messages = {
            node: RecordDict(
                {
                    STEP: ConfigRecord({"step": step, "clients": clients, "session": self.session.digest}),
                    **common,
                    **{name_of(client): own[client] for client in clients if client in own},
                }
            )
            for node, clients in by_node.items()
        }
        replies = self._exchange(SECURE, messages)
        self._active = []
        for node, clients in by_node.items():
            reply = replies.get(node, "no reply")
            if isinstance(reply, str):
                lost |= dict.fromkeys(clients, reply)
                continue
            self._active += self._take(reply, clients, kind, refused, f"node {node}")

    def _take(
        self,
        content: RecordDict,
        clients: Iterable[int],
        kind: type[Advert] | type[Sealed] | type[Masked] | type[Consent] | type[Reveal],
        left: dict[int, str],
        where: str,
    ) -> list[int]:
        clients = list(clients)
        left |= unpack_refusals(content, clients)
        came: list[int] = []
        for client in clients:
            if client in left:
                continue
            try:
                message = decode(unpack_bytes(content, name_of(client), where), kind, self.session)
                if message.client != client:
                    raise SecureAggregationError(
                        f"{where} sent a message of client {message.client} as that of {client}"
                    )
                self._server.receive(message)
            except SecureAggregationError as error:
                left[client] = str(error)
            else:
                came.append(client)
        return came
