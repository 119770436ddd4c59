"""FedRot: clients rotate into a common frame before the average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation, apply, client_correlations, correlations, solve_sites
from fedrot.core.consensus import consensus, lowers_error, rotated_mean
from fedrot.core.polar import Group, identity_like
from fedrot.core.procrustes import Anchor
from fedrot.core.softening import Path
from fedrot.errors import ConfigError
from fedrot.methods.averaging import Averaging
from fedrot.methods.base import MethodState, Update, Upload, in_order
from fedrot.methods.options import Between, Schedule, Stepwise, at
from fedrot.methods.registry import method


@final
@method("fedrot", exact=False, secure_aggregation=True, mixed_ranks=True, factor_mean=True)
@dataclass(frozen=True, kw_only=True)
class FedRot(Averaging):
    """Clients rotate onto the adapter they received; the server averages (FedRot-LoRA, ICML 2026).

    With `R` the softened Procrustes rotation a client uploads `R.T a` and `b R`: the same product, in a frame
    nearer to the other clients'. The first round is not rotated: `b = 0` carries no direction yet.

    Attributes:
        strength: 0 (FedIT) to 1 (the full rotation), or a schedule `[[1, 0.0], [10, 0.5]]` by round.
        anchor: the factor aligned: `"a"` in odd rounds and `"b"` in even ones (`"alternate"`, the paper), one
            of them always, or both in one problem (`"joint"`; `consensus` always does that).
        path: how rotations are softened: `"chordal"` (the paper) or `"geodesic"`.
        group: `"rotation"` (the paper), or `"orthogonal"` to allow reflections.
        reference: what to align to: the adapter received (`"previous"`, the paper), the one before it
            (`"two-back"`, an ablation), or the clients' own mean (`"consensus"`: on the server, which must
            see every upload; also in the first round).
        guard: keep a site's alignment only where it helps. `"server"` (or true): the server rotates, and
            keeps the rotations of a site only if they lower its aggregation error. `"client"`: each client
            keeps a rotation only if it lowers the joint distance to the reference, which needs no individual
            uploads.
        sweeps: of the consensus.
    """

    strength: Annotated[Schedule, Stepwise(Between(0, 1))] = 0.5
    anchor: Literal["alternate", "a", "b", "joint"] = "alternate"
    path: Path = "chordal"
    group: Group = "rotation"
    reference: Literal["previous", "two-back", "consensus"] = "previous"
    guard: bool | Literal["client", "server"] = False
    sweeps: Annotated[int, Between(1, 100)] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path == "geodesic" and self.group == "orthogonal":
            raise ConfigError(
                "method.path = 'geodesic': a reflection has none; set method.group = 'rotation'"
            )
        if self.guard == "client" and self.reference == "consensus":
            raise ConfigError("method.guard = 'client': with a consensus clients do not rotate; use 'server'")

    @property
    def secure_aggregation(self) -> bool:
        """Whether clients rotate by themselves and nothing is refitted, so that the server needs only sums."""
        return self._clients_rotate and not self.refit

    @property
    def factorises(self) -> bool:
        """Where the server rotates or refits."""
        return super().factorises or not self._clients_rotate

    @property
    def _clients_rotate(self) -> bool:
        return self.reference != "consensus" and self.guard in (False, "client")

    @property
    def reference_lag(self) -> int:
        """1 for `reference="two-back"`, else 0."""
        return 1 if self.reference == "two-back" else 0

    def anchor_in(self, round: int) -> Anchor:
        """The factor aligned in `round`."""
        if self.anchor == "alternate":
            return "a" if round % 2 else "b"
        return self.anchor

    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """The trained adapter, rotated; as it is in the first round, and where the server rotates."""
        del clients
        if round == 1 or not self._clients_rotate:
            return Upload(trained)
        target, anchor = reference or received, self.anchor_in(round)
        found = correlations(trained, target, anchor)
        rotation = solve_sites(found, at(self.strength, round), self.path, self.group)
        if self.guard == "client":
            rotation = rotation.only(_nearer(rotation, correlations(trained, target, "joint")))
        return Upload(apply(trained, rotation), rotation)

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The mean of both factors, after rotating all clients in one batch where the server does that.

        A refit from the reference is the same with any rotations; they then only count in the metrics.
        """
        if self._clients_rotate:
            return super().aggregate(updates, received, state, round)
        target = Adapter.from_tensors(state.tensors, received.scale) if state.tensors else received
        carried = received.tensors() if self.reference == "two-back" else {}
        if round == 1 and self.reference != "consensus":
            mean, state = super().aggregate(updates, received, state, round)
            return mean, MethodState(carried, state.numbers)
        padded, weights = self.gather(updates, received)
        clients = [update.adapter for update in in_order(updates)]
        strength = at(self.strength, round)
        if self.reference == "consensus":
            rotation = consensus(clients, weights, received, self.sweeps, strength, self.path, self.group)
        else:
            found = client_correlations(clients, target, self.anchor_in(round))
            rotation = solve_sites(found, strength, self.path, self.group)
        if self.guard:
            rotation = rotation.only(lowers_error(padded, weights, rotation)[:, None])
        mean = self.fitted(lambda: rotated_mean(padded, weights, rotation), padded, weights, received)
        return mean, MethodState(carried, rotation.summary())


def _nearer(rotation: SiteRotation, joint: Mapping[str, Tensor]) -> Tensor:
    """Where a rotation lowers the joint distance to the reference, `(S, ...)`: `trace((R - I).T M) > 0`."""
    gains: list[Tensor] = []
    for matrix, found in zip(rotation.matrix.unbind(), joint.values(), strict=True):
        turn = (matrix - identity_like(matrix))[..., : found.shape[-1], : found.shape[-1]]
        gains.append((turn * found).sum((-2, -1)))
    return torch.stack(gains) > 0
