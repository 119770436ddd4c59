"""The clients that keep parts of the model on their nodes: the server asks these nodes about their own models."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from fedrot.engines.flower.messages import FACTS, unpack_refusals
from fedrot.engines.flower.messenger import Messenger, Request
from fedrot.engines.flower.orders import Orders
from fedrot.engines.flower.roster import Roster
from fedrot.engines.setup import Federation
from fedrot.participation import Participation, cohorts
from fedrot.server import ServerState


@dataclass(frozen=True)
class _Asked(Request):
    clients: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A node's, concerning one of its clients."""

    node: str
    content: RecordDict


class Holders:
    """Asks the nodes of all clients that keep parts, and sends them the newest broadcast with it."""

    def __init__(self, federation: Federation, roster: Roster, messenger: Messenger, orders: Orders) -> None:
        self._federation, self._roster = federation, roster
        self._messenger, self._orders = messenger, orders

    def ask(self, kind: str, state: ServerState, missing: dict[int, str]) -> dict[int, Answer]:
        """Their answers by client, until the deadline.

        Args:
            kind: Flower's type of message.
            state: says who keeps parts, and of which round.
            missing: takes up the clients without an answer, with the reason.
        """
        apart = state.apart
        if apart is None or not apart.rounds:
            return {}
        self._messenger.forget()
        self._roster.refresh(())
        asked: list[_Asked] = []
        everyone = Participation(tuple(sorted(apart.rounds)), (), {})
        for cohort in cohorts(everyone, self._federation.ranks):
            received, arrays = self._orders.broadcast(cohort, state)
            for peer, clients in self._orders.hosts(cohort.clients, missing.__setitem__).items():
                order = self._orders.order(clients, received, state.round, apart)
                asked.append(_Asked(peer, RecordDict({FACTS: order, **arrays}), clients))
        answers: dict[int, Answer] = {}
        for request, reply in zip(asked, self._messenger.ask(kind, asked, state.round), strict=True):
            if isinstance(reply, str):
                missing.update(dict.fromkeys(request.clients, reply))
                continue
            refused = unpack_refusals(reply, request.clients)
            missing.update(refused)
            there = (client for client in request.clients if client not in refused)
            answers |= dict.fromkeys(there, Answer(f"node {request.peer.name!r}", reply))
        return answers
