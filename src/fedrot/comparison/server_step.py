"""What one aggregation costs a recipe's method, timed on drawn factors of the run's shapes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.core.rng import generator
from fedrot.engines.compat import method_of
from fedrot.methods import MethodState, Update

MOST = 50
"""Uploads of a timed step at most; the time of more is taken in proportion, as every method's grows."""
BYTES = 2**29
"""And no more of them than so many bytes, but two."""
DRIFT = 0.3
"""How far clients lie from what they received, relative to it."""
ROUND = 2
"""The first round in which methods have a reference to align with."""


def timed_uploads(shapes: Adapter, uploads: int) -> int:
    """How many of a round's uploads a timed step has."""
    size = sum(tensor.nbytes for tensor in shapes.tensors().values())
    return min(uploads, MOST, max(2, BYTES // max(1, size)))


def step_seconds(
    config: RunConfig, shapes: Adapter, uploads: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one aggregation of `uploads` updates, the less of two, after one to warm up.

    Args:
        config: names the method and its options.
        shapes: an adapter as the server holds it; its values do not count.
        uploads: of a round. Of more than `timed_uploads` so many are timed, and the time is scaled by their number.
        clock: tells seconds.

    Raises:
        ConfigError: an unknown method or option.
    """
    method, noise = method_of(config), generator(config.seed, "server step")

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=noise).to(like)

    received = shapes.map(normal)
    count = timed_uploads(shapes, uploads)
    updates = [Update(client, received.map(lambda t: t + DRIFT * normal(t)), 1.0) for client in range(count)]
    seconds: list[float] = []
    for _ in range(3):
        start = clock()
        fresh, _state = method.aggregate(updates, received, MethodState(), ROUND)
        next(iter(fresh.tensors().values())).sum().item()  # by then another device has finished
        seconds.append(clock() - start)
    return min(seconds[1:]) * uploads / count
