"""How a fresh `a` is drawn, at the start of a run and by methods that start their factors afresh."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_a(rank: int, d_in: int, noise: torch.Generator) -> Tensor:
    """`(rank, d_in)` uniform in `[-1 / sqrt(d_in), 1 / sqrt(d_in)]`, in float32, as PEFT draws it.

    That is Kaiming's uniform draw with slope sqrt 5. The `b` that goes with it is zero.
    """
    a = torch.empty(rank, d_in)
    return torch.nn.init.kaiming_uniform_(a, a=5**0.5, generator=noise)
