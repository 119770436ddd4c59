"""Requests and replies between a node's executor and its worker, over a pair of connected sockets.

The pair is made before the worker is started and inherited by it: it has no name, so no other process can reach it. A
frame is two lengths, a JSON header and the bytes of a message's records; nothing is unpickled.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

_LENGTHS = struct.Struct(">IQ")
_HEADER_LIMIT = 2**20
_BODY_LIMIT = 2**31 - 1


class ChannelClosed(Exception):
    """The other side is gone."""


def send(end: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Send one frame.

    Raises:
        ChannelClosed: nobody reads it.
    """
    head = json.dumps(header).encode()
    try:
        end.sendall(_LENGTHS.pack(len(head), len(body)) + head)
        end.sendall(body)
    except OSError as error:
        raise ChannelClosed from error


def receive(
    end: socket.socket, given_up: Callable[[], bool] | None = None
) -> tuple[dict[str, Any], bytes] | None:
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
    return json.loads(_exactly(end, head_length)), _exactly(end, body_length)


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
