"""What the frozen encoder is worth without an adapter: two linear probes, one federated and one fitted centrally."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedrot.client import clip_per_client, make_optimizer, plan_group
from fedrot.core.adapter import normalise
from fedrot.engines.setup import Federation
from fedrot.evaluate import frozen_features
from fedrot.server import choose_clients
from fedrot.tasks import linear_probe, loss


def floors(federation: Federation) -> dict[str, Any]:
    """Both probes, on the features that the head's first layer sees of the frozen encoder.

    Returns:
        The task's scores, `examples` and `rounds` of the federated probe, which is the floor: the same federation
        without its adapter. Under `central`, those of a logistic regression fitted to all clients' examples in one
        place, its penalty chosen on the validation split: what a federation could reach at most with this encoder.
    """
    batch = federation.config.federation.evaluate_batch
    features = {
        name: frozen_features(federation.crew, split.data, batch=batch, cache=split.cache)
        for name, split in federation.splits.items()
    }
    labels = {name: split.data.labels for name, split in federation.splits.items()}
    federated = federated_probe(federation, features["train"])
    pairs = {name: (features[name].cpu(), labels[name].cpu()) for name in features}
    central = linear_probe(
        *pairs["train"],
        *pairs.get("validation", (None, None)),
        *pairs["test"],
        len(federation.task.labels),
        federation.config.seed,
    )
    return {
        **_scores(federation, features["test"] @ federated[:-1] + federated[-1]),
        "examples": len(labels["train"]),
        "rounds": federation.config.federation.rounds,
        "central": {
            **_scores(federation, central.logits.to(labels["test"].device)),
            "accuracy": central.accuracy,
            "macro_f1": central.macro_f1,
            "l2": central.l2,
            "examples": central.examples,
        },
    }


def _scores(federation: Federation, logits: Tensor) -> dict[str, float]:
    """What the task measures on the test split, from `(n, labels)` logits."""
    found = federation.objective.metrics(logits, federation.test.data)
    return {name: value for name, value in found.items() if name != "loss"}


def federated_probe(federation: Federation, features: Tensor) -> Tensor:
    """Federated averaging of a linear head on frozen features, from zero, with the recipe's own settings.

    Clients, rounds, examples drawn, optimiser, (head) learning rate, clipping and weights are those of the recipe; only
    the adapter is missing.

    Args:
        federation: the run.
        features: `(examples, width)` of the training split.

    Returns:
        `(width + 1, labels)`, the bias last.
    """
    config, data = federation.config, federation.train.data
    head = features.new_zeros(features.shape[1] + 1, len(federation.task.labels))
    for round in range(1, config.federation.rounds + 1):
        chosen = choose_clients(config.seed, round, federation.clients, config.federation.fraction)
        rows = [federation.partition.rows[client] for client in chosen]
        lengths = data.lengths if config.train.bucket else None
        plan = plan_group(chosen, rows, config.train, seed=config.seed, round=round, lengths=lengths)
        stack = head.expand(len(chosen), -1, -1).clone().requires_grad_()
        optimizer = make_optimizer([], [stack], config.train)
        result = stack.detach().clone()
        for step in range(len(plan.rows)):
            picked, weight = plan.rows[step].to(data.labels.device), plan.weight[step].to(features)
            logits = features[picked] @ stack[:, :-1] + stack[:, -1:]
            optimizer.zero_grad()
            (loss(logits, data.labels[picked]) * weight).sum().backward()
            if config.train.clip != "off":
                clip_per_client([stack], config.train.clip)
            optimizer.step()
            done = plan.steps == step + 1
            result[done] = stack.detach()[done]
        shares = normalise([federation.weight(client) for client in chosen], len(chosen))
        head = torch.einsum("c,cwl->wl", torch.tensor(shares, device=head.device, dtype=head.dtype), result)
    return head
