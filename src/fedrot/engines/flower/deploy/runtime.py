"""Tasks from Flower's Runtime API: claim one, keep it alive while it is worked on, hand in the result.

The API is served on the loopback by the SuperNode (client tasks) and the SuperLink (server apps). Claiming needs a
secret that only this process and the server of the API hold; everything after that needs the task's token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from flwr.proto.runtime_pb2 import (  # pyright: ignore[reportAttributeAccessIssue]
    AcquireTaskRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

HEARTBEAT = 15.0
"""Seconds between two heartbeats; Flower gives a task up after 30 without one."""


@dataclass(frozen=True)
class Task:
    """A task that this process has claimed."""

    id: int
    run: int
    token: str = field(repr=False)


class Runtime:
    """A Runtime API on the loopback."""

    def __init__(self, address: str, secret: bytes, ca: bytes | None = None) -> None:
        """Remember where it is.

        Args:
            address: `host:port`.
            secret: what claims tasks.
            ca: the certificate that vouches for it; None where it speaks plain HTTP.
        """
        self._address, self._ca = address, ca
        acquire = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
        )
        self._client = self._connect([RuntimeVersionHttpInterceptor(component_name="SuperExec"), acquire])

    def acquire(self, kind: TaskType) -> Task | None:
        """Claim the oldest task of a kind. None: there is none, or nobody answers there (yet).

        Raises:
            httpx.HTTPStatusError: the request was refused.
        """
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
        except httpx.TransportError:
            return None
        if not answer.HasField("task") or not answer.token:
            return None
        return Task(answer.task.task_id, answer.task.run_id, answer.token)

    @contextmanager
    def working(self, task: Task) -> Iterator[RuntimeHttpClient]:
        """A client that speaks for the task, whose heartbeat goes on meanwhile."""
        version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
        client = self._connect([version, RuntimeTokenHttpInterceptor(task.token)])
        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(client, done), name="heartbeat", daemon=True)
        beat.start()
        try:
            yield client
        finally:
            done.set()
            beat.join()
            client.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _connect(self, interceptors: list[object]) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=self._ca is None,
            root_certificates=self._ca,
            interceptors=interceptors,  # pyright: ignore[reportArgumentType]
        )


def _beat(client: RuntimeHttpClient, done: threading.Event) -> None:
    """Unlike Flower's sender, do not interrupt the whole process when a task is lost: its result is refused then."""
    while not done.is_set():
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            done.wait(1.0)
        else:
            done.wait(HEARTBEAT)
