"""`fedrot deploy superlink`. Mistakes in the folder are told before Flower is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from fedrot.engines.flower.deploy.layout import Server, load_server
from fedrot.engines.flower.deploy.pki import check_certificate, read_public_key
from fedrot.errors import ConfigError


def run_superlink(directory: Path) -> None:
    """Run the server of a folder until it is told to stop.

    Raises:
        ConfigError: a setting, certificate or key that cannot be used, or two nodes with one key.
        OutputError: the SuperLink ended by itself.
    """
    server = load_server(directory)
    check_certificate(server.ca)
    check_certificate(server.certificate)
    keys = node_keys(server)

    from fedrot.engines.flower.deploy.server_supervisor import ServerSupervisor

    ServerSupervisor(server, keys).run()


def node_keys(server: Server) -> dict[str, bytes]:
    """The public keys in `keys/`, by node name.

    Raises:
        ConfigError: one that is no such key, or two alike.
    """
    keys: dict[str, bytes] = {}
    for path in sorted(server.keys.glob("*.pub")):
        key = read_public_key(path)
        for other, known in keys.items():
            if known == key:
                raise ConfigError(
                    f"'{path}': the same key as {other}.pub; every node needs its own, made with `fedrot deploy keygen`"
                )
        keys[path.stem] = key
    return keys
