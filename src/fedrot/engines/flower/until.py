"""Until when the server waits for replies: told to what collects them, which may wait inside Flower."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNTIL: ContextVar[float] = ContextVar("until", default=math.inf)


@contextmanager
def waiting(until: float) -> Iterator[None]:
    """What happens inside waits until this moment of `time.monotonic` at most."""
    before = _UNTIL.set(until)
    try:
        yield
    finally:
        _UNTIL.reset(before)


def seconds_left() -> float:
    """How long one may still wait, 0 if no longer; infinite outside of `waiting`."""
    return max(0.0, _UNTIL.get() - time.monotonic())
