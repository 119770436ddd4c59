"""From a recipe to everything a federation needs before its first round; shared by all engines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.groups import choose_group_size
from fedrot.engines.shared import Shared, base_key, frozen_key, task_key
from fedrot.errors import ConfigError, ModelError
from fedrot.methods import Method, build, methods
from fedrot.methods.server_optimizer import ServerOptimizer
from fedrot.model import BaseModel, initial_adapter, load_base, load_peft
from fedrot.participation import deal_ranks
from fedrot.partition import Partition, partition
from fedrot.stacked import StackedModel
from fedrot.tasks.base import TaskData
from fedrot.tasks.classify import load_task
from fedrot.tasks.encode import Encoded, encode


@dataclass(frozen=True)
class Split:
    """One encoded split and, where the recipe asks for it, the cached states of the frozen blocks."""

    data: Encoded
    cache: FrozenCache | None = None


@dataclass(frozen=True)
class Federation:
    """A recipe made real: data, clients, method, model and initial adapter."""

    config: RunConfig
    task: TaskData
    partition: Partition
    method: Method
    base: BaseModel
    model: StackedModel
    initial: Adapter
    train: Split
    validation: Split | None
    test: Split
    group_size: int
    ranks: tuple[int | None, ...]
    """Of every client; None unless the recipe mixes them: then all follow what they receive."""

    @property
    def clients(self) -> int:
        """How many clients the training data was dealt to."""
        return len(self.partition.rows)

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
        return (*self.task.notes, *self.partition.notes, *told)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        validation = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train, **validation, "test": self.test}

    def weight(self, client: int) -> float:
        """A client's unnormalised aggregation weight."""
        return (
            float(len(self.partition.rows[client])) if self.config.federation.weighting == "samples" else 1.0
        )

    def label_counts(self) -> Tensor:
        """`(clients, labels)` training examples."""
        return self.partition.counts(self.train.data.labels.cpu(), len(self.task.labels))


def prepare(config: RunConfig, shared: Shared | None = None) -> Federation:
    """Build everything a recipe names; the cheap checks come first, so that mistakes show before data is read.

    Args:
        config: the recipe.
        shared: what an earlier run in this process left to use again; that run must have closed its model.

    Raises:
        ConfigError, DataError, ModelError: as the parts do.
    """
    method = build(config.method.name, config.method.options, config.seed)
    _check_support(config, method)
    device = choose_device(config.train.device)
    shared = shared or Shared()
    task = shared.get("task", task_key(config), lambda: load_task(config.task, config.seed))
    shares = partition(task.train, config.partition, config.federation.clients, config.seed)
    ranks = deal_ranks(config.lora, len(shares.rows), config.seed)
    base = shared.get("base", base_key(config), lambda: _base(config, task, device))
    initial = initial_adapter(base, config.lora, config.seed)
    if config.model.adapter is not None:
        initial = load_peft(config.model.adapter, base, config.lora)
    model = StackedModel(base, initial, dropout=config.lora.dropout)

    def build_split(name: str) -> Split:
        data = encode(getattr(task, name), base.tokenizer, config.task.max_length).to(device)
        return Split(
            data, FrozenCache(model, data, config.train.cache_limit_mb) if config.train.cache_frozen else None
        )

    def split(name: str) -> Split:
        return shared.get(name, frozen_key(config), lambda: build_split(name))

    train = split("train")
    if train.cache is not None:
        _check_cache(model, initial, train.data, train.cache)
    return Federation(
        config,
        task,
        shares,
        method,
        base,
        model,
        initial,
        train,
        split("validation") if task.validation is not None else None,
        split("test"),
        choose_group_size(config, len(shares.rows), model, initial, train.data),
        ranks,
    )


def _base(config: RunConfig, task: TaskData, device: torch.device) -> BaseModel:
    return load_base(
        config.model,
        task.labels,
        seed=config.seed,
        precision=config.train.precision,
        device=device,
        modules_to_save=config.lora.modules_to_save,
    )


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
    frame, travels = config.federation.upload_frame, [method.uploads(number) for number in (1, 2)]
    if frame != "own" and not all(sent.a and sent.b for sent in travels):
        raise ConfigError(
            f"federation.upload_frame = {frame!r}: method {method.name!r} does not send both factors, and one in "
            "another frame is of no use; set federation.upload_frame = 'own', or choose a method that sends both"
        )


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one.

    Raises:
        ConfigError: a GPU that is not there.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (available and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(
            f"train.device = {name!r}: {torch.cuda.device_count()} GPUs are visible; set 'auto' or 'cpu'"
        )
    return device


@torch.no_grad()
def _check_cache(model: StackedModel, adapter: Adapter, data: Encoded, cache: FrozenCache) -> None:
    """Refuse a cache that would change results: some architectures feed later blocks by more than hidden states."""
    rows = torch.arange(min(4, len(data)))
    cache.ensure(rows)
    batch = data.batch(rows)
    model.load(adapter.expand(1))
    full, cached = model.logits(batch), model.logits(batch, cache.hidden(batch))
    model.unload()
    tolerance = 1e-4 if full.dtype == torch.float32 and model.base.dtype == torch.float32 else 3e-2
    if not torch.allclose(full, cached, rtol=tolerance, atol=tolerance):
        raise ModelError(
            f"train.cache_frozen = true: this architecture gives other logits from cached states (largest difference "
            f"{(full - cached).abs().max():.1e}); set train.cache_frozen = false"
        )
