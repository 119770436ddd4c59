"""The base model with the sites that a recipe adapts, and encoded data to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedrot.cache import FrozenCache
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.crew import Crew
from fedrot.engines import compat
from fedrot.engines.groups import choose_workers
from fedrot.engines.shared import Shared, base_key, frozen_key
from fedrot.errors import ConfigError, ModelError
from fedrot.model import BaseModel, initial_adapter, load_base, load_peft
from fedrot.model.base import ENCODER_DECODER
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Encoded
from fedrot.tasks.catalogue import objective
from fedrot.tasks.objective import Objective
from fedrot.tasks.tokens import EncodedTokens

if TYPE_CHECKING:
    from datasets import Dataset


_TOGETHER = 8
"""Texts that are tried in one row."""


@dataclass(frozen=True)
class Split:
    """One encoded split and, where the recipe asks for it, the cached states of the frozen blocks."""

    data: Encoded
    cache: FrozenCache | None = None


@dataclass(frozen=True)
class Parts:
    """The base model with its adapter's sites, and encoded data to feed it."""

    config: RunConfig
    base: BaseModel
    crew: Crew
    initial: Adapter
    shared: Shared

    def split(self, name: str, data: Dataset) -> Split:
        """A split, encoded; the states of frozen blocks are cached where the recipe asks for it.

        Raises:
            ConfigError: a text longer than the model has positions for, frozen blocks that cannot be cached, or texts
                that would read each other if they shared a row.
            ModelError: cached states would change this model's results.
        """
        return self.shared.get(name, frozen_key(self.config), lambda: self._built(name, data))

    def _built(self, name: str, data: Dataset) -> Split:
        config = self.config
        if config.train.cache_frozen and self.base.kind == ENCODER_DECODER:
            raise ConfigError(
                "train.cache_frozen = true: every block of this model's decoder reads what its encoder says, which a "
                "cache of one stack of blocks does not hold; set train.cache_frozen = false"
            )
        goal = objective(config.task)
        encoded = goal.encode(data, self.base.processor, self.base.opening).to(self.base.device)
        limit = self.base.positions
        if limit is not None and encoded.longest > limit:
            raise ConfigError(
                f"task.max_length = {config.task.max_length}: an example of {name} has {encoded.longest} tokens, and "
                f"the model has positions for {limit}; set task.max_length = {limit}"
            )
        if isinstance(encoded, EncodedTokens) and encoded.pack is not None:
            _check_packing(self.crew.lead, goal, self.initial, encoded)
        if not config.train.cache_frozen:
            return Split(encoded)
        cache = FrozenCache(self.crew, encoded, config.train.cache_limit_mb)
        if name == "train":
            _check_cache(self.crew.lead, goal, self.initial, encoded, cache)
        return Split(encoded, cache)


def assemble(config: RunConfig, labels: Sequence[str], shared: Shared) -> Parts:
    """Load the base model and find the sites that the recipe adapts.

    Raises:
        ConfigError, ModelError: as the parts do.
    """
    device = choose_device(config.train.device)
    base = shared.get("base", base_key(config), lambda: _base(config, labels, device))
    initial = initial_adapter(base, config.lora, config.seed)
    if config.model.adapter is not None:
        initial = load_peft(config.model.adapter, base, config.lora)
    crew = Crew.of(base, initial, choose_workers(config, device), dropout=config.lora.dropout)
    return Parts(config, base, crew, initial, shared)


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


def _base(config: RunConfig, labels: Sequence[str], device: torch.device) -> BaseModel:
    return load_base(
        config.model,
        labels,
        kind=objective(config.task).head,
        seed=config.seed,
        precision=compat.precision(config),
        device=device,
        modules_to_save=config.lora.modules_to_save,
    )


@torch.no_grad()
def _check_cache(
    model: StackedModel, objective: Objective, adapter: Adapter, data: Encoded, cache: FrozenCache
) -> None:
    """Refuse a cache that would change results: some architectures feed later blocks by more than hidden states."""
    rows = torch.arange(min(4, len(data)))
    cache.ensure(rows)
    batch = data.batch(rows)
    model.load(adapter.expand(1))
    full = objective.observe(model, batch, None)
    cached = objective.observe(model, batch, cache.hidden(batch))
    model.unload()
    tolerance = _tolerance(model)
    if not torch.allclose(full, cached, rtol=tolerance, atol=tolerance):
        raise ModelError(
            f"train.cache_frozen = true: this architecture gives other results from cached states (largest difference "
            f"{(full - cached).abs().max():.1e}); set train.cache_frozen = false"
        )


@torch.no_grad()
def _check_packing(model: StackedModel, objective: Objective, adapter: Adapter, data: EncodedTokens) -> None:
    """Refuse rows of several texts with a model that lets them see each other, or that counts positions by itself.

    Positions that start again tell most models of transformers where attention ends; those that make masks of their
    own take no notice, and nothing fails. The shortest texts of the split, in one row, give it away.
    """
    shortest = data.lengths.argsort(stable=True)[:_TOGETHER]
    rows = shortest[data.lengths[shortest].cumsum(0) <= max(int(data.pack or 0), data.longest)]
    if len(rows) < 2:
        return  # not even the shortest two fit in a row
    model.load(adapter.expand(1))
    try:
        alone = objective.observe(model, data.unpacked(rows), None)
        together = objective.observe(model, data.batch(rows), None)
    except TypeError as error:
        if "position_ids" not in str(error):
            raise
        raise ConfigError(
            f"task.packing = true: this model takes no positions ({error}); set task.packing = false"
        ) from error
    finally:
        model.unload()
    loss, tokens = alone[:, 0], alone[:, 2].sum()
    off = float((together[:, 0] - loss).abs().sum() / tokens)
    # The mean over all tokens: rounding evens out, and what is read of another text does not.
    if off > _tolerance(model) * (1 + float(loss.sum() / tokens)):
        raise ConfigError(
            f"task.packing = true: with this model, texts that share a row change each other's loss (by {off:.1e} a "
            "token): it attends across them; set task.packing = false"
        )


def _tolerance(model: StackedModel) -> float:
    """How far two ways to compute the same may lie apart, of values about 1."""
    return 1e-4 if model.base.dtype == torch.float32 else 3e-2
