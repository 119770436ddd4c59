"""Factors fitted to the clients' mean update by least squares, from nothing but products with their factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors, normalise
from fedrot.core.beside import beside, on_cpu, side_by_side
from fedrot.core.polar import full_precision, identity_like, widen
from fedrot.core.products import left_products, right_products

RIDGE = 1e-3


@torch.no_grad()
@side_by_side()
def refit(
    clients: Sequence[Adapter], weights: Tensor | Sequence[float], start: Adapter, steps: int = 1
) -> Adapter:
    """Moves the factors of `start` towards the best approximation of `W = sum p_i b_i @ a_i` of their rank.

    Alternating least squares on `||W - b a||_F^2`: `steps` times `b` and then `a`, and `b` once more,

        b <- b + (W a.T - b a a.T) (a a.T + mu I)^-1
        a <- a + (b.T b + mu I)^-1 (b.T W - b.T b a)

    with `W a.T = sum p_i b_i (a_i a.T)` and `b.T W = sum p_i (b.T b_i) a_i`. Each step minimises `||W - b a||^2
    + mu ||change||^2`, with `mu` 1e-3 of the mean diagonal of the Gram matrix. So the error never rises, factors
    that already represent `W` stay, and a direction that `W` does not determine stays as it was in `start`.
    The result depends on the clients' products alone, not on the frames of their factors, and continues the
    frame and the split of scale of `start`.

    Costs `O(N (d_in + d_out) r^2)` and reads every client `2 steps + 1` times, one after the other. Sums over
    clients are taken in float32 (float64 if an adapter is), the `r x r` systems are solved in float64.

    Args:
        clients: adapters at the sites of `start`; their ranks may differ.
        weights: `N` numbers `>= 0`; they are scaled to sum to one.
        start: where to begin; its head passes through.
        steps: at least 1.

    Returns:
        `start` with new factors, of its ranks and dtypes.

    Raises:
        AdapterError: weights that do not fit.
    """
    shares = normalise(weights, len(clients))
    sites = dict(start.sites)
    with full_precision(next(iter(sites.values())).a.device):
        for _ in range(steps):
            sites = ridge_b(sites, right_products(clients, shares, _columns(sites)))
            sites = ridge_a(sites, left_products(clients, shares, _rows(sites)))
        sites = ridge_b(sites, right_products(clients, shares, _columns(sites)))
    return replace(start, sites=sites)


def _columns(sites: Mapping[str, Factors]) -> dict[str, Tensor]:
    return {site: widen(f.a)[0].mT.contiguous() for site, f in sites.items()}


def _rows(sites: Mapping[str, Factors]) -> dict[str, Tensor]:
    return {site: widen(f.b)[0].contiguous().mT for site, f in sites.items()}


def ridge_b(
    sites: Mapping[str, Factors], products: Mapping[str, Tensor], ridge: float = RIDGE
) -> dict[str, Factors]:
    """The step for `b`, given `W @ a.T: (d_out, r)` at every site; `ridge` is `mu` over the mean diagonal."""

    def step(site: str) -> Factors:
        f, product = sites[site], products[site]
        pull, stay = _system(f.a.double(), ridge)
        b = torch.addmm(product @ pull.to(product), f.b.to(product), stay.to(product))
        return Factors(f.a, b.to(f.b.dtype))

    return _every(step, sites)


def ridge_a(
    sites: Mapping[str, Factors], products: Mapping[str, Tensor], ridge: float = RIDGE
) -> dict[str, Factors]:
    """The step for `a`, given `b.T @ W: (r, d_in)` at every site."""

    def step(site: str) -> Factors:
        f, product = sites[site], products[site]
        pull, stay = _system(f.b.double().mT, ridge)
        a = torch.addmm(pull.to(product) @ product, stay.mT.to(product), f.a.to(product))
        return Factors(a.to(f.a.dtype), f.b)

    return _every(step, sites)


def _every(step: Callable[[str], Factors], sites: Mapping[str, Factors]) -> dict[str, Factors]:
    reads = on_cpu(factor for f in sites.values() for factor in (f.a, f.b))
    return dict(zip(sites, beside(step, list(sites), reads), strict=True))


def _system(rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """`X = (G + mu I)^-1` and `I - G X = mu X` of `G = rows @ rows.T`; where `G = 0` nothing is to change."""
    gram = rows @ rows.mT
    size = gram.diagonal().mean()
    mu = torch.where(size > 0, ridge * size, 1)
    pull = linalg.inv(gram + mu * identity_like(gram))
    return pull, mu * pull
