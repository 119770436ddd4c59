"""The clients of a node in a round of secure aggregation, from one message to the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast, get_args

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedrot.engines.flower.messages import REFUSED, pack_refusals
from fedrot.engines.flower.secagg.layout import Layout
from fedrot.engines.flower.secagg.wire import (
    STEP,
    Step,
    name_of,
    pack_bytes,
    unpack_bytes,
)
from fedrot.errors import AdapterError, SecureAggregationError
from fedrot.secagg import Inbox, Roster, SecAggClient, Session, Signer, Survivors, decode, encode

Share: TypeAlias = tuple[Mapping[str, Tensor], int]
"""What a client uploads, and its weight."""

ROSTER = "secure-roster"
SURVIVORS = "secure-survivors"

_log = logging.getLogger(__name__)


@dataclass
class _Current:
    session: Session
    clients: dict[int, SecAggClient] = field(default_factory=dict[int, SecAggClient])
    vectors: dict[int, tuple[NDArray[np.float32], int]] = field(
        default_factory=dict[int, tuple[NDArray[np.float32], int]]
    )


class Parties:
    """Keeps, between the messages of one round, the keys and the vectors of a node's clients; of one round only.

    Nothing is written anywhere, so a node that was started again has left the round.
    """

    def __init__(self, where: str, signer: Signer | None = None) -> None:
        """No round yet.

        Args:
            where: the node, for messages.
            signer: the identity of the node, which all of its clients share, where it has one.
        """
        self._where, self._signer = where, signer
        self._now: _Current | None = None

    def join(
        self,
        reply: RecordDict,
        session: Session,
        clients: Mapping[int, Share | str],
    ) -> None:
        """Stage 0: keep what clients trained, and write their keys, or why they do not take part, into the reply.

        Args:
            reply: to be sent.
            session: a new one ends what was before.
            clients: of each, what it uploads and its weight, or why it does not take part.
        """
        if self._now is None or self._now.session.digest != session.digest:
            self._now = _Current(session)
        now, layout = self._now, Layout.read(session.layout)
        refusals: dict[int, str] = {}
        for client, has in clients.items():
            who = f"client {client}"
            try:
                if isinstance(has, str):
                    raise SecureAggregationError(has)
                vector = layout.pack(has[0], who)
                self._check(vector, layout, session)
                party = SecAggClient(session, client, signer=self._signer)
                reply[name_of(client)] = pack_bytes(encode(party.advertise()))
            except (AdapterError, SecureAggregationError) as error:
                refusals[client] = self._refusal(client, error)
                continue
            now.clients[client], now.vectors[client] = party, (vector, has[1])
        reply[REFUSED] = pack_refusals(refusals)

    def handle(self, content: RecordDict) -> RecordDict:
        """A later stage.

        Raises:
            SecureAggregationError: not a step, or of a round that this node is not in.
        """
        facts = content.config_records.get(STEP) or ConfigRecord()
        step, clients, session = facts.get("step"), facts.get("clients"), facts.get("session")
        if step not in get_args(Step) or not isinstance(clients, list):
            raise SecureAggregationError(f"{self._where}: step {step!r}: expected one of {get_args(Step)}")
        now = self._now
        if now is None or session != now.session.digest:
            raise SecureAggregationError(
                f"{self._where}: this node is in no such round of secure aggregation; a client process that ends after "
                "every message cannot take part: run warm clients"
            )
        reply, refusals = RecordDict(), dict[int, str]()
        for client in clients:
            try:
                party = now.clients.get(cast(int, client))
                if party is None:
                    raise SecureAggregationError(f"client {client} did not join this round here")
                data = self._step(cast(Step, step), party, now, content)
                reply[name_of(party.client)] = pack_bytes(data)
            except SecureAggregationError as error:
                refusals[cast(int, client)] = self._refusal(cast(int, client), error)
        if step == "reveal":
            self._now = None
        reply[REFUSED] = pack_refusals(refusals)
        return reply

    def _step(self, step: Step, party: SecAggClient, now: _Current, content: RecordDict) -> bytes:
        def read(name: str) -> bytes:
            return unpack_bytes(content, name, self._where)

        match step:
            case "share":
                return encode(party.share(decode(read(ROSTER), Roster, now.session)))
            case "mask":
                inbox = decode(read(name_of(party.client)), Inbox, now.session)
                return encode(party.mask(inbox, *now.vectors.pop(party.client)))
            case "consent":
                return encode(party.consent(decode(read(SURVIVORS), Survivors, now.session)))
            case "reveal":
                return encode(party.reveal(decode(read(SURVIVORS), Survivors, now.session)))

    def _refusal(self, client: int, error: Exception) -> str:
        _log.warning("%s: client %d left the round: %s", self._where, client, error)
        return str(error)

    def _check(self, vector: NDArray[np.float32], layout: Layout, session: Session) -> None:
        """Refuse before anything is sent; the server is told which tensor, and not the number."""
        outside = ~(np.abs(vector) <= session.numbers.clip)
        if not outside.any():
            return
        first = int(outside.argmax())
        if not np.isfinite(vector).all():
            raise SecureAggregationError("non-finite update")
        raise SecureAggregationError(
            f"{int(outside.sum())} values are beyond privacy.secure_range = {session.numbers.clip:g}, the first in "
            f"{layout.key_of(first)!r}: raise it, or lower train.lr"
        )
