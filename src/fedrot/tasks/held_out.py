"""Test and validation splits out of the training split, none sharing an example, cut to the size asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError, DataError
from fedrot.tasks.columns import column_values
from fedrot.tasks.splits import part, stratified, subsample, text_key, without_shared

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Columns:
    """What makes two examples the same, and the class numbers by which splits are stratified, if there are any."""

    content: tuple[str, ...]
    label: str | None = None
    said: str = "text"
    """What a note calls the content."""

    def keys(self, data: Dataset) -> list[str]:
        """Every example's content as one string, equal up to white space."""
        columns = [column_values(data, name) for name in self.content if name in data.column_names]
        return [text_key(*texts) for texts in zip(*columns, strict=True)]

    def classes(self, data: Dataset) -> list[int]:
        """Every example's class; all in one where there are none."""
        return [0] * len(data) if self.label is None else column_values(data, self.label)


def split_off(
    splits: dict[str, Dataset],
    config: TaskConfig,
    seed: int,
    columns: Columns,
    wanted: Sequence[str] = ("test", "validation"),
) -> dict[str, Dataset]:
    """Add the wanted ones of the test and the validation split, if they are missing, out of training.

    Distinct texts are drawn, and all examples with a drawn text go with it, so that none straddles a split.
    """
    splits = dict(splits)
    if config.validation_fraction == 0:
        splits.pop("validation", None)
    total = len(set(columns.keys(splits["train"])))
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if split in splits or split not in wanted or fraction == 0:
            continue
        train = splits["train"]
        keys, labels = columns.keys(train), columns.classes(train)
        label_of = dict(zip(reversed(keys), reversed(labels), strict=True))
        distinct = list(dict.fromkeys(keys))
        drawn = stratified(
            [label_of[key] for key in distinct], part(total, fraction), seed, f"{split} split", spare=1
        )
        if len(drawn) == 0:
            raise DataError(
                f"task.{split}_fraction = {fraction}: {len(distinct)} examples"
                + (f" of {len(set(labels))} classes" if columns.label else "")
                + " cannot be split so that training keeps one"
                + (" of each" if columns.label else "")
                + "; give more examples or task.test_data"
            )
        taken = {distinct[index] for index in drawn}
        splits[split] = train.select([row for row, key in enumerate(keys) if key in taken])
        splits["train"] = train.select([row for row, key in enumerate(keys) if key not in taken])
    return splits


def disjoint(
    splits: dict[str, Dataset], config: TaskConfig, columns: Columns
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits without what others hold too: test keeps its examples, then validation; and notes of how many.

    Raises:
        DataError: too little of training is left to learn from, since test is made of the same examples.
    """
    keys = {split: columns.keys(data) for split, data in splits.items()}
    result, notes = dict(splits), []
    tested = [split for split in splits if split not in ("train", "validation")]
    for split, others in (("validation", tested), ("train", [*tested, "validation"])):
        if split not in splits:
            continue
        others = [other for other in others if other in keys]
        kept = without_shared(keys[split], (key for other in others for key in keys[other]))
        if lost := len(keys[split]) - len(kept):
            notes.append(
                f"{lost} examples removed from {split}: their {columns.said} is also in {' or '.join(others)}"
            )
            result[split] = splits[split].select(kept)
            keys[split] = [keys[split][row] for row in kept]
    _check_left(splits["train"], result["train"], config, columns)
    return result, notes


def _check_left(before: Dataset, after: Dataset, config: TaskConfig, columns: Columns) -> None:
    """Say why training is empty, or has a single class, if it was not so before."""
    needed = 1 if columns.label is None else 2
    if len(set(columns.classes(after))) >= needed or len(set(columns.classes(before))) < needed:
        return
    of_own = config.test_data is not None
    key, value = ("task.test_data", config.test_data) if of_own else ("task.data", config.data)
    lost = len(before) - len(after)
    left = f"{len(after)} examples of a single class" if len(after) else "none"
    remedy = "name a file of other examples, or leave the key out" if of_own else "set task.test_data"
    raise DataError(
        f"{key} = {value!r}: {lost} of {len(before)} examples of training were removed, since their {columns.said} is "
        f"also in test or validation, which leaves {left}; {remedy}"
    )


def limited(
    splits: dict[str, Dataset], config: TaskConfig, seed: int, columns: Columns
) -> dict[str, Dataset]:
    """Seeded, stratified subsamples of the splits that are larger than `task.max_...` allows."""
    limits = dict.fromkeys(splits, config.max_test)
    limits |= {"train": config.max_train, "validation": config.max_validation}
    result = dict(splits)
    for split, limit in limits.items():
        if limit is None or split not in splits:
            continue
        labels = columns.classes(splits[split])
        if split == "train" and limit < (classes := len(set(labels))):
            raise ConfigError(
                f"task.max_train = {limit}: expected at least one example for each of the {classes} classes"
            )
        rows = subsample(labels, limit, seed, f"{split} subsample", keep=split == "train")
        result[split] = splits[split].select(rows)
    return result


def reserved(everything: Dataset, config: TaskConfig, seed: int, columns: Columns) -> dict[str, Dataset]:
    """Examples that are held out altogether: a share `task.validation_fraction` for validation, the rest for test."""
    parts = {"test": everything}
    if config.validation_fraction:
        drawn = split_off({"train": everything}, config, seed, columns, ["validation"])
        parts = {"validation": drawn["validation"], "test": drawn["train"]}
    return limited(parts, config, seed, columns)
