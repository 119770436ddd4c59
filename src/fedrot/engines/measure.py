"""One round's updates as they come in, and everything measured of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedrot.client import Trained
from fedrot.core.adapter import Adapter
from fedrot.core.diagnostics import drift
from fedrot.core.measure import adapter_aggregation_error, adapter_broadcast_error
from fedrot.methods import Method, Update, Upload
from fedrot.server import ServerState
from fedrot.wire import encode


class Round:
    """Collects the updates of a round; those with a number that is not finite are rejected and counted."""

    def __init__(self, method: Method, number: int) -> None:
        self.method = method
        self.number = number
        self.updates: list[Update] = []
        self.trained: list[Adapter] = []
        self.rejected: dict[int, str] = {}
        self.sizes: list[Tensor] = []
        self.angles: list[Tensor] = []
        self.sites: tuple[str, ...] = ()
        self.degenerate = 0
        self.flips = 0
        self.steps = 0

    @property
    def count(self) -> int:
        """Clients heard of so far."""
        return len(self.updates) + len(self.rejected)

    def add(self, trained: Trained, upload: Upload, weights: list[float], steps: int) -> None:
        """Take in a group: the stack as trained, and as the method uploads it."""
        finite = (trained.finite & upload.adapter.finite(stacked=True)).tolist()
        losses = trained.loss.tolist()
        for index, client in enumerate(trained.clients):
            if finite[index]:
                metrics = {"loss": losses[index]}
                self.updates.append(Update(client, upload.adapter.select(index), weights[index], metrics))
                self.trained.append(trained.adapter.select(index))
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


def measure(round: Round, before: ServerState, after: ServerState, *, full: bool) -> dict[str, Any]:
    """The record of a round, without its number, evaluation and time.

    Args:
        round: the updates that were aggregated.
        before: the state whose adapter the clients received.
        after: the state with the adapter to broadcast next.
        full: every client took part in every round, so that factors which did not change need not be sent again.
    """
    weights = [update.weight for update in round.updates]
    uploads = [update.adapter for update in round.updates]
    plain = adapter_aggregation_error(round.trained, weights)
    if round.method.laws.factor_mean and round.method.secure_aggregation:
        error = adapter_aggregation_error(uploads, weights)
    else:
        error = adapter_broadcast_error(uploads, weights, after.adapter)
    losses = [update.metrics["loss"] for update in round.updates]
    return {
        "loss": sum(losses) / len(losses),
        "aggregation_error": float(error.absolute),
        "aggregation_error_relative": float(error.relative),
        "aggregation_error_unaligned": float(plain.absolute),
        "aggregation_error_relative_unaligned": float(plain.relative),
        **_rotation(round),
        **after.method.numbers,
        "drift": float(torch.stack([drift(trained, before.adapter) for trained in round.trained]).mean()),
        **_bytes(round, before, full=full),
        "clients": len(round.updates),
        "rejected": len(round.rejected),
        "client_ids": sorted(update.client for update in round.updates),
        "rejected_clients": {str(client): why for client, why in sorted(round.rejected.items())},
        "client_steps": round.steps,
    }


def _rotation(round: Round) -> dict[str, Any]:
    if not round.sizes:
        return {"rotation": 0.0, "rotation_by_site": {}, "rotation_angle": 0.0, "degenerate": 0, "flips": 0}
    size, angle = torch.cat(round.sizes, 1), torch.cat(round.angles, 1)
    return {
        "rotation": float(size.mean()),
        "rotation_by_site": dict(zip(round.sites, size.mean(1).tolist(), strict=True)),
        "rotation_angle": float(angle.max()),
        "degenerate": round.degenerate,
        "flips": round.flips,
    }


def _bytes(round: Round, before: ServerState, *, full: bool) -> dict[str, int]:
    """Bytes of the messages as serialised. All clients' messages have one form, so one of each is serialised."""
    method, number, count = round.method, round.number, round.count
    up = method.uploads(number)
    size_up = len(encode(round.updates[0].adapter, a=up.a, b=up.b))
    if number > 1 and full:
        down = method.changes(number - 1)  # clients still hold the rest, and any earlier reference
        size_down = len(encode(before.adapter, a=down.a, b=down.b))
    else:
        size_down = len(encode(before.adapter)) + sum(len(encode(adapter)) for adapter in before.history)
    return {"bytes_up": size_up * count, "bytes_down": size_down * count}
