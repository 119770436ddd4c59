"""HetLoRA: clients of different ranks, weighted by the size of their updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, final

import torch

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors, mean_head, weighted_mean
from fedrot.core.lowrank import norm
from fedrot.methods.averaging import Averaging
from fedrot.methods.base import MethodState, Update, Upload
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method("hetlora", exact=False, secure_aggregation=False, mixed_ranks=True, factor_mean=False)
@dataclass(frozen=True, kw_only=True)
class HetLoRA(Averaging):
    """Both factors are averaged, zero-padded, with weights that grow with `||b_i a_i||_F` (Cho et al., EMNLP 2024).

    The weights are `p_i ||b_i a_i||_F`, the norm over all sites: the authors' rule where `p_i` are all alike. If
    no client has an update yet they are the `p_i`. The head is averaged with `p_i`. Limits: the average is biased
    towards clients that moved far, whatever the reason; the paper's penalty on the tail during training is left
    out, and a tail that was dropped comes back with the next broadcast; a refit from the reference fits the mean of the
    products by `p_i`, in which these weights have no part.

    Attributes:
        prune: off, or the share of a client's directions that it always sends; it leaves out the others of a
            site if training made them weaker (`||b|| ||a||` of that tail less than in the adapter received).
    """

    prune: Literal["off"] | Annotated[float, Between(0, 1, above=True)] = "off"

    @torch.no_grad()
    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """The trained adapter, without the tails that became weaker."""
        del round, reference, clients
        if self.prune == "off":
            return Upload(trained)
        sites: dict[str, Factors] = {}
        for site, f in trained.sites.items():
            kept = math.ceil(self.prune * f.rank)
            before = received.sites[site]
            now = _tail(f, kept, f.rank)
            weaker = (now < _tail(before, kept, f.rank))[..., None, None]
            tail = torch.arange(f.rank, device=f.a.device) >= kept
            sites[site] = Factors(
                f.a.masked_fill(weaker & tail[:, None], 0), f.b.masked_fill(weaker & tail, 0)
            )
        return Upload(replace(trained, sites=sites))

    @property
    def factorises(self) -> bool:
        """Always: the sizes of updates are weights."""
        return True

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The mean weighted by size, refitted where that is asked for."""
        del round
        adapters, weights = self.gather(updates, received)

        def mean() -> Adapter:
            sizes = [_size(adapter) for adapter in adapters]
            moved = [p * size for p, size in zip(weights, sizes, strict=True)]
            factors = weighted_mean(adapters, moved if any(moved) else weights)
            return replace(factors, head=mean_head(adapters, weights))

        return self.fitted(mean, adapters, weights, received), state


def _size(adapter: Adapter) -> float:
    """`||b a||_F` over all sites."""
    return math.sqrt(sum(float(norm(f.a, f.b)) ** 2 for f in adapter.sites.values()))


def _tail(f: Factors, kept: int, rank: int) -> torch.Tensor:
    """`||b|| ||a||` of directions `kept` to `rank`, `(...)`."""
    return linalg.frobenius(f.b[..., kept:rank]) * linalg.frobenius(f.a[..., kept:rank, :])
