"""Labelled examples: from a recipe's `[task]` to split, numbered texts or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedrot.config import TaskConfig
from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source, TaskData
from fedrot.tasks.columns import column_values, declared_labels, number_labels, standard_columns, with_columns
from fedrot.tasks.corpora import CORPORA, load_corpus
from fedrot.tasks.files import FORMATS, read_table
from fedrot.tasks.held_out import Columns, disjoint, limited, split_off
from fedrot.tasks.hub import load_glue, load_hub
from fedrot.tasks.images import PICTURED, PICTURES, image_columns, read_images

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Form:
    """What labelled examples are made of.

    Attributes:
        read: the source that a name in a recipe (and the key it stands under) means.
        standard: a table of the source with standard columns, the labels as names; and notes.
        columns: what makes two examples the same.
    """

    read: Callable[[str, TaskConfig, str], Source]
    standard: Callable[[Dataset, Source, str], tuple[Dataset, tuple[str, ...]]]
    columns: Columns


def load_labelled(config: TaskConfig, seed: int, form: Form) -> TaskData:
    """Read, check and split the examples that `[task]` names.

    The test split is `task.test_data` if given, else the source's own, else a seeded, label-stratified share
    `task.test_fraction`. The validation split is the source's own, else a stratified share
    `task.validation_fraction` of the training split. Examples of training whose text (up to white space) or image
    is also in test or validation are removed, and so are those of validation that are in test; `notes` says how many.
    `task.max_train`, `max_validation` and `max_test` then take seeded, stratified subsamples.

    Raises:
        DataError: data that cannot be found, read or used; the message names the key, the row and the remedy.
        ConfigError: a `task.max_train` below the number of classes.
    """
    splits, names, where, notes = named_splits(config, form)
    own_test = "test" in splits
    splits = split_off(splits, config, seed, form.columns)
    splits, removed = disjoint(splits, config, form.columns)
    _check_labels(splits, names, where, own_test=own_test)
    splits = limited(splits, config, seed, form.columns)
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


def _read_texts(data: str, config: TaskConfig, key: str) -> Source:
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
    if data in PICTURES or Path(data).expanduser().is_dir():
        raise DataError(
            f"{key} = {data!r}: a {'set' if data in PICTURES else 'folder'} of images? Set task.name = 'image'"
        )
    raise DataError(
        f"{key} = {data!r}: expected a bundled corpus, 'glue:TASK', 'hub:ID' or the path of a "
        f"{', '.join(FORMATS)} file; {nearest(data, CORPORA)}"
    )


def named_splits(
    config: TaskConfig, form: Form
) -> tuple[dict[str, Dataset], tuple[str, ...], str, tuple[str, ...]]:
    """The splits found, with standard columns and numbered labels; the labels' names; their source; notes."""
    source = form.read(config.data, config, "task.data")
    found: dict[str, tuple[Source, Dataset | None]] = {
        "train": (source, source.train),
        "validation": (source, source.validation),
        "test": (source, source.test),
        **{name: (source, data) for name, data in source.further.items()},
    }
    notes = source.notes
    if config.test_data is not None:
        other = form.read(config.test_data, config, "task.test_data")
        found["test"] = (other, other.train if other.test is None else other.test)
        notes += other.notes
    splits: dict[str, Dataset] = {}
    for split, (origin, data) in found.items():
        if data is not None:
            splits[split], more = form.standard(data, origin, split)
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


TEXTS = Form(_read_texts, standard_columns, Columns(("text", "text_pair"), "label"))
"""Texts or pairs of texts, each with a class."""
IMAGES = Form(read_images, image_columns, PICTURED)
"""Images, each with a class."""
