"""Evaluation of one adapter, and the features of the frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.core.adapter import Adapter
from fedrot.stacked import StackedModel
from fedrot.tasks.classify import metrics
from fedrot.tasks.encode import Encoded, batches_by_length


@torch.no_grad()
def predict(
    model: StackedModel, adapter: Adapter, data: Encoded, *, batch: int, cache: FrozenCache | None = None
) -> Tensor:
    """Logits of every example, `(n, labels)`, in the order of `data`. Leaves the model holding no client."""
    model.load(adapter.expand(1))
    rows, logits = [], []
    for chunk in batches_by_length(data, batch):
        if cache is not None:
            cache.ensure(chunk)
        inputs = data.batch(chunk)
        logits.append(model.logits(inputs, cache.hidden(inputs) if cache is not None else None))
        rows.append(chunk)
    model.unload()
    order = torch.cat(rows).argsort().to(data.input_ids.device)
    return torch.cat(logits)[order]


def evaluate(
    model: StackedModel, adapter: Adapter, data: Encoded, *, batch: int, cache: FrozenCache | None = None
) -> dict[str, float]:
    """The task's metrics of `adapter` on `data`."""
    return metrics(predict(model, adapter, data, batch=batch, cache=cache), data.labels)


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
    return torch.cat(features)[torch.cat(rows).argsort().to(data.input_ids.device)]
