"""A node's part of a round: clients of one cohort train from what they received and prepare what they upload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedrot.client import Trained, plan_group, train_group
from fedrot.core.adapter import Adapter
from fedrot.core.frames import reframe
from fedrot.engines.setup import Federation
from fedrot.methods import Upload
from fedrot.server import bare


@dataclass(frozen=True)
class Task:
    """What clients of one rank and one lag are asked to do in a round."""

    round: int
    clients: tuple[int, ...]
    received: Adapter
    """The broadcast they train from, with its residual."""
    start: Adapter
    """The same at their rank, with what they keep to themselves in place: one adapter for all, or a stack."""
    reference: Adapter
    """What the method's upload hook aligns to."""


@dataclass(frozen=True)
class Group:
    """What clients that trained in one stack have to send, and what is measured on the way; by client first."""

    trained: Trained
    start: Adapter
    upload: Upload
    steps: tuple[int, ...]


def groups(federation: Federation, clients: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Clients to train together, with like numbers of steps, so that few wait for the slowest."""
    ordered = list(clients)
    if federation.config.train.local_epochs is not None:
        ordered.sort(key=lambda client: (len(federation.partition.rows[client]), client))
    for start in range(0, len(ordered), federation.group_size):
        yield tuple(ordered[start : start + federation.group_size])


def train_clients(federation: Federation, task: Task) -> Group:
    """Train the clients of a task in one stack, and let the method prepare their uploads."""
    config, method, train = federation.config, federation.method, federation.train
    rows: list[Tensor] = [federation.partition.rows[client] for client in task.clients]
    lengths = train.data.lengths if config.train.bucket else None
    plan = plan_group(task.clients, rows, config.train, seed=config.seed, round=task.round, lengths=lengths)
    trained = train_group(
        federation.model,
        train.data,
        task.start,
        plan,
        config.train,
        method.trainable(task.round),
        train.cache,
        residual=task.received.residual,
    )
    frame = config.federation.upload_frame
    turned = reframe(trained.adapter, frame, config.seed, task.round, trained.clients)
    trained = replace(trained, adapter=turned)
    upload = method.before_upload(
        trained.adapter,
        bare(task.received),
        task.round,
        reference=bare(task.reference),
        clients=trained.clients,
    )
    return Group(trained, task.start, upload, tuple(plan.steps.tolist()))
