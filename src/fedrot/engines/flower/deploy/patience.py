"""How long Flower's own loops wait, which it has no options for: made shorter, without touching what they do."""

from __future__ import annotations

import sys
import time
from typing import Any

from fedrot.engines.flower.until import seconds_left

NEAR = 0.05
"""Seconds between two looks for what another process of this machine is about to hand over."""

FIRST_WAIT = 0.05
"""Seconds until an object that is still on its way is asked for again; Flower waits 1, and twice as long each time."""

LAST_WAIT = 0.5
"""Seconds after which the server asks again at the latest, so that it looks at the clock; Flower waits up to 10."""

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


def end_in_time() -> None:
    """Have the server give up objects of a reply at the deadline of its round.

    A node announces a reply and then sends its objects. If it dies in between, Flower waits for them until 3 minutes
    after the last one, and looks at no other reply meanwhile. What has arrived by the deadline is taken.
    """
    from flwr.superlink.grid import http_grid

    module: Any = http_grid
    pull = module.pull_objects

    def in_time(**given: Any) -> dict[str, bytes]:
        usual = pull.__kwdefaults__
        longest = min(usual["max_time"], seconds_left())
        return pull(**given, max_time=longest, backoff_cap=min(usual["backoff_cap"], LAST_WAIT))

    module.pull_objects = in_time


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
