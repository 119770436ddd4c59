"""Other factors of the same product: a canonical form, and random rotations of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.lowrank import truncate
from fedrot.core.procrustes import rotate
from fedrot.core.rng import generator

Frame = Literal["own", "svd", "random"]


@torch.no_grad()
def svd_frame(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of `b @ a` that its singular value decomposition `U S V.T` gives: `sqrt(S) V.T` and `U sqrt(S)`.

    They are balanced, `a a.T = b.T b = S`, so that two such pairs of one product differ by an orthogonal matrix
    at most, and by signs only where singular values differ. In general nothing of the frame that `a` and `b`
    came in is left. By thin QR and the SVD of an `r x r` core, in float64.

    >>> a, b = svd_frame(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.eye(2))
    >>> (b @ a).round(decimals=4) + 0.0, (a @ a.T).round(decimals=4) + 0.0
    (tensor([[0., 3.],
            [1., 0.]]), tensor([[3., 0.],
            [0., 1.]]))

    Args:
        a: `(..., r, d_in)`.
        b: `(..., d_out, r)`.

    Returns:
        Both in the same shapes; float64 if an input is, else float32. NaN where an input is not finite.
    """
    whole = a.isfinite().all(-1).all(-1) & b.isfinite().all(-1).all(-1)
    known = whole[..., None, None]
    near = truncate(torch.where(known, a, 0), torch.where(known, b, 0), a.shape[-2])
    return torch.where(known, near.a, torch.nan), torch.where(known, near.b, torch.nan)


def haar(rank: int, draws: torch.Generator) -> Tensor:
    """A rotation drawn evenly from `SO(rank)`: `(rank, rank)` in float64.

    The Q factor of a Gaussian matrix, with the diagonal of R made positive (Mezzadri 2007), its first column
    turned where the determinant is negative.
    """
    q, r = linalg.qr(torch.randn(rank, rank, generator=draws, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= linalg.det(q).sign()
    return q


@torch.no_grad()
def reframe(trained: Adapter, frame: Frame, seed: int, round: int, clients: Sequence[int] = (0,)) -> Adapter:
    """The same updates in other factors, as if every client had passed its own through something that forgets frames.

    A stress for methods that average factors: `"svd"` is what a client sends that truncates or compresses
    its update, `"random"` a Haar rotation per site, client and round. Products, head and residual stay.

    Args:
        trained: one client's adapter, or a stack `(N, ...)` of those of `clients`.
        frame: `"own"` returns the adapter itself.
        seed: of the run.
        round: counted from 1.
        clients: numbers of the clients in `trained`.
    """
    if frame == "own":
        return trained
    sites: dict[str, Factors] = {}
    for site, f in trained.sites.items():
        if frame == "svd":
            sites[site] = Factors(*svd_frame(f.a, f.b))
            continue
        draws = [generator(seed, f"frame/{site}", round, client) for client in clients]
        turn = torch.stack([haar(f.rank, each) for each in draws]).to(f.a)
        sites[site] = Factors(*rotate(f.a, f.b, turn.view(*f.batch, f.rank, f.rank)))
    return replace(trained, sites=sites)
