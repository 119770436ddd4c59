"""Floating-point operations of a run, and hours from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrot.config import RunConfig
from fedrot.engines.compat import precision
from fedrot.estimate.devices import CPU_UTILISATION, UTILISATION, Device
from fedrot.estimate.shape import Shape
from fedrot.model.sites import block_of


@dataclass(frozen=True)
class Work:
    """Operations of a run; a multiplication and an addition are two.

    Attributes:
        step: of one client's local step.
        training: of all local steps of all rounds.
        evaluation: of all evaluations.
        tokens: that training reads.
    """

    step: float
    training: float
    evaluation: float
    tokens: float

    @property
    def total(self) -> float:
        """Training and evaluation."""
        return self.training + self.evaluation

    def hours(self, device: Device, config: RunConfig) -> float | None:
        """`total / (rate x utilisation) / 3600`; None for a precision that the device has no rate for."""
        rate = device.rates.get(precision(config))
        utilisation = CPU_UTILISATION if device.measured else UTILISATION
        return None if rate is None else self.total / (rate * utilisation) / 3600


def forward(config: RunConfig, shape: Shape, blocks: int) -> float:
    """Operations a token of some blocks: `2 d_in d_out` of a dense layer, and `4 L heads head_dim` of attention.

    Attention is counted in full, also where a causal one may leave out half.
    """
    dense = 2.0 * sum(layer.d_in * layer.d_out for layer in shape.layers) / shape.blocks
    return blocks * (dense + 4.0 * config.task.max_length * shape.heads * shape.head_dim)


def work(config: RunConfig, shape: Shape, *, clients: int, steps: float, evaluated: int) -> Work:
    """The work of a recipe, every text at `task.max_length` tokens.

    Of one step and token: the forward pass through all blocks; the gradient by the inputs, as much again, from the
    first adapted block on (no gradient of frozen weights is formed), for attention twice as much; with
    `train.checkpointing` another forward pass of these blocks; `2 rank (d_in + d_out)` of every site, three times; and
    of a language model's output layer `2 width vocabulary`, twice. Cached frozen blocks are not computed.

    Args:
        config: the recipe.
        shape: of its base model.
        clients: that take part in a round.
        steps: local steps of a client.
        evaluated: examples of all splits that are evaluated.
    """
    sites = shape.sites(config.lora)
    numbers = [block[1] for layer in sites if (block := block_of(layer.name))]
    above = shape.blocks - min(numbers, default=0)
    below = 0 if config.train.cache_frozen else shape.blocks - above
    attention = above * 4.0 * config.task.max_length * shape.heads * shape.head_dim
    adapters = 2.0 * config.lora.rank * sum(layer.d_in + layer.d_out for layer in sites)
    output = 2.0 * shape.width * shape.vocabulary if config.task.name == "generate" else 0.0
    through = forward(config, shape, above)
    passes = 3 if config.train.checkpointing else 2
    token = forward(config, shape, below) + passes * through + attention + 3 * adapters + 2 * output
    tokens = config.train.batch_size * config.train.accumulate * config.task.max_length
    rounds = config.federation.rounds
    evaluations = math.ceil(rounds / config.federation.evaluate_every)
    once = forward(config, shape, below + above) + adapters + output
    return Work(
        step=tokens * token,
        training=rounds * clients * steps * tokens * token,
        evaluation=evaluations * evaluated * config.task.max_length * once,
        tokens=float(rounds * clients * steps * tokens),
    )
