"""What is learned: how a task reads and encodes its data, what a client minimises, and what is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor

from fedrot.config import TaskConfig
from fedrot.core.token_loss import TokenScores
from fedrot.tasks.base import TaskData
from fedrot.tasks.batch import Batch, Encoded

if TYPE_CHECKING:
    from datasets import Dataset

Head = Literal["sequence-classification", "causal-lm", "image-classification"]
"""Which kind of transformers model a task is learned by."""


@dataclass(frozen=True)
class Metric:
    """A figure that choices are made by, as records call it."""

    name: str
    better: Literal["higher", "lower"] = "higher"

    def gain(self, value: float) -> float:
        """`value`, turned so that more is better."""
        return value if self.better == "higher" else -value


class Scores(Protocol):
    """A base model that scores classes, perhaps for a stack of clients; `hidden` stands in for its frozen blocks."""

    def logits(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """`(k, labels)` in float32 or better."""
        ...


class Speaks(Protocol):
    """A base model that scores tokens, likewise."""

    def token_scores(self, batch: Batch, hidden: Tensor | None = None) -> TokenScores:
        """Of every token that the batch asks for, in the order of `batch.asked`."""
        ...


class Forward(Scores, Speaks, Protocol):
    """What any task may ask of a model; each task says which of the two it needs."""


class Objective(ABC):
    """A task without its data. Stateless; one for each `task.name`."""

    head: ClassVar[Head]
    outputs: ClassVar[tuple[str, ...]] = ()
    """Names of the head's outputs, where they are not the data's labels."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """What choices are made by."""

    @abstractmethod
    def load(self, seed: int) -> TaskData:
        """Read, check and split the examples that `[task]` names."""

    @abstractmethod
    def load_held_out(self, seed: int) -> TaskData:
        """What a server holds out whose clients' data lies with them (`task.data = "nodes"`)."""

    @abstractmethod
    def load_own(self, labels: Sequence[str], who: str) -> Dataset:
        """All of a node's own examples as training examples, labels numbered in the server's order."""

    @property
    def leaves_out(self) -> bool:
        """Whether `fitting` may leave out examples."""
        return False

    def fitting(self, dataset: Dataset, processor: Any, opening: int | None = None) -> list[int]:  # noqa: ARG002
        """Rows that can be encoded; the others are left out of their split before it is dealt to clients.

        The arguments are those of `encode`.
        """
        return list(range(len(dataset)))

    @abstractmethod
    def encode(self, dataset: Dataset, processor: Any, opening: int | None = None) -> Encoded:
        """A split as tensors.

        Args:
            dataset: the split.
            processor: the model's tokenizer or image processor.
            opening: the token that opens every answer of an encoder-decoder model; None for other models.
        """

    @abstractmethod
    def shares(self, weight: Tensor, counts: Tensor) -> Tensor:
        """What each example's loss counts in its client's batch.

        Args:
            weight: `(steps, G, batch)`: 1 / (number of real examples in the batch), or 0 for padding.
            counts: `(steps, G, batch)` int64, `Encoded.counts` of those examples.
        """

    @abstractmethod
    def losses(self, model: Forward, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k,)` loss of each example, to be weighted by `shares`."""

    @abstractmethod
    def observe(self, model: Forward, batch: Batch, hidden: Tensor | None) -> Tensor:
        """`(k, m)` numbers of each example, from which `metrics` follow."""

    @abstractmethod
    def metrics(self, observed: Tensor, data: Encoded) -> dict[str, float]:
        """Scores of a whole split from `(n, m)` observed numbers; `loss` and this task's `metric` are among them."""
