"""Which clients the holder of a key may host."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.node_pb2 import NodeInfo  # pyright: ignore[reportAttributeAccessIssue]

from fedrot.config import RunConfig
from fedrot.engines.flower.deploy.claims import load_claims
from fedrot.engines.flower.deploy.init import init
from fedrot.engines.flower.deploy.layout import Server, load_server
from fedrot.engines.flower.deploy.pki import read_public_key
from fedrot.engines.flower.run import in_process_grid, serve
from fedrot.engines.observer import Observer
from fedrot.engines.setup import prepare
from fedrot.errors import AdapterError, ConfigError, TrainingError
from fedrot.rundir import RunDirectory


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Of three nodes with a client each; the third makes its own key, which has not come yet."""
    init(tmp_path / "fed", 3)
    found = load_server(tmp_path / "fed")
    (found.keys / "node-2.pub").rename(tmp_path / "node-2.pub")
    return found


class Known:
    """As a grid of a SuperLink that knows nodes 10 to 12 by the keys of node-0 to node-2."""

    def __init__(self, server: Server) -> None:
        home = server.directory.parent.parent
        paths = [server.keys / "node-0.pub", server.keys / "node-1.pub", home / "node-2.pub"]
        self.infos = [NodeInfo(node_id=10 + i, public_key=read_public_key(p)) for i, p in enumerate(paths)]

    def get_nodes(self) -> Iterable[Any]:
        return iter(self.infos)


def test_a_node_may_host_what_the_server_wrote_down_for_its_key(server: Server) -> None:
    claims = load_claims(server, Known(server))  # pyright: ignore[reportArgumentType]
    assert claims is not None
    claims.check(10, "node 'north'", [0])
    with pytest.raises(
        AdapterError, match=r"node 'south' says .* client 0, but its key 'node-1' may host \[1\]"
    ):
        claims.check(11, "node 'south'", [1, 0])
    for node in (12, 13):
        with pytest.raises(AdapterError, match="its key is not in keys/"):
            claims.check(node, "node 'west'", [2])
    server.clients.write_text("node-0 = [0]\n", "utf-8")
    fewer = load_claims(server, Known(server))  # pyright: ignore[reportArgumentType]
    assert fewer is not None
    with pytest.raises(AdapterError, match="its key 'node-1' has no entry"):
        fewer.check(11, "node 'south'", [1])


def test_the_file_is_written_by_init_and_says_what_the_nodes_folders_say(tmp_path: Path) -> None:
    folders = init(tmp_path / "fed", 2)
    found = tomllib.loads(load_server(tmp_path / "fed").clients.read_text("utf-8"))
    assert found == {f.name: tomllib.loads((f / "node.toml").read_text("utf-8"))["clients"] for f in folders}


@pytest.mark.parametrize(
    "text", ["node-0 = 0", "node-0 = [-1]", "node-0 = [true]", "[node-0]\nclients = [0]"]
)
def test_what_is_no_list_of_clients_is_refused(server: Server, text: str) -> None:
    server.clients.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="expected a list of client numbers"):
        load_claims(server, Known(server))  # pyright: ignore[reportArgumentType]
    server.clients.write_text("node-0 = [", "utf-8")
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_claims(server, Known(server))  # pyright: ignore[reportArgumentType]
    server.clients.unlink()
    assert load_claims(server, Known(server)) is None  # pyright: ignore[reportArgumentType]


def test_a_node_that_names_another_ones_client_is_refused_at_the_handshake(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    federation = prepare(recipe(engine__name="flower", engine__nodes=2))

    def vouch(node: int, who: str, clients: Any) -> None:
        if 3 in clients:
            raise AdapterError(f"{who} may not host client 3")

    grid = in_process_grid(federation)
    with pytest.raises(TrainingError, match="refused: node 'node-1' may not host client 3"):
        serve(grid, federation, RunDirectory(tmp_path / "run"), Observer(), vouch=vouch)
