"""A method with the deviations of published code that concern it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alignment import apply
from fedrot.errors import ConfigError
from fedrot.methods import Method, MethodState, Trainable, Update, Upload
from fedrot.methods.fedit import FedIT
from fedrot.methods.fedrot import FedRot
from fedrot.methods.rescale import Rescale

OF_METHOD: Mapping[str, tuple[str, ...]] = {
    "hard_reflections": ("fedrot",),
    "half_rotations": ("fedrot", "random-rotation"),
    "anchor_parity": ("fedrot", "rescale"),
    "ffa_trains_a": ("ffa",),
    "rolora_a_first": ("rolora",),
    "rolora_freezes_head": ("rolora",),
    "lopsided_svd": ("flexlora",),
}
"""Deviations of one method or two, and whose they are."""

WRAPPED = {
    *("half_weights", "half_rotations", "anchor_parity", "ffa_trains_a", "rolora_a_first"),
    *("rolora_freezes_head", "unscaled_residual", "lopsided_svd"),
}


def published(method: Method, flags: frozenset[str], scale: float) -> Method:
    """The method with these deviations; itself where none of them concerns it.

    Args:
        method: as the recipe builds it.
        flags: names of deviations, all of which mean something with it.
        scale: of the adapter, `alpha / rank`.
    """
    if "hard_reflections" in flags:
        if not isinstance(method, FedRot):
            raise ConfigError(f"compat.hard_reflections = true: method {method.name!r} has no rotation")
        method = replace(method, strength=1.0, group="orthogonal")
    if not flags & WRAPPED:
        return method
    return Published(inner=method, flags=flags, scale=scale)


@final
@dataclass(frozen=True, kw_only=True)
class Published(Method):
    """Another method, with deviations of published code put around its hooks.

    Attributes:
        inner: the method.
        flags: names of deviations.
        scale: of the adapter.
    """

    inner: Method
    flags: frozenset[str]
    scale: float

    def __post_init__(self) -> None:
        """It is known by the inner method's name, and declares its laws, which it may break."""
        object.__setattr__(self, "name", self.inner.name)
        object.__setattr__(self, "laws", self._at(1).laws)

    @property
    def secure_aggregation(self) -> bool:
        """As of the inner method."""
        return self.inner.secure_aggregation

    @property
    def shares_head(self) -> bool:
        """As of the inner method."""
        return self.inner.shares_head

    @property
    def factorises(self) -> bool:
        """As of the inner method."""
        return self.inner.factorises

    @property
    def reference_lag(self) -> int:
        """As of the inner method."""
        return self.inner.reference_lag

    def trainable(self, round: int) -> Trainable:
        """Which factors train, and whether the head does."""
        found = self._at(round).trainable(self._turn(round))
        return replace(found, head=False) if "rolora_freezes_head" in self.flags else found

    def uploads(self, round: int) -> Trainable:
        """Which factors travel."""
        return self._at(round).uploads(self._turn(round))

    def changes(self, round: int) -> Trainable:
        """Which factors of the broadcast change."""
        return self._at(round).changes(self._turn(round))

    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """What the inner method uploads, rounded where that is asked for."""
        made = self._at(round).before_upload(trained, received, round, reference=reference, clients=clients)
        if "half_rotations" in self.flags and made.rotation is not None:
            rounded = made.rotation.matrix.half().to(made.rotation.matrix)
            rotation = replace(made.rotation, matrix=rounded)
            made = replace(made, adapter=apply(trained, rotation), rotation=rotation)
        return replace(made, adapter=half(made.adapter)) if "half_weights" in self.flags else made

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """What the inner method makes of the updates, with its deviations."""
        made, after = self._at(round).aggregate(updates, received, state, self._turn(round))
        if "unscaled_residual" in self.flags:
            residual = {site: Factors(f.a, f.b / self.scale) for site, f in made.residual.items()}
            made = replace(made, residual=residual)
        if "lopsided_svd" in self.flags:
            made = replace(made, sites={site: _lopsided(f) for site, f in made.sites.items()})
        return (half(made) if "half_weights" in self.flags else made), after

    def _at(self, round: int) -> Method:
        """The inner method with the options it has in a round."""
        if "ffa_trains_a" in self.flags:
            return FedIT()
        if "anchor_parity" in self.flags and isinstance(self.inner, FedRot | Rescale):
            return replace(self.inner, anchor="b" if round % 2 else "a")
        return self.inner

    def _turn(self, round: int) -> int:
        """The round whose part the inner method plays."""
        return round + 1 if "rolora_a_first" in self.flags else round


@torch.no_grad()
def half(adapter: Adapter) -> Adapter:
    """Every number as float16 holds it, in the tensors' own precision."""
    return adapter.map(lambda tensor: tensor.half().to(tensor.dtype))


def _lopsided(f: Factors) -> Factors:
    """`b = U sqrt(S)` with `a = V.T`: from an even split, rows of `a` brought to length one; zero rows stay."""
    length = f.a.norm(dim=-1, keepdim=True)
    return Factors(torch.where(length > 0, f.a / length, f.a), f.b)
