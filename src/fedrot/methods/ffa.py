"""FFA-LoRA: `a` stays at its shared initial value, so that the average of `b` is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedrot.methods.base import Method, Trainable
from fedrot.methods.registry import method


@final
@method("ffa", exact=True, secure_aggregation=True, mixed_ranks=True, factor_mean=True)
@dataclass(frozen=True, kw_only=True)
class FFA(Method):
    """Clients train and upload `b` alone (Sun et al., ICLR 2024), so `mean(b) @ a` is exact."""

    def trainable(self, round: int) -> Trainable:
        """`b`, in every round."""
        del round
        return Trainable(a=False, b=True)
