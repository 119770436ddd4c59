"""What clients and server refuse, and that a refusal gives nothing away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedrot.errors import SecureAggregationError
from fedrot.secagg import (
    Inbox,
    Masked,
    Reveal,
    SecAggClient,
    SecAggServer,
    Session,
    Survivors,
)
from tests.secagg.rounds import parties, session, signers, vectors, weights

Parties = tuple[dict[int, SecAggClient], SecAggServer]


def until_inboxes(rules: Session) -> tuple[dict[int, SecAggClient], SecAggServer, dict[int, Inbox]]:
    clients, server = parties(rules)
    for client in clients.values():
        server.receive(client.advertise())
    roster = server.close_keys()
    for client in clients.values():
        server.receive(client.share(roster))
    return clients, server, server.close_shares()


def until_survivors(rules: Session, without: int | None = None) -> tuple[*Parties, Survivors]:
    clients, server, inboxes = until_inboxes(rules)
    values, shares = vectors(rules), weights(rules)
    for number, client in clients.items():
        if number != without:
            server.receive(client.mask(inboxes[number], values[number], shares[number]))
    return clients, server, server.close_vectors()


def told(rules: Session, *clients: int) -> Survivors:
    return Survivors(rules.digest, clients)


def refused(match: str) -> pytest.RaisesExc[SecureAggregationError]:
    return pytest.raises(SecureAggregationError, match=match)


def test_a_client_never_reveals_both_shares_of_anybody() -> None:
    rules = session()
    clients, _, _ = until_survivors(rules)
    reveal = clients[0].reveal(told(rules, 0, 1, 2, 3))
    assert reveal.seeds.keys() == {0, 1, 2, 3}
    assert reveal.mask_keys.keys() == {4}
    with refused("asked to reveal in stage 'over'"):
        clients[0].reveal(told(rules, 0, 1, 2, 4))


def test_a_signed_client_reveals_only_for_the_survivors_it_agreed_to() -> None:
    rules = session(clients=range(6), threshold=5, signed=True)
    clients, _, survivors = until_survivors(rules)
    consents = {number: client.consent(survivors).signature for number, client in clients.items()}
    with refused("was told survivors .* nothing is revealed"):
        clients[0].reveal(Survivors(rules.digest, (0, 1, 2, 3, 4), consents))
    lists = {1: (0, 1, 2, 3, 4, 5), 2: (5, 4, 3, 2, 1, 0)}
    for number, listed in lists.items():
        reveal = clients[number].reveal(Survivors(rules.digest, listed, consents))
        assert reveal.mask_keys == {}


def test_a_server_that_tells_clients_different_survivors_gets_nothing_from_signing_ones() -> None:
    rules = session(clients=range(6), threshold=5, signed=True)
    clients, _, _ = until_survivors(rules)
    views = {c: told(rules, 0, 1, 2, 3, 4) if c < 3 else told(rules, 0, 2, 3, 4, 5) for c in range(6)}
    consents = {c: clients[c].consent(views[c]).signature for c in range(6)}
    for c in range(6):
        with refused("signature of client|4 of 6 clients are left after consent"):
            clients[c].reveal(
                replace(views[c], consents={k: v for k, v in consents.items() if k in views[c].clients})
            )
    for c in range(6):
        with refused("asked to reveal in stage 'over'"):
            clients[c].reveal(replace(views[c], consents=consents))


def test_below_the_threshold_a_client_reveals_nothing() -> None:
    rules = session()
    clients, _, _ = until_survivors(rules)
    with refused("2 of 5 clients are left"):
        clients[0].reveal(told(rules, 0, 1))
    with refused("stage 'over'"):
        clients[0].reveal(told(rules, 0, 1, 2))


def test_a_client_unmasks_no_sum_that_it_is_not_in() -> None:
    rules = session()
    clients, _, _ = until_survivors(rules)
    with refused("expected itself among them"):
        clients[0].reveal(told(rules, 1, 2, 3))


@pytest.mark.parametrize("byte", [0, 20, -1])
def test_altered_ciphertext_is_refused_before_anything_is_sent(byte: int) -> None:
    rules = session()
    clients, _, inboxes = until_inboxes(rules)
    boxes = dict(inboxes[0].boxes)
    box = bytearray(boxes[3])
    box[byte] ^= 1
    boxes[3] = bytes(box)
    with refused("shares of client 3 for client 0 do not decrypt"):
        clients[0].mask(replace(inboxes[0], boxes=boxes), vectors(rules)[0], 1)


def test_a_box_of_another_sender_or_for_another_recipient_is_refused() -> None:
    rules = session()
    clients, _, inboxes = until_inboxes(rules)
    boxes = dict(inboxes[0].boxes)
    boxes[3] = boxes[2]
    with refused("shares of client 3 for client 0 do not decrypt"):
        clients[0].mask(replace(inboxes[0], boxes=boxes), vectors(rules)[0], 1)
    boxes = {**inboxes[1].boxes, 0: inboxes[2].boxes[0]}
    with refused("shares of client 0 for client 1 do not decrypt"):
        clients[1].mask(replace(inboxes[1], boxes=boxes), vectors(rules)[1], 1)
    with refused("an inbox of client 3"):
        clients[2].mask(inboxes[3], vectors(rules)[2], 1)


def test_a_replayed_roster_gives_a_server_no_common_mask() -> None:
    """Keys that a client used before, in the same session, come without shares that open."""
    rules = session()
    former, _, before = until_inboxes(rules)
    fresh, server = parties(rules, seed=8)
    for number, client in fresh.items():
        advert = client.advertise()
        server.receive(former[3]._own if number == 3 else advert)
    roster = server.close_keys()
    sealed = {number: fresh[number].share(roster) for number in (0, 1, 2, 4)}
    boxes = {number: message.boxes[0] for number, message in sealed.items() if number != 0}
    with refused("shares of client 3 for client 0 do not decrypt"):
        fresh[0].mask(Inbox(rules.digest, 0, {**boxes, 3: before[0].boxes[3]}), vectors(rules)[0], 1)


@pytest.mark.parametrize("other", [{"round": 2}, {"nonce": b"\1" * 16}, {"threshold": 4}, {"clip": 5.0}])
def test_messages_of_another_session_are_refused_by_both_sides(other: dict[str, int]) -> None:
    rules, foreign = session(), session(**other)  # type: ignore[arg-type]
    clients, server = parties(rules)
    strangers, strange = parties(foreign)
    advert = strangers[0].advertise()
    with refused("is not of round 1 of run 'run'"):
        server.receive(advert)
    for client in strangers.values():
        if client.client:
            strange.receive(client.advertise())
    strange.receive(advert)
    clients[0].advertise()
    with refused("is not of round 1 of run 'run'"):
        clients[0].share(strange.close_keys())


def test_every_step_is_done_once_and_in_order() -> None:
    rules = session()
    clients, server, survivors = until_survivors(rules)
    with refused("asked to advertise in stage 'reveal'"):
        clients[0].advertise()
    fresh, _ = parties(rules)
    with refused("asked to reveal in stage 'advertise'"):
        fresh[0].reveal(survivors)
    with refused("cannot close shares while collecting reveals"):
        server.close_shares()


def test_a_client_that_refused_once_is_out_of_the_round_and_has_no_secrets() -> None:
    rules = session()
    clients, _, inboxes = until_inboxes(rules)
    values = vectors(rules)[0]
    values[5] = np.nan
    with refused("not finite"):
        clients[0].mask(inboxes[0], values, 1)
    with refused("stage 'over'"):
        clients[0].mask(inboxes[0], vectors(rules)[0], 1)
    assert (clients[0]._mask_private, clients[0]._share_private, clients[0]._seed) == (b"", b"", b"")


def test_a_client_is_refused_where_it_is_not_in_the_roster_with_its_own_keys() -> None:
    rules = session()
    clients, _ = parties(rules)
    others, server = parties(rules, seed=9)
    for client in others.values():
        server.receive(client.advertise())
    roster = server.close_keys()
    clients[0].advertise()
    with refused("not in the roster with the keys it sent"):
        clients[0].share(roster)


def test_keys_that_repeat_anothers_are_refused() -> None:
    rules = session()
    clients, server = parties(rules)
    adverts = {number: client.advertise() for number, client in clients.items()}
    adverts[2] = replace(adverts[2], mask_key=adverts[1].mask_key)
    for advert in adverts.values():
        server.receive(advert)
    with refused("two public keys of the roster are equal"):
        clients[0].share(server.close_keys())


def test_a_public_key_of_small_order_is_refused() -> None:
    rules = session()
    clients, server = parties(rules)
    adverts = {number: client.advertise() for number, client in clients.items()}
    adverts[2] = replace(adverts[2], share_key=bytes(32))
    for advert in adverts.values():
        server.receive(advert)
    with refused("public key between clients 0 and 2 is unusable"):
        clients[0].share(server.close_keys())


def test_a_server_cannot_put_its_own_keys_in_a_signed_roster() -> None:
    rules = session(clients=range(6), threshold=5, signed=True)
    clients, server = parties(rules)
    adverts = {number: client.advertise() for number, client in clients.items()}
    for advert in adverts.values():
        server.receive(advert)
    roster = server.close_keys()
    own = SecAggClient(rules, 3, signer=signers(rules.clients, seed=99)[3]).advertise()
    forged = tuple(own if advert.client == 3 else advert for advert in roster.adverts)
    with refused("the signature of client 3 on its advert is wrong"):
        clients[0].share(replace(roster, adverts=forged))
    with refused("the signature of client 3 on its advert is wrong"):
        SecAggServer(rules, signers(rules.clients)[0].identities).receive(own)


def test_a_signed_session_needs_an_identity_and_an_unsigned_one_has_none() -> None:
    with refused("expected an identity key"):
        SecAggClient(session(clients=range(6), threshold=5, signed=True), 0)
    with refused("the session is not signed"):
        SecAggClient(session(), 0, signer=signers([0])[0])
    with refused("not in this round"):
        SecAggClient(session(), 17)


def test_a_wrong_share_is_found_out_and_costs_the_round() -> None:
    rules = session()
    clients, server, survivors = until_survivors(rules, without=4)
    for number in survivors.clients:
        reveal = clients[number].reveal(survivors)
        if number == 1:
            share = reveal.seeds[2]
            reveal = replace(reveal, seeds={**reveal.seeds, 2: share[:-1] + bytes([share[-1] ^ 1])})
        server.receive(reveal)
    with refused("the seed (restored for|of) client 2"):
        server.close_reveals()


def _two_vectors(server: SecAggServer, rules: Session) -> None:
    vector = np.zeros(rules.elements, rules.numbers.dtype)
    server.receive(Masked(rules.digest, 0, vector))
    server.receive(Masked(rules.digest, 0, vector))


def _short_vector(server: SecAggServer, rules: Session) -> None:
    server.receive(Masked(rules.digest, 0, np.zeros(3, rules.numbers.dtype)))


def _stranger(server: SecAggServer, rules: Session) -> None:
    server.receive(Masked(rules.digest, 99, np.zeros(rules.elements, rules.numbers.dtype)))


def _early(server: SecAggServer, rules: Session) -> None:
    server.receive(Reveal(rules.digest, 0, {}, {}))


@pytest.mark.parametrize("wrong", [_two_vectors, _short_vector, _stranger, _early])
def test_a_message_that_is_wrong_is_refused_by_the_server(
    wrong: Callable[[SecAggServer, Session], None],
) -> None:
    rules = session()
    _, server, _ = until_inboxes(rules)
    with refused("client (0|99)"):
        wrong(server, rules)


def test_a_refused_message_does_not_stop_the_round() -> None:
    rules = session()
    clients, server, inboxes = until_inboxes(rules)
    values = vectors(rules)
    with refused("of shape"):
        _short_vector(server, rules)
    for number in (1, 2, 3, 4):
        server.receive(clients[number].mask(inboxes[number], values[number], 1))
    survivors = server.close_vectors()
    for number in survivors.clients:
        server.receive(clients[number].reveal(survivors))
    assert server.close_reveals().clients == (1, 2, 3, 4)


def test_a_late_vector_is_refused_and_its_self_mask_stays() -> None:
    rules = session()
    clients, server, inboxes = until_inboxes(rules)
    values = vectors(rules)
    sent = {number: clients[number].mask(inboxes[number], values[number], 1) for number in clients}
    for number in (0, 1, 2, 3):
        server.receive(sent[number])
    survivors = server.close_vectors()
    with refused("is late or repeated"):
        server.receive(sent[4])
    reveals = [clients[number].reveal(survivors) for number in survivors.clients]
    assert all(4 not in reveal.seeds for reveal in reveals)


def test_the_private_key_of_an_identity_is_not_shown() -> None:
    signer = signers([0])[0]
    assert repr(signer.private) not in repr(signer)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clients": (0,), "threshold": 1},
        {"clients": (1, 0, 2)},
        {"clients": (1, 1, 2)},
        {"threshold": 2},
        {"threshold": 6},
        {"threshold": 3, "signed": True},
        {"length": 0},
        {"round": 0},
        {"nonce": b""},
    ],
)
def test_sessions_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with refused("expected"):
        session(**wrong)  # type: ignore[arg-type]
