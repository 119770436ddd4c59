"""FedSA-LoRA: clients share `a` and keep `b` and the head to themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedrot.methods.base import Method, Trainable
from fedrot.methods.registry import method


@final
@method(
    "fedsa",
    exact=False,
    secure_aggregation=True,
    mixed_ranks=True,
    factor_mean=True,
    lone_client=False,
    identical_clients=False,
    personal=True,
)
@dataclass(frozen=True, kw_only=True)
class FedSA(Method):
    """Clients train `a` and `b` and share `a` alone; `b` and the head stay personal (Guo et al., ICLR 2025).

    A message is half as long, and every client ends with a model of its own. Limits: the broadcast by itself
    is not a trained model, since its `b` and head are those of the start; so a client that joins late starts
    from these, and no single model comes out. The clients' personal updates `b_i @ mean(a)` have the mean
    `mean(b) @ mean(a)`, so the aggregation error reported is that of averaging factors.
    """

    def uploads(self, round: int) -> Trainable:
        """`a`, in every round."""
        del round
        return Trainable(a=True, b=False)

    def changes(self, round: int) -> Trainable:
        """`a`, in every round."""
        return self.uploads(round)

    @property
    def shares_head(self) -> bool:
        """Never."""
        return False
