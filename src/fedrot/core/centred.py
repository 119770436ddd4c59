"""The size of the clients' covariance, fast for many clients: Gram matrices in float32, held to a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fedrot.core.beside import beside, on_cpu, side_by_side

MANY = 256
"""Stacked rank from which float32 Gram matrices save more than they cost."""
LIMIT = 32.0
"""How much larger than their sum the summed terms may be; each is known to about 1e-7."""
BLOCKS = 8
CHUNK = 2048
"""Rows or columns of a layer that are taken at a time: what is copied of them stays in the caches."""


@torch.no_grad()
def centred_norms(
    a: Sequence[Tensor] | Tensor, b: Sequence[Tensor] | Tensor, shares: Tensor
) -> tuple[Tensor, Tensor] | None:
    """`||E||_F` and `||W||_F` for `E = sum p_i (b_i - mean(b)) (a_i - mean(a))`, `W = E + mean(b) mean(a)`.

    With `a_0, b_0` the means rounded to float32, the deviations `a_i - a_0` are exact to float32 rounding of their own
    size, and `E = sum p_i (b_i - b_0)(a_i - a_0) - (mean(b) - b_0)(mean(a) - a_0)`. Sums of the products of two Gram
    matrices are accumulated in float64. Rounding shows only where the terms cancel: where the sum of their
    absolute values is more than `LIMIT` times their sum, nothing is returned.

    Args:
        a: `N` tensors `(..., r, d_in)`, or their stack.
        b: `N` tensors `(..., d_out, r)`.
        shares: `(N,)` in float64, adding up to one.

    Returns:
        Two float64 tensors `(...)`; None for few clients, for float64 inputs, and where terms cancel.
    """
    a, b = list(a), list(b)
    first = a[0]
    if first.dtype != torch.float32 or b[0].dtype != torch.float32 or len(a) * first.shape[-2] < MANY:
        return None
    if first.ndim > 2:
        sites = [
            centred_norms([t[index] for t in a], [t[index] for t in b], shares) for index in range(len(first))
        ]
        known = [site for site in sites if site is not None]
        if len(known) < len(sites):
            return None
        errors, ideals = zip(*known, strict=True)
        return torch.stack(errors), torch.stack(ideals)
    sides = [partial(_of_a, a, shares), partial(_of_b, b, shares)]
    with side_by_side(2):
        return _norms(*beside(lambda side: side(), sides, reads=len(a) * on_cpu([first, b[0]])))


class _Side:
    """What is known of one of the two factors.

    `x: (N r, d)` are the deviations of all clients from the rounded mean, below each other; those of `b` are transposed
    and times `p_i`. `x` itself is never whole: it is added up some columns at a time.

    Attributes:
        grams: blocks of rows of `x @ x.T`, each from its diagonal block to the right; below it is symmetric.
        along: `(2 r, N r)`, products of `low` and of `mean` with `x`.
        mean: of the clients, in float64, `(r, d)`.
        low: what rounding took from it.
    """

    def __init__(self, clients: int, rank: int, width: int, like: Tensor) -> None:
        count = clients * rank
        self._step = -(-count // BLOCKS)
        self._space = like.new_empty(count * min(width, CHUNK))
        self.grams = [
            like.new_zeros(min(self._step, count - start), count - start)
            for start in range(0, count, self._step)
        ]
        self.along = like.new_zeros(2 * rank, count)
        self.mean = like.new_empty(rank, width, dtype=torch.float64)
        self.low = like.new_empty(rank, width)

    def space(self, *shape: int) -> Tensor:
        """Memory for some columns of `x`, in which those before them are overwritten."""
        return self._space[: math.prod(shape)].view(shape)

    def add(self, x: Tensor, mid: Tensor, low: Tensor, start: int) -> None:
        """The columns from `start` on, of `x`, of the rounded mean and of what that lacks."""
        columns = slice(start, start + x.shape[1])
        self.low[:, columns] = low
        self.mean[:, columns] = mid.double() + low
        self.along.addmm_(torch.cat([low, self.mean[:, columns].float()]), x.mT)
        for number, gram in enumerate(self.grams):
            first = number * self._step
            gram.addmm_(x[first : first + self._step], x[first:].mT)


def _of_a(clients: Sequence[Tensor], shares: Tensor) -> _Side:
    weights, (rank, d_in), count = shares.float(), clients[0].shape, len(clients)
    side = _Side(count, rank, d_in, clients[0])
    for start in range(0, d_in, CHUNK):
        width = min(CHUNK, d_in - start)
        x = side.space(count * rank, width)
        torch.cat([a[:, start : start + width] for a in clients], out=x)
        each = x.view(count, -1)
        mid = weights @ each
        each -= mid
        side.add(x, mid.view(rank, width), (weights @ each).view(rank, width), start)
    return side


def _of_b(clients: Sequence[Tensor], shares: Tensor) -> _Side:
    weights, (d_out, rank), count = shares.float(), clients[0].shape, len(clients)
    side = _Side(count, rank, d_out, clients[0])
    for start in range(0, d_out, CHUNK):
        width = min(CHUNK, d_out - start)
        x = side.space(width, count * rank)
        torch.cat([b[start : start + width] for b in clients], -1, out=x)
        each = x.view(width, count, rank)
        mid = weights @ each
        each -= mid[:, None]
        each *= weights[:, None]
        side.add(x.mT, mid.mT, each.sum(1).mT, start)
    return side


def _norms(a: _Side, b: _Side) -> tuple[Tensor, Tensor] | None:
    total, size = _square(a.grams, b.grams)
    parts, rank = (a.along * b.along).sum(-1, dtype=torch.float64), len(a.low)
    drop, shared = parts[:rank].sum(), parts[rank:].sum()
    drop_size = _inner(a.low.double(), b.low.double(), a.low.double(), b.low.double())
    error = total - 2 * drop + drop_size
    cross = shared - _inner(a.low.double(), b.low.double(), a.mean, b.mean)
    mean_size = _inner(a.mean, b.mean, a.mean, b.mean)
    ideal = error + 2 * cross + mean_size
    sums = size + 2 * drop.abs() + drop_size
    if bool((sums <= LIMIT * error) & (sums + 2 * cross.abs() + mean_size <= LIMIT * ideal)):
        return error.sqrt(), ideal.sqrt()
    return None


def _square(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`||E||_F^2` as a sum of products of Gram entries, and the sum of their absolute values; `rows` is overwritten."""
    total = rows[0].new_zeros((), dtype=torch.float64)
    size = total.clone()
    for of_a, of_b in zip(rows, columns, strict=True):
        terms, diagonal = of_a.mul_(of_b), len(of_a)
        for part, times in ((terms[:, :diagonal], 1), (terms[:, diagonal:], 2)):
            total += times * part.sum(dtype=torch.float64)
            size += times * part.abs().sum(dtype=torch.float64)
    return total, size


def _inner(a: Tensor, b: Tensor, a_other: Tensor, b_other: Tensor) -> Tensor:
    """`<b.T @ a, b_other.T @ a_other>` of factors `(r, d)`."""
    return ((b @ b_other.mT) * (a @ a_other.mT)).sum()
