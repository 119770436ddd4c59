"""Classification of texts and images: its loss and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from fedrot.errors import DataError
from fedrot.tasks.base import TaskData
from fedrot.tasks.batch import Batch, Encoded
from fedrot.tasks.encode import encode
from fedrot.tasks.glue import extra_scores, metric_of
from fedrot.tasks.labelled import IMAGES, TEXTS, Form, load_labelled
from fedrot.tasks.objective import Head, Metric, Objective, Scores
from fedrot.tasks.own import load_held_out, load_own
from fedrot.tasks.pixels import encode_images
from fedrot.tasks.scores import confusion

if TYPE_CHECKING:
    from datasets import Dataset


class Labelled(Objective):
    """A class for every example: cross-entropy, accuracy, macro F1."""

    form: ClassVar[Form]

    @property
    def metric(self) -> Metric:
        """Accuracy."""
        return Metric("accuracy")

    def load(self, seed: int) -> TaskData:
        """See `load_labelled`."""
        return load_labelled(self.config, seed, self.form)

    def load_held_out(self, seed: int) -> TaskData:
        """See `fedrot.tasks.own.load_held_out`."""
        return load_held_out(self.config, seed, self.form)

    def load_own(self, labels: Sequence[str], who: str) -> Dataset:
        """See `fedrot.tasks.own.load_own`."""
        return load_own(self.config, labels, who, self.form)

    def shares(self, weight: Tensor, counts: Tensor) -> Tensor:  # noqa: ARG002
        """Every example of a batch counts alike."""
        return weight

    def losses(self, model: Scores, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k,)` cross-entropy."""
        return loss(model.logits(batch, hidden), batch.labels)

    def observe(self, model: Scores, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k, labels)` logits."""
        return model.logits(batch, hidden)

    def metrics(self, observed: Tensor, data: Encoded) -> dict[str, float]:
        """See `metrics`."""
        return metrics(observed, data.labels)


@final
class Classify(Labelled):
    """Texts and pairs of texts."""

    head: ClassVar[Head] = "sequence-classification"
    form: ClassVar[Form] = TEXTS

    def encode(self, dataset: Dataset, processor: Any, opening: int | None = None) -> Encoded:  # noqa: ARG002
        """See `fedrot.tasks.encode.encode`."""
        return encode(dataset, processor, self.config.max_length)

    @property
    def metric(self) -> Metric:
        """Accuracy, but where GLUE has another."""
        return metric_of(self.config.data)

    def metrics(self, observed: Tensor, data: Encoded) -> dict[str, float]:
        """See `metrics`; and what GLUE asks for beside it."""
        return super().metrics(observed, data) | extra_scores(self.config.data, observed, data.labels)


@final
class ClassifyImages(Labelled):
    """Images."""

    head: ClassVar[Head] = "image-classification"
    form: ClassVar[Form] = IMAGES

    def encode(self, dataset: Dataset, processor: Any, opening: int | None = None) -> Encoded:  # noqa: ARG002
        """See `fedrot.tasks.pixels.encode_images`."""
        return encode_images(dataset, processor, self.config.image_limit_mb)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example in float32 or better: `(..., C)` and `(...)` to `(...)`, not reduced."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, macro F1 and mean cross-entropy of `(n, C)` logits against `(n,)` labels.

    Macro F1 is the plain mean over the classes that occur among the labels or the predictions.

    Raises:
        DataError: no examples.
    """
    if labels.numel() == 0:
        raise DataError("no examples to evaluate: the test or validation split is empty")
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    table = confusion(predicted, labels, classes)
    hits, support = table.diagonal(), table.sum(0) + table.sum(1)
    macro = (2 * hits / support.clamp(min=1)).sum() / (support > 0).sum()
    accuracy = hits.sum() / labels.numel()
    values = torch.stack([accuracy, macro, loss(logits, labels).double().mean()]).tolist()
    return dict(zip(("accuracy", "macro_f1", "loss"), values, strict=True))


def recalls(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of each class' examples that `(n, C)` logits get right: `(C,)` float64, NaN for a class without any."""
    classes = logits.shape[-1]
    right = logits.argmax(-1) == labels
    support = torch.bincount(labels, minlength=classes).double()
    return torch.bincount(labels[right], minlength=classes).double() / support
