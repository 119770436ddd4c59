"""What a method is: three hooks of a frozen dataclass."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, TypeVar, overload

from torch import Tensor

from fedrot.core.adapter import Adapter, Factors, normalise, weighted_mean
from fedrot.core.alignment import SiteRotation
from fedrot.core.beside import beside, on_cpu, side_by_side
from fedrot.errors import AdapterError
from fedrot.methods.laws import Laws
from fedrot.methods.options import check_options

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trainable:
    """Which of the two factors is meant; the head is with all methods of this project."""

    a: bool = True
    b: bool = True
    head: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One client's contribution to a round: its adapter after training, with an unnormalised weight."""

    client: int
    adapter: Adapter
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """What a client, or a stack of clients, sends, and what alignment did to it (None: no alignment)."""

    adapter: Adapter
    rotation: SiteRotation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MethodState:
    """All that a method carries from round to round on the server; it survives a resume.

    Numbers named like a metric of the round (`rotation`, `rotation_angle`, `degenerate`, `flips`, `kept`) are
    what the server measured while aggregating.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A federated aggregation method; its fields are its options. Rounds are counted from 1.

    The defaults train both factors and average everything. A method overrides what it does differently and
    never modifies an argument. Subclasses are final, frozen, keyword-only dataclasses under the decorator
    `@method`.
    """

    name: ClassVar[str]
    laws: ClassVar[Laws]

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def secure_aggregation(self) -> bool:
        """Whether the server needs only sums of uploads, with these options."""
        return self.laws.secure_aggregation

    @property
    def shares_head(self) -> bool:
        """Whether the head travels and is averaged; clients that do not share it keep their own."""
        return True

    @property
    def factorises(self) -> bool:
        """Whether the server solves or factorises, so that updates with numbers that are not finite are refused."""
        return self.laws.residual or self.laws.frame != "kept"

    @property
    def reference_lag(self) -> int:
        """How many rounds before the received adapter the `reference` of `before_upload` lies."""
        return 0

    def trainable(self, round: int) -> Trainable:
        """Which factors clients train in `round`."""
        del round
        return Trainable()

    def uploads(self, round: int) -> Trainable:
        """Which factors travel to the server in `round`."""
        return self.trainable(round)

    def changes(self, round: int) -> Trainable:
        """Which factors of the broadcast differ at the end of `round` from those received at its start."""
        return self.trainable(round)

    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """What a client makes of its trained adapter before it leaves the machine.

        Args:
            trained: one client's adapter, or a stack `(N, ...)` of those of `clients`.
            received: the adapter the round started from; never stacked.
            round: counted from 1.
            reference: the adapter received `reference_lag` rounds earlier, if there was one; default
                `received`.
            clients: numbers of the clients in `trained`, for randomness of their own.
        """
        del received, round, reference, clients
        return Upload(trained)

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The adapter to broadcast, and the state for the next round.

        Args:
            updates: as uploaded, in any order; a list, or a sequence that loads them one by one. Factors that
                do not travel (`uploads`) are ignored, and so is a head that does not (`shares_head`): they
                come back as received.
            received: the adapter the round started from.
            state: what the previous round returned; `MethodState()` in the first.
            round: counted from 1.

        Raises:
            AdapterError: no updates, an update that does not fit `received`, or unusable weights.
        """
        adapters, weights = self.gather(updates, received)
        mean = travelled(weighted_mean(adapters, weights), received, self.uploads(round))
        return mean if self.shares_head else dataclasses.replace(mean, head=received.head), state

    def gather(self, updates: Sequence[Update], received: Adapter) -> tuple[Sequence[Adapter], list[float]]:
        """The updates' adapters and weights: checked, in client order, at the server's ranks, summing to one.

        The fixed order makes aggregation independent of the order of arrival, to the bit. A list or tuple is
        checked here. Any other sequence is taken to load an update whenever it is asked for one: it is read once
        for client numbers and weights, and the adapters returned load, and are checked, as they are used.

        Raises:
            AdapterError: no updates, a client that appears twice, an update that does not fit, or unusable
                weights.
        """
        order = client_order(updates)
        shares = normalise([weight for _, weight, _ in order], len(order))

        def load(position: int) -> Adapter:
            update = updates[order[position][2]]
            adapter = _padded(update.adapter, received) if self.laws.mixed_ranks else update.adapter
            adapter.check_like(received, f"client {update.client}")
            if self.factorises and not adapter.finite():
                raise AdapterError(
                    f"client {update.client} sent numbers that are not finite: leave it out of the round"
                )
            return adapter

        if not isinstance(updates, list | tuple):
            return Loading(load, len(order)), shares
        reads = len(order) * on_cpu(received.tensors().values()) if self.factorises else 0
        with side_by_side():
            return beside(load, range(len(order)), reads), shares


@dataclass(frozen=True)
class Loading(Sequence[T]):
    """Adapters or updates made when they are asked for and kept nowhere: memory does not grow with their number."""

    load: Callable[[int], T]
    number: int

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.load(position) for position in range(self.number)[index]]
        return self.load(range(self.number)[index])


def client_order(updates: Sequence[Update]) -> list[tuple[int, float, int]]:
    """`(client, weight, position)` of every update, by client number; one update in memory at a time.

    Raises:
        AdapterError: no updates, or two of one client.
    """
    order = sorted((update.client, update.weight, index) for index, update in enumerate(updates))
    if not order:
        raise AdapterError("aggregation of no updates: expected at least one; skip the round instead")
    for (early, _, _), (late, _, _) in pairwise(order):
        if early == late:
            raise AdapterError(f"client {late} sent two updates in one round: expected one")
    return order


def in_order(updates: Sequence[Update]) -> list[Update]:
    """The updates by client number.

    Raises:
        AdapterError: no updates, or two of one client.
    """
    return [updates[index] for _, _, index in client_order(updates)]


def _padded(adapter: Adapter, received: Adapter) -> Adapter:
    ranks = {factors.rank for factors in received.sites.values()}
    if len(ranks) != 1 or all(factors.rank >= min(ranks) for factors in adapter.sites.values()):
        return adapter
    return adapter.resized(ranks.pop())


def travelled(adapter: Adapter, received: Adapter, uploads: Trainable) -> Adapter:
    """`adapter` with the factors that did not travel replaced by those received, to the bit."""
    if uploads.a and uploads.b:
        return adapter
    kept = received.sites
    return dataclasses.replace(
        adapter,
        sites={
            site: Factors(f.a if uploads.a else kept[site].a, f.b if uploads.b else kept[site].b)
            for site, f in adapter.sites.items()
        },
    )
