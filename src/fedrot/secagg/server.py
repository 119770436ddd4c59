"""The server's side of one round of secure aggregation, driven step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedrot.errors import SecureAggregationError
from fedrot.secagg import keys, shamir
from fedrot.secagg.codec import foreign
from fedrot.secagg.fixed_point import Ring
from fedrot.secagg.keys import Identities
from fedrot.secagg.masks import add_mask, pair_mask_key, self_mask_key, sign
from fedrot.secagg.messages import (
    Advert,
    Consent,
    Inbox,
    Masked,
    Message,
    Reveal,
    Roster,
    Sealed,
    Survivors,
    agreed,
)
from fedrot.secagg.session import Session

Stage: TypeAlias = Literal["keys", "shares", "vectors", "consents", "reveals", "over"]
_STAGE_OF: Mapping[type[Message], Stage] = {
    Advert: "keys",
    Sealed: "shares",
    Masked: "vectors",
    Consent: "consents",
    Reveal: "reveals",
}


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """All that the server learns.

    Attributes:
        mean: `sum w x / sum w` over `clients`, `(length,)`, float64.
        weight: `sum w`.
        clients: whose vectors are in it, ascending.
        error: no element of `mean` is further from the mean of the clients' vectors because of rounding to the
            ring.
    """

    mean: NDArray[np.float64]
    weight: int
    clients: tuple[int, ...]
    error: float


class SecAggServer:
    """The server of one round of double masking (Bonawitz et al., CCS 2017).

    Messages of the current stage go to `receive`; a client whose message is refused there counts as not having
    sent one. Closing a stage gives what goes out for the next: `close_keys`, `close_shares`, `close_vectors`, in a
    signed session `close_consents`, and `close_reveals`, which gives the mean. A stage that fewer than
    `threshold` clients finished ends the round.

    Memory: one vector, whatever the number of clients; masked vectors are summed as they come.
    """

    def __init__(self, session: Session, identities: Identities | None = None) -> None:
        """Begin the round.

        Args:
            session: under which all messages of the round are.
            identities: public keys with which a signed session refuses forged messages at once. The clients do not
                rely on it: they verify with their own.
        """
        self.session, self._identities = session, identities or {}
        self._stage: Stage = "keys"
        self._adverts: dict[int, Advert] = {}
        self._roster = b""
        self._boxes: dict[int, Mapping[int, bytes]] = {}
        self._total: Ring = np.zeros(session.elements, session.numbers.dtype)
        self._survivors: list[int] = []
        self._consents: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}
        self._take: Mapping[type[Message], Callable[..., None]] = {
            Advert: self._advert,
            Sealed: self._sealed,
            Masked: self._masked,
            Consent: self._consent,
            Reveal: self._reveal,
        }

    @property
    def stage(self) -> Stage:
        """What is being collected."""
        return self._stage

    def receive(self, message: Advert | Sealed | Masked | Consent | Reveal) -> None:
        """Take a client's message of the current stage.

        Raises:
            SecureAggregationError: of another session or stage, a second one, or not as it must be. The round goes
                on without it.
        """
        kind = type(message)
        if message.session != self.session.digest:
            raise SecureAggregationError(foreign(kind.__name__, self.session))
        if _STAGE_OF[kind] != self._stage:
            raise SecureAggregationError(
                f"a message {kind.__name__} of client {message.client} came while collecting {self._stage}: it is late "
                "or repeated"
            )
        self._take[kind](message)

    def close_keys(self) -> Roster:
        """End stage 0: everybody's public keys, for everybody who sent some."""
        self._close("keys", "shares", list(self._adverts))
        roster = Roster(self.session.digest, tuple(self._adverts[c] for c in sorted(self._adverts)))
        self._roster = roster.digest
        return roster

    def close_shares(self) -> dict[int, Inbox]:
        """End stage 1: for each client that sent shares, the boxes that the others made for it."""
        self._close("shares", "vectors", list(self._boxes))
        return {
            client: Inbox(
                self.session.digest,
                client,
                {sender: boxes[client] for sender, boxes in sorted(self._boxes.items()) if sender != client},
            )
            for client in sorted(self._boxes)
        }

    def close_vectors(self) -> Survivors:
        """End stage 2: whose vectors are in the sum."""
        self._close("vectors", "consents" if self.session.signed else "reveals", self._survivors)
        self._survivors.sort()
        return Survivors(self.session.digest, tuple(self._survivors))

    def close_consents(self) -> Survivors:
        """End stage 3 of a signed session: the survivors again, with the signatures of those who agreed."""
        self._close("consents", "reveals", list(self._consents))
        return Survivors(self.session.digest, tuple(self._survivors), dict(self._consents))

    def close_reveals(self) -> Aggregate:
        """End stage 4: remove the masks.

        Raises:
            SecureAggregationError: too few clients, or shares that do not restore what clients committed to.
        """
        self._close("reveals", "over", list(self._reveals))
        chosen = sorted(self._reveals)[: self.session.threshold]
        factors = shamir.at_zero([self.session.point(client) for client in chosen])
        reveals = [self._reveals[client] for client in chosen]

        def restored(client: int, what: str, tables: list[Mapping[int, bytes]]) -> bytes:
            try:
                return shamir.combine(
                    {self.session.point(r.client): t[client] for r, t in zip(reveals, tables, strict=True)},
                    factors,
                )
            except SecureAggregationError as error:
                raise SecureAggregationError(f"{what} of client {client}: {error}") from error

        for client in self._survivors:
            seed = restored(client, "the seed", [reveal.seeds for reveal in reveals])
            if not keys.same(
                keys.commit(seed, self.session.digest, client), self._adverts[client].commitment
            ):
                raise SecureAggregationError(_unlike("seed", client))
            add_mask(self._total, self_mask_key(seed, self.session, client), -1)
        for client in self._dropped():
            private = restored(client, "the mask key", [reveal.mask_keys for reveal in reveals])
            if not keys.same(keys.public_key(private), self._adverts[client].mask_key):
                raise SecureAggregationError(_unlike("mask key", client))
            for other in self._survivors:
                key = pair_mask_key(private, self._adverts[other].mask_key, self.session, client, other)
                add_mask(self._total, key, -sign(other, client))
        summands = len(self._survivors)
        mean, weight = self.session.numbers.decode(self._total, summands)
        error = self.session.numbers.bound(summands, weight)
        return Aggregate(mean, weight, tuple(self._survivors), error)

    def _dropped(self) -> list[int]:
        """Those with whom survivors share masks, and whose vectors did not come."""
        return sorted(self._boxes.keys() - set(self._survivors))

    def _close(self, stage: Stage, following: Stage, clients: list[int]) -> None:
        if self._stage != stage:
            raise SecureAggregationError(f"cannot close {stage} while collecting {self._stage}")
        self._stage = "over"
        self.session.expect(clients, f"collecting {stage}")
        self._stage = following

    def _member(self, client: int, members: list[int], seen: bool, what: str) -> None:
        if client not in members or seen:
            raise SecureAggregationError(
                f"client {client} sent {what}: expected one from each of {sorted(members)}"
            )

    def _advert(self, message: Advert) -> None:
        self._member(message.client, list(self.session.clients), message.client in self._adverts, "keys")
        if self.session.signed and self._identities:
            keys.verify(
                *(self._identities, message.client, message.signature, "advert"),
                *(self.session.digest, message.content),
            )
        self._adverts[message.client] = message

    def _sealed(self, message: Sealed) -> None:
        self._member(message.client, list(self._adverts), message.client in self._boxes, "shares")
        self._exactly(message.client, message.boxes, self._adverts.keys() - {message.client}, "shares for")
        self._boxes[message.client] = message.boxes

    def _masked(self, message: Masked) -> None:
        self._member(message.client, list(self._boxes), message.client in self._survivors, "a vector")
        vector = message.vector
        if vector.shape != self._total.shape or vector.dtype != self._total.dtype:
            raise SecureAggregationError(
                f"client {message.client} sent {vector.dtype} of shape {vector.shape}, expected {self._total.dtype} of "
                f"shape {self._total.shape}"
            )
        self._survivors.append(message.client)
        np.add(self._total, vector, out=self._total)

    def _consent(self, message: Consent) -> None:
        self._member(message.client, self._survivors, message.client in self._consents, "a consent")
        if self._identities:
            content = agreed(self._roster, tuple(self._survivors))
            keys.verify(
                *(self._identities, message.client, message.signature, "consent"),
                *(self.session.digest, content),
            )
        self._consents[message.client] = message.signature

    def _reveal(self, message: Reveal) -> None:
        members = list(self._consents) if self.session.signed else self._survivors
        self._member(message.client, members, message.client in self._reveals, "shares of masks")
        self._exactly(message.client, message.seeds, set(self._survivors), "shares of seeds of")
        self._exactly(message.client, message.mask_keys, set(self._dropped()), "shares of mask keys of")
        self._reveals[message.client] = message

    def _exactly(self, client: int, table: Mapping[int, bytes], expected: set[int], what: str) -> None:
        if table.keys() != expected:
            raise SecureAggregationError(
                f"client {client} sent {what} {sorted(table)}: expected {sorted(expected)}"
            )


def _unlike(what: str, client: int) -> str:
    return (
        f"the {what} restored for client {client} is not the one it committed to: it shared another, or a client "
        "revealed a wrong share; the round is lost"
    )
