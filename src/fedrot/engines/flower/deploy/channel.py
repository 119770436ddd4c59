"""Requests and replies between a node's executor and its worker, over a pair of connected sockets.

The pair is made before the worker is started and inherited by it: it has no name, so no other process can reach it. A
frame is two lengths, a JSON header and a `RecordDict` in Flower's protobuf; nothing is unpickled.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Wire  # pyright: ignore[reportAttributeAccessIssue]

_LENGTHS = struct.Struct(">IQ")
_HEADER_LIMIT = 2**20
_BODY_LIMIT = 2**31 - 1
"""What one protobuf message may hold."""


class ChannelClosed(Exception):
    """The other side is gone."""


def send(end: socket.socket, header: dict[str, Any], content: RecordDict | None = None) -> None:
    """Send one frame.

    Raises:
        ChannelClosed: nobody reads it.
        ValueError: too long for one protobuf message.
    """
    head = json.dumps(header).encode()
    body = b"" if content is None else recorddict_to_proto(content).SerializeToString()
    if len(head) > _HEADER_LIMIT or len(body) > _BODY_LIMIT:
        raise ValueError(f"a message of {len(body)} bytes: expected at most {_BODY_LIMIT}")
    try:
        end.sendall(_LENGTHS.pack(len(head), len(body)) + head)
        end.sendall(body)
    except OSError as error:
        raise ChannelClosed from error


def receive(
    end: socket.socket, given_up: Callable[[], bool] | None = None
) -> tuple[dict[str, Any], RecordDict] | None:
    """The next frame.

    Args:
        end: this side of the pair.
        given_up: asked a few times a second until the frame begins; None is returned once it says yes.

    Raises:
        ChannelClosed: the other side ended, also in the middle of a frame.
    """
    while given_up is not None and not select.select([end], [], [], 0.1)[0]:
        if given_up():
            return None
    head_length, body_length = _LENGTHS.unpack(_exactly(end, _LENGTHS.size))
    if head_length > _HEADER_LIMIT or body_length > _BODY_LIMIT:
        raise ChannelClosed
    header = json.loads(_exactly(end, head_length))
    wire = Wire()
    wire.ParseFromString(_exactly(end, body_length))
    return header, recorddict_from_proto(wire)


def _exactly(end: socket.socket, count: int) -> bytes:
    found = bytearray(count)
    view, done = memoryview(found), 0
    while done < count:
        try:
            got = end.recv_into(view[done:])
        except OSError as error:
            raise ChannelClosed from error
        if got == 0:
            raise ChannelClosed
        done += got
    return bytes(found)
