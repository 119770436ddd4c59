"""From a table's own columns to conversations that end in the answer to be learned, every row checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedrot.config import TaskConfig
from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source
from fedrot.tasks.columns import column_values, with_columns

if TYPE_CHECKING:
    from datasets import Dataset

MESSAGES = "messages"
"""The column that every split has: a conversation as JSON text, a list of `{"role": ..., "content": ...}`."""

PAIRS = (("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
"""Columns of prompt and response that are recognised unless the recipe names them."""

ROLES = ("system", "user", "assistant")


def conversations(
    data: Dataset, config: TaskConfig, source: Source, split: str
) -> tuple[Dataset, tuple[str, ...]]:
    """The table with a column `messages` first, and those of its columns that the conversation is not made of; notes.

    Recognised are `messages`, `instruction` (and `input`) with `output`, `prompt` with `completion` or `response`,
    `question` with `answer`, and whatever `task.prompt` and `task.response` name. A conversation ends with an
    assistant's answer; `task.system` is put before those that do not begin with a system message.

    A row without a prompt or a response is an error in the user's own file; in a public corpus it is dropped and
    counted.

    Raises:
        DataError: no such columns, or a row without a prompt or a response (its number is named).
    """
    row, used = _reader(data, config, source.where, split)
    columns = {name: column_values(data, name) for name in used}
    texts: list[str] = []
    kept: list[int] = []
    for number in range(len(data)):
        found = row({name: values[number] for name, values in columns.items()})
        if isinstance(found, str):
            if source.curated:
                continue
            raise DataError(f"{source.where}: row {number + 1} of {split} {found}; complete or remove it")
        kept.append(number)
        if config.system is not None and found[0]["role"] != "system":
            found = [{"role": "system", "content": config.system}, *found]
        texts.append(json.dumps(found, ensure_ascii=False))
    others = [name for name in data.column_names if name not in used and name != MESSAGES]
    lost = len(data) - len(kept)
    notes = (f"{source.where}: {lost} rows of {split} without prompt or response dropped",) if lost else ()
    return with_columns(data.select_columns(others).select(kept), {MESSAGES: texts}), notes


def messages_of(data: Dataset) -> list[list[dict[str, str]]]:
    """Every row's conversation."""
    return [json.loads(text) for text in column_values(data, MESSAGES)]


Row = Callable[[Mapping[str, Any]], "list[dict[str, str]] | str"]
"""A conversation out of a row's columns, or what is wrong with it."""


def _reader(data: Dataset, config: TaskConfig, where: str, split: str) -> tuple[Row, tuple[str, ...]]:
    """How to read a row, and from which columns."""
    names = data.column_names
    if config.prompt is not None or config.response is not None:
        pair = (config.prompt or "prompt", config.response or "response")
        for key, name in zip(("prompt", "response"), pair, strict=True):
            if name not in names:
                raise DataError(
                    f"{where}: {split} has no column {name!r} (task.{key}); {nearest(name, names)}"
                )
        return _pair(*pair), pair
    if MESSAGES in names:
        return _messages, (MESSAGES,)
    for prompt, response in PAIRS:
        if prompt in names and response in names:
            extra = ("input",) if prompt == "instruction" and "input" in names else ()
            return _pair(prompt, response, *extra), (prompt, response, *extra)
    for prompt, response in PAIRS:
        if prompt in names:
            raise DataError(
                f"{where}: {split} has a column {prompt!r} but none for the response; its columns are {names}. Add "
                f"{response!r}, or name the column in task.response"
            )
    raise DataError(
        f"{where}: {split} has the columns {names}; expected 'messages', 'instruction' and 'output', 'prompt' and "
        "'completion', or 'question' and 'answer'. Name others in task.prompt and task.response"
    )


def _pair(prompt: str, response: str, extra: str | None = None) -> Row:
    def read(row: Mapping[str, Any]) -> list[dict[str, str]] | str:
        for name in (prompt, response):
            value = row[name]
            if not isinstance(value, str) or not value.strip():
                kind = (
                    "is empty"
                    if isinstance(value, str)
                    else "is missing"
                    if value is None
                    else f"is {value!r}"
                )
                return f"has no text in column {name!r} (it {kind})"
        said = row[prompt]
        if extra is not None and isinstance(row[extra], str) and row[extra].strip():
            said = f"{said}\n\n{row[extra]}"
        return [{"role": "user", "content": said}, {"role": "assistant", "content": row[response]}]

    return read


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]] | str:
    value = row[MESSAGES]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return "has messages that are not JSON (expected a list of objects with role and content)"
    if not isinstance(value, list) or not value:
        return "has no messages"
    found: list[dict[str, str]] = []
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            return f"has message {number} without a role (expected one of {', '.join(ROLES)})"
        if not isinstance(message.get("content"), str):
            return f"has message {number} without content (expected text)"
        found.append({"role": str(message["role"]), "content": str(message["content"])})
    if found[-1]["role"] != "assistant" or not found[-1]["content"].strip():
        return "has no response (its last message is not an assistant's with text)"
    if all(message["role"] != "user" for message in found):
        return "has no message of a user"
    return found
