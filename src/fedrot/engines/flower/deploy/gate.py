"""What the SuperLink answers, and to whom: Flower serves nodes, server apps and control on one port.

The SuperLink listens on two sockets. What arrives at the outer one may only be a request that a node makes. What
arrives at the one on the loopback may be a request of the server app, which Flower authenticates by the task's token
or the executor's secret, or a control request with the token of this server's user. All else is answered 404.

Flower holds the node that a request names against the key that signed it, but not the sender that a reply inside the
request names. So that no node answers in another's name, the gate holds these two against each other.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest  # pyright: ignore[reportAttributeAccessIssue]
from google.protobuf.message import DecodeError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_HEADER = "fedrot-control-token"

NODE_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a node with a registered key needs. Nodes do not register themselves."""

REPLIES = "/v1/fleet/push-messages"


@dataclass(frozen=True)
class Gate:
    """An ASGI application in front of Flower's."""

    app: App
    inner_port: int
    """The port of the socket on the loopback."""
    token: str
    limit: int
    """Bytes of a request from outside."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        if not self._allowed(scope):
            await _refuse(send, 404, "not served here")
            return
        if self._inner(scope):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            await _refuse(send, 411, "a request has to say its length")
        elif int(length) > self.limit:
            await _refuse(send, 413, f"a request may hold {self.limit} bytes")
        elif scope["path"] == REPLIES:
            await self._reply(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _reply(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass replies on if the node that hands them in says that it wrote them."""
        parts: list[bytes] = []
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            parts.append(event.get("body", b""))
            more = event.get("more_body", False)
        body = b"".join(parts)
        try:
            request = PushMessagesRequest.FromString(body)
        except DecodeError:
            await _refuse(send, 400, "these are no replies")
            return
        if any(one.metadata.src_node_id != request.node.node_id for one in request.messages_list):
            await _refuse(send, 403, "a reply names another node than the one that hands it in")
            return
        whole: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)

    def _inner(self, scope: Scope) -> bool:
        """Whether it arrived at the inner socket: that socket's own address says so, which no sender chooses."""
        return scope["server"] == ("127.0.0.1", self.inner_port)

    def _allowed(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if scope["method"] != "POST":
            return False
        if not self._inner(scope):
            return path in NODE_PATHS
        if path.startswith("/v1/control/"):
            given = dict(scope["headers"]).get(TOKEN_HEADER.encode(), b"")
            return hmac.compare_digest(given, self.token.encode())
        return path.startswith("/v1/runtime/")


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
