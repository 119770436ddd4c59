"""From a recipe to everything a federation needs before its first round; shared by all engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.crew import Crew
from fedrot.engines import compat
from fedrot.engines.groups import choose_group_size
from fedrot.engines.parts import Parts, Split, assemble, choose_device
from fedrot.engines.secure import check_secure
from fedrot.engines.shared import Shared, base_key, task_key
from fedrot.errors import ConfigError
from fedrot.methods import Method, methods
from fedrot.methods.server_optimizer import ServerOptimizer
from fedrot.model import BaseModel
from fedrot.participation import deal_ranks
from fedrot.partition import Partition, partition
from fedrot.privacy import Accountant, check_delta, check_privacy
from fedrot.stacked import StackedModel
from fedrot.tasks.base import TaskData
from fedrot.tasks.catalogue import objective
from fedrot.tasks.fitting import fitted
from fedrot.tasks.named import named
from fedrot.tasks.objective import Objective
from fedrot.tasks.own import NODES

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Federation:
    """A recipe made real: data, clients, method, model and initial adapter."""

    config: RunConfig
    task: TaskData
    partition: Partition
    method: Method
    base: BaseModel
    crew: Crew
    initial: Adapter
    train: Split
    validation: Split | None
    test: Split
    group_size: int
    ranks: tuple[int | None, ...]
    """Of every client; None unless the recipe mixes them: then all follow what they receive."""
    examples: tuple[int, ...] | None = None
    """Of every client, where data lies with the nodes and `partition` is empty."""
    further: Mapping[str, Split] = field(default_factory=dict[str, Split])
    """More splits to test on, by name."""

    @property
    def clients(self) -> int:
        """How many clients the training data was dealt to."""
        return len(self.partition.rows)

    @property
    def model(self) -> StackedModel:
        """The one that evaluates, and trains where nobody else does."""
        return self.crew.lead

    @property
    def full(self) -> bool:
        """Whether every client takes part in every round, so that all of them hold the last broadcast."""
        settings = self.config.federation
        return settings.fraction == 1 and not settings.dropout and not settings.stale

    @property
    def optimizer(self) -> ServerOptimizer | None:
        """The server's, if it has one."""
        server = self.config.server
        if server.optimizer == "none":
            return None
        return ServerOptimizer(
            name=server.optimizer,
            lr=server.rate,
            momentum=server.momentum,
            beta2=server.beta2,
            tau=server.tau,
        )

    @cached_property
    def accountant(self) -> Accountant:
        """Of the recipe's privacy."""
        config = self.config
        return Accountant(config.privacy, config.seed, self.clients, config.federation.fraction)

    @property
    def weights(self) -> list[float]:
        """Every client's unnormalised aggregation weight."""
        return [self.weight(client) for client in range(self.clients)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened to the data on its way here that the user should know."""
        cut = {name: split.data.truncated for name, split in self.splits.items() if split.data.truncated}
        limit = f"task.max_length = {self.config.task.max_length}"
        told = tuple(f"{count} {name} texts were cut to {limit} tokens" for name, count in cut.items())
        return (*self.task.notes, *self.partition.notes, *told, *compat.notes(self.config))

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test, **self.further}

    @property
    def tested(self) -> dict[str, Split]:
        """The splits that models are tested on, by name: all but `train`; `test` is the first."""
        return {"test": self.test} | {name: split for name, split in self.splits.items() if name != "train"}

    def weight(self, client: int) -> float:
        """A client's unnormalised aggregation weight."""
        own = len(self.partition.rows[client]) if self.examples is None else self.examples[client]
        return compat.weight(self.config, own)

    @property
    def data_with_nodes(self) -> bool:
        """Whether every node brings its own training data, and this process has none."""
        return self.config.task.data == NODES

    @property
    def training_examples(self) -> int | None:
        """Of all clients together, those counted that belong to none; None where clients keep that to themselves."""
        if self.data_with_nodes and self.config.privacy.mechanism == "local":
            return None
        return len(self.train.data) if self.examples is None else sum(self.examples)

    @cached_property
    def objective(self) -> Objective:
        """What is learned."""
        return objective(self.config.task)

    def label_counts(self) -> Tensor:
        """`(clients, labels)` training examples; `(clients, 1)` where they have no classes."""
        labels = self.train.data.labels.cpu()
        return self.partition.counts(
            labels if self.task.labels else labels * 0, max(1, len(self.task.labels))
        )


def prepare(config: RunConfig, shared: Shared | None = None) -> Federation:
    """Build everything a recipe names; the cheap checks come first, so that mistakes show before data is read.

    Args:
        config: the recipe.
        shared: what an earlier run in this process left to use again; that run must have closed its model.

    Raises:
        ConfigError, DataError, ModelError: as the parts do.
    """
    method = check_recipe(config)
    choose_device(config.train.device)
    shared = shared or Shared()
    apart = config.task.data == NODES
    goal = objective(config.task)
    if config.output.probe and (goal.head == "causal-lm" or goal.outputs):
        raise ConfigError(
            f"output.probe = true: a linear probe needs classes, which task.data = {config.task.data!r} has not; set "
            "output.probe = false"
        )
    if config.output.samples and goal.head != "causal-lm":
        raise ConfigError(
            f"output.samples = {config.output.samples}: only the task 'generate' completes texts, and task.name = "
            f"{config.task.name!r}; leave the key out"
        )
    load = goal.load_held_out if apart else goal.load
    task = shared.get("task", task_key(config), lambda: load(config.seed))
    # Dealing is checked before the model is loaded, unless it depends on the model's tokenizer.
    parts = assemble(config, goal.outputs or task.labels, shared) if goal.leaves_out else None
    if parts is not None:
        whole, base = task, parts.base
        task = shared.get(
            "fitting", base_key(config), lambda: fitted(goal, whole, base.processor, base.opening)
        )
    clients = config.federation.clients
    with named("train", task.train):
        shares = _nobodys(clients) if apart else partition(task.train, config.partition, clients, config.seed)
    check_delta(config.privacy, len(shares.rows))
    ranks = deal_ranks(config.lora, len(shares.rows), config.seed)
    parts = parts or assemble(config, goal.outputs or task.labels, shared)
    train = _encoded(parts, "train", task.train)
    return Federation(
        config,
        task,
        shares,
        method,
        parts.base,
        parts.crew,
        parts.initial,
        train,
        _encoded(parts, "validation", task.validation) if task.validation is not None else None,
        _encoded(parts, "test", task.test),
        choose_group_size(config, len(shares.rows), parts.crew, goal, parts.initial, train.data),
        ranks,
        further={name: _encoded(parts, name, data) for name, data in task.further.items()},
    )


def check_recipe(config: RunConfig) -> Method:
    """The recipe's method, and every check that needs nothing but the recipe.

    Raises:
        ConfigError: names the keys and what to do.
    """
    method = compat.method_of(config)
    compat.check_compat(config)
    _check_support(config, method)
    check_privacy(config, method)
    check_secure(config, method)
    return method


def _encoded(parts: Parts, name: str, data: Dataset) -> Split:
    with named(name, data):
        return parts.split(name, data)


def check_data_is_here(config: RunConfig) -> None:
    """Refuse, on one machine, a recipe whose training data lies with the nodes of a deployed federation.

    Raises:
        ConfigError: names the key and what to do.
    """
    if config.task.data == NODES:
        raise ConfigError(
            f"task.data = {NODES!r}: the data lies with the nodes of a deployed federation; submit the recipe with "
            "`fedrot deploy run`, or name data that is here"
        )


def _nobodys(clients: int | None) -> Partition:
    """What the server has of data that lies with the nodes.

    Raises:
        ConfigError: it is not said how many clients there are.
    """
    if clients is None:
        raise ConfigError(
            "federation.clients: missing; where task.data = 'nodes', say how many clients there are"
        )
    return Partition((torch.empty(0, dtype=torch.long),) * clients)


def _check_support(config: RunConfig, method: Method) -> None:
    """Refuse what the method does not declare to support.

    Raises:
        ConfigError: names the key, the method, and the methods that can.
    """
    ranks = config.lora.ranks
    mixed = ranks is not None and {int(rank) for rank in ranks} != {config.lora.rank}
    for asked, law, why in (
        (mixed, "mixed_ranks", "lora.ranks: all clients of method {name!r} need the server's rank"),
        (
            config.federation.stale > 0,
            "stale",
            f"federation.stale = {config.federation.stale:g}: method {{name!r}} cannot take an update that was "
            "computed from an earlier broadcast",
        ),
    ):
        if asked and not getattr(method.laws, law):
            able = ", ".join(repr(name) for name, cls in methods().items() if getattr(cls.laws, law))
            raise ConfigError(
                f"{why.format(name=method.name)}; methods that can: {able}; or leave the key out"
            )
    if config.model.quantization != "none" and method.laws.residual:
        raise ConfigError(
            f"model.quantization = {config.model.quantization!r}: method {method.name!r} changes the base weights from "
            "round to round, and nothing can be added to quantised ones; set model.quantization = 'none', or choose a "
            "method without a residual (`fedrot methods`)"
        )
    frame, travels = config.federation.upload_frame, [method.uploads(number) for number in (1, 2)]
    if frame != "own" and not all(sent.a and sent.b for sent in travels):
        raise ConfigError(
            f"federation.upload_frame = {frame!r}: method {method.name!r} does not send both factors, and one in "
            "another frame is of no use; set federation.upload_frame = 'own', or choose a method that sends both"
        )
