"""Which examples a client trains on, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrot.errors import DataError


def draw_rows(rows: Tensor, steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """A client's batches for a round: reshuffled passes over its examples, without a break between passes.

    So every batch is full, and each example is drawn equally often, give or take one. A client with fewer
    examples than `batch` meets some of them twice in a batch. The result depends on `rows` and the generator
    alone.

    Args:
        rows: `(n,)` int64, `n >= 1`.
        steps, batch: how many batches, and their size.
        generator: of the device of `rows`.

    Returns:
        `(steps, batch)` int64.

    Raises:
        DataError: `rows` is empty, or `steps` or `batch` is not positive.
    """
    _check(rows, steps=steps, batch=batch)
    passes = -(-steps * batch // rows.numel())
    order = _passes(passes, rows.numel(), generator).flatten()[: steps * batch]
    return rows[order].view(steps, batch)


def draw_epochs(rows: Tensor, epochs: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A client's batches for whole passes over its examples, each reshuffled.

    The last batch of a pass may be short. It is filled up with its first row, which `valid` marks as not to
    be counted.

    Args:
        rows: `(n,)` int64, `n >= 1`.
        generator: of the device of `rows`.

    Returns:
        Rows `(epochs * ceil(n / batch), batch)` int64, and `valid` of the same shape, boolean.

    Raises:
        DataError: `rows` is empty, or `epochs` or `batch` is not positive.
    """
    _check(rows, epochs=epochs, batch=batch)
    count = rows.numel()
    steps = -(-count // batch)
    place = torch.arange(steps * batch, device=rows.device).view(steps, batch)
    valid = place < count
    place = torch.where(valid, place, place[:, :1])
    drawn = rows[_passes(epochs, count, generator)][:, place]
    return drawn.flatten(0, 1), valid.repeat(epochs, 1)


def _passes(passes: int, count: int, generator: torch.Generator) -> Tensor:
    """`(passes, count)`: a permutation in each row. Ties would favour an order; float64 makes them rare."""
    keys = torch.rand(passes, count, generator=generator, device=generator.device, dtype=torch.float64)
    return keys.argsort(dim=1, stable=True)


def _check(rows: Tensor, **counts: int) -> None:
    if rows.numel() == 0:
        raise DataError(
            "a client without examples has no batches: raise partition.min_size or use fewer clients"
        )
    for name, value in counts.items():
        if value < 1:
            raise DataError(f"{name} = {value}: expected at least 1")
