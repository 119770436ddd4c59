"""What a task hands to the rest of fedrot: named splits of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """Examples, split so that none of `test` or `validation` is in `train`.

    Every split has the columns of its task (`text`, and `text_pair` if it has pairs; `image`; `messages`), `label`
    where there are classes (an integer from 0 to `len(labels) - 1`), and the other columns of its source, which
    natural-id partitions may use.

    Attributes:
        name: the recipe's `task.data`.
        labels: the classes' names, in the order of their numbers.
        validation: None when `task.validation_fraction` is 0.
        notes: what was left out or replaced on the way, with counts; for the run's report.
    """

    name: str
    labels: tuple[str, ...]
    train: Dataset
    validation: Dataset | None
    test: Dataset
    notes: tuple[str, ...] = ()
    further: Mapping[str, Dataset] = field(default_factory=dict["str", "Dataset"])
    """More splits to test on, by name."""

    @property
    def pairs(self) -> bool:
        """Whether an example is a pair of texts."""
        return "text_pair" in self.train.column_names


@dataclass(frozen=True)
class Source:
    """Tables as they were read, before columns are named, labels numbered and splits made.

    Attributes:
        where: how to name the source in a message.
        text, text_pair, label: its column names; `text` is that of the image where there are images.
        test: the source's own test split, if any; likewise `validation`.
        curated: a public corpus, in which unusable rows are dropped and counted. In the user's own file they
            are errors.
        folder: where paths of images in it start.
    """

    where: str
    train: Dataset
    text: str
    label: str
    text_pair: str | None = None
    validation: Dataset | None = None
    test: Dataset | None = None
    curated: bool = False
    notes: tuple[str, ...] = ()
    further: Mapping[str, Dataset] = field(default_factory=dict["str", "Dataset"])
    """More splits to test on, by name."""
    folder: Path | None = None
