"""The control interface of a running server: nodes, runs, start and stop. Only the server's user has it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (  # pyright: ignore[reportAttributeAccessIssue]
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers

from fedrot.engines.flower.deploy.bundle import OUT, bundle, bundle_hash
from fedrot.engines.flower.deploy.gate import TOKEN_HEADER
from fedrot.engines.flower.deploy.layout import Server
from fedrot.engines.flower.deploy.process import past_proxies
from fedrot.errors import ConfigError, OutputError


@dataclass(frozen=True)
class NodeInfo:
    """A node as the server knows it."""

    id: int
    name: str
    status: str
    """`registered` (never seen), `online` or `offline`."""
    public_key: bytes


@dataclass(frozen=True)
class RunInfo:
    """A run as the server knows it."""

    id: int
    status: str
    """`pending`, `starting`, `running` or `finished`."""
    outcome: str
    """Of a finished run: `completed`, `failed` or `stopped`."""
    details: str
    pending_at: str
    out: str
    """Its directory."""


class _Token:
    """Adds the control token to every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Add it."""
        add_headers(context.request, {TOKEN_HEADER: self._token})
        return call_next(context)


class Control:
    """Requests to the control interface."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def nodes(self) -> list[NodeInfo]:
        """All nodes but those that were removed."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = [NodeInfo(item.node_id, item.name, item.status, item.public_key) for item in found]
        return sorted((node for node in nodes if node.status != "unregistered"), key=lambda node: node.name)

    def register(self, name: str, public_key: bytes) -> None:
        """Let the holder of a key take part."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start(self, config: Mapping[str, str | bool]) -> int:
        """Submit fedrot's app with this configuration.

        Raises:
            OutputError: the server did not take it.
        """
        fab = fab_to_proto(Fab(bundle_hash(), bundle(), {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise OutputError("the server did not take the run; its log says why")
        return answer.run_id

    def stop(self, run: int) -> bool:
        """Stop a run; False: it was not running."""
        return self._client.StopRun(StopRunRequest(run_id=run)).success

    def runs(self, limit: int = 20) -> list[RunInfo]:
        """The newest runs, newest first."""
        found = self._client.ListRuns(ListRunsRequest(limit=limit)).run_dict
        return sorted(map(_run_info, found.values()), key=lambda run: run.pending_at, reverse=True)

    def run(self, run: int) -> RunInfo:
        """One run."""
        return _run_info(self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run])


@contextmanager
def control(server: Server, wait: float = 0.0) -> Iterator[Control]:
    """The control interface of a server that runs on this machine.

    Args:
        server: whose.
        wait: seconds to wait for a server that is starting.

    Raises:
        ConfigError: it does not run, or its files belong to another user.
    """
    until = time.monotonic() + wait
    while (client := _connect(server)) is None:
        if time.monotonic() > until:
            raise ConfigError(
                f"no server runs for '{server.directory}' on this machine; start it with `fedrot deploy superlink "
                f"{server.directory}`"
            )
        time.sleep(0.1)
    try:
        yield Control(client)
    finally:
        client.close()


def _connect(server: Server) -> ControlHttpClient | None:
    try:
        given = json.loads(server.control.read_text("utf-8"))
    except PermissionError as error:
        raise ConfigError(
            f"'{server.control}': cannot be read ({error.strerror}); be the user that the server runs as"
        ) from error
    except (OSError, ValueError):
        return None
    past_proxies()
    client = ControlHttpClient.from_server_address(
        given["address"],
        insecure=False,
        root_certificates=server.ca.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), _Token(given["token"])],
    )
    try:
        client.ListNodes(ListNodesRequest())
    except httpx.TransportError:
        client.close()
        return None
    return client


def _run_info(run: Any) -> RunInfo:
    status = run.status
    out = run.override_config[OUT].string if OUT in run.override_config else ""
    return RunInfo(run.run_id, status.status, status.sub_status, status.details, run.pending_at, out)
