"""`fedrot deploy init`, `keygen` and `renew`: write the folder of a federation. Nothing is overwritten unasked."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedrot.config import load_config
from fedrot.engines.flower.deploy.layout import SERVER_FILE, load_server, private_folder
from fedrot.engines.flower.deploy.pki import Certificates, make_certificates, make_node_key, write_secret
from fedrot.engines.flower.deploy.units import readme, unit
from fedrot.engines.flower.node import NODE_FILE
from fedrot.errors import ConfigError, OutputError
from fedrot.rundir import is_free, write_whole

_CLAIMS = "# The clients that each node may host, by the name of its key in keys/. Read when a run starts.\n"


def init(
    directory: Path,
    nodes: int,
    *,
    hosts: Sequence[str] = (),
    port: int = 8000,
    days: int = 365,
    recipe: Path | None = None,
    own_keys: bool = False,
) -> list[Path]:
    """Write a new federation: the server's folder and one for each node.

    Args:
        directory: must be new or empty.
        nodes: how many.
        hosts: names and addresses by which nodes reach the server; the first is the one they use.
        port: of the server.
        days: until the certificates expire.
        recipe: says how many clients there are, dealt to the nodes evenly; without it each node has one.
        own_keys: every node makes its own key with `keygen`.

    Returns:
        The nodes' folders.

    Raises:
        ConfigError: nodes, hosts, days or recipe that cannot be; more nodes than clients.
        OutputError: a folder that is not free.
    """
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: expected at least 1")
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: expected 1 to 65535")
    shares = _shares(nodes, recipe)
    certificates = make_certificates(hosts, days)
    directory = directory.absolute()
    if not is_free(directory):
        raise OutputError(f"'{directory}' exists and is not an empty folder; choose another, or move it away")
    server = private_folder(directory / "server")
    address = f"{_bracketed(hosts[0] if hosts else '127.0.0.1')}:{port}"
    listen = f"{'0.0.0.0' if hosts else '127.0.0.1'}:{port}"
    settings = {"listen": listen, "hosts": list(hosts), "control_port": 0}
    write_whole(server / SERVER_FILE, tomli_w.dumps(settings))
    _write_certificates(server, certificates)
    private_folder(server / "keys")
    names = [f"node-{number}" for number in range(nodes)]
    write_whole(server / "clients.toml", _CLAIMS + tomli_w.dumps(dict(zip(names, shares, strict=True))))
    state = private_folder(server / "state")
    service = unit("superlink", "fedrot federation server", server, [state])
    write_whole(server / "fedrot-superlink.service", service)
    folders = [directory / "nodes" / name for name in names]
    for folder, clients in zip(folders, shares, strict=True):
        _write_node(folder, clients, address, certificates.ca)
        if not own_keys:
            keygen(folder)
            shutil.copyfile(folder / "node.pub", server / "keys" / f"{folder.name}.pub")
    write_whole(directory / "README.md", readme(folders[0].name, days))
    return folders


def keygen(folder: Path) -> Path:
    """Make a node's key pair in its folder; only the public key, which is returned, has to travel.

    Raises:
        OutputError: there is a key already.
    """
    private, public = make_node_key(folder.absolute().name)
    write_secret(folder / "node.key", private)
    write_whole(folder / "node.pub", public.decode())
    return folder / "node.pub"


def renew(directory: Path, days: int, hosts: Sequence[str] = ()) -> Path:
    """Replace authority and server certificate; the old files are kept with the ending `.old`.

    Args:
        directory: the server's.
        days: until the new ones expire.
        hosts: names in the new certificate; those in `server.toml` unless given.

    Returns:
        The new `ca.crt`, which every node needs.

    Raises:
        ConfigError: as `load_server` and `make_certificates` do.
    """
    server = load_server(directory)
    certificates = make_certificates(hosts or server.file.hosts, days)
    for path in (server.ca, server.certificate, server.key):
        if path.exists():
            path.replace(path.with_name(f"{path.name}.old"))
    _write_certificates(server.directory, certificates)
    return server.ca


def _shares(nodes: int, recipe: Path | None) -> list[list[int]]:
    if recipe is None:
        return [[node] for node in range(nodes)]
    clients = load_config(recipe).federation.clients
    if clients is None:
        raise ConfigError(
            f"recipe '{recipe}': set federation.clients, so that they can be dealt to the nodes"
        )
    if clients < nodes:
        raise ConfigError(
            f"--nodes {nodes}: the recipe has federation.clients = {clients}; expected at most as many nodes"
        )
    bounds = [clients * node // nodes for node in range(nodes + 1)]
    return [list(range(*pair)) for pair in itertools.pairwise(bounds)]


def _write_certificates(server: Path, certificates: Certificates) -> None:
    write_whole(server / "ca.crt", certificates.ca.decode())
    write_whole(server / "server.crt", certificates.server.decode())
    write_secret(server / "server.key", certificates.server_key)


def _write_node(folder: Path, clients: list[int], address: str, ca: bytes) -> None:
    private_folder(folder)
    state = private_folder(folder / "state")
    settings: dict[str, Any] = {
        "name": folder.name,
        "clients": clients,
        "superlink": address,
        "device": "auto",
    }
    hints = (
        "\n# data = \"texts.csv\"      # the node's own examples; without it, its shards of the recipe's bundled corpus"
        '\n# columns = { text = "text", label = "label" }   # the columns of it that a recipe may name; and so `labels`'
        '\n# model = "/srv/model"    # stands for the recipe\'s model.path, unless that is an installed package'
        "\n# rank = 2                # this node's clients train at a smaller rank than the server's\n"
    )
    write_whole(folder / NODE_FILE, tomli_w.dumps(settings) + hints)
    write_whole(folder / "ca.crt", ca.decode())
    write_whole(
        folder / "fedrot-supernode.service", unit("supernode", f"fedrot {folder.name}", folder, [state])
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
