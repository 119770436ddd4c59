"""Bytes that travel: messages of the very form that the engines count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.estimate.shape import Shape, named
from fedrot.methods import Method
from fedrot.wire import encode


@dataclass(frozen=True)
class Bytes:
    """What travels: up from and down to all clients of the first round, and in all rounds together."""

    first_up: int
    first_down: int
    up: int
    down: int


def messages(config: RunConfig, shape: Shape, method: Method, clients: int) -> Bytes:
    """Bytes of a run, for clients of the server's rank that all take part to the end.

    A message holds `4 rank (d_in + d_out)` bytes a site (`4 rank d_in` or `4 rank d_out` where one factor travels),
    `4` a number of the head if it is shared, and a header. With full participation clients are sent what changed in
    the last round, else everything. Where broadcasts carry a residual, it is taken to grow by `clients x rank`
    directions a round, up to what a layer has.

    Args:
        config: the recipe.
        shape: of its base model.
        method: the recipe's.
        clients: that take part in a round.
    """
    adapter = _empty(config, shape)
    sizes: dict[tuple[bool, bool, bool], int] = {}

    def size(a: bool, b: bool, head: bool) -> int:
        if (a, b, head) not in sizes:
            sizes[a, b, head] = len(encode(adapter, a=a, b=b, head=head))
        return sizes[a, b, head]

    federation, shared = config.federation, method.shares_head
    full = federation.fraction == 1 and not federation.dropout and not federation.stale
    up: list[int] = []
    down: list[int] = []
    for number in range(1, federation.rounds + 1):
        sent = method.uploads(number)
        up.append(clients * size(sent.a, sent.b, shared))
        if number == 1:
            down.append(clients * size(True, True, True))
            continue
        changed = method.changes(number - 1)
        each = size(changed.a, changed.b, shared) if full else size(True, True, True)
        if method.laws.residual:
            grown = clients * config.lora.rank * (1 if full else number - 1)
            each += _residual(shape, config, grown)
        down.append(clients * each)
    return Bytes(up[0], down[0], sum(up), sum(down))


def _empty(config: RunConfig, shape: Shape) -> Adapter:
    rank = config.lora.rank
    sites = {
        layer.name: Factors(torch.zeros(rank, layer.d_in), torch.zeros(layer.d_out, rank))
        for layer in shape.sites(config.lora)
    }
    head = named(shape.head) if config.lora.train_head else {}
    made = Adapter(sites, {name: torch.zeros(size) for name, size in head.items()}, config.lora.scale)
    return replace(made, residual={})


def _residual(shape: Shape, config: RunConfig, rank: int) -> int:
    return sum(
        4 * min(rank, layer.d_in, layer.d_out) * (layer.d_in + layer.d_out)
        for layer in shape.sites(config.lora)
    )
