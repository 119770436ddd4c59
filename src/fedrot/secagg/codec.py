"""Messages as bytes: a fixed header, then fields of known sizes. Nothing is trusted before its size is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from fedrot.errors import SecureAggregationError
from fedrot.secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from fedrot.secagg.messages import (
    BOX_BYTES,
    Advert,
    Consent,
    Inbox,
    Masked,
    Message,
    Reveal,
    Roster,
    Sealed,
    Survivors,
)
from fedrot.secagg.session import Session
from fedrot.secagg.shamir import SHARE_BYTES

M = TypeVar("M", bound=Message)

MAGIC = b"FRSA\x02"
_KINDS: tuple[type[Message], ...] = (Advert, Roster, Sealed, Inbox, Masked, Survivors, Consent, Reveal)
_HEADER = len(MAGIC) + 1 + 32


def encode(message: Message) -> bytes:
    """The message as bytes: `FRSA`, version, kind, the session's digest, and the fields, integers little-endian."""
    return MAGIC + bytes([_KINDS.index(type(message))]) + message.session + _body(message)


def _body(message: Message) -> bytes:
    match message:
        case Advert():
            return message.content + message.signature
        case Roster():
            return _u32(len(message.adverts)) + b"".join(_body(advert) for advert in message.adverts)
        case Sealed() | Inbox():
            return _u32(message.client) + _table(message.boxes)
        case Masked():
            return _u32(message.client) + message.vector.tobytes()
        case Survivors():
            clients = b"".join(_u32(client) for client in message.clients)
            return _u32(len(message.clients)) + clients + _table(message.consents)
        case Consent():
            return _u32(message.client) + message.signature
        case Reveal():
            return _u32(message.client) + _table(message.seeds) + _table(message.mask_keys)


def decode(data: bytes, kind: type[M], session: Session) -> M:
    """The message of a kind and session that `data` holds.

    Raises:
        SecureAggregationError: another kind, another session (replayed, of another round, or made under other
            settings), or not as long as such a message is.
    """
    if len(data) < _HEADER or not data.startswith(MAGIC):
        raise SecureAggregationError(
            f"{len(data)} bytes are no message of secure aggregation of this version"
        )
    number = data[len(MAGIC)]
    if number >= len(_KINDS) or _KINDS[number] is not kind:
        name = _KINDS[number].__name__ if number < len(_KINDS) else f"kind {number}"
        raise SecureAggregationError(f"a message {name} came: expected {kind.__name__}")
    if data[len(MAGIC) + 1 : _HEADER] != session.digest:
        raise SecureAggregationError(foreign(kind.__name__, session))
    reader = _Reader(memoryview(data)[_HEADER:], session, kind.__name__)
    message = _READERS[kind](reader)
    reader.end()
    assert isinstance(message, kind)
    return message


def foreign(kind: str, session: Session) -> str:
    """What to say of a message that is not of `session`."""
    return (
        f"a message {kind} is not of round {session.round} of run {session.run!r} with these settings: it is "
        "replayed, late, or its sender was configured otherwise"
    )


class _Reader:
    """Takes fields off the front of a message."""

    def __init__(self, rest: memoryview, session: Session, name: str) -> None:
        self.rest, self.session, self.name = rest, session, name

    def take(self, size: int) -> bytes:
        if size > len(self.rest):
            raise SecureAggregationError(f"a message {self.name} ends {size - len(self.rest)} bytes early")
        taken, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def client(self) -> int:
        client = self.u32()
        if client not in self.session.clients:
            raise SecureAggregationError(
                f"a message {self.name} names client {client}: expected one of this round"
            )
        return client

    def count(self) -> int:
        count = self.u32()
        if count > len(self.session.clients):
            raise SecureAggregationError(
                f"a message {self.name} announces {count} entries for {len(self.session.clients)} clients"
            )
        return count

    def table(self, size: int) -> dict[int, bytes]:
        count = self.count()
        table = {self.client(): self.take(size) for _ in range(count)}
        if len(table) != count:
            raise SecureAggregationError(f"a message {self.name} names a client twice")
        return table

    def signature(self) -> bytes:
        return self.take(SIGNATURE_BYTES if self.session.signed else 0)

    def end(self) -> None:
        if self.rest:
            raise SecureAggregationError(f"a message {self.name} is {len(self.rest)} bytes too long")


def _advert(reader: _Reader) -> Advert:
    client = reader.client()
    keys = (reader.take(KEY_BYTES), reader.take(KEY_BYTES), reader.take(KEY_BYTES))
    return Advert(reader.session.digest, client, *keys, reader.signature())


def _roster(reader: _Reader) -> Roster:
    return Roster(reader.session.digest, tuple(_advert(reader) for _ in range(reader.count())))


def _sealed(reader: _Reader) -> Sealed:
    return Sealed(reader.session.digest, reader.client(), reader.table(BOX_BYTES))


def _inbox(reader: _Reader) -> Inbox:
    return Inbox(reader.session.digest, reader.client(), reader.table(BOX_BYTES))


def _masked(reader: _Reader) -> Masked:
    client, dtype = reader.client(), reader.session.numbers.dtype
    vector = np.frombuffer(reader.take(reader.session.elements * dtype.itemsize), dtype)
    return Masked(reader.session.digest, client, vector)


def _survivors(reader: _Reader) -> Survivors:
    clients = tuple(reader.client() for _ in range(reader.count()))
    return Survivors(reader.session.digest, clients, reader.table(SIGNATURE_BYTES))


def _consent(reader: _Reader) -> Consent:
    return Consent(reader.session.digest, reader.client(), reader.take(SIGNATURE_BYTES))


def _reveal(reader: _Reader) -> Reveal:
    digest, client = reader.session.digest, reader.client()
    return Reveal(digest, client, reader.table(SHARE_BYTES), reader.table(SHARE_BYTES))


_READERS: Mapping[type[Message], Callable[[_Reader], Message]] = {
    Advert: _advert,
    Roster: _roster,
    Sealed: _sealed,
    Inbox: _inbox,
    Masked: _masked,
    Survivors: _survivors,
    Consent: _consent,
    Reveal: _reveal,
}


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _table(entries: Mapping[int, bytes]) -> bytes:
    return _u32(len(entries)) + b"".join(_u32(client) + entry for client, entry in entries.items())
