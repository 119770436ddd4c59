"""Hidden states of the frozen blocks, computed once per example and kept."""

from __future__ import annotations

import math
from contextlib import closing

import torch
from torch import Tensor

from fedrot.crew import Crew, Halted
from fedrot.errors import ConfigError
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Batch, Encoded


class FrozenCache:
    """Hidden states entering the first adapted block, for the examples of one data set.

    Filled on demand and without padding, like the examples: `(total tokens, width)` of texts, and of images
    `(images, patches, width)`. Memory that no example has filled is reserved but not touched.

    Raises:
        ConfigError: nothing lies frozen below the first adapted layer, or the states would exceed `limit_mb`.
    """

    def __init__(self, crew: Crew, data: Encoded, limit_mb: int) -> None:
        prefix = crew.lead.prefix
        if prefix is None or prefix.depth == 0:
            raise ConfigError(
                "train.cache_frozen = true: no frozen block lies below the first adapted layer; set lora.layers, for "
                "instance 'last:2', or train.cache_frozen = false"
            )
        self.crew = crew
        self.data = data
        self.limit_mb = limit_mb
        self.states: Tensor | None = None
        self.filled = torch.zeros(len(data), dtype=torch.bool)
        self.chunk_of = torch.empty(len(data), dtype=torch.long)
        self.apart = torch.zeros(len(data), dtype=torch.bool)
        self.compute_apart(torch.arange(len(data)))

    def compute_apart(self, rows: Tensor) -> None:
        """Never compute these examples with others, for a process that needs no others.

        Forgets all states, unless it was so already.
        """
        own = torch.zeros(len(self.data), dtype=torch.bool)
        own[rows] = True
        if torch.equal(own, self.apart):
            return
        self.apart = own
        order = self.data.lengths.argsort(stable=True)
        # Fixed chunks of examples of like length: what is computed together never depends on what came before, so a
        # resumed run has the same states to the bit.
        self.chunks = [chunk for part in (order[own[order]], order[~own[order]]) for chunk in part.split(64)]
        for index, chunk in enumerate(self.chunks):
            self.chunk_of[chunk] = index
        self.filled.zero_()

    @torch.no_grad()
    def ensure(self, rows: Tensor) -> None:
        """Compute the states of those examples (`rows`, on the CPU) that are not there yet."""
        missing = self.chunk_of[rows[~self.filled[rows]]].unique()
        if not len(missing):
            return  # as whenever one of the crew asks, while the others are at work
        chunks = [self.chunks[index] for index in missing.tolist()]
        with closing(self.crew.map(self._compute, chunks)) as computed:
            for chunk, batch, hidden in computed:
                if self.states is None:
                    self.states = self._reserve(hidden, batch.where.ndim)
                real = ... if batch.mask is None else batch.mask.bool()
                self.states[batch.where[real]] = hidden[real]
                self.filled[chunk] = True

    def _compute(self, model: StackedModel, chunk: Tensor, halted: Halted) -> tuple[Tensor, Batch, Tensor]:
        del halted  # soon over
        batch = self.data.unpacked(chunk)
        assert model.prefix is not None
        return chunk, batch, model.prefix.compute(batch)

    def hidden(self, batch: Batch) -> Tensor:
        """States of a batch whose rows were ensured, `(k, length, width)`; padding holds those of real tokens."""
        assert self.states is not None
        return self.states[batch.where]

    def _reserve(self, hidden: Tensor, indexed: int) -> Tensor:
        size = (self.data.places, *hidden.shape[indexed:])
        needed = math.prod(size) * hidden.element_size() / 2**20
        if needed > self.limit_mb:
            raise ConfigError(
                f"train.cache_limit_mb = {self.limit_mb}: the frozen states of {len(self.data)} examples need up to "
                f"{needed:.0f} MB; raise the limit, lower task.max_train, or set train.cache_frozen = false"
            )
        return torch.empty(size, dtype=hidden.dtype, device=hidden.device)
