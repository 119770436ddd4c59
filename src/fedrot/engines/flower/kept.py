"""What clients of a node keep to themselves from round to round, where a method leaves a part of the model with them.

A server counts a round for a client once it has accepted its update and saved its own state. Either may fail to happen
after the node has trained, so a node keeps the parts of several rounds, and the server's order says from which to go
on. A round that the server never accepted is thus never gone on from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedrot.errors import AdapterError, OutputError
from fedrot.rundir import flush_directory

EARLIER = 2
"""Rounds kept beside the newest: the one it was trained from, and one more for a server whose last checkpoint broke."""


class Kept:
    """The parts of a node's clients, by run, client and round: files of a folder, or else in memory.

    Nothing that a server sends becomes part of a path as it is: of a run's name only the digest does, and clients and
    rounds are numbers.
    """

    def __init__(self, folder: str | None, where: str) -> None:
        """Nothing is read yet.

        Args:
            folder: of the files; None keeps them in memory, so that they do not outlast the process.
            where: the node, for messages.
        """
        self._folder, self._where = folder, where
        self._memory: dict[tuple[str, int], dict[int, bytes]] = {}

    def load(self, run: str, client: int, round: int, stays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a client kept of a round.

        Args:
            run: its name.
            client: its number.
            round: the one that the server asks for; 0 for a client that has kept nothing yet.
            stays: what was received in place of all that the method leaves with clients, by name as in
                `Adapter.tensors()`.

        Returns:
            The same names, on the device of `stays`.

        Raises:
            AdapterError: it is not here, cannot be read, or does not fit `stays`.
        """
        if round == 0:
            return {}
        what = f"{self._where}: what client {client} kept of round {round} of this run"
        blob = self._read(run, client, round)
        if blob is None:
            raise AdapterError(
                f"{what} is not here; put the node's state folder back as it was then, or start a new run"
            )
        try:
            parts: dict[str, Tensor] = safetensors.torch.load(blob)
        except SafetensorError as error:
            raise AdapterError(f"{what} cannot be read ({error}); put a copy of it back") from error
        shapes, expected = ({key: tuple(t.shape) for key, t in named.items()} for named in (parts, stays))
        if unlike := sorted(shapes.items() ^ expected.items()):
            key, shape = unlike[0]
            raise AdapterError(
                f"{what} does not fit what the recipe leaves with it, the first at {key!r} of shape {shape}; has the "
                "recipe's method or the node's rank changed?"
            )
        return {key: parts[key].to(tensor.device) for key, tensor in stays.items()}

    def folder(self, run: str, client: int) -> Path | None:
        """Where a client's parts of a run lie; None if they are in memory."""
        return None if self._folder is None else self._path(run, client)

    def save(self, run: str, client: int, start: int, round: int, parts: Mapping[str, Tensor]) -> None:
        """Keep what a client trained in a round that it started from the parts of round `start`.

        What lies between the two was never accepted, and what lies before is of use to no checkpoint: both are dropped.

        Raises:
            OutputError: it cannot be written; what was there before is untouched.
        """
        blob = safetensors.torch.save({key: t.detach().cpu().contiguous() for key, t in parts.items()})
        self._write(run, client, round, blob)
        found = self._rounds(run, client)
        keep = {round, *sorted(number for number in found if number <= start)[-EARLIER:]}
        for number in found:
            if number not in keep:
                self._drop(run, client, number)

    def _read(self, run: str, client: int, round: int) -> bytes | None:
        if self._folder is None:
            return self._memory.get((run, client), {}).get(round)
        path = self._path(run, client) / _name(round)
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            raise AdapterError(f"{self._where}: '{path}' cannot be read ({error.strerror})") from error

    def _write(self, run: str, client: int, round: int, blob: bytes) -> None:
        if self._folder is None:
            self._memory.setdefault((run, client), {})[round] = blob
            return
        path = self._path(run, client) / _name(round)
        partial = path.with_suffix(".part")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            flush_directory(path.parent)
        except OSError as error:
            raise OutputError(
                f"{self._where}: what client {client} keeps of round {round} cannot be written to '{path}' "
                f"({error.strerror}); free space"
            ) from error

    def _rounds(self, run: str, client: int) -> list[int]:
        if self._folder is None:
            return list(self._memory[run, client])
        found = self._path(run, client).glob(_name(None))
        numbers = (path.stem.removeprefix("round-") for path in found)
        return [int(number) for number in numbers if number.isdecimal()]

    def _drop(self, run: str, client: int, round: int) -> None:
        if self._folder is None:
            del self._memory[run, client][round]
        else:
            (self._path(run, client) / _name(round)).unlink(missing_ok=True)

    def _path(self, run: str, client: int) -> Path:
        assert self._folder is not None
        digest = hashlib.sha256(run.encode()).hexdigest()[:32]
        return Path(self._folder) / digest / f"client-{client:06d}"


def _name(round: int | None) -> str:
    return f"round-{'*' if round is None else f'{round:06d}'}.safetensors"
