"""Evaluation of a round: one model for all clients, or every client's own where a method leaves a part with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, normalise
from fedrot.engines.setup import Federation, Split
from fedrot.evaluate import expected_accuracy, predict
from fedrot.server import ServerState, starts
from fedrot.tasks import recalls

Kind = tuple[int | None, int | None]


def evaluate_state(federation: Federation, state: ServerState) -> dict[str, float]:
    """Scores on the test split and, under `validation_...` and the like, on the other splits that there are.

    The task's metrics and the loss are those of the model on the common split. Where examples have classes,
    `local_accuracy` is what a client can expect on its own mix of labels, from the recall of each class on the split,
    averaged over all clients with their aggregation weights. Where clients keep a part of the model, every figure is
    the weighted mean over all clients, each with its own model.
    """
    test = _scores(federation, state, federation.test)
    record = {name: value for name, value in test.items() if name != "loss"} | {"eval_loss": test["loss"]}
    if federation.validation is not None:
        validation = _scores(federation, state, federation.validation)
        record |= {f"validation_{name}": value for name, value in validation.items()}
    for split, data in federation.further.items():
        record |= {f"{split}_{name}": value for name, value in _scores(federation, state, data).items()}
    return record


def _scores(federation: Federation, state: ServerState, split: Split) -> dict[str, float]:
    objective = federation.objective
    weights = normalise(federation.weights, federation.clients)
    if not federation.method.laws.personal:
        kinds: list[Kind] = [(None, None)]
        seen = {kinds[0]: _observed(federation, state.adapter, split)}
        scores = objective.metrics(seen[kinds[0]], split.data)
    else:
        kinds = [_kind(federation, state, client) for client in range(federation.clients)]
        one_of = {kind: client for client, kind in enumerate(kinds)}
        seen = {kind: _observed(federation, _own(federation, state, c), split) for kind, c in one_of.items()}
        singles = {kind: objective.metrics(observed, split.data) for kind, observed in seen.items()}
        each = [singles[kind] for kind in kinds]
        scores = {name: _mean([single[name] for single in each], weights) for name in each[0]}
    if not federation.task.labels:
        return scores
    by_kind = {kind: recalls(logits, split.data.labels).cpu() for kind, logits in seen.items()}
    recall = torch.stack([by_kind[kind] for kind in kinds])
    counts = federation.label_counts()
    local = expected_accuracy(recall.expand(federation.clients, -1), counts, weights)
    return scores if local is None else scores | {"local_accuracy": local}


def _kind(federation: Federation, state: ServerState, client: int) -> Kind:
    """Clients of one kind have the same model: those of one rank that keep nothing of their own yet."""
    return federation.ranks[client], client if client in state.personal else None


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _observed(federation: Federation, adapter: Adapter, split: Split) -> Tensor:
    batch = federation.config.federation.evaluate_batch
    return predict(federation.crew, federation.objective, adapter, split.data, batch=batch, cache=split.cache)


def _own(federation: Federation, state: ServerState, client: int) -> Adapter:
    own = starts(state.adapter, state.personal, [client], federation.ranks[client])
    return replace(own.select(0) if own.batch else own, residual=state.adapter.residual)
