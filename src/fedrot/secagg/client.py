"""A client's side of one round of secure aggregation, driven step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedrot.errors import SecureAggregationError
from fedrot.secagg import keys, shamir
from fedrot.secagg.codec import foreign
from fedrot.secagg.keys import Entropy, Identities
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

Stage: TypeAlias = Literal["advertise", "share", "mask", "consent", "reveal", "over"]

SHARES = "shares"


@dataclass(frozen=True, slots=True)
class Signer:
    """A client's long-term identity, and those of the others, which it did not get from the server.

    Attributes:
        private: its Ed25519 private key, 32 bytes.
        identities: by client, Ed25519 public keys.
    """

    private: bytes = field(repr=False)
    identities: Identities


class SecAggClient:
    """One client in one round of double masking (Bonawitz et al., CCS 2017).

    The steps are `advertise`, `share`, `mask`, in a signed session `consent`, and `reveal`: each once and in this
    order, each taking what the server sent and giving what goes back to it. `mask` sends

        encode(x, w) + PRG(seed_u) + sum_{v > u} PRG(k_uv) - sum_{v < u} PRG(k_uv)   modulo 2^bits,

    in which the pairwise masks cancel in the sum and self masks are removed with the shares that `reveal` gives.
    A client that refuses once has left the round: every later step is refused and its secrets are gone.

    Attributes:
        session: agreed beforehand.
        client: this client's number.
        survivors: whose sum the server is to learn; after `reveal`.
    """

    def __init__(
        self, session: Session, client: int, *, signer: Signer | None = None, entropy: Entropy = os.urandom
    ) -> None:
        """Draw this round's keys.

        Args:
            session: with `client` among its clients.
            client: this client's number.
            signer: in a signed session, and only there.
            entropy: a source of random bytes; another one only in tests.
        """
        if client not in session.clients:
            raise SecureAggregationError(f"client {client} is not in this round: {session.clients} are")
        if session.signed != (signer is not None):
            raise SecureAggregationError(
                f"client {client}: "
                + (
                    "expected an identity key, the session is signed"
                    if session.signed
                    else "has an identity key and the session is not signed: expected one that is"
                )
            )
        self.session, self.client, self.survivors = session, client, ()
        self._signer, self._entropy, self._stage = signer, entropy, "advertise"
        self._mask_private, self._share_private, self._seed = (entropy(keys.KEY_BYTES) for _ in range(3))
        self._roster = b""
        self._mask_keys: dict[int, bytes] = {}
        self._share_keys: dict[int, bytes] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}

    def advertise(self) -> Advert:
        """Stage 0: this round's public keys."""
        with self._step("advertise", "share"):
            advert = Advert(
                self.session.digest,
                self.client,
                keys.public_key(self._mask_private),
                keys.public_key(self._share_private),
                keys.commit(self._seed, self.session.digest, self.client),
            )
            self._own = advert
            if self._signer is None:
                return advert
            signature = keys.sign(self._signer.private, "advert", self.session.digest, advert.content)
            return replace(advert, signature=signature)

    def share(self, roster: Roster) -> Sealed:
        """Stage 1: shares of the mask key and of the seed, sealed for every other client of the roster.

        Raises:
            SecureAggregationError: too few clients, repeated keys, or a wrong signature.
        """
        with self._step("share", "mask", roster):
            self._accept(roster)
            self._roster = roster.digest
            others = [advert.client for advert in roster.adverts]
            points = [self.session.point(client) for client in others]
            mask_shares, seed_shares = (
                shamir.split(secret, self.session.threshold, points, self._entropy)
                for secret in (self._mask_private, self._seed)
            )
            boxes: dict[int, bytes] = {}
            for client, *shares in zip(others, mask_shares, seed_shares, strict=True):
                if client == self.client:
                    self._held[client] = (shares[0], shares[1])
                    continue
                key = self._box_key(self.client, client)
                boxes[client] = keys.seal(
                    key, b"".join(shares), self._context, self.client, client, self._entropy
                )
            return Sealed(self.session.digest, self.client, boxes)

    def mask(self, inbox: Inbox, vector: NDArray[np.float32], weight: int) -> Masked:
        """Stage 2: the vector times its weight, and the weight, under masks shared with the senders of the inbox.

        Every box is opened first: masks are shared only with clients that hold shares for this one and of which it
        holds shares.

        Args:
            inbox: for this client.
            vector: `(length,)`, float32.
            weight: a positive integer.

        Raises:
            SecureAggregationError: too few clients, a box that does not open, values that do not fit the session.
        """
        after: Stage = "consent" if self.session.signed else "reveal"
        with self._step("mask", after, inbox):
            if len(vector) != self.session.length:
                raise SecureAggregationError(f"{len(vector)} values: expected {self.session.length}")
            if inbox.client != self.client or not inbox.boxes.keys() <= self._share_keys.keys():
                raise SecureAggregationError(
                    f"an inbox of client {inbox.client} from {sorted(inbox.boxes)}: expected one of client "
                    f"{self.client}, from clients that advertised keys"
                )
            self.session.expect([self.client, *inbox.boxes], "sharing")
            for sender, box in inbox.boxes.items():
                key = self._box_key(sender, self.client)
                plain = keys.unseal(key, box, self._context, sender, self.client)
                self._held[sender] = (plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :])
            total = self.session.numbers.encode(vector, weight)
            add_mask(total, self_mask_key(self._seed, self.session, self.client), 1)
            for other in inbox.boxes:
                key = pair_mask_key(
                    self._mask_private, self._mask_keys[other], self.session, self.client, other
                )
                add_mask(total, key, sign(self.client, other))
            return Masked(self.session.digest, self.client, total)

    def consent(self, survivors: Survivors) -> Consent:
        """Stage 3 of a signed session: a signature over the roster and over whose sum the server says it takes."""
        with self._step("consent", "reveal", survivors):
            assert self._signer is not None
            self._accept_survivors(survivors)
            self.survivors = survivors.clients
            content = agreed(self._roster, survivors.clients)
            signature = keys.sign(self._signer.private, "consent", self.session.digest, content)
            return Consent(self.session.digest, self.client, signature)

    def reveal(self, survivors: Survivors) -> Reveal:
        """Stage 4: shares of the seeds of survivors, and of the mask keys of the others; never both of one client.

        Raises:
            SecureAggregationError: too few survivors, ones that did not share, a second list of survivors, or too
                few clients that signed this one, under this roster.
        """
        with self._step("reveal", "over", survivors):
            self._accept_survivors(survivors)
            if self._signer is not None:
                self._accept_consents(survivors, self._signer)
            self.survivors = survivors.clients
            seeds = {client: self._held[client][1] for client in survivors.clients}
            mask_keys = {client: held[0] for client, held in self._held.items() if client not in seeds}
            reveal = Reveal(self.session.digest, self.client, seeds, mask_keys)
        self._forget()
        return reveal

    def _accept(self, roster: Roster) -> None:
        adverts = {advert.client: advert for advert in roster.adverts}
        self.session.expect([advert.client for advert in roster.adverts], "the exchange of keys")
        mine = adverts.get(self.client)
        if mine is None or mine.content != self._own.content:
            raise SecureAggregationError(f"client {self.client} is not in the roster with the keys it sent")
        public = [key for advert in roster.adverts for key in (advert.mask_key, advert.share_key)]
        if len(set(public)) != len(public):
            raise SecureAggregationError(
                "two public keys of the roster are equal: somebody repeats another's"
            )
        for client, advert in adverts.items():
            if self._signer is not None:
                identities, signature = self._signer.identities, advert.signature
                keys.verify(identities, client, signature, "advert", self.session.digest, advert.content)
            if client != self.client:
                self._mask_keys[client], self._share_keys[client] = advert.mask_key, advert.share_key

    def _accept_survivors(self, survivors: Survivors) -> None:
        self.session.expect(survivors.clients, "masking")
        if self.client not in survivors.clients or not set(survivors.clients) <= self._held.keys():
            raise SecureAggregationError(
                f"client {self.client} is asked to unmask the sum of {list(survivors.clients)}: expected itself among "
                f"them and only clients of which it holds shares, {sorted(self._held)}"
            )
        if self.survivors and set(self.survivors) != set(survivors.clients):
            raise SecureAggregationError(
                f"client {self.client} was told survivors {list(self.survivors)}, and now "
                f"{list(survivors.clients)}: nothing is revealed"
            )

    def _accept_consents(self, survivors: Survivors, signer: Signer) -> None:
        signed = [client for client in survivors.consents if client in survivors.clients]
        self.session.expect(signed, "consent")
        for client in signed:
            keys.verify(
                *(signer.identities, client, survivors.consents[client], "consent"),
                *(self.session.digest, agreed(self._roster, survivors.clients)),
            )

    @property
    def _context(self) -> bytes:
        """What sealed shares belong to: the session and everybody's keys."""
        return self.session.digest + self._roster

    def _box_key(self, sender: int, recipient: int) -> bytes:
        other = recipient if sender == self.client else sender
        return keys.agree(
            self._share_private, self._share_keys[other], self.session.digest, SHARES, sender, recipient
        )

    @contextmanager
    def _step(self, stage: Stage, following: Stage, message: Message | None = None) -> Iterator[None]:
        if self._stage != stage:
            raise SecureAggregationError(
                f"client {self.client} is asked to {stage} in stage {self._stage!r}: every stage is done once, in order"
            )
        # Whatever goes wrong below, this client does not come back to the round.
        self._stage = "over"
        try:
            if message is not None and message.session != self.session.digest:
                raise SecureAggregationError(foreign(type(message).__name__, self.session))
            yield
        except BaseException:
            self._forget()
            raise
        self._stage = following

    def _forget(self) -> None:
        """Drop the references to secrets; Python cannot promise that their bytes are overwritten."""
        self._mask_private = self._share_private = self._seed = b""
        self._held.clear()
