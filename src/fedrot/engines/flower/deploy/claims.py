"""Which clients the holder of a key may host: the server's own word, held against what a node says of itself.

The SuperLink tells a server app, over the loopback, with which key each node proves itself; a node cannot choose that.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from fedrot.engines.flower.deploy.layout import Server
from fedrot.engines.flower.deploy.superlink import node_keys
from fedrot.errors import AdapterError, ConfigError


class Claims:
    """Refuses nodes that would host clients which are not theirs."""

    def __init__(self, grid: Grid, keys: Mapping[str, bytes], clients: Mapping[str, frozenset[int]]) -> None:
        """Nothing is asked yet.

        Args:
            grid: of the SuperLink, which knows the nodes' keys.
            keys: of the nodes that may take part, by name.
            clients: that each of them may host, by name.
        """
        self._grid, self._names = grid, {key: name for name, key in keys.items()}
        self._clients = clients

    def check(self, node: int, who: str, clients: Sequence[int]) -> None:
        """Hold what a node says to host against its key.

        Args:
            node: Flower's number of it.
            who: for messages.
            clients: that it says to host.

        Raises:
            AdapterError: its key may not host one of them, or has no entry.
        """
        key = next((info.public_key for info in self._grid.get_nodes() if info.node_id == node), b"")
        name = self._names.get(key)
        if name is None or name not in self._clients:
            shown = "its key is not in keys/" if name is None else f"its key '{name}' has no entry there"
            raise AdapterError(
                f"{who} may host no client by clients.toml of the server: {shown}; add it, or stop the node"
            )
        own = self._clients[name]
        if foreign := sorted(client for client in clients if client not in own):
            raise AdapterError(
                f"{who} says that it hosts client {foreign[0]}, but its key '{name}' may host {sorted(own)} by "
                "clients.toml of the server; mend `clients` in its node.toml, or clients.toml"
            )


def load_claims(server: Server, grid: Grid) -> Claims | None:
    """Read the server's `clients.toml`: by the name of each node's key, the numbers of the clients it may host.

    Args:
        server: its folder.
        grid: of the SuperLink.

    Returns:
        None if there is no such file: then any node may host any client that is free.

    Raises:
        ConfigError: not TOML, or not lists of client numbers.
    """
    if not server.clients.exists():
        return None
    try:
        found: dict[str, Any] = tomllib.loads(server.clients.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{server.clients}': cannot be read as TOML ({error})") from error
    for name, clients in found.items():
        if not (isinstance(clients, list) and all(type(client) is int and client >= 0 for client in clients)):
            raise ConfigError(
                f"'{server.clients}': {name} = {clients!r}: expected a list of client numbers from 0, such as [0, 1]"
            )
    return Claims(grid, node_keys(server), {name: frozenset(clients) for name, clients in found.items()})
