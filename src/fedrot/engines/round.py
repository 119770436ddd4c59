"""One round's updates as they come in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.client import Trained
from fedrot.core.adapter import Adapter
from fedrot.core.diagnostics import drift
from fedrot.errors import AdapterError
from fedrot.methods import Method, Update, Upload
from fedrot.participation import Participation
from fedrot.server import Apart


class Round:
    """Collects the updates of a round; those with a number that is not finite are rejected and counted.

    Attributes:
        updates: accepted, in the order they came.
        trained: the adapters behind them, before the method's upload hook.
            Empty where the engine does not see them.
        drifts: of each, from what its client started from.
        messages: one uploaded adapter of every rank, whose size is that of all of that rank.
        lost: clients that were to report and did not, with the reason.
        traffic: bytes of the messages that really travelled, where they did.
        mechanism: of the recipe's privacy. With `local` clients tell nothing but their uploads: no loss, no drift, no
            rotation, no steps, and not whether training failed.
        summed: clients of whose updates only the weighted mean is known, which is then the one update.
        rounding: with `summed`, by how much the mean may be off at most, see `fedrot.secagg`.
        apart: with a personal method on nodes, what the server knows of the parts that clients keep there. Updates
            then hold the broadcast's in their place.
    """

    def __init__(
        self,
        method: Method,
        number: int,
        participation: Participation,
        ranks: Sequence[int | None],
        mechanism: str = "none",
    ) -> None:
        self.method = method
        self.mechanism = mechanism
        self.number = number
        self.participation = participation
        self.updates: list[Update] = []
        self.trained: list[Adapter] = []
        self.drifts: list[float | Tensor] = []
        self.rejected: dict[int, str] = {}
        self.lost: dict[int, str] = {}
        self.traffic: dict[str, int] | None = None
        self.summed: tuple[int, ...] = ()
        self.rounding = 0.0
        self.apart: Apart | None = None
        self.ranks = ranks
        self.messages: dict[int | None, Adapter] = {}
        self.sizes: list[Tensor] = []
        self.angles: list[Tensor] = []
        self.sites: tuple[str, ...] = ()
        self.degenerate = 0
        self.flips = 0
        self.steps = 0

    @property
    def count(self) -> int:
        """Clients heard of so far."""
        return len(self.summed or self.updates) + len(self.rejected)

    @property
    def clients(self) -> list[int]:
        """Whose updates were accepted, ascending."""
        return sorted(self.summed or (update.client for update in self.updates))

    def add(
        self,
        trained: Trained,
        start: Adapter,
        upload: Upload,
        weights: Sequence[float],
        steps: int,
    ) -> None:
        """Take in a group.

        Args:
            trained: the stack as trained.
            start: what its clients started from, one adapter for all or a stack.
            upload: the stack as the method uploads it.
            weights: of the clients, unnormalised.
            steps: local steps of all of them together.
        """
        if self.mechanism == "local":
            for index, client in enumerate(trained.clients):
                self.receive(Update(client, upload.adapter.select(index), weights[index]), {})
            return
        finite = (trained.finite & upload.adapter.finite(stacked=True)).tolist()
        losses = trained.loss.tolist()
        for index, client in enumerate(trained.clients):
            self.messages.setdefault(self.ranks[client], upload.adapter.select(index))
            if finite[index]:
                metrics = {"loss": losses[index]}
                self.updates.append(Update(client, upload.adapter.select(index), weights[index], metrics))
                self.trained.append(trained.adapter.select(index))
                self.drifts.append(drift(self.trained[-1], start.select(index) if start.batch else start))
            else:
                self.rejected[client] = "non-finite loss or update"
        self.steps += steps
        if (rotation := upload.rotation) is not None:
            keep = torch.tensor(finite, device=rotation.size.device)
            self.sites = rotation.sites
            self.sizes.append(rotation.size[:, keep])
            self.angles.append(rotation.angle[:, keep])
            self.degenerate += int(rotation.degenerate[:, keep].sum())
            self.flips += int(rotation.flipped[:, keep].sum())

    def receive(
        self,
        update: Update,
        told: Mapping[str, float],
        trained: Adapter | None = None,
        sizes: Tensor | None = None,
    ) -> None:
        """Take in one client's update that came over a network, with what the client measured.

        Args:
            update: checked against what was expected; one with a number that is not finite is rejected.
            told: `steps`, `drift` and, if the client rotated, `rotation`, `rotation_angle`, `degenerate` and `flips`;
                nothing with mechanism `local`.
            trained: the adapter behind the update, where it came as well.
            sizes: with `trained`, `||R - I||_F` of the client's rotation at every site, `(S,)`, if it rotated.
        """
        self.messages.setdefault(self.ranks[update.client], update.adapter)
        if self.mechanism == "local":
            if told or update.metrics:
                raise AdapterError(
                    f"client {update.client} sent {', '.join(sorted({*told, *update.metrics}))} with its update: with "
                    "privacy.mechanism = 'local' nothing else may leave it; does it run the same version of fedrot?"
                )
            if bool(update.adapter.finite()):
                self.updates.append(update)
            else:
                self.rejected[update.client] = "non-finite update"
            return
        self.steps += int(told["steps"])
        finite = all(math.isfinite(value) for value in (*told.values(), *update.metrics.values()))
        arrived = [adapter.finite() for adapter in (update.adapter, trained) if adapter is not None]
        if sizes is not None:
            arrived.append(sizes.isfinite().all())
        if not (finite and all(bool(whole) for whole in arrived)):
            self.rejected[update.client] = "non-finite loss or update"
            return
        self.updates.append(update)
        if trained is not None:
            self.trained.append(trained)
        if trained is not None and sizes is not None:
            self.sites = tuple(trained.sites)
        self._note(told, sizes)

    def receive_mean(self, mean: Update, told: Mapping[int, Mapping[str, float]], rounding: float) -> None:
        """Take in the weighted mean of several clients' updates, which were not seen one by one.

        Args:
            mean: with weight 1; its client number stands for all.
            told: by client in the mean, as for `receive`. Each client has checked its own numbers.
            rounding: by how much the mean may be off at most.
        """
        self.updates.append(mean)
        self.summed, self.rounding = tuple(sorted(told)), rounding
        if self.mechanism == "local":
            return
        for measured in told.values():
            self.steps += int(measured["steps"])
            self._note(measured)

    def _note(self, told: Mapping[str, float], sizes: Tensor | None = None) -> None:
        self.drifts.append(told["drift"])
        if "rotation" in told:
            mean = torch.tensor([told["rotation"]])
            self.sizes.append((mean if sizes is None else sizes).unsqueeze(1))
            self.angles.append(torch.tensor([[told["rotation_angle"]]]))
            self.degenerate += int(told["degenerate"])
            self.flips += int(told["flips"])

    def drop(self, client: int, reason: str) -> None:
        """A client that was to report did not."""
        self.lost[client] = reason
        dropped = tuple(sorted({*self.participation.dropped, client}))
        self.participation = replace(self.participation, dropped=dropped)
