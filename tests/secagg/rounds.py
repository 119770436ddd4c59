"""A round in one process: clients, a server, and who is lost at which stage. Every message travels as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedrot.errors import SecureAggregationError
from fedrot.secagg import (
    Advert,
    Aggregate,
    Consent,
    FixedPoint,
    Inbox,
    Masked,
    Reveal,
    Roster,
    Sealed,
    SecAggClient,
    SecAggServer,
    Session,
    Signer,
    Survivors,
    decode,
    encode,
    identity_of,
)

STAGES = ("keys", "shares", "vectors", "consents", "reveals")
Lost = Mapping[str, Iterable[int]]
Vectors = Mapping[int, NDArray[np.float32]]


def seeded(seed: int) -> Callable[[int], bytes]:
    """Bytes from a seed, for tests only."""
    state = [0]

    def draw(size: int) -> bytes:
        state[0] += 1
        return hashlib.shake_256(f"{seed}/{state[0]}".encode()).digest(size)

    return draw


def session(
    clients: Sequence[int] = (0, 1, 2, 3, 4),
    threshold: int = 3,
    length: int = 17,
    *,
    clip: float = 4.0,
    max_weight: int = 100,
    bits: int = 32,
    round: int = 1,
    signed: bool = False,
    nonce: bytes = bytes(16),
) -> Session:
    numbers = FixedPoint(len(clients), clip, max_weight, bits)  # type: ignore[arg-type]
    return Session("run", round, tuple(clients), threshold, length, numbers, nonce, signed)


def vectors(session: Session, seed: int = 0) -> dict[int, NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    clip = session.numbers.clip
    return {
        client: draw.uniform(-clip, clip, session.length).astype(np.float32) for client in session.clients
    }


def weights(session: Session, seed: int = 0) -> dict[int, int]:
    draw = np.random.default_rng(seed + 1)
    return {client: int(draw.integers(1, session.numbers.max_weight + 1)) for client in session.clients}


def signers(clients: Sequence[int], seed: int = 5) -> dict[int, Signer]:
    draw = seeded(seed)
    private = {client: draw(32) for client in clients}
    identities = {client: identity_of(key) for client, key in private.items()}
    return {client: Signer(private[client], identities) for client in clients}


def parties(session: Session, seed: int = 7) -> tuple[dict[int, SecAggClient], SecAggServer]:
    who = signers(session.clients) if session.signed else {}
    made = {
        client: SecAggClient(session, client, signer=who.get(client), entropy=seeded(1000 * seed + client))
        for client in session.clients
    }
    identities = who[session.clients[0]].identities if who else None
    return made, SecAggServer(session, identities)


def play(
    session: Session,
    values: Vectors,
    shares: Mapping[int, int],
    lost: Lost | None = None,
    *,
    seed: int = 7,
    seen: list[bytes] | None = None,
) -> Aggregate:
    """The whole round; clients in `lost[stage]` send nothing in that stage or later. `seen`: what the server got."""
    clients, server = parties(session, seed)
    alive = set(session.clients)
    gone = {stage: set((lost or {}).get(stage, ())) for stage in STAGES}

    def send(message: Advert | Sealed | Masked | Consent | Reveal) -> None:
        data = encode(message)
        if seen is not None:
            seen.append(data)
        server.receive(decode(data, type(message), session))

    alive -= gone["keys"]
    for client in sorted(alive):
        send(clients[client].advertise())
    roster = encode(server.close_keys())
    alive -= gone["shares"]
    for client in sorted(alive):
        send(clients[client].share(decode(roster, Roster, session)))
    inboxes = {client: encode(inbox) for client, inbox in server.close_shares().items()}
    alive -= gone["vectors"]
    for client in sorted(alive):
        inbox = decode(inboxes[client], Inbox, session)
        send(clients[client].mask(inbox, values[client], shares[client]))
    survivors = encode(server.close_vectors())
    if session.signed:
        alive -= gone["consents"]
        for client in sorted(alive):
            send(clients[client].consent(decode(survivors, Survivors, session)))
        survivors = encode(server.close_consents())
    alive -= gone["reveals"]
    for client in sorted(alive):
        send(clients[client].reveal(decode(survivors, Survivors, session)))
    return server.close_reveals()


def reference(
    values: Vectors, shares: Mapping[int, int], clients: Iterable[int]
) -> tuple[NDArray[np.float64], int]:
    """The weighted mean in float64, and the total weight."""
    chosen = list(clients)
    total = sum(shares[client] for client in chosen)
    return sum(shares[c] * values[c].astype(np.float64) for c in chosen) / total, total  # type: ignore[return-value]


def expect_mean(
    aggregate: Aggregate, values: Vectors, shares: Mapping[int, int], clients: Iterable[int]
) -> None:
    """The aggregate is the mean of exactly these clients, as near as the fixed point promises."""
    chosen = sorted(clients)
    mean, total = reference(values, shares, chosen)
    assert aggregate.clients == tuple(chosen)
    assert aggregate.weight == total
    # The second term covers the float64 roundings of the reference itself, one per client, and of the reading.
    slack = 2.0**-52 * (len(chosen) + 2) * max(float(np.abs(values[c]).max()) for c in chosen)
    assert np.abs(aggregate.mean - mean).max() <= aggregate.error + slack


__all__ = ["SecureAggregationError", "expect_mean", "parties", "play", "session", "vectors", "weights"]
