"""Evaluation of one adapter, and the features of the frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.core.adapter import Adapter
from fedrot.crew import Crew, Halted
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Batch, Encoded, batches_by_length
from fedrot.tasks.objective import Objective


def predict(
    crew: Crew,
    objective: Objective,
    adapter: Adapter,
    data: Encoded,
    *,
    batch: int,
    cache: FrozenCache | None = None,
) -> Tensor:
    """What the task observes of every example, `(n, m)`, in the order of `data`. Leaves the crew holding no client."""
    for model in crew.models:
        model.load(replace(adapter, residual={}).expand(1), residual=adapter.residual)
    observed = _of_every_example(crew, objective.observe, data, batch, cache)
    crew.unload()
    return observed


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


def frozen_features(crew: Crew, data: Encoded, *, batch: int, cache: FrozenCache | None = None) -> Tensor:
    """What the head sees of every example when no adapter is there, `(n, width)`."""
    crew.unload()
    return _of_every_example(crew, StackedModel.features, data, batch, cache)


def _of_every_example(
    crew: Crew,
    of: Callable[[StackedModel, Batch, Tensor | None], Tensor],
    data: Encoded,
    batch: int,
    cache: FrozenCache | None,
) -> Tensor:
    """What `of` finds of a model, a batch and, if they are cached, its hidden states; in the order of `data`."""
    if cache is not None:
        cache.ensure(torch.arange(len(data)))

    @torch.no_grad()  # of the thread it runs on
    def work(model: StackedModel, rows: Tensor, halted: Halted) -> Tensor:
        del halted  # soon over
        inputs = data.batch(rows)
        return of(model, inputs, cache.hidden(inputs) if cache is not None else None)

    chunks = batches_by_length(data, batch)
    found = torch.cat(list(crew.map(work, chunks)))
    return found[torch.cat(chunks).argsort().to(data.device)]
