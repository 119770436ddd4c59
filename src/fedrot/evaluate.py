"""Evaluation of one adapter, and the linear-probe floor of the frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedrot.cache import FrozenCache
from fedrot.core.adapter import Adapter
from fedrot.stacked import StackedModel
from fedrot.tasks.classify import metrics
from fedrot.tasks.encode import Encoded, batches_by_length
from fedrot.tasks.probe import ProbeResult, linear_probe


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


def probe_floor(
    model: StackedModel,
    train: Encoded,
    validation: Encoded | None,
    test: Encoded,
    *,
    classes: int,
    seed: int,
    batch: int,
    caches: Mapping[str, FrozenCache | None],
) -> ProbeResult:
    """A logistic regression on the frozen encoder's features, fitted centrally on all clients' training examples.

    Its penalty is chosen on the validation split. It is a demanding floor: no client could fit it alone.

    Args:
        model: the federation's model.
        train, validation, test: the encoded splits.
        classes: number of labels.
        seed: for the inner split, where there is no validation split.
        batch: examples at a time.
        caches: by split name, where the frozen blocks are cached.
    """

    def features(name: str, data: Encoded) -> tuple[Tensor, Tensor]:
        return frozen_features(model, data, batch=batch, cache=caches.get(name)).cpu(), data.labels.cpu()

    held_out = features("validation", validation) if validation is not None else (None, None)
    return linear_probe(*features("train", train), *held_out, *features("test", test), classes, seed)
