"""Evaluation of a round: one model for all clients, or every client's own where a method leaves a part with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, normalise
from fedrot.engines.parts import Split
from fedrot.engines.setup import Federation
from fedrot.evaluate import expected_accuracy, predict
from fedrot.server import ServerState, own_model
from fedrot.tasks import recalls

Kind = tuple[int | None, int | None]


@dataclass(frozen=True)
class Seen:
    """What one model scores on one split."""

    scores: Mapping[str, float]
    """The task's metrics and `loss`."""
    recall: Tensor | None = None
    """Where examples have classes, the share of each that is right: `(classes,)` float64, NaN for one without any."""


def evaluate_state(federation: Federation, state: ServerState) -> dict[str, float]:
    """Scores on the test split and, under `validation_...` and the like, on the other splits that there are.

    The task's metrics and the loss are those of the model on the common split. Where examples have classes,
    `local_accuracy` is what a client can expect on its own mix of labels, from the recall of each class on the split,
    averaged over all clients with their aggregation weights; it is left out with local privacy, which promises that
    nothing recorded comes from exact counts. Where clients keep a part of the model, every figure is the weighted mean
    over all clients, each with its own model.
    """
    return recorded({name: _scores(federation, state, split) for name, split in federation.tested.items()})


def recorded(by_split: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores of every split under the names that they have in a record."""
    test = by_split["test"]
    record = {name: value for name, value in test.items() if name != "loss"} | {"eval_loss": test["loss"]}
    for split, scores in by_split.items():
        if split != "test":
            record |= {f"{split}_{name}": value for name, value in scores.items()}
    return record


def see(federation: Federation, adapter: Adapter, split: Split) -> Seen:
    """Let a model answer a whole split."""
    batch, objective = federation.config.federation.evaluate_batch, federation.objective
    observed = predict(federation.crew, objective, adapter, split.data, batch=batch, cache=split.cache)
    scores = objective.metrics(observed, split.data)
    return Seen(scores, recalls(observed, split.data.labels).cpu() if federation.task.labels else None)


def averaged(federation: Federation, clients: Sequence[int], each: Sequence[Seen]) -> dict[str, float]:
    """The weighted mean over clients of what each one's own model scores on a split, and `local_accuracy`.

    Args:
        federation: knows the clients' weights and their mixes of labels.
        clients: those meant; there is at least one.
        each: of every one of them.
    """
    weights = _weights(federation, clients)
    scores = {name: _mean([seen.scores[name] for seen in each], weights) for name in each[0].scores}
    return scores | _local(federation, clients, [seen.recall for seen in each])


def _scores(federation: Federation, state: ServerState, split: Split) -> dict[str, float]:
    everyone = range(federation.clients)
    if not federation.method.laws.personal:
        seen = see(federation, state.adapter, split)
        return {**seen.scores, **_local(federation, everyone, [seen.recall] * federation.clients)}
    kinds = [_kind(federation, state, client) for client in everyone]
    by_kind: dict[Kind, Seen] = {}
    for kind, client in {kind: client for client, kind in enumerate(kinds)}.items():
        model = own_model(state.adapter, state.personal, client, federation.ranks[client])
        by_kind[kind] = see(federation, model, split)
    return averaged(federation, everyone, [by_kind[kind] for kind in kinds])


def _kind(federation: Federation, state: ServerState, client: int) -> Kind:
    """Clients of one kind have the same model: those of one rank that keep nothing of their own yet."""
    return federation.ranks[client], client if client in state.personal else None


def _local(
    federation: Federation, clients: Sequence[int], recalls: Sequence[Tensor | None]
) -> dict[str, float]:
    """`local_accuracy` of these clients, where examples have classes and somebody's mix of them may be known."""
    known = [recall for recall in recalls if recall is not None]
    if not known or federation.config.privacy.mechanism == "local":
        return {}
    counts = federation.label_counts()[list(clients)]
    local = expected_accuracy(torch.stack(known), counts, _weights(federation, clients))
    return {} if local is None else {"local_accuracy": local}


def _weights(federation: Federation, clients: Sequence[int]) -> list[float]:
    return normalise([federation.weight(client) for client in clients], len(clients))


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
