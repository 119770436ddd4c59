"""An ablation: a scalar in place of a rotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alignment import SiteRotation
from fedrot.core.polar import widen
from fedrot.methods.averaging import Averaging
from fedrot.methods.base import Upload
from fedrot.methods.registry import method


@final
@method("rescale", exact=False, secure_aggregation=True, mixed_ranks=True, factor_mean=True)
@dataclass(frozen=True, kw_only=True)
class Rescale(Averaging):
    """FedRot with `R = c I`, `c` the scalar that brings the anchored factor nearest to its reference.

    Uploads `c x` and the other factor over `c`, `c = <x, x_ref> / <x, x>`: the same product (FedRot-LoRA,
    ablation). A site with `c` near zero, which would blow up the other factor, is left as it is and counted
    as degenerate. In the first round all are sent as they are.

    Attributes:
        anchor: `"a"` in odd rounds and `"b"` in even ones (`"alternate"`), or one of them always.
    """

    anchor: Literal["alternate", "a", "b"] = "alternate"

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
        """The trained adapter with its factors rescaled against each other."""
        del clients
        if round == 1:
            return Upload(trained)
        target = reference or received
        on_a = self.anchor == "a" or (self.anchor == "alternate" and round % 2 == 1)
        sites: dict[str, Factors] = {}
        refused: list[Tensor] = []
        for site, f in trained.sites.items():
            ref = target.sites[site]
            x, x_ref = (f.a, ref.a[..., : f.rank, :]) if on_a else (f.b, ref.b[..., : f.rank])
            c, bad = _scalar(x, x_ref)
            sites[site] = Factors(f.a * c, f.b / c) if on_a else Factors(f.a / c, f.b * c)
            refused.append(bad)
        degenerate = torch.stack(refused)
        rank = max(f.rank for f in trained.sites.values())
        eye = torch.eye(rank, device=degenerate.device).expand(*degenerate.shape, rank, rank)
        none = torch.zeros_like(degenerate)
        rotation = SiteRotation(
            matrix=eye, degenerate=degenerate, flipped=none, sites=tuple(trained.sites), kept=~degenerate
        )
        return Upload(replace(trained, sites=sites), rotation)


def _scalar(x: Tensor, x_ref: Tensor) -> tuple[Tensor, Tensor]:
    """`<x, x_ref> / <x, x>` as `(..., 1, 1)`, one where that is unusable, and where it was: `(...)`."""
    x, x_ref = widen(x, x_ref)
    c = (x * x_ref).sum((-2, -1), keepdim=True) / x.square().sum((-2, -1), keepdim=True)
    bad = ~(c.isfinite() & (c.abs() > 1e-3) & (c.abs() < 1e3))
    return torch.where(bad, 1, c), bad[..., 0, 0]
