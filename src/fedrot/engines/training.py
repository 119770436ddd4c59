"""A node's part of a round: clients of one cohort train from what they received and prepare what they upload."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrot.client import Plan, Trained, plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.core.frames import reframe
from fedrot.crew import Crew, Halted
from fedrot.engines import compat
from fedrot.engines.parts import Split
from fedrot.engines.private import protected
from fedrot.engines.setup import Federation
from fedrot.methods import Method, Upload
from fedrot.server import bare
from fedrot.stacked import StackedModel
from fedrot.tasks.objective import Objective


@dataclass(frozen=True)
class Clients:
    """What it takes to train clients, be it all of a federation's or those of one node."""

    config: RunConfig
    method: Method
    crew: Crew
    objective: Objective
    train: Split
    rows: Mapping[int, Tensor]
    """By client, the row numbers of its own examples."""
    group_size: int

    @classmethod
    def of(cls, federation: Federation) -> Clients:
        """All clients of a federation."""
        rows = dict(enumerate(federation.partition.rows))
        return cls(
            federation.config,
            federation.method,
            federation.crew,
            federation.objective,
            federation.train,
            rows,
            federation.group_size,
        )


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


def groups(members: Clients, clients: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Clients to train together, with like numbers of steps, so that few wait for the slowest."""
    ordered = list(clients)
    if members.config.train.local_epochs is not None:
        ordered.sort(key=lambda client: (len(members.rows[client]), client))
    for start in range(0, len(ordered), members.group_size):
        yield tuple(ordered[start : start + members.group_size])


def train_all(
    members: Clients, number: int, clients: Sequence[int], task_of: Callable[[tuple[int, ...]], Task]
) -> Generator[tuple[Task, Group]]:
    """Train clients of one rank and one lag, as many stacks beside each other as the crew has models.

    Args:
        members: to whom they belong.
        number: of the round.
        clients: to train.
        task_of: makes the task of clients that train together; called when their turn is near.

    Returns:
        Tasks and what came of them, in the order of `groups`; to be closed, see `Crew.map`.
    """
    together, cache = list(groups(members, clients)), members.train.cache
    if together and cache is not None and len(members.crew.models) > 1 and not bool(cache.filled.all()):
        # All models fill it, so before they have other work.
        cache.ensure(torch.cat([_plan(members, group, number).rows.flatten() for group in together]))

    def train(model: StackedModel, task: Task, halted: Halted) -> tuple[Task, Group]:
        return task, train_clients(members, task, model, halted)

    return members.crew.map(train, map(task_of, together))


def train_clients(members: Clients, task: Task, model: StackedModel, halted: Halted | None = None) -> Group:
    """Train the clients of a task in one stack, let the method prepare their uploads, and make those private."""
    config, method, train = members.config, members.method, members.train
    settings, start = compat.train_settings(config), compat.starting(config, task.start)
    plan = _plan(members, task.clients, task.round)
    trained = train_group(
        model,
        members.objective,
        train.data,
        start,
        plan,
        settings,
        method.trainable(task.round),
        train.cache,
        residual=task.received.residual,
        prepare=compat.keep_half if "half_weights" in compat.flags(config) else None,
        halted=halted,
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
    upload = protected(config, method, upload, task.received, task.round, trained.clients)
    return Group(trained, start, upload, tuple(plan.steps.tolist()))


def _plan(members: Clients, clients: Sequence[int], number: int) -> Plan:
    config, rows = members.config, [members.rows[client] for client in clients]
    lengths = members.train.data.lengths if config.train.bucket else None
    settings = compat.train_settings(config)
    return plan_group(clients, rows, settings, seed=config.seed, round=number, lengths=lengths)
