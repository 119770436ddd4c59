"""FLoRIST: the mean of the products at the rank its spectrum asks for, site by site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, final

from fedrot.core.adapter import Adapter, Factors, mean_head
from fedrot.core.lowrank import truncate, weighted_sum
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method(
    "florist",
    exact=False,
    secure_aggregation=False,
    mixed_ranks=False,
    factor_mean=False,
    lone_client=False,
    identical_clients=False,
    frame="turned",
    stale=False,
)
@dataclass(frozen=True, kw_only=True)
class FLoRIST(Method):
    """The mean update by singular value thresholding, each site at a rank of its own (after FLoRIST, 2025).

    A site gets the smallest rank whose leading singular values hold the share `energy` of the sum of squares. So
    ranks, message lengths and costs change from round to round, and grow with `clients x rank` where clients
    differ; `cap` bounds them. Limits: what lies below the threshold is lost, for one client as for many; all
    clients train at the rank broadcast; an update of an earlier round has another rank and cannot join.

    Attributes:
        energy: share of `||W||_F^2` that a site keeps, at least.
        cap: the largest rank, even if it holds less.
    """

    energy: Annotated[float, Between(0, 1, above=True)] = 0.9
    cap: Annotated[int, Between(1)] = 64

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The truncated mean update; the state's number `broadcast_rank` is the mean rank of its sites."""
        del state, round
        adapters, weights = self.gather(updates, received)
        sites: dict[str, Factors] = {}
        for site, f in received.sites.items():
            stack = weighted_sum([adapter.sites[site] for adapter in adapters], weights)
            near = truncate(stack.a, stack.b, min(self.cap, stack.rank, f.d_in, f.d_out))
            held = near.singular_values.double().square().cumsum(-1)
            enough = held >= self.energy * held[-1] * (1 - 1e-12)
            rank = min(int((~enough).sum()) + 1, near.a.shape[-2])
            sites[site] = Factors(
                near.a[:rank].to(f.a.dtype).contiguous(), near.b[:, :rank].to(f.b.dtype).contiguous()
            )
        ranks = [float(f.rank) for f in sites.values()]
        numbers = {"broadcast_rank": sum(ranks) / len(ranks)}
        head = mean_head(adapters, weights)
        return replace(received, sites=sites, head=head), MethodState(numbers=numbers)
