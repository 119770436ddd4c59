"""LoRA-FAIR: averaged factors, `b` corrected towards the mean of the products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, final

from fedrot.core.adapter import Adapter, weighted_mean
from fedrot.core.products import right_products
from fedrot.core.refit import ridge_b
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between
from fedrot.methods.registry import method


@final
@method("lora-fair", exact=False, secure_aggregation=False, mixed_ranks=True, factor_mean=False)
@dataclass(frozen=True, kw_only=True)
class LoRAFair(Method):
    """The mean factors with `b` moved towards the mean of the products (Bian et al., ICCV 2025).

    `b = mean(b) + D` with `D = argmin ||W - (mean(b) + D) mean(a)||_F^2 + mu ||D||_F^2`, in closed form where the
    authors take gradient steps. `a` stays the mean. Limit: what lies outside the row space of `mean(a)` is
    lost; the `refit` of other methods moves `a` as well (with `start = "mean"` its first step is this one).

    Attributes:
        mu: the ridge, relative to the mean diagonal of `mean(a) mean(a).T`; large ones leave the means alone.
    """

    mu: Annotated[float, Between(0, above=True)] = 0.01

    @property
    def factorises(self) -> bool:
        """Always: a ridge regression."""
        return True

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The weighted means with `b` corrected."""
        del round
        adapters, weights = self.gather(updates, received)
        mean = weighted_mean(adapters, weights)
        columns = {site: f.a.double().mT.contiguous() for site, f in mean.sites.items()}
        products = right_products(adapters, weights, columns)
        return replace(mean, sites=ridge_b(mean.sites, products, self.mu)), state
