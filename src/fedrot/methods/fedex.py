"""FedEx-LoRA: averaged factors, and what they miss goes into the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from fedrot.core.adapter import Adapter, Factors, weighted_mean
from fedrot.core.lowrank import compress, weighted_sum
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.registry import method


@final
@method("fedex", exact=True, secure_aggregation=False, mixed_ranks=True, factor_mean=True, residual=True)
@dataclass(frozen=True, kw_only=True)
class FedEx(Method):
    """The mean of both factors, with the residual that makes it exact (Singhal et al., ACL 2025).

    The residual is `W - mean(b) @ mean(a)`, in the form `sum p_i (b_i - mean(b)) (a_i - mean(a))`, which does
    not cancel where it is small. Every receiver adds it to its base weights, scaled like the factors. Limit:
    its rank is `N r` (at most `min(d_in, d_out)`), so the message down grows with the number of clients.
    """

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The weighted means, with the clients' covariance as the residual."""
        del round
        adapters, weights = self.gather(updates, received)
        mean = weighted_mean(adapters, weights)
        residual: dict[str, Factors] = {}
        for site, m in mean.sites.items():
            apart = [Factors(c.sites[site].a - m.a, c.sites[site].b - m.b) for c in adapters]
            residual[site] = compress(weighted_sum(apart, weights))
        return replace(mean, residual=residual), state
