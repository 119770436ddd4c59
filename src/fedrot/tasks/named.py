"""An example that cannot be used, named so that it can be found in the file it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedrot.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 60


class RowError(DataError):
    """An example that cannot be used, told by its row: of the split, which is the file's only where it was not split.

    Attributes:
        row: counted from 0.
        problem: what is wrong, and the remedy.
    """

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row + 1}: {problem}")
        self.row = row
        self.problem = problem


@contextmanager
def named(split: str, data: Dataset) -> Iterator[None]:
    """Name an example by its split and its first words.

    Not for data that only its node has: there rows are numbered as in the node's file, and words would tell others.

    Raises:
        DataError: in place of a `RowError`.
    """
    try:
        yield
    except RowError as error:
        raise DataError(f"{split}, the example {_words(data, error.row)}: {error.problem}") from error


def _words(data: Dataset, row: int) -> str:
    example = data[row] if {"text", "messages"} & set(data.column_names) else {}
    text = example.get("text")
    if "messages" in example:
        said = json.loads(example["messages"])
        text = next((message["content"] for message in said if message["role"] == "user"), None)
    if not isinstance(text, str):
        return f"at place {row + 1} of this split"
    text = " ".join(text.split())
    return f"that begins {text[:_SHOWN]!r}" if len(text) > _SHOWN else repr(text)
