"""FedSVD: clients train `b` on an `a` that the server makes orthonormal anew in every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.lowrank import product_svd
from fedrot.methods.base import Method, MethodState, Trainable, Update
from fedrot.methods.registry import method


@final
@method(
    "fedsvd",
    exact=True,
    secure_aggregation=True,
    mixed_ranks=True,
    factor_mean=False,
    frame="turned",
    stale=False,
)
@dataclass(frozen=True, kw_only=True)
class FedSVD(Method):
    """Clients train `b` alone; the server refactors `mean(b) a = U S V.T` (after FedSVD, Lee et al., 2025).

    Clients receive `a = V.T`, with orthonormal rows that follow what was learned, and `b = U S`. The broadcast is
    exact and the server needs only the mean of `b`. Limit: an update trained on an earlier `a` has no meaning
    on a later one.
    """

    def trainable(self, round: int) -> Trainable:
        """`b`, in every round."""
        del round
        return Trainable(a=False, b=True)

    def changes(self, round: int) -> Trainable:
        """Both factors, in every round."""
        del round
        return Trainable()

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The singular vectors of the mean update."""
        mean, state = super().aggregate(updates, received, state, round)
        sites: dict[str, Factors] = {}
        for site, f in mean.sites.items():
            u, s, vh = product_svd(f.a, f.b)
            sites[site] = Factors(vh.to(f.a.dtype).contiguous(), (u * s[..., None, :]).to(f.b.dtype))
        return replace(mean, sites=sites), state
