"""Flower's own `flower-supernode`, polling more often than every 3 seconds.

Run as `python -m fedrot.engines.flower.deploy.supernode_main POLL ARGUMENT...`; the arguments are Flower's.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from fedrot.engines.flower.deploy.process import tether


class Impatient:
    """The module `time` for Flower's loop, with sleeps cut short: it has no option for them."""

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def sleep(self, seconds: float) -> None:
        """Sleep, but not long."""
        time.sleep(min(seconds, self._longest))

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def main(arguments: list[str]) -> None:
    """Start it in this process."""
    tether()
    from flwr.supernode.cli import flower_supernode

    loop: Any = sys.modules["flwr.supernode.start_client_internal"]
    loop.time = Impatient(float(arguments[0]))
    sys.argv = ["flower-supernode", *arguments[1:]]
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
