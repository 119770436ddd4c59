"""What clients and server say to one another. Every message names its session and has one form as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeAlias

from fedrot.secagg.fixed_point import Ring
from fedrot.secagg.keys import KEY_BYTES, NONCE_BYTES, SIGNATURE_BYTES, TAG_BYTES
from fedrot.secagg.shamir import SHARE_BYTES

BOX_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
"""Two sealed shares: of the mask key, and of the seed."""
ADVERT_BYTES = 3 * KEY_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Advert:
    """Stage 0, client to server: two public keys, a commitment to the seed of the self mask, and a signature."""

    session: bytes
    client: int
    mask_key: bytes
    share_key: bytes
    commitment: bytes
    signature: bytes = b""

    @property
    def content(self) -> bytes:
        """What is signed, beside the session."""
        return self.client.to_bytes(4, "little") + self.mask_key + self.share_key + self.commitment


@dataclass(frozen=True, slots=True, eq=False)
class Roster:
    """Stage 1, server to all: the adverts of those who sent one."""

    session: bytes
    adverts: tuple[Advert, ...]

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for the keys of all, in whatever order they are listed."""
        adverts = sorted(self.adverts, key=lambda advert: advert.client)
        return sha256(b"".join(advert.content for advert in adverts)).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """Stage 1, client to server: by recipient, sealed shares of the mask key and of the seed."""

    session: bytes
    client: int
    boxes: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Inbox:
    """Stage 2, server to one client: by sender, the boxes for `client`. The senders and it may send a vector."""

    session: bytes
    client: int
    boxes: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Stage 2, client to server: its vector, weight and one, under masks; `(length + 2,)`."""

    session: bytes
    client: int
    vector: Ring


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """Stages 3 and 4, server to survivors: whose vectors arrived; in stage 4 of a signed session, their consents."""

    session: bytes
    clients: tuple[int, ...]
    consents: Mapping[int, bytes] = field(default_factory=dict[int, bytes])


@dataclass(frozen=True, slots=True, eq=False)
class Consent:
    """Stage 3 of a signed session, client to server: a signature over the roster and the survivors it was told."""

    session: bytes
    client: int
    signature: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Reveal:
    """Stage 4, client to server: shares of survivors' seeds, and of the mask keys of those who dropped out."""

    session: bytes
    client: int
    seeds: Mapping[int, bytes]
    mask_keys: Mapping[int, bytes]


def listing(clients: tuple[int, ...]) -> bytes:
    """Clients in ascending order, as they are signed."""
    return b"".join(client.to_bytes(4, "little") for client in sorted(clients))


def agreed(roster: bytes, survivors: tuple[int, ...]) -> bytes:
    """What a consent signs, beside the session: under which keys, by the roster's digest, and whose sum.

    A verifier's own keys are in the roster and new in every attempt, so a consent is good for one attempt alone,
    whatever nonce the server chose, and only between clients that were shown the same keys.
    """
    return roster + listing(survivors)


Message: TypeAlias = Advert | Roster | Sealed | Inbox | Masked | Survivors | Consent | Reveal

__all__ = [
    "ADVERT_BYTES",
    "BOX_BYTES",
    "SIGNATURE_BYTES",
    "Advert",
    "Consent",
    "Inbox",
    "Masked",
    "Message",
    "Reveal",
    "Roster",
    "Sealed",
    "Survivors",
    "agreed",
    "listing",
]
