"""FedMomentum: the mean of the products, its leading part as factors and the rest in the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

from fedrot.core.adapter import Adapter, Factors, mean_head
from fedrot.core.leading import sketched
from fedrot.core.lowrank import compress, weighted_sum
from fedrot.core.rng import generator
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method(
    "fedmomentum",
    exact=True,
    secure_aggregation=False,
    mixed_ranks=True,
    factor_mean=False,
    residual=True,
    frame="turned",
)
@dataclass(frozen=True, kw_only=True)
class FedMomentum(Method):
    """The mean update by randomised SVD, split evenly, and what it leaves out as a residual (after FedMomentum).

    `W = b a + residual` exactly, with `b = U sqrt(S)` and `a = sqrt(S) V.T` near the best of the server's rank.
    Limits: a new frame in every round, and a residual of rank `(N + 1) r` (at most `min(d_in, d_out)`) that
    every receiver adds to its base weights.

    Attributes:
        sweeps: power iterations of the randomised SVD; the residual makes up for what they miss.
        seed: of its random directions; the run's seed unless set.
    """

    sweeps: Annotated[int, Between(0, 20)] = 2
    seed: Annotated[int, Between(0)] = 0

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The leading directions of the mean update, the rest as the residual, the mean head."""
        adapters, weights = self.gather(updates, received)
        noise = generator(self.seed, self.name, round)
        sites = sketched(adapters, weights, received, noise, self.sweeps)
        residual: dict[str, Factors] = {}
        for site, f in sites.items():
            parts = [*(adapter.sites[site] for adapter in adapters), f]
            residual[site] = compress(weighted_sum(parts, [*weights, -1.0]))
        return Adapter(sites, mean_head(adapters, weights), received.scale, residual), state
