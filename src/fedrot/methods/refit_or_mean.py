"""The factors refitted to the mean update, or their plain means: at each site whichever is nearer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors, weighted_mean
from fedrot.core.lowrank import norm
from fedrot.core.products import right_products
from fedrot.core.refit import refit
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method("refit-or-mean", exact=False, secure_aggregation=False, mixed_ranks=True, factor_mean=False)
@dataclass(frozen=True, kw_only=True)
class RefitOrMean(Method):
    """The factors received, refitted to the mean of the products; at each site the plain means where they are nearer.

    Clients do nothing; the server takes `core.refit` from the adapter it sent, so that the result does not depend
    on the frames of the clients' factors, keeps the frame of the round before, and needs no singular value
    decomposition. At a site where `mean(b) mean(a)` is nearer to `W = sum p_i b_i a_i`, that is broadcast: the
    error is never above FedIT's. Limits: the server must see every upload; a rank below that of the mean update loses
    something, which `fedex` does not. A smaller error is not a better model: on headlines it was worse than FedIT
    (docs/experiments.md), and `auto` refits where much would be lost only.

    Attributes:
        steps: of the refit.
    """

    steps: Annotated[int, Between(1, 100)] = 1

    @property
    def factorises(self) -> bool:
        """Always: it refits."""
        return True

    @torch.no_grad()
    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """Whichever of the refit and the mean is nearer, site by site; the mean of the heads."""
        del round
        adapters, weights = self.gather(updates, received)
        mean = weighted_mean(adapters, weights)
        begin = _begin(replace(received, head=mean.head), mean)
        fitted = refit(adapters, weights, begin, self.steps)
        of_mean, of_fitted = (_excess(adapters, weights, choice.sites) for choice in (mean, fitted))
        nearer = torch.stack([of_mean[site] < of_fitted[site] for site in mean.sites]).cpu()  # one transfer
        plain = [site for site, better in zip(mean.sites, nearer.unbind(), strict=True) if better]
        sites = dict(fitted.sites) | {site: mean.sites[site] for site in plain}
        numbers = dict(state.numbers) | {"sites_at_mean": float(len(plain))}
        return replace(fitted, sites=sites), MethodState(state.tensors, numbers)


def _begin(received: Adapter, mean: Adapter) -> Adapter:
    """Where a refit begins: the factors received; the means at sites where those are zero, as in a merge of many."""
    sites: dict[str, Factors] = {}
    for site, f in received.sites.items():
        empty, other = (f.a == 0).all() & (f.b == 0).all(), mean.sites[site]
        sites[site] = Factors(torch.where(empty, other.a, f.a), torch.where(empty, other.b, f.b))
    return replace(received, sites=sites)


def _excess(
    adapters: Sequence[Adapter], weights: Sequence[float], sites: Mapping[str, Factors]
) -> dict[str, Tensor]:
    """`||W - b a||^2 - ||W||^2 = ||b a||^2 - 2 <W a.T, b>` at every site."""
    columns = {site: f.a.double().mT.contiguous() for site, f in sites.items()}
    products = right_products(adapters, weights, columns)
    return {
        site: norm(f.a.double(), f.b.double()).square() - 2 * (products[site] * f.b).sum()
        for site, f in sites.items()
    }
