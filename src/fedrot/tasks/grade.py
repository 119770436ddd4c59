"""Grades of texts or pairs of texts: regression by one output, as for GLUE's STS-B."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from fedrot.errors import ConfigError, DataError
from fedrot.tasks.base import TaskData
from fedrot.tasks.batch import Batch, Encoded
from fedrot.tasks.columns import column_values, with_columns
from fedrot.tasks.encode import encode
from fedrot.tasks.glue import metric_of
from fedrot.tasks.held_out import Columns, disjoint, limited, split_off
from fedrot.tasks.hub import load_glue
from fedrot.tasks.objective import Forward, Head, Metric, Objective
from fedrot.tasks.scores import pearson, spearman

if TYPE_CHECKING:
    from datasets import Dataset

GRADED = Columns(("text", "text_pair"))
OUTPUT = ("grade",)
"""Names of the head's outputs."""


class Grade(Objective):
    """A number for every text or pair of texts: squared error, Pearson and Spearman correlation."""

    head: ClassVar[Head] = "sequence-classification"
    outputs: ClassVar[tuple[str, ...]] = OUTPUT

    @property
    def metric(self) -> Metric:
        """Pearson correlation."""
        return metric_of(self.config.data)

    def load(self, seed: int) -> TaskData:
        """Read, check and split the examples; as for labelled texts, but without strata.

        Raises:
            DataError: data that cannot be had, or rows without text or grade.
        """
        source = load_glue(self.config.data.partition(":")[2])
        found = {"train": source.train, "validation": source.validation, "test": source.test}
        tables = {
            name: _standard(data, source.text, source.text_pair) for name, data in found.items() if data
        }
        splits, removed = disjoint(split_off(tables, self.config, seed, GRADED), self.config, GRADED)
        splits = limited(splits, self.config, seed, GRADED)
        return TaskData(
            name=self.config.data,
            labels=(),
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits["test"],
            notes=(*source.notes, *removed),
        )

    def load_held_out(self, seed: int) -> TaskData:  # noqa: ARG002
        """Nodes cannot bring grades of their own yet.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "task.data = 'nodes': grades of a node's own are not read; use classes, or task.data = 'glue:stsb'"
        )

    def load_own(self, labels: Sequence[str], who: str) -> Dataset:  # noqa: ARG002
        """See `load_held_out`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{who}: task.data = {self.config.data!r}: grades of a node's own are not read")

    def encode(self, dataset: Dataset, processor: Any, opening: int | None = None) -> Encoded:  # noqa: ARG002
        """See `fedrot.tasks.encode.encode`; labels are `(n,)` float32."""
        return encode(dataset, processor, self.config.max_length)

    def shares(self, weight: Tensor, counts: Tensor) -> Tensor:  # noqa: ARG002
        """Every example of a batch counts alike."""
        return weight

    def losses(self, model: Forward, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k,)` squared errors."""
        return (model.logits(batch, hidden).squeeze(-1) - batch.labels).square()

    def observe(self, model: Forward, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k, 1)` grades."""
        return model.logits(batch, hidden)

    def metrics(self, observed: Tensor, data: Encoded) -> dict[str, float]:
        """Pearson and Spearman correlation with the true grades, and the mean squared error as `loss`.

        Raises:
            DataError: no examples.
        """
        if data.labels.numel() == 0:
            raise DataError("no examples to evaluate: the test or validation split is empty")
        said, true = observed.squeeze(-1).double(), data.labels.double()
        error = float((said - true).square().mean())
        return {"pearson": pearson(said, true), "spearman": spearman(said, true), "loss": error}


def _standard(data: Dataset, text: str, text_pair: str | None) -> Dataset:
    """The columns `text`, `text_pair` and `label`, a float; rows without any of them are an error."""
    columns: dict[str, list[Any]] = {"text": column_values(data, text)}
    if text_pair is not None:
        columns["text_pair"] = column_values(data, text_pair)
    columns["label"] = column_values(data, "label")
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        *texts, grade = values
        if (
            not isinstance(grade, int | float)
            or not math.isfinite(grade)
            or not all(isinstance(t, str) for t in texts)
        ):
            raise DataError(
                f"row {row + 1} has the texts and grade {values!r}: expected texts and a finite number"
            )
    return with_columns(
        data.select_columns([]), columns | {"label": [float(grade) for grade in columns["label"]]}
    )
