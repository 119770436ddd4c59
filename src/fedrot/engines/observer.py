"""What an engine tells whoever watches. Every hook does nothing unless overridden."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrot.engines.setup import Federation


class Observer:
    """Override the hooks of interest; see `fedrot.progress` for the display."""

    def note(self, text: str) -> None:
        """Something the user should know, that is no error."""

    def preparing(self, what: str) -> None:
        """Something that takes a moment begins."""

    def opened(self, directory: Path) -> None:
        """The run directory is written to from here on."""

    def started(self, federation: Federation, round: int, floor: Mapping[str, Any] | None) -> None:
        """Everything is built; `round` rounds are already done. `floor` is the linear probe, if asked for."""

    def trained(self, round: int, done: int, chosen: int) -> None:
        """`done` of the round's `chosen` clients have trained."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """A round is finished and saved."""
