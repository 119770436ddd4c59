"""Several short sequences in one row of a batch: the same examples, less padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Where the sequences of a batch lie in a grid of `rows` x `width` tokens."""

    start: Tensor
    """`(k,)` int64: the place of each sequence's first token in the flattened grid."""
    rows: int
    width: int


def padded(lengths: Tensor, width: int, *, left: bool = False) -> Layout:
    """A row for each sequence: `lengths: (k,)`, none above `width`."""
    count = len(lengths)
    start = torch.arange(count) * width
    return Layout(start + (width - lengths) if left else start, count, width)


def packed(lengths: Tensor, clients: int, width: int) -> Layout:
    """Rows of at most `width` tokens (or the longest sequence), filled by first-fit decreasing, client by client.

    Every client gets as many rows as the one that needs most, so that a stack of clients stays rectangular. Which
    sequences share a row depends on the client's own alone.

    Args:
        lengths: `(clients * n,)` tokens, client after client.
        clients: stacked in the batch.
        width: tokens of a row.
    """
    width = max(width, int(lengths.max()))
    place: list[tuple[int, int]] = []
    most = widest = 0
    for own in lengths.view(clients, -1).tolist():
        filled: list[int] = []
        spots = [(0, 0)] * len(own)
        for index in sorted(range(len(own)), key=lambda i: (-own[i], i)):
            row = next((r for r, used in enumerate(filled) if used + own[index] <= width), len(filled))
            if row == len(filled):
                filled.append(0)
            spots[index] = (row, filled[row])
            filled[row] += own[index]
        place += spots
        most, widest = max(most, len(filled)), max(widest, *filled)
    row, column = torch.tensor(place).unbind(1)
    client = torch.arange(clients).repeat_interleave(len(lengths) // clients)
    return Layout((client * most + row) * widest + column, clients * most, widest)
