"""Data that stays where it is: a node's own training examples, and what the server holds out to test on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError, DataError, nearest
from fedrot.tasks.base import TaskData
from fedrot.tasks.columns import column_values, with_columns
from fedrot.tasks.held_out import reserved
from fedrot.tasks.labelled import Form, named_splits

if TYPE_CHECKING:
    from datasets import Dataset


NODES = "nodes"
"""As `task.data`: training data lies with the nodes of a deployed federation, each with its own."""


def load_held_out(config: TaskConfig, seed: int, form: Form) -> TaskData:
    """What the server of such a federation reads: `task.test_data`, split in validation and test; no training data.

    The labels are `task.labels`, or those that occur in the file. A share `task.validation_fraction` of the distinct
    examples is the validation split; `task.max_validation` and `max_test` then take subsamples.

    Raises:
        ConfigError: no `task.test_data`.
        DataError: unusable data, or a label that is not among `task.labels`.
    """
    table = held_out_table(config)
    splits, names, where, notes = named_splits(table, form)
    labels = tuple(config.labels or names)
    everything = _renumbered(splits["train"], names, labels, where)
    parts = reserved(everything, table, seed, form.columns)
    return TaskData(NODES, labels, everything.select([]), parts.get("validation"), parts["test"], notes)


def held_out_table(config: TaskConfig) -> TaskConfig:
    """A `[task]` whose data is what the server holds out.

    Raises:
        ConfigError: no `task.test_data`.
    """
    if config.test_data is None:
        raise ConfigError(
            "task.test_data: missing; where task.data = 'nodes' the server needs examples of its own to evaluate on"
        )
    return config.model_copy(update={"data": config.test_data, "test_data": None, "max_train": None})


def load_own(config: TaskConfig, labels: Sequence[str], who: str, form: Form) -> Dataset:
    """All examples of `task.data` as training examples, numbered as the server numbers its labels.

    Args:
        config: `data` is the node's own file.
        labels: names of the classes, in the server's order.
        who: the node, for messages.
        form: texts or images.

    Raises:
        DataError: unreadable or unusable data, or a label that the server does not know (with its row).
    """
    splits, names, where, _ = named_splits(config.model_copy(update={"test_data": None}), form)
    return _renumbered(splits["train"], names, labels, f"{who}: {where}")


def _renumbered(data: Dataset, names: Sequence[str], labels: Sequence[str], where: str) -> Dataset:
    """The examples with labels numbered by `labels` rather than by `names`."""
    number = {name: index for index, name in enumerate(labels)}
    own = [names[int(index)] for index in column_values(data, "label")]
    for row, name in enumerate(own):
        if name not in number:
            raise DataError(
                f"{where}: row {row + 1} has the label {name!r}, which is not among the federation's; "
                f"{nearest(name, labels)}. Add it to task.labels of the recipe, or mend the row"
            )
    return with_columns(data, {"label": [number[name] for name in own]})
