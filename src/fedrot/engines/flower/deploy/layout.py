"""The folder of a deployed federation: where things lie, and the server's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fedrot.config import load_as
from fedrot.config.sections import Section
from fedrot.errors import OutputError

SERVER_FILE = "server.toml"
SERVER_FOLDER = "FEDROT_SERVER_FOLDER"
"""The environment variable by which a server app finds the server's folder."""


class ServerFile(Section):
    """The keys of `server.toml`."""

    listen: str = Field(default="0.0.0.0:8000", pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$")
    """Where nodes connect. Nothing but what nodes need is answered here."""
    hosts: list[str] = Field(default=[])
    """Names and addresses in the server's certificate."""
    control_port: int = Field(default=0, ge=0, le=65535)
    """Port on the loopback for control and for the server app; 0: a free one."""
    request_limit_mb: int = Field(default=32, gt=0)
    """Largest request a node may send. Flower cuts arrays into pieces of 5 MB."""
    poll: float = Field(default=1.0, ge=0.05, le=60)
    """Seconds between two looks for a submitted run."""


@dataclass(frozen=True)
class Server:
    """The server's part of the folder."""

    directory: Path
    file: ServerFile

    @property
    def ca(self) -> Path:
        """The authority's certificate, also given to nodes."""
        return self.directory / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's own."""
        return self.directory / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.directory / "server.key"

    @property
    def keys(self) -> Path:
        """Public keys of the nodes that may take part, `<name>.pub`."""
        return self.directory / "keys"

    @property
    def clients(self) -> Path:
        """By the name of each node's key, which clients it may host."""
        return self.directory / "clients.toml"

    @property
    def state(self) -> Path:
        """What the server writes: database, logs, the control token."""
        return self.directory / "state"

    @property
    def control(self) -> Path:
        """Address and token of the control interface while the server runs; only its user may read it."""
        return self.state / "control.json"

    def log(self, run: int) -> Path:
        """What the server app of a run said."""
        return self.state / "logs" / f"run-{run}.log"

    def outcome(self, run: int) -> Path:
        """How the server app of a run ended."""
        return self.state / "runs" / f"{run}.json"


def load_server(directory: str | Path) -> Server:
    """Read a server's folder; the federation's folder around it will do.

    Raises:
        ConfigError: no such folder, bad TOML, an unknown key (the nearest is offered), or a value out of range.
    """
    directory = Path(directory).absolute()
    if not (directory / SERVER_FILE).exists() and (directory / "server" / SERVER_FILE).exists():
        directory = directory / "server"
    remedy = "give the folder that `fedrot deploy init` wrote"
    return Server(directory, load_as(ServerFile, directory / SERVER_FILE, remedy))


def private_folder(path: Path) -> Path:
    """A folder that only this user may enter.

    Raises:
        OutputError: it cannot be made, or belongs to someone else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise OutputError(
            f"'{path}': cannot be made a private folder ({error.strerror}); check its owner"
        ) from error
    return path
