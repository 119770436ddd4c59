"""What the clients of a node have to send after they trained in one stack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation
from fedrot.core.diagnostics import drift
from fedrot.engines.flower.as_trained import as_trained
from fedrot.engines.flower.messages import Told
from fedrot.engines.flower.node_data import Local
from fedrot.engines.flower.secagg.parties import Share
from fedrot.engines.training import Group
from fedrot.server import own_parts
from fedrot.wire import uploaded


@dataclass(frozen=True)
class Sends:
    """What one client has to send."""

    client: int
    arrays: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    """What the method made the factors among them of, where that is asked for."""
    told: Told | None
    """None where its privacy forbids to tell anything."""
    finite: bool
    keeps: Mapping[str, Tensor]
    """What it does not send but keeps to itself, where the method leaves it that."""


def sends(group: Group, local: Local, round: int, along: bool) -> Iterator[Sends]:
    """What each client of a group has to send, with `along` also what it trained."""
    method = local.clients.method
    personal = method.laws.personal
    silent = local.clients.config.privacy.mechanism == "local"  # not even that training failed
    losses = group.trained.loss.tolist()
    drifts = drift(group.trained.adapter, group.start).tolist()
    usable = group.upload.adapter.finite(stacked=True)
    finite = (usable if silent else group.trained.finite & usable).tolist()
    rotation = group.upload.rotation
    turns = _turns(rotation)
    for index, client in enumerate(group.trained.clients):
        adapter: Adapter = replace(group.upload.adapter.select(index), residual={})
        arrays = uploaded(method, adapter, round)
        before: dict[str, Tensor] = {}
        if along:
            turn = None if rotation is None else rotation.select(index)
            before = as_trained(method, group.trained.adapter.select(index), turn, round)
        turned = {name: values[index] for name, values in turns.items()}
        # The server sees no part that stays here, so it has to be told that one is no number.
        loss = losses[index] if finite[index] or not personal else math.nan
        told = Told(loss, group.steps[index], len(local.clients.rows[client]), drifts[index], turned)
        keeps = own_parts(method, adapter, round) if personal and finite[index] else {}
        yield Sends(client, arrays, before, None if silent else told, finite[index], keeps)


def share(sent: Sends, local: Local) -> Share | str:
    """What a client brings to secure aggregation: arrays and a weight, or why it stays away."""
    if not sent.finite:
        return "non-finite loss or update"
    weighted = local.clients.config.federation.weighting == "samples"
    # The reply must not keep a stack of clients in memory, of which this is a view.
    arrays = {key: tensor.clone() for key, tensor in sent.arrays.items()}
    return arrays, len(local.clients.rows[sent.client]) if weighted else 1


def _turns(rotation: SiteRotation | None) -> dict[str, list[float]]:
    """What is told of the rotations of a group, by client: one transfer from the device a figure, not one a client."""
    if rotation is None:
        return {}
    return {
        "rotation": rotation.size.mean(0).tolist(),
        "rotation_angle": rotation.angle.amax(0).tolist(),
        "degenerate": rotation.degenerate.sum(0).double().tolist(),
        "flips": rotation.flipped.sum(0).double().tolist(),
    }
