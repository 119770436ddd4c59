"""Language modelling of answers: instruction tuning. Its loss, its metrics, and where its data comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fedrot.config import TaskConfig
from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source, TaskData
from fedrot.tasks.batch import Batch, Encoded
from fedrot.tasks.corpora import load_rows
from fedrot.tasks.dialogue_corpora import DIALOGUES
from fedrot.tasks.dialogue_encoding import encode_dialogues, fitting
from fedrot.tasks.dialogues import MESSAGES, conversations
from fedrot.tasks.files import FORMATS, read_table
from fedrot.tasks.held_out import Columns, disjoint, limited, reserved, split_off
from fedrot.tasks.hub import load_hub
from fedrot.tasks.objective import Head, Metric, Objective, Speaks
from fedrot.tasks.own import NODES, held_out_table

if TYPE_CHECKING:
    from datasets import Dataset

SPOKEN = Columns((MESSAGES,), said="conversation")


class Generate(Objective):
    """Answers to prompts: cross-entropy of the answers' tokens, perplexity, share of tokens that were likeliest.

    A client's loss on a batch is the mean over the answer tokens of all its examples, as in the usual trainers, so that
    a long answer counts more than a short one.
    """

    head: ClassVar[Head] = "causal-lm"

    @property
    def metric(self) -> Metric:
        """Perplexity."""
        return Metric("perplexity", "lower")

    def load(self, seed: int) -> TaskData:
        """Read, check and split conversations; as for labelled texts, but without strata.

        Raises:
            DataError: data that cannot be found, read or used; the message names the key, the row and the remedy.
        """
        config = self.config
        splits, notes = _splits(config)
        splits = split_off(splits, config, seed, SPOKEN)
        splits, removed = disjoint(splits, config, SPOKEN)
        splits = limited(splits, config, seed, SPOKEN)
        return TaskData(
            name=config.data,
            labels=(),
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits["test"],
            notes=(*notes, *removed),
        )

    def load_held_out(self, seed: int) -> TaskData:
        """`task.test_data`, split in validation and test; no training data.

        Raises:
            ConfigError: no `task.test_data`.
            DataError: unusable data.
        """
        table = held_out_table(self.config)
        splits, notes = _splits(table)
        everything = splits["train"]
        parts = reserved(everything, self.config, seed, SPOKEN)
        return TaskData(NODES, (), everything.select([]), parts.get("validation"), parts["test"], notes)

    def load_own(self, labels: Sequence[str], who: str) -> Dataset:  # noqa: ARG002
        """All conversations of `task.data`.

        Raises:
            DataError: unusable data; the node is named.
        """
        try:
            return _splits(self.config.model_copy(update={"test_data": None}))[0]["train"]
        except DataError as error:
            raise DataError(f"{who}: {error}") from error

    @property
    def leaves_out(self) -> bool:
        """With `task.overlong = "drop"`."""
        return self.config.overlong == "drop"

    def fitting(self, dataset: Dataset, processor: Any, opening: int | None = None) -> list[int]:
        """Rows of at most `task.max_length` tokens."""
        return fitting(dataset, processor, self.config, opening)

    def encode(self, dataset: Dataset, processor: Any, opening: int | None = None) -> Encoded:
        """See `encode_dialogues`."""
        return encode_dialogues(dataset, processor, self.config, opening)

    def shares(self, weight: Tensor, counts: Tensor) -> Tensor:
        """Every answer token of a batch counts alike: 1 / (answer tokens of its real examples)."""
        real = (weight > 0).to(weight.dtype)
        return real / (real * counts).sum(-1, keepdim=True).clamp(min=1)

    def losses(self, model: Speaks, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(n,)` sum over the example's answer tokens of their negative log-likelihood, in nats."""
        assert batch.asked is not None
        scores = model.token_scores(batch, hidden)
        return scores.loss.new_zeros(len(batch.rows)).index_add(0, batch.asked.example, scores.loss)

    def observe(self, model: Speaks, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(n, 3)`: negative log-likelihood, tokens that were likeliest, tokens."""
        assert batch.asked is not None
        scores = model.token_scores(batch, hidden)
        each = torch.stack([scores.loss, scores.correct.to(scores.loss), torch.ones_like(scores.loss)], 1)
        return each.new_zeros(len(batch.rows), 3).index_add(0, batch.asked.example, each)

    def metrics(self, observed: Tensor, data: Encoded) -> dict[str, float]:  # noqa: ARG002
        """Mean loss of a token in nats, its exponential, and the share of tokens that were likeliest.

        Raises:
            DataError: no examples.
        """
        if len(observed) == 0:
            raise DataError("no examples to evaluate: the test or validation split is empty")
        loss, correct, tokens = observed.double().sum(0).tolist()
        mean = loss / tokens
        return {
            "perplexity": math.exp(min(mean, 700.0)),  # beyond, a float64 is infinite
            "token_accuracy": correct / tokens,
            "loss": mean,
        }


def _splits(config: TaskConfig) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    source = _read(config.data, "task.data")
    found: dict[str, tuple[Source, Dataset | None]] = {
        "train": (source, source.train),
        "validation": (source, source.validation),
        "test": (source, source.test),
    }
    notes = source.notes
    if config.test_data is not None:
        other = _read(config.test_data, "task.test_data")
        found["test"] = (other, other.train if other.test is None else other.test)
        notes += other.notes
    splits: dict[str, Dataset] = {}
    for split, (origin, data) in found.items():
        if data is not None:
            splits[split], more = conversations(data, config, origin, split)
            notes += more
    return splits, notes


def _read(data: str, key: str) -> Source:
    kind, colon, name = data.partition(":")
    if data in DIALOGUES:
        where, splits, notes = load_rows(data, DIALOGUES[data])
        return Source(where, splits["train"], "", "", test=splits.get("test"), curated=True, notes=notes)
    if colon and kind == "hub":
        return load_hub(name, "", None, "")
    if data.endswith(FORMATS):
        return Source(f"{key} = {data!r}", read_table(data, key), "", "")
    raise DataError(
        f"{key} = {data!r}: expected a bundled corpus, 'hub:ID' or the path of a {', '.join(FORMATS)} file; "
        f"{nearest(data, DIALOGUES)}"
    )
