"""FedIT: the plain average of both factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedrot.methods.averaging import Averaging
from fedrot.methods.registry import method


@final
@method("fedit", exact=False, secure_aggregation=True, mixed_ranks=True, factor_mean=True)
@dataclass(frozen=True, kw_only=True)
class FedIT(Averaging):
    """Clients train `a` and `b`; the server averages each (Zhang et al., ICASSP 2024).

    The broadcast `mean(b) @ mean(a)` differs from the mean of the products by the covariance of the clients'
    factors.
    """
