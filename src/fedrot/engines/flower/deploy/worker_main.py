"""The long-lived process of a node that holds torch, the base model and the data, and trains when asked.

Run as `python -m fedrot.engines.flower.deploy.worker_main DESCRIPTOR MODULE:FACTORY`. It has no network of its own.
"""

from __future__ import annotations

import importlib
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from flwr.app import RecordDict

from fedrot.engines.flower.deploy.channel import ChannelClosed, receive, send
from fedrot.engines.flower.deploy.process import tether
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.packing import from_bytes, to_bytes
from fedrot.errors import FedrotError


class Handler(Protocol):
    """What answers messages."""

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """Answer one message."""
        ...


def serve(end: socket.socket, build: Callable[[NodeSettings], Handler]) -> None:
    """Answer until the other side is gone. The first frame describes the node.

    An exception is an answer too: a `FedrotError` in its own words, any other by its type alone, since its words may
    hold pieces of the node's data; the traceback goes to the node's own log.
    """
    try:
        first = receive(end)
        assert first is not None
        settings = first[0]["node"]
        handler = build(NodeSettings(**{**settings, "clients": tuple(settings["clients"])}))
        send(end, {"ready": True})
        while (frame := receive(end)) is not None:
            header, body = frame
            try:
                answer = to_bytes(handler.handle(header["type"], from_bytes(body, "the server")))
            except FedrotError as error:
                send(end, {"error": str(error), "kind": type(error).__name__})
            except Exception as error:
                traceback.print_exc()
                kind = type(error).__name__
                send(end, {"error": f"{kind} in the client; the node's log has the details", "kind": kind})
            else:
                send(end, {}, answer)
    except ChannelClosed:
        return


def main(arguments: list[str]) -> None:
    """Build the handler that is named, and serve."""
    tether()
    descriptor, name = arguments
    module, _, attribute = name.partition(":")
    build: Any = getattr(importlib.import_module(module), attribute)
    serve(socket.socket(fileno=int(descriptor)), build)


if __name__ == "__main__":
    main(sys.argv[1:])
