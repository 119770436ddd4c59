"""Text classification: from a recipe's `[task]` to split, numbered examples; its loss and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError, DataError, nearest
from fedrot.tasks.base import Source, TaskData
from fedrot.tasks.columns import column_values, declared_labels, number_labels, standard_columns, with_columns
from fedrot.tasks.corpora import CORPORA, load_corpus
from fedrot.tasks.files import FORMATS, read_table
from fedrot.tasks.hub import load_glue, load_hub
from fedrot.tasks.splits import part, stratified, subsample, text_key, without_shared

if TYPE_CHECKING:
    from datasets import Dataset


def load_task(config: TaskConfig, seed: int) -> TaskData:
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
    splits = split_off(splits, config, seed)
    splits, removed = _disjoint(splits)
    _check_labels(splits, names, where, own_test=own_test)
    splits = limited(splits, config, seed)
    return TaskData(
        name=config.data,
        labels=names,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        notes=(*notes, *removed),
    )


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example in float32 or better: `(..., C)` and `(...)` to `(...)`, not reduced."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, macro F1 and mean cross-entropy of `(n, C)` logits against `(n,)` labels.

    Macro F1 is the plain mean over the classes that occur among the labels or the predictions.

    Raises:
        DataError: no examples.
    """
    if labels.numel() == 0:
        raise DataError("no examples to evaluate: the test or validation split is empty")
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    confusion = (
        torch.bincount(labels * classes + predicted, minlength=classes * classes)
        .view(classes, classes)
        .double()
    )
    hits, support = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    macro = (2 * hits / support.clamp(min=1)).sum() / (support > 0).sum()
    accuracy = hits.sum() / labels.numel()
    values = torch.stack([accuracy, macro, loss(logits, labels).double().mean()]).tolist()
    return dict(zip(("accuracy", "macro_f1", "loss"), values, strict=True))


def recalls(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of each class' examples that `(n, C)` logits get right: `(C,)` float64, NaN for a class without any."""
    classes = logits.shape[-1]
    right = logits.argmax(-1) == labels
    support = torch.bincount(labels, minlength=classes).double()
    return torch.bincount(labels[right], minlength=classes).double() / support


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


def split_off(
    splits: dict[str, Dataset], config: TaskConfig, seed: int, wanted: Sequence[str] = ("test", "validation")
) -> dict[str, Dataset]:
    """Add the wanted ones of the test and the validation split, if they are missing, out of training.

    Distinct texts are drawn, and all examples with a drawn text go with it, so that none straddles a split.
    """
    splits = dict(splits)
    if config.validation_fraction == 0:
        splits.pop("validation", None)
    total = len(set(_keys(splits["train"])))
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if split in splits or split not in wanted or fraction == 0:
            continue
        train = splits["train"]
        keys, labels = _keys(train), column_values(train, "label")
        label_of = dict(zip(reversed(keys), reversed(labels), strict=True))
        distinct = list(dict.fromkeys(keys))
        drawn = stratified(
            [label_of[key] for key in distinct], part(total, fraction), seed, f"{split} split", spare=1
        )
        if len(drawn) == 0:
            raise DataError(
                f"task.{split}_fraction = {fraction}: {len(distinct)} examples of {len(set(labels))} classes "
                "cannot be split so that training keeps one of each; give more examples or task.test_data"
            )
        taken = {distinct[index] for index in drawn}
        splits[split] = train.select([row for row, key in enumerate(keys) if key in taken])
        splits["train"] = train.select([row for row, key in enumerate(keys) if key not in taken])
    return splits


def _keys(data: Dataset) -> list[str]:
    columns = [column_values(data, name) for name in ("text", "text_pair") if name in data.column_names]
    return [text_key(*texts) for texts in zip(*columns, strict=True)]


def _disjoint(splits: dict[str, Dataset]) -> tuple[dict[str, Dataset], list[str]]:
    keys = {split: _keys(data) for split, data in splits.items()}
    result, notes = dict(splits), []
    for split, others in (("validation", ["test"]), ("train", ["test", "validation"])):
        if split not in splits:
            continue
        others = [other for other in others if other in keys]
        kept = without_shared(keys[split], (key for other in others for key in keys[other]))
        if lost := len(keys[split]) - len(kept):
            notes.append(f"{lost} examples removed from {split}: their text is also in {' or '.join(others)}")
            result[split] = splits[split].select(kept)
            keys[split] = [keys[split][row] for row in kept]
    return result, notes


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


def limited(splits: dict[str, Dataset], config: TaskConfig, seed: int) -> dict[str, Dataset]:
    """Seeded, stratified subsamples of the splits that are larger than `task.max_...` allows."""
    limits = {"train": config.max_train, "validation": config.max_validation, "test": config.max_test}
    result = dict(splits)
    for split, limit in limits.items():
        if limit is None or split not in splits:
            continue
        labels = column_values(splits[split], "label")
        if split == "train" and limit < (classes := len(set(labels))):
            raise ConfigError(
                f"task.max_train = {limit}: expected at least one example for each of the {classes} classes"
            )
        rows = subsample(labels, limit, seed, f"{split} subsample", keep=split == "train")
        result[split] = splits[split].select(rows)
    return result
