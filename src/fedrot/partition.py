"""Which training examples each client holds: a recipe's `[partition]` on a partitioner of flwr-datasets."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedrot.config import PartitionConfig
from fedrot.core.rng import derive
from fedrot.errors import ConfigError, DataError, nearest
from fedrot.partition_options import find_kind, partitioner_arguments
from fedrot.tasks.columns import column_values
from fedrot.tasks.named import RowError
from fedrot.tasks.quiet import quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

_BY_ID = ("natural-id", "grouped-natural-id")
_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
"""What flwr-datasets raises for options that fit neither each other nor the data."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows of the training split by client.

    Attributes:
        rows: for each client, int64 `(n_i,)`.
        notes: what belongs to no client, and what the partitioner warned of; for the run's report.
    """

    rows: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each client."""
        return tuple(rows.numel() for rows in self.rows)

    def counts(self, labels: Tensor | Sequence[int], classes: int) -> Tensor:
        """How many examples of each class each client has: `(clients, classes)` int64, from `(n,)` labels."""
        owner = torch.arange(len(self)).repeat_interleave(torch.tensor(self.sizes, dtype=torch.long))
        held = torch.as_tensor(labels, dtype=torch.long)[torch.cat(self.rows)]
        return torch.bincount(owner * classes + held, minlength=len(self) * classes).view(len(self), classes)


def partition(train: Dataset, config: PartitionConfig, clients: int | None, seed: int) -> Partition:
    """Give every client its rows of `train`.

    `config.kind` names a partitioner class of flwr-datasets in kebab case and the section's further keys are
    that class's own arguments. `partition_by` is `label` unless given, `num_partitions` is `clients`, the
    seed is derived from `seed`, and rows are shuffled first, so that the order of a file does not decide who
    gets what (natural ids excepted).

    With `natural-id`, None for `clients` gives one client per id, in the order of the ids; fewer clients than
    ids take the ids with the most examples.

    Raises:
        ConfigError: unknown kind, unknown, missing or ill-typed option, or a number of clients that does not
            fit the kind.
        DataError: fewer examples than clients, or a client with fewer than `config.min_size`.
        RowError: an example without a value in the column that decides.
    """
    kind_class = find_kind(config.kind)
    options = partitioner_arguments(config, kind_class, clients, seed)
    column = options.get("partition_by")
    codes = None if column is None else _values(train, str(column), config.kind)
    rows = np.arange(len(train))
    if config.kind not in _BY_ID:
        rows = np.random.default_rng(derive(seed, "partition order")).permutation(rows)
    if config.kind == "natural-id" and clients is not None and codes is not None:
        rows = _largest_ids(codes, rows, clients, str(column))
    _check_enough(len(rows), clients, config.min_size)
    made, heard = _apply(kind_class, options, config, rows, codes)
    _check_made(made, config, clients)
    return Partition(made, _notes(config, made, len(train), heard))


def _values(train: Dataset, column: str, kind: str) -> np.ndarray[Any, Any]:
    """The column that decides: its numbers for `continuous`, else each value's rank among the distinct ones.

    Ranks instead of values because some partitioners take labels to be 0, 1, 2, ... without gaps.
    """
    if column not in train.column_names:
        raise ConfigError(
            f"partition.partition_by = {column!r}: no such column; {nearest(column, train.column_names)}"
        )
    values = column_values(train, column)
    if blank := [row for row, value in enumerate(values) if _is_blank(value)]:
        more = f" ({len(blank)} such rows)" if len(blank) > 1 else ""
        raise RowError(
            blank[0], f"it has no value in partition.partition_by = {column!r}; complete or remove it{more}"
        )
    if kind == "continuous":
        try:
            return np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"partition.partition_by = {column!r}: kind 'continuous' needs a column of numbers"
            ) from None
    try:
        return np.unique(np.asarray(values), return_inverse=True)[1]
    except (TypeError, ValueError):
        raise DataError(
            f"partition.partition_by = {column!r}: expected a column of text or numbers"
        ) from None


def _is_blank(value: Any) -> bool:
    """Nothing at all, no number, or what a CSV file has instead: a text without a character to see."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _largest_ids(
    codes: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], clients: int, column: str
) -> np.ndarray[Any, Any]:
    sizes = np.bincount(codes)
    if clients > len(sizes):
        raise ConfigError(
            f"federation.clients = {clients}: column {column!r} has {len(sizes)} ids in training; lower it, "
            "or leave it out "
            "for one client per id"
        )
    kept = np.argsort(-sizes, kind="stable")[:clients]
    return rows[np.isin(codes[rows], kept)]


def _check_enough(examples: int, clients: int | None, min_size: int) -> None:
    if clients is not None and examples < clients * min_size:
        each = "" if min_size == 1 else f" of at least {min_size} examples (partition.min_size)"
        raise DataError(
            f"{examples} training examples for federation.clients = {clients}{each}; use fewer clients, "
            "more data, or a "
            "larger task.max_train"
        )


def _apply(
    kind_class: type[Partitioner],
    options: Mapping[str, Any],
    config: PartitionConfig,
    rows: np.ndarray[Any, Any],
    codes: np.ndarray[Any, Any] | None,
) -> tuple[tuple[Tensor, ...], list[str]]:
    """Run the partitioner on a table of row numbers and the deciding column alone; also what it warned of."""
    from fedrot.partition_rows import NumberedRows  # not above: it takes half a second to import datasets

    arguments = dict(options)
    if "distribution_array" in arguments:
        arguments["distribution_array"] = np.asarray(arguments["distribution_array"])
    table: dict[str, Any] = {"row": rows}
    if codes is not None:
        arguments["partition_by"] = "value"
        table["value"] = codes[rows]
    shown = ", ".join(f"{key} = {_short(value)}" for key, value in options.items() if key != "seed")
    # One partitioner draws its own progress bar on stderr, with no switch for it; warnings are collected
    # instead.
    with (
        quiet_datasets(),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as heard,
    ):
        warnings.simplefilter("always")
        try:
            partitioner = kind_class(**arguments)
        except _FAILURES as error:
            raise ConfigError(f"partition.kind = {config.kind!r} with {shown}: {error}") from error
        partitioner.dataset = NumberedRows.from_dict(table)
        try:
            parts: list[Any] = [
                partitioner.load_partition(index) for index in range(partitioner.num_partitions)
            ]
        except _FAILURES as error:
            raise DataError(
                f"partition.kind = {config.kind!r} with {shown} cannot divide {len(rows)} training examples: "
                f"{str(error).rstrip('. ')}. Remedy: {_remedy(config)}"
            ) from error
    made = tuple(torch.from_numpy(part.astype(np.int64)) for part in parts)
    return made, [str(warning.message) for warning in heard if warning.category is UserWarning]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _remedy(config: PartitionConfig) -> str:
    own = "raise partition.alpha" if "alpha" in config.options else f"change the options of {config.kind!r}"
    return f"{own}, use fewer clients (federation.clients), lower partition.min_size, or give more data"


def _check_made(made: tuple[Tensor, ...], config: PartitionConfig, clients: int | None) -> None:
    if clients is not None and len(made) != clients:
        raise ConfigError(
            f"federation.clients = {clients}: partition.kind {config.kind!r} with these options makes "
            f"{len(made)} clients; set federation.clients = {len(made)} or leave it out"
        )
    for client, rows in enumerate(made):
        if rows.numel() < config.min_size:
            least = "at least one" if config.min_size == 1 else f"partition.min_size = {config.min_size}"
            raise DataError(
                f"client {client} has {rows.numel() or 'no'} training examples, expected {least}. "
                f"Remedy: {_remedy(config)}"
            )
    together = torch.cat(made)
    if together.unique().numel() != together.numel():
        raise DataError(
            f"partition.kind = {config.kind!r}: an example was given to two clients; check its options"
        )


def _notes(
    config: PartitionConfig, made: tuple[Tensor, ...], total: int, heard: list[str]
) -> tuple[str, ...]:
    # The first sentence says what happened. Of repeated ones, whose counts differ, the last is kept.
    sentences = {message[:40]: message.split(". ")[0].rstrip(".") for message in heard}
    notes = [f"partition: {said}" for start, said in sentences.items() if not start.startswith("The sum of")]
    given = sum(rows.numel() for rows in made)
    if given < total:
        notes.append(
            f"partition: {total - given} of {total} training examples belong to no client ({config.kind})"
        )
    if config.kind in (*_BY_ID, "continuous") and "partition_by" not in config.options:
        notes.append(
            f"partition: partition_by is not set, so that kind {config.kind!r} used the column 'label'"
        )
    return tuple(notes)
