"""Examples that are left out once the model's tokenizer says how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedrot.errors import DataError
from fedrot.tasks.base import TaskData
from fedrot.tasks.objective import Objective

if TYPE_CHECKING:
    from datasets import Dataset


def fitted(goal: Objective, task: TaskData, processor: Any, opening: int | None = None) -> TaskData:
    """A task's splits without what `Objective.fitting` leaves out, and a note for each that lost some.

    The last two arguments are those of `Objective.encode`.

    Raises:
        DataError: nothing is left of a split.
    """
    notes: list[str] = []

    def kept(name: str, data: Dataset) -> Dataset:
        left, note = fitting_rows(goal, data, f"task.data = {task.name!r}", name, processor, opening)
        notes.extend(note)
        return left

    further: Mapping[str, Dataset] = {name: kept(name, data) for name, data in task.further.items()}
    return replace(
        task,
        train=kept("train", task.train),
        validation=None if task.validation is None else kept("validation", task.validation),
        test=kept("test", task.test),
        further=further,
        notes=(*task.notes, *notes),
    )


def fitting_rows(
    goal: Objective, data: Dataset, where: str, split: str, processor: Any, opening: int | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """The rows of a split that are kept, and what is to be said of the others.

    Raises:
        DataError: there were rows, and none is kept.
    """
    if not goal.leaves_out:
        return data, ()
    rows = goal.fitting(data, processor, opening)
    lost, limit = len(data) - len(rows), f"task.max_length = {goal.config.max_length}"
    if not lost:
        return data, ()
    if not rows:
        raise DataError(
            f"{where}: all {lost} examples of {split} have more tokens than {limit} and would be dropped; raise it, or "
            "set task.overlong = 'cut-end'"
        )
    return data.select(rows), (f"{lost} of {len(data)} examples of {split} dropped: longer than {limit}",)
