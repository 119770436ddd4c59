"""What all methods that average both factors share: the option of a refit."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fedrot.core.adapter import Adapter, mean_head, weighted_mean
from fedrot.core.refit import refit
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.options import Between


@dataclass(frozen=True, kw_only=True)
class Averaging(Method, ABC):
    """A method whose broadcast is a mean of both factors, which the server may then fit to the mean update.

    Attributes:
        refit: alternating least-squares steps towards the mean of the clients' products, see `core.refit`; 0
            for none. One step removes most of the aggregation error, without a singular value decomposition
            and without a new frame. The server must see every upload.
        start: where a refit begins: the adapter the clients received (`"reference"`; the result does not depend
            on the clients' frames) or the mean of their factors (`"mean"`; never further off than that mean).
    """

    refit: Annotated[int, Between(0, 100)] = 0
    start: Literal["reference", "mean"] = "reference"

    @property
    def secure_aggregation(self) -> bool:
        """Whether the server needs only sums of uploads; not with a refit."""
        return self.laws.secure_aggregation and not self.refit

    @property
    def factorises(self) -> bool:
        """With a refit."""
        return self.refit > 0

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The weighted mean of everything, its factors refitted where that is asked for."""
        del round
        adapters, weights = self.gather(updates, received)
        return self.fitted(lambda: weighted_mean(adapters, weights), adapters, weights, received), state

    def fitted(
        self,
        mean: Callable[[], Adapter],
        adapters: Sequence[Adapter],
        weights: Sequence[float],
        received: Adapter,
    ) -> Adapter:
        """`mean()`, or the refit with these options; from the reference only the heads are averaged."""
        if not self.refit:
            return mean()
        if self.start == "mean":
            return refit(adapters, weights, mean(), self.refit)
        begin = replace(received, head=mean_head(adapters, weights))
        return refit(adapters, weights, begin, self.refit)
