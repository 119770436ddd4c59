"""Floating-point operations of a run, and hours from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def forward(config: RunConfig, shape: Shape, firsts: Sequence[int]) -> float:
    """Operations a token of each stack's blocks from the given ones on: `2 d_in d_out` of a dense layer, and attention.

    Layers outside the blocks see one token of an example and are not counted.
    """
    blocks = [set(range(first, stack.blocks)) for stack, first in zip(shape.stacks, firsts, strict=True)]
    wanted = {(stack.name, number) for stack, own in zip(shape.stacks, blocks, strict=True) for number in own}
    dense = sum(
        2.0 * layer.share * layer.d_in * layer.d_out
        for layer in shape.layers
        if block_of(layer.name) in wanted
    )
    return dense + attention(config, shape, firsts)


def attention(config: RunConfig, shape: Shape, firsts: Sequence[int]) -> float:
    """`4 L heads head_dim` a token and block, over the tokens that it attends to.

    Counted in full, also where a causal one may leave out half.
    """
    each = 4.0 * shape.length(config.task.max_length) * shape.heads * shape.head_dim
    return each * sum(
        (stack.blocks - first) * stack.share * (stack.share + stack.reads)
        for stack, first in zip(shape.stacks, firsts, strict=True)
    )


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
    start, firsts = [0] * len(shape.stacks), shape.first_blocks(sites)
    everything, through = forward(config, shape, start), forward(config, shape, firsts)
    below = 0.0 if config.train.cache_frozen else everything - through + shape.stem
    adapters = 2.0 * config.lora.rank * sum(layer.share * (layer.d_in + layer.d_out) for layer in sites)
    output = 2.0 * shape.width * shape.vocabulary * shape.asked if config.task.name == "generate" else 0.0
    passes = 3 if config.train.checkpointing else 2
    token = below + passes * through + attention(config, shape, firsts) + 3 * adapters + 2 * output
    length = shape.length(config.task.max_length)
    tokens = config.train.batch_size * config.train.accumulate * length
    rounds = config.federation.rounds
    evaluations = math.ceil(rounds / config.federation.evaluate_every)
    once = everything + shape.stem + adapters + output
    return Work(
        step=tokens * token,
        training=rounds * clients * steps * tokens * token,
        evaluation=evaluations * evaluated * length * once,
        tokens=float(rounds * clients * steps * tokens),
    )
