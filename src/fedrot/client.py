"""Local training: the received adapter in, one trained adapter per client out, a whole group at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.config import TrainConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alike import copied
from fedrot.core.rng import generator
from fedrot.errors import Interrupted
from fedrot.methods.base import Trainable
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Encoded
from fedrot.tasks.draw import draw_epochs, draw_rows
from fedrot.tasks.objective import Objective


@dataclass(frozen=True)
class Plan:
    """Which examples each client of a group sees at each local step, drawn on the CPU before training."""

    clients: tuple[int, ...]
    rows: Tensor
    """`(steps, G, batch)` row numbers of the training set."""
    weight: Tensor
    """`(steps, G, batch)`: 1 / (number of real examples) for real examples, 0 for padding and finished clients."""
    steps: Tensor
    """`(G,)` local steps of each client."""
    dropout: Tensor
    """`(steps, G)` seeds."""


@dataclass(frozen=True)
class Trained:
    """A group's result; everything is indexed by client first."""

    clients: tuple[int, ...]
    adapter: Adapter
    loss: Tensor
    """`(G,)` mean training loss over the client's local steps."""
    finite: Tensor
    """`(G,)` whether the loss and every trained number are finite."""


def plan_group(
    clients: Sequence[int],
    rows: Sequence[Tensor],
    config: TrainConfig,
    *,
    seed: int,
    round: int,
    lengths: Tensor | None = None,
) -> Plan:
    """Draw the batches of a group. A client's batches depend on `seed`, `round` and the client alone.

    Args:
        clients: client numbers.
        rows: for each of them, the row numbers of its own examples.
        config: steps or epochs, batch size, accumulation.
        seed: the run's seed.
        round: 1-based round.
        lengths: tokens of every training example, if batches are to hold examples of like length.
    """
    batch = config.batch_size * config.accumulate
    drawn: list[tuple[Tensor, Tensor]] = []
    for client, own in zip(clients, rows, strict=True):
        draws = generator(seed, "batches", round, client)
        if config.steps is not None:
            picked = draw_rows(own, config.steps, batch, draws)
            valid, passes = torch.ones(picked.shape, dtype=torch.bool), 1
        else:
            assert config.local_epochs is not None
            picked, valid = draw_epochs(own, config.local_epochs, batch, draws)
            passes = config.local_epochs
        if lengths is not None:
            picked, valid = bucket(picked, valid, lengths, passes, generator(seed, "buckets", round))
        drawn.append((picked, valid))
    steps = torch.tensor([len(picked) for picked, _ in drawn])
    longest = int(steps.max())
    padded = torch.stack([torch.cat([p, p[-1:].expand(longest - len(p), -1)]) for p, _ in drawn], 1)
    valid = torch.stack([torch.cat([v, v.new_zeros(longest - len(v), batch)]) for _, v in drawn], 1)
    weight = valid / valid.sum(-1, keepdim=True).clamp(min=1)
    seeds = [
        torch.randint(2**62, (longest,), generator=generator(seed, "dropout", round, c)) for c in clients
    ]
    return Plan(tuple(clients), padded, weight, steps, torch.stack(seeds, 1))


def bucket(
    rows: Tensor, valid: Tensor, lengths: Tensor, passes: int, order: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Deal one client's draws of a round into batches of like length, and shuffle the batches.

    Every pass still sees the same examples; only who shares a batch with whom changes. `order` is the same for all
    clients, so that at each step a stacked batch holds examples of like length and little padding.

    Args:
        rows: `(steps, batch)` row numbers, `passes` equal blocks of steps.
        valid: `(steps, batch)`, False for padding, which stays at the end of each pass' longest batch.
        lengths: tokens of every example.
        passes: passes over the client's examples, each dealt by itself.
        order: shuffles the batches.
    """
    dealt_rows, dealt_valid = rows.clone(), valid.clone()
    steps = len(rows) // passes
    for start in range(0, len(rows), steps):
        block = slice(start, start + steps)
        size = torch.where(valid[block], lengths[rows[block]], torch.iinfo(torch.long).max)
        by_length = size.flatten().argsort(stable=True)
        shuffle = torch.rand(steps, generator=order).argsort()
        dealt_rows[block] = rows[block].flatten()[by_length].view(steps, -1)[shuffle]
        dealt_valid[block] = valid[block].flatten()[by_length].view(steps, -1)[shuffle]
    return dealt_rows, dealt_valid


def train_group(
    model: StackedModel,
    objective: Objective,
    data: Encoded,
    received: Adapter,
    plan: Plan,
    config: TrainConfig,
    trainable: Trainable,
    cache: FrozenCache | None = None,
    *,
    residual: Mapping[str, Factors] | None = None,
    prepare: Callable[[torch.optim.Optimizer], None] | None = None,
    halted: Callable[[], bool] | None = None,
) -> Trained:
    """Train every client of `plan` from what it received, in one forward and backward pass a step.

    The loss is the sum over clients of each one's mean over its own batch, so gradients never mix; clipping is per
    client; the optimiser is element-wise and starts afresh. The host waits for the device in no step, except where
    texts are packed: there transformers looks, once a step, where they begin.

    Args:
        model: the base model that holds the clients.
        objective: what they minimise.
        data: the training split.
        received: one adapter for all, or a stack `(G, ...)` of what each client starts from.
        plan: who sees which examples.
        config: optimiser, clipping and proximal term.
        trainable: factors to train, and whether the head is.
        cache: states of the frozen blocks.
        residual: folded into the base weights of all clients alike; that of `received` unless given.
        prepare: given the optimiser before the first step.
        halted: asked before every step whether to give up.

    Raises:
        Interrupted: `halted` said so.
    """
    group, device = len(plan.clients), data.device
    folded = received.residual if residual is None else residual
    start = received if received.batch else replace(received, residual={}).expand(group)
    held = model.load(start, residual=folded, a=trainable.a, b=trainable.b, head=trainable.head)
    lora = [t for f in held.sites.values() for t in (f.a, f.b) if t.requires_grad]
    head = [tensor for tensor in held.head.values() if tensor.requires_grad]
    optimizer = make_optimizer(lora, head, config)
    if prepare is not None:
        prepare(optimizer)
    if cache is not None:
        cache.ensure(plan.rows.flatten())
    weight = objective.shares(plan.weight, data.counts[plan.rows])
    weight, seeds = weight.to(device, torch.float32), plan.dropout.to(device)
    kept = model.recomputed if config.checkpointing else nullcontext
    active = (torch.arange(len(plan.rows)).unsqueeze(1) < plan.steps).to(device)
    ends = set(plan.steps.tolist()) if int(plan.steps.min()) < len(plan.rows) else set[int]()
    pulls = _pulls(held, start) if config.prox else []
    finished = _copy(start) if ends else None
    total = torch.zeros(group, device=device)
    for step in range(len(plan.rows)):
        if halted is not None and halted():
            raise Interrupted(f"training was given up after {step} of {len(plan.rows)} local steps")
        optimizer.zero_grad(set_to_none=True)
        parts = plan.rows[step].split(config.batch_size, -1), weight[step].split(config.batch_size, -1)
        for part, (rows, shares) in enumerate(zip(*parts, strict=True)):
            batch = data.batch(rows.flatten(), clients=group)
            hidden = cache.hidden(batch) if cache is not None else None
            with model.dropout_seeds(seeds[step] + part * 2**40), kept():
                each = objective.losses(model, batch, hidden).view(group, -1)
                losses = (each * shares).sum(1)
                losses.sum().backward()
            total += losses.detach() * active[step]
        for tensor, origin in pulls:
            assert tensor.grad is not None
            tensor.grad.add_(tensor.detach() - origin, alpha=config.prox)
        if config.clip != "off":
            clip_per_client([*lora, *head], config.clip)
        optimizer.step()
        if step + 1 in ends and finished is not None:
            done = (plan.steps == step + 1).nonzero().flatten().to(device, non_blocking=True)
            _copy_rows(finished, held, done)
    adapter = (held if finished is None else finished).map(Tensor.detach)
    mean = total / plan.steps.to(device)
    return Trained(plan.clients, adapter, mean, adapter.finite(stacked=True) & mean.isfinite())


def make_optimizer(
    lora: Sequence[Tensor], head: Sequence[Tensor], config: TrainConfig
) -> torch.optim.Optimizer:
    """Element-wise optimiser over stacked tensors; the head may have a learning rate of its own."""
    groups = [
        {"params": list(tensors), "lr": lr}
        for tensors, lr in ((lora, config.lr), (head, config.head_lr or config.lr))
        if tensors
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    momentum = config.momentum if config.optimizer == "momentum" else 0.0
    return torch.optim.SGD(groups, momentum=momentum, weight_decay=config.weight_decay, fused=True)


@torch.no_grad()
def clip_per_client(tensors: Sequence[Tensor], limit: float) -> Tensor:
    """Scale each client's gradients, over all `(G, ...)` tensors together, to a norm of at most `limit`.

    The rule of `torch.nn.utils.clip_grad_norm_`, a client at a time. Returns the norms before, `(G,)`.
    """
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *([1] * (gradient.ndim - 1))))
    return norms


def _pulls(held: Adapter, start: Adapter) -> list[tuple[Tensor, Tensor]]:
    """Trained tensors, each with the point that FedProx pulls it back to."""
    origins = start.tensors()
    return [(tensor, origins[key]) for key, tensor in held.tensors().items() if tensor.requires_grad]


def _copy(adapter: Adapter) -> Adapter:
    """To be written into; laid out as what is trained."""
    head = {name: tensor.clone() for name, tensor in adapter.head.items()}
    return replace(adapter, sites=copied(adapter.sites), head=head)


@torch.no_grad()
def _copy_rows(target: Adapter, source: Adapter, rows: Tensor) -> None:
    sources = source.tensors()
    for key, tensor in target.tensors().items():
        tensor[rows] = sources[key][rows]
