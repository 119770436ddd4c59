"""Flower's own `flower-supernode`, asking for messages more often than every 3 seconds while there are some.

Run as `python -m fedrot.engines.flower.deploy.supernode_main POLL ARGUMENT...`; the arguments are Flower's.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from fedrot.engines.flower.deploy.process import tether

ALERT = 60.0
"""Seconds after its last message in which a node asks often; then at Flower's own pace, to spare the server."""


class Impatient:
    """The module `time` for Flower's loop, which has no option for how long it sleeps."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._worked = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not long. Flower sleeps 3 seconds without a message, half a one while it waits for an answer."""
        if seconds < 1:
            self._worked = time.monotonic()
        alert = time.monotonic() - self._worked < ALERT
        time.sleep(min(seconds, self._longest) if alert else seconds)

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
