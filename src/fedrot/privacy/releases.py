"""Which releases a run has begun, in a file that only grows: what epsilon counts must survive what the run does not.

A release is a round's noised result: with mechanism `central` the private mean, with `local` the clients' messages. A
round that is done again, because the server died in it or its checkpoint was damaged, is released again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from fedrot.errors import OutputError
from fedrot.rundir import flush_directory


class Releases:
    """The rounds of a run's releases, in the order they were begun; a round stands there once for every release of it.

    The file has a line `{"round": 3}` for each. It is on disk before the release can leave; one that then does not
    leave counts too. A torn last line is of a release that had not begun.

    Attributes:
        rounds: of the releases begun so far.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read the list, if there is one.

        Args:
            path: of the file; None keeps the list in memory, where nothing is published.

        Raises:
            OutputError: the file is not such a list.
        """
        self._path = path
        self._torn = 0
        self.rounds: list[int] = []
        if path is None or not path.exists():
            return
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        self._torn = len(torn)
        for number, line in enumerate(whole.splitlines(), 1):
            self.rounds.append(_read(path, number, line))

    @property
    def repeated(self) -> list[int]:
        """Rounds that were released more than once, ascending."""
        return sorted(round for round, times in Counter(self.rounds).items() if times > 1)

    def begin(self, *rounds: int) -> None:
        """Count a release of each of these rounds, before it is made.

        Raises:
            OutputError: the list cannot be written; the release must not be made.
        """
        if self._path is not None and rounds:
            self._append("".join(json.dumps({"round": round}) + "\n" for round in rounds).encode())
        self.rounds += rounds

    def _append(self, lines: bytes) -> None:
        assert self._path is not None
        try:
            fresh = not self._path.exists()
            with self._path.open("ab") as file:
                if self._torn:
                    file.truncate(file.tell() - self._torn)
                    self._torn = 0
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                flush_directory(self._path.parent)
        except OSError as error:
            raise OutputError(
                f"'{self._path}': what the clients' privacy is spent on cannot be written ({error.strerror}); free "
                "space, then --resume"
            ) from error


def _read(path: Path, number: int, line: bytes) -> int:
    try:
        round = json.loads(line)["round"]
    except (ValueError, KeyError, TypeError):
        round = None
    if not isinstance(round, int) or round < 1:
        raise OutputError(
            f"'{path}', line {number}: {line[:60]!r}: expected a release such as {{\"round\": 3}}; restore the file "
            "from a copy: without it nobody knows what was spent of the clients' privacy"
        )
    return round
