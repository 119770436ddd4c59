"""A whole `RecordDict` as one value, for the way between machines.

Flower moves every array of a message as two objects of their own, and every object as a request through the SuperLink's
database: several hundred requests for an adapter of 40 sites. Packed, a message is three; a long one is five, and one
more for each further 5 MB. The bytes are Flower's own protobuf of the records.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.recorddict_pb2 import RecordDict as Wire  # pyright: ignore[reportAttributeAccessIssue]
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from google.protobuf.message import DecodeError

from fedrot.errors import AdapterError

_RECORD, _KIND = "packed", "flwr.recorddict"
LIMIT = 2**31 - 1
"""Bytes that one protobuf message may have."""
SHORT = 4 * 2**20
"""Bytes up to which a message needs no pieces, which arrays alone come in; below the size of Flower's pieces."""


def to_bytes(content: RecordDict) -> bytes:
    """Records as bytes.

    Raises:
        AdapterError: more than one message can carry.
    """
    size = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    if size <= LIMIT:
        wire = recorddict_to_proto(content)
        if (size := wire.ByteSize()) <= LIMIT:
            return wire.SerializeToString()
    raise AdapterError(
        f"a message of {size} bytes: Flower carries {LIMIT} at most; host fewer clients on a node, or lower lora.rank"
    )


def from_bytes(data: bytes, where: str) -> RecordDict:
    """The inverse of `to_bytes`.

    Args:
        data: as received.
        where: who sent it, for messages.

    Raises:
        AdapterError: these bytes are no records.
    """
    wire = Wire()
    try:
        wire.ParseFromString(data)
        return recorddict_from_proto(wire)
    except (DecodeError, ValueError, TypeError) as error:
        raise AdapterError(f"{where}: what was sent holds no records ({error})") from error


def pack(data: bytes) -> RecordDict:
    """Bytes of records as the one value of a message: of a short one in a record of settings, else as an array."""
    if len(data) <= SHORT:
        return RecordDict({_RECORD: ConfigRecord({_RECORD: data})})
    array = Array(dtype="uint8", shape=(len(data),), stype=_KIND, data=data)
    return RecordDict({_RECORD: ArrayRecord({_RECORD: array})})


def packed(content: RecordDict) -> bytes | None:
    """The bytes that `pack` was given; None if this is something else."""
    short = content.config_records.get(_RECORD)
    if short is not None and list(short) == [_RECORD] and isinstance(data := short[_RECORD], bytes):
        return data
    record = content.array_records.get(_RECORD)
    if record is None or list(record) != [_RECORD] or record[_RECORD].stype != _KIND:
        return None
    return record[_RECORD].data


def unpack(content: RecordDict, where: str) -> RecordDict:
    """The records of a message, packed or not.

    Raises:
        AdapterError: packed, but not records.
    """
    data = packed(content)
    return content if data is None else from_bytes(data, where)


@final
class PackedGrid(Grid):
    """Another grid, over which messages go packed. Replies that cannot be unpacked are handed on as they came."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """As the other grid does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the other grid's."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the other grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the other grid does."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """As the other grid does."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, packed; returns their numbers.

        Raises:
            AdapterError: one is too long.
        """
        return self._grid.push_messages([_packed(message) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, unpacked."""
        return [_unpacked(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the other grid does, packed."""
        sent = [_packed(message) for message in messages]
        return [_unpacked(reply) for reply in self._grid.send_and_receive(sent, timeout=timeout)]


def _packed(message: Message) -> Message:
    given = message.metadata
    content = pack(to_bytes(message.content))
    return Message(content, given.dst_node_id, given.message_type, ttl=given.ttl, group_id=given.group_id)


def _unpacked(reply: Message) -> Message:
    if reply.has_content():
        try:
            reply.content = unpack(reply.content, "a reply")
        except AdapterError:
            return reply  # it lacks what was asked for, which its reader will say
    return reply
