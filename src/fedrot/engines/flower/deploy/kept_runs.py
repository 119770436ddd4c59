"""What clients of a node kept of earlier runs, run by run, for the node's owner to look at and delete.

A node does not know whether a run is over: it may be resumed at any time. So nothing is deleted unless its owner says
so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedrot.errors import ConfigError, OutputError


@dataclass(frozen=True)
class KeptRun:
    """The parts of one run."""

    name: str
    """Of its folder: the digest of a name that only the server and the node know."""
    clients: tuple[int, ...]
    round: int
    """The newest that something was kept of."""
    written: datetime
    """When that was, in local time."""
    size: int
    """Bytes of all files."""
    adapters: bool
    """Clients' own adapters were written there as well (`output.personal`)."""


def kept_runs(folder: Path) -> list[KeptRun]:
    """The runs of a node's folder `kept`, the one that was written to last at the end."""
    found = [_read(path) for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((run for run in found if run is not None), key=lambda run: run.written)


def delete_runs(folder: Path, names: Sequence[str]) -> None:
    """Delete what was kept of some runs, own adapters included.

    Raises:
        ConfigError: a name that is not there; nothing is deleted then.
        OutputError: something cannot be deleted.
    """
    there = {run.name for run in kept_runs(folder)}
    if unknown := [name for name in names if name not in there]:
        shown = ", ".join(sorted(there)) or "none"
        raise ConfigError(f"--delete {unknown[0]}: nothing is kept of such a run; there are: {shown}")
    for name in dict.fromkeys(names):
        try:
            shutil.rmtree(folder / name)
        except OSError as error:
            raise OutputError(f"'{error.filename}': cannot be deleted ({error.strerror})") from error


def _read(path: Path) -> KeptRun | None:
    """One folder; None if no client has kept anything in it."""
    parts = list(path.glob("client-*/round-*.safetensors"))
    if not parts:
        return None
    return KeptRun(
        name=path.name,
        clients=tuple(sorted({int(part.parent.name.removeprefix("client-")) for part in parts})),
        round=max(int(part.stem.removeprefix("round-")) for part in parts),
        written=datetime.fromtimestamp(max(part.stat().st_mtime for part in parts)),
        size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        adapters=any(path.glob("client-*/adapter")),
    )
