"""RoLoRA: the factors take turns, so that every average is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedrot.methods.base import Method, Trainable
from fedrot.methods.registry import method


@final
@method("rolora", exact=True, secure_aggregation=True, mixed_ranks=True, factor_mean=True, stale=False)
@dataclass(frozen=True, kw_only=True)
class RoLoRA(Method):
    """Clients train and upload `b` in odd rounds and `a` in even ones (Chen et al., 2024).

    `b` comes first: while it is zero, the gradient of `a` is zero too.
    """

    def trainable(self, round: int) -> Trainable:
        """`b` in odd rounds, `a` in even ones."""
        return Trainable(a=round % 2 == 0, b=round % 2 == 1)
