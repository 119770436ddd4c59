"""Evaluation of one adapter, and the features of the frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.core.adapter import Adapter
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Encoded, batches_by_length
from fedrot.tasks.objective import Objective


@torch.no_grad()
def predict(
    model: StackedModel,
    objective: Objective,
    adapter: Adapter,
    data: Encoded,
    *,
    batch: int,
    cache: FrozenCache | None = None,
) -> Tensor:
    """What the task observes of every example, `(n, m)`, in the order of `data`. Leaves the model holding no client."""
    model.load(replace(adapter, residual={}).expand(1), residual=adapter.residual)
    rows, observed = [], []
    for chunk in batches_by_length(data, batch):
        if cache is not None:
            cache.ensure(chunk)
        inputs = data.batch(chunk)
        observed.append(objective.observe(model, inputs, cache.hidden(inputs) if cache is not None else None))
        rows.append(chunk)
    model.unload()
    order = torch.cat(rows).argsort().to(data.device)
    return torch.cat(observed)[order]


def expected_accuracy(recall: Tensor, counts: Tensor, weights: Sequence[float]) -> float | None:
    """What clients can expect on their own mix of labels: the mean over clients of `sum_c share_c * recall_c`.

    Shares are taken among the classes that the split holds examples of. A client none of whose labels occur there has
    no expectation and does not count.

    Args:
        recall: `(clients, classes)`, NaN where the split has no example of a class.
        counts: `(clients, classes)` of the clients' training examples.
        weights: of the clients.

    Returns:
        None if no client has an expectation.
    """
    known = recall.isfinite()
    shares = counts.double() * known
    total = shares.sum(1)
    each = (shares * recall.nan_to_num()).sum(1) / total.clamp(min=1)
    share = torch.tensor(weights, dtype=torch.float64) * (total > 0)
    return float((each * share).sum() / share.sum()) if float(share.sum()) > 0 else None


@torch.no_grad()
def frozen_features(
    model: StackedModel, data: Encoded, *, batch: int, cache: FrozenCache | None = None
) -> Tensor:
    """What the head sees of every example when no adapter is there, `(n, width)`."""
    model.unload()
    rows, features = [], []
    for chunk in batches_by_length(data, batch):
        if cache is not None:
            cache.ensure(chunk)
        inputs = data.batch(chunk)
        features.append(model.features(inputs, cache.hidden(inputs) if cache is not None else None))
        rows.append(chunk)
    return torch.cat(features)[torch.cat(rows).argsort().to(data.device)]
