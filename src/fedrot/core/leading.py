"""The leading singular directions of the clients' mean update, without stacking the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors, normalise
from fedrot.core.lowrank import truncate, weighted_sum
from fedrot.core.polar import full_precision, identity_like
from fedrot.core.products import left_products, right_products
from fedrot.core.rng import generator

EXTRA = 8
"""Directions beyond the rank asked for; they speed up and check convergence."""
SWEEPS = 8


@torch.no_grad()
def leading(
    clients: Sequence[Adapter], weights: Tensor | Sequence[float], start: Adapter
) -> dict[str, Factors]:
    """The best approximation of `W = sum p_i b_i @ a_i` of the rank of `start`, at every site, split evenly.

    `b = U sqrt(S)` and `a = sqrt(S) V.T` from the leading singular triplets of `W`. Where the clients' stacked rank
    is small they come from two thin QR factorisations (`truncate`). Else from subspace iteration, which reads the
    clients one after the other and costs `O(N (d_in + d_out) r^2)` a sweep, in float64: it starts from the row
    space of `start` and stops once the residuals bound the error of the product by rounding of the inputs'
    precision. Where the spectrum falls off too slowly for that, Gram matrices of the stacks do it: they lose only
    what is smaller than 1e-8 of the largest singular value, which is not among the leading ones then.

    Args:
        clients: adapters at the sites of `start`; their ranks may differ.
        weights: `N` numbers `>= 0`; they are scaled to sum to one.
        start: gives the sites, ranks and dtypes, and where to begin.
    """
    shares = normalise(weights, len(clients))
    stacked = len(clients) * max(f.rank for f in start.sites.values())
    found: dict[str, Factors] = {}
    blocks: dict[str, Tensor] = {}
    noise = generator(0, "leading")
    for site, f in start.sites.items():
        width = f.rank + EXTRA
        if stacked > EXTRA * width and 2 * width <= min(f.d_in, f.d_out):
            blocks[site] = _orthonormal(_widened(f, noise))
    with full_precision(next(iter(start.sites.values())).a.device):
        if blocks:
            found = _iterate(clients, shares, start.sites, blocks)
        for site, f in start.sites.items():
            if site not in found:
                stack = weighted_sum([client.sites[site] for client in clients], shares)
                if site in blocks and stack.rank <= min(f.d_in, f.d_out):
                    found[site] = _by_gram(stack, f)
                else:
                    near = truncate(stack.a, stack.b, f.rank)
                    found[site] = Factors(near.a.to(f.a.dtype), near.b.to(f.b.dtype))
    return {site: found[site] for site in start.sites}


@torch.no_grad()
def sketched(
    clients: Sequence[Adapter],
    weights: Tensor | Sequence[float],
    start: Adapter,
    noise: torch.Generator,
    sweeps: int,
) -> dict[str, Factors]:
    """Like `leading` by a randomised SVD (Halko, Martinsson and Tropp 2011): near the best, in a fixed time.

    Args:
        clients: adapters at the sites of `start`.
        weights: `N` numbers `>= 0`.
        start: gives the sites, ranks and dtypes.
        noise: of the random directions `W` is first applied to.
        sweeps: power iterations; each makes the result sharper.
    """
    shares = normalise(weights, len(clients))
    blocks: dict[str, Tensor] = {}
    for site, f in start.sites.items():
        width = min(f.rank + EXTRA, f.d_in, f.d_out)
        blocks[site] = _orthonormal(
            torch.randn(f.d_in, width, generator=noise, dtype=torch.float64).to(f.a.device)
        )
    with full_precision(next(iter(start.sites.values())).a.device):
        for _ in range(sweeps):
            images = right_products(clients, shares, blocks)
            blocks = {site: found.v for site, found in _turn(clients, shares, images).items()}
        images = right_products(clients, shares, blocks)
        return {site: _split(images[site], blocks[site], f.rank, f) for site, f in start.sites.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Triplets:
    """Approximate singular triplets with `W.T @ u = v * s`, descending."""

    u: Tensor
    s: Tensor
    v: Tensor


def _iterate(
    clients: Sequence[Adapter],
    shares: Sequence[float],
    sites: Mapping[str, Factors],
    blocks: dict[str, Tensor],
) -> dict[str, Factors]:
    """Converged sites; one that converges too slowly is left out."""
    found: dict[str, Factors] = {}
    turned: dict[str, _Triplets] = {}
    for sweep in range(SWEEPS):
        images = right_products(clients, shares, blocks)
        for site, triplets in turned.items():
            f = sites[site]
            eps = max(torch.finfo(f.a.dtype).eps, 1e-13)  # residuals in float64 do not fall below that
            if _error(images[site], triplets, f.rank) <= eps:
                found[site] = _split(images[site], triplets.v, f.rank, f)
            if site in found or (sweep > 1 and _hopeless(triplets, f.rank, eps, SWEEPS - sweep)):
                del images[site]
        if not images:
            break
        turned = _turn(clients, shares, images)
        blocks = {site: triplets.v for site, triplets in turned.items()}
    return found


def _turn(
    clients: Sequence[Adapter], shares: Sequence[float], images: Mapping[str, Tensor]
) -> dict[str, _Triplets]:
    """From `W @ v` to the singular triplets of `W` restricted to its range."""
    bases = {site: _orthonormal(image) for site, image in images.items()}
    rows = left_products(clients, shares, {site: basis.mT.contiguous() for site, basis in bases.items()})
    found: dict[str, _Triplets] = {}
    for site, row in rows.items():
        q, r = linalg.qr(row.mT)
        x, s, yh = linalg.svd(r)
        found[site] = _Triplets(bases[site] @ yh.mT, s, q @ x)
    return found


def _error(image: Tensor, triplets: _Triplets, rank: int) -> float:
    """A bound on the relative error of the product of rank `rank`, from residuals and the gap beyond the block.

    A singular direction with residual `||W v - s u||` is off by an angle of about `s residual / (s^2 - t^2)`,
    `t` the largest singular value outside the block, for which its smallest one stands.
    """
    s = triplets.s[:rank]
    residual = (image[:, :rank] - triplets.u[:, :rank] * s).square().sum(0).sqrt()
    size = float(s.square().sum().sqrt())
    if size == 0:
        return float(residual.square().sum().sqrt())
    gap = (s.square() - triplets.s[-1].square()).clamp(min=torch.finfo(s.dtype).tiny)
    return float((residual * s.square() / gap).square().sum().sqrt()) / size


def _hopeless(triplets: _Triplets, rank: int, eps: float, sweeps: int) -> bool:
    """Whether the squared ratio of singular values, the error's factor a sweep, cannot reach `eps`."""
    return bool((triplets.s[-1] / triplets.s[rank - 1]) ** (2 * sweeps) > eps)


def _split(image: Tensor, v: Tensor, rank: int, like: Factors) -> Factors:
    """The best factors of rank `rank` of `W v v.T`, given `W v`."""
    q, r = linalg.qr(image)
    x, s, yh = linalg.svd(r)
    root = s[:rank].sqrt()
    b = (q @ x[:, :rank]) * root
    a = root[:, None] * (v @ yh[:rank].mT).mT
    extra = like.rank - len(root)
    a, b = torch.nn.functional.pad(a, (0, 0, 0, extra)), torch.nn.functional.pad(b, (0, extra))
    return Factors(a.to(like.a.dtype).contiguous(), b.to(like.b.dtype).contiguous())


def _by_gram(stack: Factors, like: Factors) -> Factors:
    """The leading part of `b @ a` from the eigenvectors of `L.T (a a.T) L`, with `L L.T = b.T b`.

    Right singular vectors are along `a.T L y`. A ridge of 1e-12 keeps `L` real where clients' directions coincide;
    the product is then taken exactly in the subspace found.
    """
    a, b = stack.a.double(), stack.b.double()
    gram = b.mT @ b
    ridge = 1e-12 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    root = linalg.cholesky(gram + ridge * identity_like(gram))
    _, y = linalg.eigh(root.mT @ (a @ a.mT) @ root)
    v = _orthonormal(a.mT @ (root @ y[:, -like.rank - EXTRA :].flip(-1)))
    return _split(b @ (a @ v), v, like.rank, like)


def _widened(f: Factors, noise: torch.Generator) -> Tensor:
    random = torch.randn(f.d_in, EXTRA, generator=noise, dtype=torch.float64).to(f.a.device)
    a = f.a.double().mT
    return torch.cat([a, random * linalg.frobenius(a) / linalg.frobenius(random)], -1)


def _orthonormal(matrix: Tensor) -> Tensor:
    return linalg.qr(matrix)[0]
