"""What the server answers at its two sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.message_pb2 import Message as MessageProto  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.message_pb2 import Metadata  # pyright: ignore[reportAttributeAccessIssue]
from flwr.proto.node_pb2 import Node as NodeProto  # pyright: ignore[reportAttributeAccessIssue]

from fedrot.engines.flower.deploy.gate import NODE_PATHS, REPLIES, TOKEN_HEADER, Gate

OUTER, INNER = ("192.0.2.7", 8000), ("127.0.0.1", 4711)
TOKEN = "f00d" * 16


def answer(
    path: str,
    server: tuple[str, int],
    *,
    method: str = "POST",
    token: str | None = None,
    length: str = "3",
    body: bytes = b"",
) -> int:
    sent: list[dict[str, Any]] = []
    halves = [(body[:5], True), (body[5:], False)]

    async def receive() -> Any:
        part, more = halves.pop(0)
        return {"type": "http.request", "body": part, "more_body": more}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if body:
            assert await receive() == {"type": "http.request", "body": body, "more_body": False}
        await send({"type": "http.response.start", "status": 200})

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"content-length", length.encode())] if length else []
    headers += [(TOKEN_HEADER.encode(), token.encode())] if token is not None else []
    scope = {"type": "http", "method": method, "path": path, "server": server, "headers": headers}
    asyncio.run(Gate(app, INNER[1], TOKEN, limit=1000)(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize("path", sorted(NODE_PATHS))
def test_a_nodes_requests_are_answered_outside(path: str):
    assert answer(path, OUTER) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/V1/CONTROL/start-run",
        "//v1/control/start-run",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_all_else_is_not_served_outside_even_with_the_token(path: str):
    assert answer(path, OUTER) == 404
    assert answer(path, OUTER, token=TOKEN) == 404


def test_the_inner_port_at_another_address_is_outside():
    assert answer("/v1/control/start-run", ("192.0.2.7", INNER[1]), token=TOKEN) == 404


@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN.upper(), f"{TOKEN} "])
def test_control_needs_the_token_on_the_loopback(token: str | None):
    assert answer("/v1/control/start-run", INNER, token=token) == 404
    assert answer("/v1/control/start-run", INNER, token=TOKEN) == 200


def test_the_loopback_serves_server_apps_and_no_documentation():
    assert answer("/v1/runtime/acquire-task", INNER) == 200
    assert answer("/docs", INNER) == 404
    assert answer("/v1/fleet/pull-messages", INNER) == 404


def test_a_request_that_is_too_long_or_does_not_say_is_refused():
    assert answer("/v1/fleet/push-object", OUTER, length="1000") == 200
    assert answer("/v1/fleet/push-object", OUTER, length="1001") == 413
    assert answer("/v1/fleet/push-object", OUTER, length="") == 411
    assert answer("/v1/fleet/push-object", OUTER, length="-1") == 411


@pytest.mark.parametrize(("writers", "status"), [([7], 200), ([8], 403), ([7, 8], 403), ([0], 403)])
def test_a_node_hands_in_replies_of_its_own_alone(writers: list[int], status: int):
    messages = [MessageProto(metadata=Metadata(src_node_id=writer, message_id="one")) for writer in writers]
    request = PushMessagesRequest(node=NodeProto(node_id=7), messages_list=messages)
    assert answer(REPLIES, OUTER, body=request.SerializeToString()) == status


def test_replies_that_are_none_are_refused():
    assert answer(REPLIES, OUTER, body=b"\xff" * 20) == 400


def test_get_is_not_served():
    assert answer("/v1/fleet/pull-messages", OUTER, method="GET") == 404


def test_a_websocket_is_refused_like_all_else():
    scope = {"type": "websocket", "path": "/v1/fleet/pull-messages", "server": OUTER, "headers": []}
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(Gate(None, INNER[1], TOKEN, limit=1)(scope, None, send))  # pyright: ignore[reportArgumentType]
    assert sent == [{"type": "websocket.close", "code": 1008}]
