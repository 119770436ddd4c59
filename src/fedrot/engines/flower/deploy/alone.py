"""One process at a time for a folder that holds what a running server or node says of itself."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrot.engines.flower.deploy.layout import private_folder
from fedrot.errors import ConfigError


@contextmanager
def alone(state: Path, what: str) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back when this process ends, however that happens.

    Args:
        state: the folder that the process writes to.
        what: whose folder it is, for the message.

    Raises:
        ConfigError: another process holds it. Two would overwrite each other's files and take each other's messages.
    """
    path = private_folder(state) / "lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"'{path}': {what} runs from this folder already; end that process first, or give this one a folder "
                "of its own"
            ) from error
        yield
