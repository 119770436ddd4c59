"""The leading singular directions of the clients' mean update, without stacking the clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors, normalise
from fedrot.core.beside import on_all_threads, side_by_side
from fedrot.core.lowrank import truncate, weighted_sum
from fedrot.core.polar import full_precision, identity_like, widen
from fedrot.core.products import left_products, right_products
from fedrot.core.rng import generator

EXTRA = 8
"""Directions beyond the rank asked for; they speed up and check convergence."""
SWEEPS = 8
COARSE = 1e-3
"""The error down to which sweeps are in the inputs' precision; one in float64 then removes what rounding added."""


@torch.no_grad()
@side_by_side()
def leading(
    clients: Sequence[Adapter], weights: Tensor | Sequence[float], start: Adapter
) -> dict[str, Factors]:
    """The best approximation of `W = sum p_i b_i @ a_i` of the rank of `start`, at every site, split evenly.

    `b = U sqrt(S)` and `a = sqrt(S) V.T` from the leading singular triplets of `W`. Where the clients' stacked rank
    is small they come from two thin QR factorisations (`truncate`). Else from subspace iteration, which reads the
    clients one after the other and costs `O(N (d_in + d_out) r^2)` a sweep: it starts from the row space of
    `start` and stops once the residuals, taken from products that a sweep has anyway, bound the error of the product
    by rounding of the inputs' precision. Its last sweep is in float64, those before it in the inputs' precision.
    Where the spectrum falls off too slowly for that, Gram matrices of the stacks do it: they lose only
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
            blocks[site] = _orthonormal(_widened(f, noise)).to(widen(f.a)[0].dtype)
    with full_precision(next(iter(start.sites.values())).a.device):
        if blocks:
            found = _iterate(clients, shares, start.sites, blocks)
        with on_all_threads():
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
@side_by_side()
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
            _, rows = _turn(clients, shares, right_products(clients, shares, blocks))
            blocks = {site: _orthonormal(row.mT) for site, row in rows.items()}
        images = right_products(clients, shares, blocks)
        return {
            site: _by_columns(linalg.qr(images[site]), blocks[site]).split(f.rank, f)
            for site, f in start.sites.items()
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Triplets:
    """Approximate singular triplets `u: (d_out, m)`, `s: (m,)` descending, `v: (d_in, m)`."""

    u: Tensor
    s: Tensor
    v: Tensor

    def split(self, rank: int, like: Factors) -> Factors:
        """`b = u sqrt(s)` and `a = sqrt(s) v.T` of the first `rank`, padded to the rank of `like`."""
        root = self.s[:rank].sqrt()
        b, a = self.u[:, :rank] * root, root[:, None] * self.v[:, :rank].mT
        extra = like.rank - len(root)
        a, b = torch.nn.functional.pad(a, (0, 0, 0, extra)), torch.nn.functional.pad(b, (0, extra))
        return Factors(a.to(like.a.dtype).contiguous(), b.to(like.b.dtype).contiguous())


def _iterate(
    clients: Sequence[Adapter],
    shares: Sequence[float],
    sites: Mapping[str, Factors],
    blocks: dict[str, Tensor],
) -> dict[str, Factors]:
    """Converged sites; one that converges too slowly is left out."""
    found: dict[str, Factors] = {}
    for sweep in range(SWEEPS):
        bases, rows = _turn(clients, shares, right_products(clients, shares, blocks))
        later: dict[str, Tensor] = {}
        for site, row in rows.items():
            f = sites[site]
            near = _by_rows(bases[site][0], row)
            error = _error(_by_columns(bases[site], blocks[site]), near, bases[site][0], row, f.rank)
            eps = max(torch.finfo(f.a.dtype).eps, 1e-13)  # residuals in float64 do not fall below that
            if error <= eps and row.dtype == torch.float64:
                found[site] = near.split(f.rank, f)
            elif not _hopeless(error, near, f.rank, eps, SWEEPS - 1 - sweep):
                later[site] = near.v if error > COARSE else _orthonormal(near.v.double())
        blocks = later
        if not blocks:
            break
    return found


def _turn(
    clients: Sequence[Adapter], shares: Sequence[float], images: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """From `W v` to `q, r` with `W v = q r`, the columns of `q` orthonormal, and `q.T W`."""
    bases = {site: linalg.qr(image) for site, image in images.items()}
    return bases, left_products(clients, shares, {site: q.mT for site, (q, _) in bases.items()})


def _by_columns(image: tuple[Tensor, Tensor], v: Tensor) -> _Triplets:
    """The triplets of `W v v.T`, given `q, r` with `W v = q r`; they satisfy `W @ v = u * s`."""
    q, r = image
    x, s, yh = linalg.svd(r)
    return _Triplets(q @ x, s, v @ yh.mT)


def _by_rows(q: Tensor, row: Tensor) -> _Triplets:
    """The triplets of `q q.T W`, given `row = q.T W`; they satisfy `W.T @ u = v * s`."""
    columns, r = linalg.qr(row.mT)
    x, s, yh = linalg.svd(r)
    return _Triplets(q @ yh.mT, s, columns @ x)


def _error(coarse: _Triplets, near: _Triplets, q: Tensor, row: Tensor, rank: int) -> float:
    """A bound on the relative error of the first `rank` triplets of `near`, one half sweep after `coarse`.

    A triplet with `W v = u s` and the residual `||W.T u - v s||` has `v` off by an angle of about
    `s residual / (s^2 - t^2)`, with `t` the largest singular value outside the block, for which its smallest one
    stands. Multiplying by `W` then leaves `t / s` of that angle. `W.T u = row.T (q.T u)`, as `u` lies in the span
    of `q`.
    """
    s, t = near.s[:rank], near.s[-1]
    known = coarse.s[:rank]
    residual = row.mT @ (q.mT @ coarse.u[:, :rank]) - coarse.v[:, :rank] * known
    lengths = residual.square().sum(0).sqrt()
    size = float(s.square().sum().sqrt())
    if size == 0:
        return float(lengths.square().sum().sqrt())
    gap = (s.square() - t.square()).clamp(min=torch.finfo(s.dtype).tiny)
    return float((lengths * s * t / gap).square().sum().sqrt()) / size


def _hopeless(error: float, near: _Triplets, rank: int, eps: float, sweeps: int) -> bool:
    """Whether the squared ratio of singular values, the error's factor a sweep, cannot bring it down to `eps`."""
    return bool(error * (near.s[-1] / near.s[rank - 1]) ** (2 * sweeps) > eps)


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
    return _by_columns(linalg.qr(b @ (a @ v)), v).split(like.rank, like)


def _widened(f: Factors, noise: torch.Generator) -> Tensor:
    random = torch.randn(f.d_in, EXTRA, generator=noise, dtype=torch.float64).to(f.a.device)
    a = f.a.double().mT
    return torch.cat([a, random * linalg.frobenius(a) / linalg.frobenius(random)], -1)


def _orthonormal(matrix: Tensor) -> Tensor:
    return linalg.qr(matrix)[0]
