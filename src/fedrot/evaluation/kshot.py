"""Questions with solved examples before them, in the form that GSM8K is asked in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedrot.core.rng import derive
from fedrot.errors import ConfigError, DataError, nearest
from fedrot.tasks.columns import column_values
from fedrot.tasks.files import read_table
from fedrot.tasks.hub import load_hub

if TYPE_CHECKING:
    from datasets import Dataset

STOPS = ("Question:",)
"""Where a model has begun a question of its own."""


@dataclass(frozen=True)
class Solved:
    """A question and its worked answer."""

    question: str
    answer: str


def prompts(test: Sequence[Solved], train: Sequence[Solved], shots: int, seed: int) -> list[str]:
    """Every test question behind the same `shots` solved ones, which `seed` draws from the training split.

    `Question: ...\\nAnswer: ...`, a blank line between two; the model goes on after the last `Answer:`. That is the
    form of lm-evaluation-harness.

    Raises:
        ConfigError: a negative number of shots.
        DataError: no test questions, fewer training examples than shots, or a test question among them.
    """
    if shots < 0:
        raise ConfigError(f"--k-shot {shots}: expected 0 or more")
    if not test:
        raise DataError("the test split has no questions; give a file with at least one")
    if shots > len(train):
        raise DataError(
            f"--k-shot {shots}: the training split has {len(train)} solved questions; lower --k-shot, or give a folder "
            "with train.jsonl beside test.jsonl"
        )
    known = {example.question.strip() for example in train} if shots else set[str]()
    if seen := [number for number, row in enumerate(test, start=1) if row.question.strip() in known]:
        raise DataError(
            f"--k-shot {shots}: {len(seen)} test questions are in the training split too (the first in row {seen[0]}), "
            "so the model may be shown their answers; remove them from train.jsonl, or give --k-shot 0"
        )
    chosen = random.Random(derive(seed, "shots")).sample(list(train), shots)
    before = "".join(f"{asked(example.question)} {example.answer}\n\n" for example in chosen)
    return [before + asked(row.question) for row in test]


def asked(question: str) -> str:
    """A question as it is put.

    >>> asked("How many?")
    'Question: How many?\\nAnswer:'
    """
    return f"Question: {question}\nAnswer:"


def load_solved(path: str | None, name: str, hub: str) -> tuple[list[Solved], list[Solved]]:
    """Training and test examples with `question` and `answer`.

    Args:
        path: a folder with `test.jsonl` and, for examples, `train.jsonl`; one file of test questions; or None for the
            hub, which is asked, or its local cache when offline.
        name: of the task, for messages.
        hub: `ID` or `ID:CONFIGURATION` there.

    Raises:
        DataError: nothing there, a missing column, or a row without text (its number is named).
    """
    if path is None:
        try:
            source = load_hub(hub, "question", None, "answer")
        except DataError as error:
            raise DataError(
                f"{name}: {error}. As files it goes to --data {name}=PATH: a folder with train.jsonl and test.jsonl"
            ) from error
        tables = {"train": source.train, "test": source.test}
    else:
        given = Path(path).expanduser()
        files = {"test": given}
        if given.is_dir():
            files = {"train": given / "train.jsonl", "test": given / "test.jsonl"}
        wanted = {split: file for split, file in files.items() if split == "test" or file.exists()}
        tables = {split: read_table(str(file), f"--data {name}") for split, file in wanted.items()}
    splits = {
        split: _solved(table, f"{name}, {split} split")
        for split, table in tables.items()
        if table is not None
    }
    return splits.get("train", []), splits.get("test", [])


def _solved(table: Dataset, where: str) -> list[Solved]:
    columns: list[list[object]] = []
    for name in ("question", "answer"):
        if name not in table.column_names:
            raise DataError(f"{where}: no column {name!r}; {nearest(name, table.column_names)}")
        columns.append(column_values(table, name))
    found: list[Solved] = []
    for number, (question, answer) in enumerate(zip(*columns, strict=True), start=1):
        if not (
            isinstance(question, str) and question.strip() and isinstance(answer, str) and answer.strip()
        ):
            raise DataError(f"{where}: row {number} lacks a question or an answer; complete or remove it")
        found.append(Solved(question, answer))
    return found
