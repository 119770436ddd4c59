"""FlexLoRA: the mean of the products, cut back to the rank of the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from fedrot.core.adapter import Adapter, mean_head
from fedrot.core.leading import leading
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.registry import method


@final
@method(
    "flexlora", exact=False, secure_aggregation=False, mixed_ranks=True, factor_mean=False, frame="turned"
)
@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Method):
    """The best approximation of the mean update of the server's rank, by SVD (Bai et al., NeurIPS 2024).

    No broadcast of that rank is nearer to `sum p_i b_i a_i` (Eckart and Young). It is split evenly, `b = U sqrt(S)`
    and `a = sqrt(S) V.T`; a client of smaller rank receives the leading directions. Limit: the frame and the
    split of scale between `a` and `b` are new in every round.
    """

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The truncated mean update, with the mean head."""
        del round
        adapters, weights = self.gather(updates, received)
        head = mean_head(adapters, weights)
        return replace(received, sites=leading(adapters, weights, received), head=head), state
