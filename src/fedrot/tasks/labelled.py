"""Labelled texts: from a recipe's `[task]` to split, numbered examples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedrot.config import TaskConfig
from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source, TaskData
from fedrot.tasks.columns import column_values, declared_labels, number_labels, standard_columns, with_columns
from fedrot.tasks.corpora import CORPORA, load_corpus
from fedrot.tasks.files import FORMATS, read_table
from fedrot.tasks.held_out import Columns, disjoint, limited, split_off
from fedrot.tasks.hub import load_glue, load_hub

if TYPE_CHECKING:
    from datasets import Dataset

LABELLED = Columns(("text", "text_pair"), "label")


def load_labelled(config: TaskConfig, seed: int) -> TaskData:
    """Read, check and split the examples that `[task]` names.

    The test split is `task.test_data` if given, else the source's own, else a seeded, label-stratified share
    `task.test_fraction`. The validation split is the source's own, else a stratified share
    `task.validation_fraction` of the training split. Examples of training whose text is also in test or
    validation (up to white space) are removed, and so are those of validation whose text is in test; `notes`
    says how many. `task.max_train`, `max_validation` and `max_test` then take seeded, stratified subsamples.

    Raises:
        DataError: data that cannot be found, read or used; the message names the key, the row and the remedy.
        ConfigError: a `task.max_train` below the number of classes.
    """
    splits, names, where, notes = named_splits(config)
    own_test = "test" in splits
    splits = split_off(splits, config, seed, LABELLED)
    splits, removed = disjoint(splits, LABELLED)
    _check_labels(splits, names, where, own_test=own_test)
    splits = limited(splits, config, seed, LABELLED)
    further = {name: data for name, data in splits.items() if name not in ("train", "validation", "test")}
    return TaskData(
        name=config.data,
        labels=names,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        notes=(*notes, *removed),
        further=further,
    )


def _read(data: str, config: TaskConfig, key: str = "task.data") -> Source:
    kind, colon, name = data.partition(":")
    if data in CORPORA:
        corpus = load_corpus(data)
        pair = config.text_pair or corpus.text_pair
        return replace(corpus, text=config.text, text_pair=pair, label=config.label)
    if colon and kind == "glue":
        return load_glue(name)
    if colon and kind == "hub":
        return load_hub(name, config.text, config.text_pair, config.label)
    if data.endswith(FORMATS):
        table = read_table(data, key)
        return Source(f"{key} = {data!r}", table, config.text, config.label, config.text_pair)
    raise DataError(
        f"{key} = {data!r}: expected a bundled corpus, 'glue:TASK', 'hub:ID' or the path of a "
        f"{', '.join(FORMATS)} file; {nearest(data, CORPORA)}"
    )


def named_splits(config: TaskConfig) -> tuple[dict[str, Dataset], tuple[str, ...], str, tuple[str, ...]]:
    """The splits found, with standard columns and numbered labels; the labels' names; their source; notes."""
    source = _read(config.data, config)
    found: dict[str, tuple[Source, Dataset | None]] = {
        "train": (source, source.train),
        "validation": (source, source.validation),
        "test": (source, source.test),
        **{name: (source, data) for name, data in source.further.items()},
    }
    notes = source.notes
    if config.test_data is not None:
        other = _read(config.test_data, config, "task.test_data")
        found["test"] = (other, other.train if other.test is None else other.test)
        notes += other.notes
    splits: dict[str, Dataset] = {}
    for split, (origin, data) in found.items():
        if data is not None:
            splits[split], more = standard_columns(data, origin, split)
            notes += more
            if ("text_pair" in splits[split].column_names) != ("text_pair" in splits["train"].column_names):
                raise DataError(
                    f"{origin.where}: training and {split} must both have pairs of texts; set task.text_pair"
                )
    declared = declared_labels(source) or ()
    occurring = number_labels(name for data in splits.values() for name in column_values(data, "label"))
    names = declared + tuple(name for name in occurring if name not in declared)
    return {split: _numbered(data, names) for split, data in splits.items()}, names, source.where, notes


def _numbered(data: Dataset, names: tuple[str, ...]) -> Dataset:
    number = {name: index for index, name in enumerate(names)}
    return with_columns(data, {"label": [number[name] for name in data["label"]]})


def _check_labels(splits: dict[str, Dataset], names: tuple[str, ...], where: str, *, own_test: bool) -> None:
    present = {split: set(column_values(data, "label")) for split, data in splits.items()}
    if len(present["train"]) < 2:
        raise DataError(
            f"{where}: training has {len(splits['train'])} examples of {len(present['train'])} classes; "
            "expected at least two classes (is task.label the right column?)"
        )
    for split in ("test", "validation"):
        if absent := sorted(present.get(split, set()) - present["train"]):
            shown = ", ".join(repr(names[number]) for number in absent[:5])
            remedy = (
                "check task.test_data" if own_test else "lower task.test_fraction, task.validation_fraction"
            )
            raise DataError(
                f"{where}: label {shown} occurs in {split} but not in training (or only with texts "
                f"also in {split}); add examples of it to training or remove its rows from {split} ({remedy})"
            )
