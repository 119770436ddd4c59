"""FLoRA: the clients' updates are stacked, not averaged, and become part of the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

from fedrot.core.adapter import Adapter, Factors, mean_head
from fedrot.core.initial import initial_a
from fedrot.core.lowrank import compress, weighted_sum
from fedrot.core.rng import generator
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method(
    "flora",
    exact=True,
    secure_aggregation=False,
    mixed_ranks=True,
    factor_mean=False,
    residual=True,
    frame="fresh",
)
@dataclass(frozen=True, kw_only=True)
class FLoRA(Method):
    """Every round's mean update goes into the base weights, and fresh factors start (Wang et al., NeurIPS 2024).

    The stack `[p_1 b_1, ..., p_N b_N] @ [a_1; ...; a_N]` is `sum p_i b_i a_i` exactly. It travels as a
    residual of rank `N r`, or `min(d_in, d_out)` where that is less. Limits: the message down grows with the
    number of clients, and since `b` starts from zero each round, so do optimisers and the factors' directions.

    Attributes:
        seed: of the fresh factors `a`; the run's seed unless set.
    """

    seed: Annotated[int, Between(0)] = 0

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """Fresh factors with `b = 0`, the mean head, and the mean update as the residual."""
        adapters, weights = self.gather(updates, received)
        sites: dict[str, Factors] = {}
        residual: dict[str, Factors] = {}
        for index, (site, f) in enumerate(received.sites.items()):
            residual[site] = compress(weighted_sum([c.sites[site] for c in adapters], weights))
            fresh = initial_a(f.rank, f.d_in, generator(self.seed, "init", round, index)).to(f.a)
            sites[site] = Factors(fresh, f.b.new_zeros(f.b.shape))
        return Adapter(sites, mean_head(adapters, weights), received.scale, residual), state
