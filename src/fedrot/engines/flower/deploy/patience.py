"""How long Flower's own loops wait, which it has no options for: made shorter, without touching what they do."""

from __future__ import annotations

import sys
import time
from typing import Any

NEAR = 0.05
"""Seconds between two looks for what another process of this machine is about to hand over."""

FIRST_WAIT = 0.05
"""Seconds until an object that is still on its way is asked for again; Flower waits 1, and twice as long each time."""

ALERT = 60.0
"""Seconds after its last message in which a node asks often; then at Flower's own pace, to spare the server."""


class Impatient:
    """The module `time` for Flower's loop, which has no option for how long it sleeps."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._worked = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not long. Flower sleeps 3 seconds without a message, half a one while it waits for an answer."""
        now = time.monotonic()
        if seconds < 1:
            self._worked = now
            time.sleep(NEAR)
        else:
            time.sleep(min(seconds, self._longest) if now - self._worked < ALERT else seconds)

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def hurry_objects() -> None:
    """Ask again soon for objects of a message that arrived before they did."""
    import flwr.supercore.inflatable.inflatable_utils as utils

    defaults: Any = utils.pull_objects.__kwdefaults__
    defaults["initial_backoff"] = FIRST_WAIT


def hurry_input() -> None:
    """Have an executor ask often for objects of its message that the SuperNode beside it is still fetching.

    A task is there before its message is, so this happens in nearly every round. Flower waits a second, then two, and
    gives up after 500 times; here its limit of two hours alone holds.
    """
    import flwr.supercore.inflatable.inflatable_utils as utils

    defaults: Any = utils.pull_and_inflate_object_from_tree.__kwdefaults__
    defaults |= {"initial_backoff": NEAR, "backoff_cap": NEAR, "max_tries_per_object": None}


def hurry_messages(longest: float) -> None:
    """Ask for messages at least every so many seconds while there are some."""

    loop: Any = sys.modules["flwr.supernode.start_client_internal"]
    loop.time = Impatient(longest)
