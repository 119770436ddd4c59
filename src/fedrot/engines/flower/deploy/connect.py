"""Whether the server can be reached and vouched for, before Flower tries; its own retries say little and never end."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

import httpx

from fedrot.engines.flower.deploy.pki import check_private_key, public_bytes
from fedrot.engines.flower.node import NODE_FILE, Node
from fedrot.errors import ConfigError


def split(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, the brackets of an IPv6 address taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_server(address: str, ca: Path, timeout: float = 5.0) -> str | None:
    """Shake hands with the server over TLS.

    Args:
        address: `host:port`.
        ca: the certificate that must vouch for the server's.
        timeout: seconds to wait for it.

    Returns:
        Why it cannot be reached now, None if it can.

    Raises:
        ConfigError: it is there, but its certificate is not vouched for, expired, or for another name.
    """
    host, port = split(address)
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(_unverified(address, ca, error)) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"{address} does not speak TLS as expected ({error.reason}); is `superlink` in {NODE_FILE} a fedrot server?"
        ) from error
    except OSError as error:
        return error.strerror or type(error).__name__


def deactivate(node: Node, node_id: int) -> None:
    """Tell the server that a node whose SuperNode was killed is gone; it would refuse it for a minute otherwise."""
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest  # pyright: ignore[reportAttributeAccessIssue]
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

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


def _unverified(address: str, ca: Path, error: ssl.SSLCertVerificationError) -> str:
    told = error.verify_message
    if "expired" in told:
        remedy = "run `fedrot deploy renew` on the server and copy its new ca.crt to every node"
    elif "not valid for" in told or "mismatch" in told:
        remedy = (
            f"connect by a name in its certificate, or make one with that name: `fedrot deploy renew --host "
            f"{split(address)[0]}`"
        )
    else:
        remedy = "copy ca.crt from the server's folder; if it is the same file, someone else answers at that address"
    return f"the server at {address} is not vouched for by '{ca}' ({told}); {remedy}"
