"""One process at a time for a folder that holds what a running server or node says of itself."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from fedrot.engines.flower.deploy.layout import private_folder
from fedrot.engines.flower.locked import locked


def alone(state: Path, what: str) -> AbstractContextManager[None]:
    """Keep other processes from the folder: two would overwrite each other's files and take each other's messages.

    Args:
        state: the folder that the process writes to.
        what: whose folder it is, for the message.

    Raises:
        ConfigError: another process is there.
        OutputError: nothing can be written there.
    """
    refusal = (
        f"{what} runs from this folder already; end that process first, or give this one a folder of its own"
    )
    return locked(private_folder(state) / "lock", refusal)
