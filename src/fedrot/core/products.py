"""The clients' mean update applied to a few vectors at every site.

Sums are taken over blocks of clients first. How many blocks there are depends on the number of clients alone, so that
the result is the same with any number of threads. Where all clients are in memory sites and blocks are worked on side
by side (`core.beside`); clients that are loaded when they are asked for are in memory one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.beside import beside, on_cpu

BLOCK, BLOCKS = 12, 8
"""Clients that a block has at least, and how many blocks there are at most. Each has a sum of its own to add up."""
SITES = 8
"""Whose blocks are in memory at a time."""


def right_products(
    clients: Sequence[Adapter], shares: Sequence[float], columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`W @ x = sum p_i b_i (a_i x)` at every site.

    Args:
        clients: `N` adapters; ranks may differ.
        shares: `p_i`.
        columns: `x: (d_in, m)` by site; its precision is that of the sums.

    Returns:
        `(d_out, m)` by site.
    """
    return _summed(clients, shares, columns, _Right())


def left_products(
    clients: Sequence[Adapter], shares: Sequence[float], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`y @ W = sum p_i (y b_i) a_i` at every site.

    Args:
        clients: `N` adapters; ranks may differ.
        shares: `p_i`.
        rows: `y: (m, d_out)` by site; its precision is that of the sums. Fastest where `y.mT` is contiguous.

    Returns:
        `(m, d_in)` by site.
    """
    return _summed(clients, shares, rows, _Left())


class _Right:
    """One client's part of `W @ x`."""

    def empty(self, f: Factors, x: Tensor) -> Tensor:
        return x.new_zeros(f.d_out, x.shape[1])

    def add(self, total: Tensor, cast: _Cast, f: Factors, share: float, x: Tensor) -> None:
        total.addmm_(cast(f.b, x), cast(f.a, x) @ x, alpha=share)


class _Left:
    """One client's part of `y @ W`."""

    def empty(self, f: Factors, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), f.d_in)

    def add(self, total: Tensor, cast: _Cast, f: Factors, share: float, y: Tensor) -> None:
        inner = cast(f.b, y).mT @ y.mT
        total.addmm_(inner.mT, cast(f.a, y), alpha=share)


def _summed(
    clients: Sequence[Adapter], shares: Sequence[float], given: Mapping[str, Tensor], side: _Right | _Left
) -> dict[str, Tensor]:
    blocks = list(pairwise(_bounds(len(clients))))
    total: dict[str, Tensor] = {}
    cast = _Cast()

    def part(which: tuple[Sequence[str], int, int]) -> dict[str, Tensor]:
        sites, start, end = which
        mine = (clients[index] for index in range(start, end))
        return _one_by_one(mine, shares[start:end], {site: given[site] for site in sites}, side, cast)

    def add(found: Mapping[str, Tensor]) -> None:
        for site, block in found.items():
            total[site] = total[site].add_(block) if site in total else block

    if isinstance(clients, list | tuple):
        sites, first = list(given), clients[0].sites
        reads = len(clients) * on_cpu(t for site in sites for t in (first[site].a, first[site].b))
        for start in range(0, len(sites), SITES):
            some = sites[start : start + SITES]
            for found in beside(part, [([site], *block) for site in some for block in blocks], reads):
                add(found)
    else:
        for block in blocks:
            add(part((list(given), *block)))
    return total


def _one_by_one(
    clients: Iterable[Adapter],
    shares: Sequence[float],
    given: Mapping[str, Tensor],
    side: _Right | _Left,
    cast: _Cast,
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for client, share in zip(clients, shares, strict=True):
        for site, vectors in given.items():
            f = client.sites[site]
            if site not in total:
                total[site] = side.empty(f, vectors)
            side.add(total[site], cast, f, share, vectors)
    return total


def _bounds(clients: int) -> list[int]:
    """Where blocks begin and end: a power of two of them, nearly equal."""
    blocks = 1
    while blocks < BLOCKS and clients >= 2 * blocks * BLOCK:
        blocks *= 2
    return [clients * index // blocks for index in range(blocks + 1)]


class _Cast(threading.local):
    """Factors in another precision, in memory of this thread that the next factor of that shape overwrites.

    New memory for every factor costs more than the products.
    """

    def __init__(self) -> None:
        self._spaces: dict[tuple[torch.Size, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, factor: Tensor, like: Tensor) -> Tensor:
        """`factor` in the precision and on the device of `like`, until the next call with its shape."""
        if factor.dtype == like.dtype and factor.device == like.device:
            return factor
        key = (factor.shape, like.dtype, like.device)
        if key not in self._spaces:
            self._spaces[key] = like.new_empty(factor.shape)
        return self._spaces[key].copy_(factor)
