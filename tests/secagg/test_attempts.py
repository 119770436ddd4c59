"""A round that is begun again under the same nonce, and one whose clients are shown different keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fedrot.errors import SecureAggregationError
from fedrot.secagg import Inbox, Roster, SecAggServer, Session, Survivors
from tests.secagg.rounds import parties, session, signers, vectors, weights

RULES = session(clients=range(6), threshold=5, signed=True)
EVERYBODY = Survivors(RULES.digest, tuple(range(6)))


class Attempt:
    """Clients of one attempt up to their masked vectors, and what each was sent."""

    def __init__(self, seed: int, *, fifth: int | None = None, rules: Session = RULES) -> None:
        """Keys are drawn from `seed`; those of client 5 from `fifth`, where it is given."""
        self.clients, _ = parties(rules, seed)
        if fifth is not None:
            self.clients[5] = parties(rules, fifth)[0][5]
        adverts = [client.advertise() for client in self.clients.values()]
        self.roster = Roster(rules.digest, tuple(adverts))
        sealed = {number: client.share(self.roster) for number, client in self.clients.items()}
        self.inboxes = {
            number: Inbox(rules.digest, number, {s: sealed[s].boxes[number] for s in sealed if s != number})
            for number in sealed
        }
        self.rules = rules

    def mask(self) -> Attempt:
        values, shares = vectors(self.rules), weights(self.rules)
        for number, client in self.clients.items():
            client.mask(self.inboxes[number], values[number], shares[number])
        return self

    def consents(self, survivors: Survivors) -> dict[int, bytes]:
        return {number: self.clients[number].consent(survivors).signature for number in survivors.clients}


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(SecureAggregationError, match=match):
        yield


def test_consents_of_an_earlier_attempt_under_the_same_nonce_are_refused() -> None:
    """Else a server could collect consents to one list of survivors an attempt, and then use all lists at once."""
    lists = [tuple(c for c in range(6) if c != left) for left in (5, 4)]
    kept = {
        clients: Attempt(seed).mask().consents(Survivors(RULES.digest, clients))
        for seed, clients in enumerate(lists)
    }
    last = Attempt(7).mask()
    views = {client: lists[0] if client != 5 else lists[1] for client in range(6)}
    for number, client in last.clients.items():
        client.consent(Survivors(RULES.digest, views[number]))
    for number in (0, 5):
        with refused("the signature of client 0 on its consent is wrong"):
            last.clients[number].reveal(Survivors(RULES.digest, views[number], kept[views[number]]))


def test_clients_that_were_shown_different_keys_do_not_accept_one_anothers_consents() -> None:
    one, other = Attempt(7), Attempt(7, fifth=8)
    mine, theirs = one.mask().consents(EVERYBODY), other.mask().consents(EVERYBODY)
    assert [a.content for a in one.roster.adverts[:5]] == [a.content for a in other.roster.adverts[:5]]
    with refused("the signature of client 1 on its consent is wrong"):
        one.clients[0].reveal(replace(EVERYBODY, consents={**theirs, 0: mine[0]}))
    one.clients[2].reveal(replace(EVERYBODY, consents=mine))


def test_shares_sealed_under_other_keys_do_not_open() -> None:
    one, other = Attempt(7), Attempt(7, fifth=8)
    boxes = {**one.inboxes[0].boxes, 1: other.inboxes[0].boxes[1]}
    with refused("shares of client 1 for client 0 do not decrypt"):
        one.clients[0].mask(replace(one.inboxes[0], boxes=boxes), vectors(RULES)[0], 1)


def test_a_roster_in_another_order_is_the_same() -> None:
    clients, server = parties(RULES)
    for client in clients.values():
        server.receive(client.advertise())
    roster = server.close_keys()
    for number, client in clients.items():
        turned = roster.adverts[number:] + roster.adverts[:number]
        server.receive(client.share(replace(roster, adverts=turned)))
    values = vectors(RULES)
    for number, inbox in server.close_shares().items():
        server.receive(clients[number].mask(inbox, values[number], 1))
    survivors = server.close_vectors()
    for client in clients.values():
        server.receive(client.consent(survivors))
    agreed = server.close_consents()
    for client in clients.values():
        server.receive(client.reveal(agreed))
    assert server.close_reveals().clients == tuple(range(6))


def test_a_server_refuses_a_consent_under_other_keys() -> None:
    server = SecAggServer(RULES, signers(RULES.clients)[0].identities)
    clients, _ = parties(RULES)
    stale = Attempt(8).mask().clients[0].consent(EVERYBODY)
    for client in clients.values():
        server.receive(client.advertise())
    roster = server.close_keys()
    for client in clients.values():
        server.receive(client.share(roster))
    for number, inbox in server.close_shares().items():
        server.receive(clients[number].mask(inbox, vectors(RULES)[number], 1))
    survivors = server.close_vectors()
    with refused("the signature of client 0 on its consent is wrong"):
        server.receive(stale)
    server.receive(clients[0].consent(survivors))
