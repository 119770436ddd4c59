"""A recipe's forecast: memory by group size, hours by device, bytes; and what was assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedrot.config import RunConfig
from fedrot.engines.compat import method_of
from fedrot.engines.groups import choose_workers, group_on_cpu
from fedrot.errors import ConfigError
from fedrot.estimate.architectures import shape_of
from fedrot.estimate.devices import Device
from fedrot.estimate.memory import Memory, group_that_fits, memory, trained_numbers
from fedrot.estimate.shape import Shape
from fedrot.estimate.wire import Bytes, messages
from fedrot.estimate.work import Work, work
from fedrot.server import cohort_size
from fedrot.tasks.splits import part

SIZES = {
    "glue:cola": (8551, 1043, 2),
    "glue:mnli": (392702, 9815, 3),
    "glue:mrpc": (3668, 408, 2),
    "glue:qnli": (104743, 5463, 2),
    "glue:qqp": (363846, 40430, 2),
    "glue:rte": (2490, 277, 2),
    "glue:sst2": (67349, 872, 2),
    "glue:stsb": (5749, 1500, 1),
    "glue:wnli": (635, 71, 2),
    "hub:openai/gsm8k:main": (7473, 1319, 0),
    "tweets": (37233, 0, 3),
}
"""Training and test examples, each text once, and outputs of public data; 0 where test examples are split off."""


@dataclass(frozen=True)
class OnDevice:
    """A run on one device: how many clients fit in a stack, what that needs, and how long it takes.

    `group` is 0, and `memory` that of one client, where not even one fits; `hours` is None without a rate.
    """

    device: Device
    group: int
    memory: Memory
    hours: float | None


@dataclass(frozen=True)
class Forecast:
    """What a run will cost."""

    shape: Shape
    trained: int
    """Numbers that one client trains."""
    single: Memory
    """The peak of a step of one client at a time."""
    work: Work
    bytes: Bytes
    devices: tuple[OnDevice, ...]
    notes: tuple[str, ...]


def forecast(config: RunConfig, devices: Sequence[Device]) -> Forecast:
    """What a recipe will cost, without data, weights or a device.

    Args:
        config: the recipe.
        devices: to say hours for.

    Raises:
        ConfigError: the recipe leaves open how many clients there are.
        ModelError: the model's layers are not known.
    """
    clients = config.federation.clients
    if clients is None:
        raise ConfigError("federation.clients: missing; the estimate needs the number of clients")
    method = method_of(config)
    chosen = cohort_size(clients, config.federation.fraction)
    notes: list[str] = []
    train, evaluated, outputs = _examples(config, notes)
    shape = shape_of(config, len(config.task.labels or ()) or outputs)
    notes[:0] = [f"model: {shape.source}", _taken(config, shape)]
    if config.lora.ranks is not None:
        notes.append("lora.ranks: all clients are taken to have the server's rank")
    done = work(config, shape, clients=chosen, steps=_steps(config, train, clients), evaluated=evaluated)
    return Forecast(
        shape,
        trained_numbers(config, shape),
        memory(config, shape, 1, chosen=chosen),
        done,
        messages(config, shape, method, chosen),
        tuple(_on(device, config, shape, clients, chosen, done) for device in devices),
        tuple(notes),
    )


def _taken(config: RunConfig, shape: Shape) -> str:
    """What is assumed of the examples' lengths."""
    if shape.tokens is not None:
        return f"every image is {shape.tokens} tokens"
    half = ", half of them the answer's" if shape.asked < 1 else ""
    return f"every text is taken to have task.max_length = {config.task.max_length} tokens{half}"


def _on(device: Device, config: RunConfig, shape: Shape, clients: int, chosen: int, done: Work) -> OnDevice:
    asked, kind = config.federation.group_size, "cpu" if device.measured else "cuda"
    workers = choose_workers(config, torch.device("cpu")) if device.measured else 1
    if asked != "auto":
        group = min(asked, chosen)
        needed = memory(config, shape, min(group * workers, chosen), device=kind, chosen=chosen)
        group = group if needed.total <= device.memory else 0
    elif device.measured:
        group = min(chosen, group_on_cpu(config, clients, workers))
        needed = memory(config, shape, min(group * workers, chosen), device=kind, chosen=chosen)
    else:
        group = group_that_fits(config, shape, device.memory, chosen)
        needed = memory(config, shape, max(group, 1), device=kind, chosen=chosen)
    return OnDevice(device, group, needed, done.hours(device, config))


def _examples(config: RunConfig, notes: list[str]) -> tuple[int | None, int, int]:
    """Training examples, if known; examples of all evaluated splits, as far as known; and outputs of a classifier."""
    task = config.task
    known, test, outputs = SIZES.get(task.data, (None, 0, 2))
    train = known
    if known is not None and not test and task.test_data is None:
        test = part(known, task.test_fraction)
        train = known - test
    held = 0
    if task.validation_fraction:
        held = (task.max_validation or 0) if known is None else part(known, task.validation_fraction)
        train = None if train is None else train - held  # all of it, also where `max_validation` keeps less
    if task.max_train is not None:
        train = task.max_train if train is None else min(train, task.max_train)
    test = min(test or task.max_test or 0, task.max_test or test)
    held = min(held, task.max_validation or held)
    if not test:
        notes.append(
            "evaluation is not counted: how many test examples there are shows when the data is read"
        )
    if task.name != "generate" and task.data not in SIZES and not task.labels:
        notes.append("the number of classes shows when the data is read; taken to be 2")
    return train, test + held, outputs


def _steps(config: RunConfig, train: int | None, clients: int) -> float:
    settings = config.train
    if settings.steps is not None:
        return float(settings.steps)
    if train is None:
        raise ConfigError(
            "train.local_epochs: how many steps an epoch has shows when the data is read; for an estimate, set "
            "task.max_train or train.local_steps"
        )
    batch = settings.batch_size * settings.accumulate
    return float((settings.local_epochs or 1) * math.ceil(train / clients / batch))
