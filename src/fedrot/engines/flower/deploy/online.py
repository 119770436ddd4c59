"""Under which number a node is online, noted so that it can be taken back after an end without good-bye."""

from __future__ import annotations

import json

import httpx
from flwr.proto.fleet_pb2 import DeactivateNodeRequest  # pyright: ignore[reportAttributeAccessIssue]
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedrot.engines.flower.deploy.pki import check_private_key, public_bytes
from fedrot.engines.flower.node import Node


def deactivate(node: Node, node_id: int) -> None:
    """Tell the server that a node whose SuperNode was killed is gone; it would refuse it for a minute otherwise."""
    key = check_private_key(node.key)
    with FleetHttpClient.from_server_address(
        node.superlink,
        False,
        str(node.ca),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    ) as client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPStatusError:  # offline already, or registered anew under another number
            return


class Online:
    """Notes, in the node's state folder, under which number the node is online, to be able to take it back."""

    def __init__(self, node: Node) -> None:
        self._node, self._path = node, node.state / "online.json"

    def note(self, node_id: int) -> None:
        """The server knows this node by `node_id`."""
        key = public_bytes(check_private_key(self._node.key).public_key()).decode()
        self._path.write_text(json.dumps({"node_id": node_id, "public_key": key}), "utf-8")

    def forget(self) -> None:
        """It said good-bye."""
        self._path.unlink(missing_ok=True)

    def settle(self) -> bool:
        """Take back what an end without good-bye left; False: the server cannot be reached."""
        try:
            noted = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return True
        if noted["public_key"] == public_bytes(check_private_key(self._node.key).public_key()).decode():
            try:
                deactivate(self._node, noted["node_id"])
            except httpx.TransportError:
                return False
        self.forget()
        return True
