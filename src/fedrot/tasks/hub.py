"""GLUE tasks and other datasets from the Hugging Face hub, or from its local cache when offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source
from fedrot.tasks.quiet import quiet_datasets

if TYPE_CHECKING:
    from datasets import DatasetDict

GLUE: dict[str, tuple[str, str | None]] = {
    "cola": ("sentence", None),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence", None),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
"""Text columns of the GLUE tasks."""

GLUE_ID = "nyu-mll/glue"


def load_glue(task: str) -> Source:
    """A GLUE task, its validation split as the test split.

    The labels of GLUE's own test split are hidden. For MNLI, `validation_matched` is taken, and
    `validation_mismatched`, texts of other genres than those of training, is tested on too.

    Raises:
        DataError: unknown task, or nothing reachable.
    """
    where = f"task.data = 'glue:{task}'"
    if task not in GLUE:
        raise DataError(f"{where}: unknown GLUE task; {nearest(task, GLUE)}")
    splits = _download(where, GLUE_ID, task)
    text, text_pair = GLUE[task]
    held_out = "validation_matched" if task == "mnli" else "validation"
    note = (
        f"glue:{task}: the split '{held_out}' is used as test, since GLUE hides the labels of its test split"
    )
    other = "validation_mismatched"
    further = {"mismatched": splits[other]} if task == "mnli" and other in splits else {}
    return Source(
        where, splits["train"], text, "label", text_pair, None, splits[held_out], True, (note,), further
    )


def load_hub(name: str, text: str, text_pair: str | None, label: str) -> Source:
    """A dataset `ID` or `ID:CONFIGURATION` of the hub.

    Its `test` split is the test split; if there is none, or its labels are hidden (all -1), its `validation`
    split is. A `validation` split not used that way stays one.

    Raises:
        DataError: nothing reachable, no such dataset, or no `train` split.
    """
    where = f"task.data = 'hub:{name}'"
    identifier, _, configuration = name.partition(":")
    splits = _download(where, identifier, configuration or None)
    if "train" not in splits:
        raise DataError(
            f"{where}: it has the splits {', '.join(map(repr, splits))}; expected one named 'train'"
        )
    test, validation = splits.get("test"), splits.get("validation")
    notes: tuple[str, ...] = ()
    if test is not None and label in test.column_names and set(test.unique(label)) <= {-1, None}:
        notes, test = (f"hub:{name}: the labels of its split 'test' are hidden, so it is not used",), None
    if test is None and validation is not None:
        notes += (f"hub:{name}: its split 'validation' is used as test",)
        test, validation = validation, None
    return Source(where, splits["train"], text, label, text_pair, validation, test, True, notes)


def _download(where: str, identifier: str, configuration: str | None) -> DatasetDict:
    import datasets
    from datasets import config

    offline = bool(config.HF_HUB_OFFLINE)
    tried = "the local cache only, since HF_HUB_OFFLINE is set" if offline else "the local cache and the hub"
    shown = identifier + (f" ({configuration})" if configuration else "")
    try:
        with quiet_datasets():
            found = datasets.load_dataset(identifier, configuration)
    # The hub's client raises errors of many unrelated classes: connection, HTTP status, cache, script,
    # format.
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{where}: dataset {shown} could not be loaded (tried {tried}): {cause}. Check the name and the "
            "connection, or save it as a file and set task.data to a .csv, .jsonl or .parquet path"
        ) from error
    assert isinstance(
        found, datasets.DatasetDict
    )  # as always where neither one split nor streaming is asked for
    return found
