"""What a server app says of a run: plain lines, which Flower's log and `fedrot deploy run` pass on."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fedrot.engines.observer import Observer


@final
class Spoken(Observer):
    """Prints notes. Rounds are not told: they stand in `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Print it."""
        print(f"note: {text}", flush=True)

    def preparing(self, what: str) -> None:
        """Print it."""
        print(f"{what} ...", flush=True)

    def opened(self, directory: Path) -> None:
        """Print it."""
        print(f"run directory: {directory}", flush=True)
