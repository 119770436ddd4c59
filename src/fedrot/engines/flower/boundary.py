"""What of an error leaves a node that holds its owner's data.

The server writes the recipe, and with it says which columns of the owner's file are read, and as what. An error about
a row quotes that row, so that a server could ask for the file cell by cell. Rule: errors travel in their own words only
where they are raised before the data is touched, or by checks that read the message and the owner's settings alone
(`openly`). Of any other the server is told the kind, the stage and at most a key of the recipe; the node's log has the
rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fedrot import errors
from fedrot.config import RunConfig
from fedrot.config.section import Section
from fedrot.errors import FedrotError

Stage = Literal[
    "answering",
    "reading its own data",
    "encoding its own data",
    "dealing its own data",
    "training",
    "testing its clients' own models",
    "writing its clients' own models",
]
"""What a node does when something goes wrong, as the server is told."""

_log = logging.getLogger(__name__)


class Boundary:
    """Decides, for one node, in which words its errors leave it."""

    def __init__(self, where: str, *, private: bool) -> None:
        """Nothing has gone wrong yet.

        Args:
            where: the node, for messages.
            private: it holds its owner's data. If not, all errors leave as they are.
        """
        self._where, self._private = where, private
        self._stage: Stage = "answering"
        self._open: FedrotError | None = None

    def at(self, stage: Stage) -> None:
        """What the node does from here on."""
        self._stage = stage

    @contextmanager
    def openly(self) -> Iterator[None]:
        """Around checks that do not depend on the owner's data: their errors leave in their own words."""
        try:
            yield
        except FedrotError as error:
            self._open = error
            raise

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around all that is done for one message.

        Raises:
            FedrotError: in place of an error that does not leave as it is.
        """
        self._stage, self._open = "answering", None
        try:
            yield
        except Exception as error:
            if not self._private or error is self._open:
                raise
            _log.error("%s: %s failed", self._where, self._stage, exc_info=True)
            raise self._told(error) from None

    def _told(self, error: Exception) -> FedrotError:
        """What the server is told: names and words that stand in this program, and nothing else."""
        kind = next((cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__), FedrotError)
        name = kind.__name__ if isinstance(error, FedrotError) else type(error).__name__
        key = self._key(error) if isinstance(error, FedrotError) else None
        shown = "" if key is None else f" ({key})"
        return kind(f"{self._where}: {name} while {self._stage}{shown}; the node's log has the details")

    def _key(self, error: FedrotError) -> str | None:
        """The recipe's key that an error begins with."""
        words = str(error).removeprefix(f"{self._where}: ").split(maxsplit=1)
        return words[0] if words and words[0] in _KEYS else None


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys(kind, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}"


_KEYS = frozenset(_keys(RunConfig))
