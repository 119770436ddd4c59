"""Auto: the setting to take when nothing is known, and the server may see every upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch

from fedrot.core.adapter import Adapter
from fedrot.core.consensus import consensus, relative_errors, rotated_mean
from fedrot.core.refit import refit
from fedrot.methods.base import Method, MethodState, Update, in_order
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method("auto", exact=False, secure_aggregation=False, mixed_ranks=True, factor_mean=False)
@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """The mean of the factors, put into one frame where that helps, and refitted where much would still be lost.

    Clients do nothing. The server turns their factors onto their common mean (`core.consensus`, reflections
    allowed) and keeps a site's rotations only if they lower its aggregation error. Where clients' frames agree, and
    from shared factors they do to first order, that is FedIT; where they do not, what averaging loses to frames is
    won back. A site whose mean still misses the mean update `W = sum p_i b_i a_i` by more than `tolerance` of its
    norm is fitted to `W` from there (`core.refit`), which never raises the error. Limits: the server must see every
    upload (with secure aggregation take `fedrot`); a rank below that of `W` loses something, which `fedex` does not.

    Attributes:
        tolerance: relative aggregation error of a site beyond which it is refitted.
        sweeps: of the consensus.
        steps: of the refit.
    """

    tolerance: Annotated[float, Between(0, 1)] = 0.5
    sweeps: Annotated[int, Between(1, 100)] = 5
    steps: Annotated[int, Between(1, 100)] = 1

    @property
    def factorises(self) -> bool:
        """Always: rotations are solved for."""
        return True

    @torch.no_grad()
    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The guarded consensus, refitted at the sites that it leaves too far off; the mean of the heads."""
        del round
        adapters, weights = self.gather(updates, received)
        own = [update.adapter for update in in_order(updates)]
        rotation = consensus(own, weights, received, self.sweeps, group="orthogonal")
        plain, turned = relative_errors(adapters, weights, rotation)
        rotation = rotation.only((turned < plain)[:, None])
        mean = rotated_mean(adapters, weights, rotation)
        lost = (torch.minimum(plain, turned) > self.tolerance).cpu()  # one transfer
        far = [site for site, much in zip(rotation.sites, lost.unbind(), strict=True) if much]
        if far:
            fitted = refit([_only(a, far) for a in adapters], weights, _only(mean, far), self.steps)
            mean = replace(mean, sites={**mean.sites, **fitted.sites})
        return mean, MethodState(state.tensors, rotation.summary() | {"sites_refitted": float(len(far))})


def _only(adapter: Adapter, sites: Sequence[str]) -> Adapter:
    return replace(adapter, sites={site: adapter.sites[site] for site in sites})
