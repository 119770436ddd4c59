"""Correlations and rotations of sites of one shape, in as few operations as one site takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrot.core.adapter import Factors
from fedrot.core.alike import batch
from fedrot.core.polar import wide_dtype
from fedrot.core.procrustes import Anchor, joint


def correlate(pairs: Sequence[tuple[Factors, Factors]], anchor: Anchor) -> Tensor:
    """`correlation` of `S` sites of one shape, each with its reference: `(S, ..., r, r)`.

    Reads the anchored factors alone. Of references of higher rank the leading directions count. For use within
    `full_precision`.
    """
    one, other = pairs[0]
    dtype, rank = wide_dtype(one.a, one.b, other.a, other.b), one.rank

    def side(factor: str) -> tuple[Tensor, Tensor]:
        x, ref = (batch([getattr(pair[which], factor) for pair in pairs]) for which in (0, 1))
        if factor == "b":
            x, ref = x.mT, ref.mT
        ref = ref[..., :rank, :].to(dtype)
        x = x.to(dtype)
        x, ref = _level(x, ref.ndim), _level(ref, x.ndim)
        return _products(x, ref), ref

    if anchor != "joint":
        return side(anchor)[0]
    (by_a, a_ref), (by_b, b_ref) = side("a"), side("b")
    return joint(by_a, by_b, a_ref, b_ref)


def turn_all(group: Sequence[Factors], matrices: Sequence[Tensor]) -> list[Factors]:
    """`turn` of sites of one shape; each factor's results are views of one tensor, in order."""
    first, rank = group[0], group[0].rank
    matrix = batch(matrices)[..., :rank, :rank]
    dtype = wide_dtype(first.a, first.b, matrix)
    matrix = matrix.to(dtype)
    a = batch([f.a for f in group]).to(dtype)
    a = (_level(matrix, a.ndim).mT @ _level(a, matrix.ndim)).to(first.a.dtype)
    b = batch([f.b for f in group]).to(dtype)
    b = (_level(b, matrix.ndim) @ _level(matrix, b.ndim)).to(first.b.dtype)
    return [Factors(*pair) for pair in zip(a.unbind(), b.unbind(), strict=True)]


def _level(x: Tensor, ndim: int) -> Tensor:
    """`(S, ...)` with as many leading dimensions as one of `ndim`, so that sites meet sites in broadcasting."""
    missing = ndim - x.ndim
    return x if missing <= 0 else x.reshape(len(x), *[1] * missing, *x.shape[1:])


def _products(x: Tensor, ref: Tensor) -> Tensor:
    """`x @ ref.mT` for `x: (S, ..., r, n)` and `ref`, of every client's own or `(S, 1, r, n)`, one for all.

    `matmul` would copy a reference that is one for all as often as there are clients.
    """
    if x.ndim != 4 or ref.shape[1] != 1:
        return x @ ref.mT
    sites, clients, rank, width = x.shape
    turned = ref[:, 0].mT
    if clients == 1 or x.stride(1) == rank * x.stride(2):
        return (x.reshape(sites, clients * rank, width) @ turned).view(sites, clients, rank, -1)
    if clients <= sites:
        return torch.stack([x[:, client] @ turned for client in range(clients)], 1)
    return torch.stack([x[site] @ turned[site] for site in range(sites)])
