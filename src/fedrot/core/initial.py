"""How a fresh `a` is drawn, at the start of a run and by methods that start their factors afresh, and kept alive."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors


def initial_a(rank: int, d_in: int, noise: torch.Generator) -> Tensor:
    """`(rank, d_in)` uniform in `[-1 / sqrt(d_in), 1 / sqrt(d_in)]`, in float32, as PEFT draws it.

    That is Kaiming's uniform draw with slope sqrt 5. The `b` that goes with it is zero.
    """
    a = torch.empty(rank, d_in)
    return torch.nn.init.kaiming_uniform_(a, a=5**0.5, generator=noise)


def kept_trainable(adapter: Adapter, received: Adapter) -> Adapter:
    """The adapter with the received rows of `a` in directions that are zero in both factors.

    Clients of smaller rank upload nothing in the server's last directions. Where a round has no others, the mean is
    zero there in both factors, no gradient would ever leave zero, and clients of full rank would train less than they
    send. A row of `a` beside a zero column of `b` changes no product. Sites whose shape has changed stay as they are.

    Args:
        adapter: what a round made of `received`.
        received: the adapter the round started from.
    """
    sites: dict[str, Factors] = {}
    for site, f in adapter.sites.items():
        before = received.sites.get(site)
        if before is None or before.a.shape != f.a.shape:
            sites[site] = f
            continue
        dead = (f.a == 0).all(-1, keepdim=True) & (f.b == 0).all(-2).unsqueeze(-1)
        sites[site] = Factors(torch.where(dead, before.a, f.a), f.b)
    return replace(adapter, sites=sites)
