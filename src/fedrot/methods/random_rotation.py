"""An ablation: rotations of no meaning in place of Procrustes ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation, apply
from fedrot.core.frames import haar
from fedrot.core.polar import widen
from fedrot.core.rng import generator
from fedrot.methods.averaging import Averaging
from fedrot.methods.base import Upload
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method(
    "random-rotation",
    exact=False,
    secure_aggregation=True,
    mixed_ranks=True,
    factor_mean=True,
    identical_clients=False,
)
@dataclass(frozen=True, kw_only=True)
class RandomRotation(Averaging):
    """FedRot with a Haar-random rotation per round, client and site: what alignment must beat (FedRot-LoRA).

    Like FedRot it leaves the first round alone. Clients that agree are driven apart, so they are not promised
    the update they agree on.

    Attributes:
        seed: of the rotations; the run's seed unless set.
    """

    seed: Annotated[int, Between(0)] = 0

    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """The trained adapter in a random frame."""
        del received, reference
        if round == 1:
            return Upload(trained)
        rank = max(f.rank for f in trained.sites.values())
        drawn: list[Tensor] = []
        for site, f in trained.sites.items():
            each = [self._draw(site, f.rank, rank, round, client) for client in clients]
            (like,) = widen(
                f.a[..., :0, :]
            )  # float64 stays float64, and nothing rotates in less than float32
            drawn.append(torch.stack(each).to(like).view(*f.batch, rank, rank))
        matrix = torch.stack(drawn)
        none = torch.zeros(matrix.shape[:-2], dtype=torch.bool, device=matrix.device)
        rotation = SiteRotation(
            matrix=matrix, degenerate=none, flipped=none, sites=tuple(trained.sites), kept=~none
        )
        return Upload(apply(trained, rotation), rotation)

    def _draw(self, site: str, rank: int, border: int, round: int, client: int) -> Tensor:
        """Haar-distributed in `SO(rank)`, bordered by an identity."""
        bordered = torch.eye(border, dtype=torch.float64)
        bordered[:rank, :rank] = haar(rank, generator(self.seed, f"{self.name}/{site}", round, client))
        return bordered
