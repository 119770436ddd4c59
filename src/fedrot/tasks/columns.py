"""From a source's own columns to `text`, `text_pair` and `label`, every row checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source

if TYPE_CHECKING:
    from datasets import Dataset


def standard_columns(data: Dataset, source: Source, split: str) -> tuple[Dataset, tuple[str, ...]]:
    """The table with its columns named `text`, `text_pair` and `label`, the labels as names; and notes.

    A row without text or label is an error in the user's own file; in a public corpus it is dropped and
    counted.

    Raises:
        DataError: a missing column, an empty text, a missing label, or one that is not a class (with its row
            number).
    """
    wanted = {"text": source.text, "text_pair": source.text_pair, "label": source.label}
    columns: dict[str, list[Any]] = {}
    for key, name in wanted.items():
        if name is not None:
            check_column(data, source, split, key, name)
            if key != "label" and holds_images(data, name):
                raise DataError(
                    f"{source.where}: column {name!r} of {split} holds images, and the task reads texts; set "
                    f"task.name = 'image' and task.image = {name!r}, or task.{key} = ... to a column of texts"
                )
            columns[key] = column_values(data, name)
    columns["label"] = label_names(data, source, columns["label"])
    problems = [_problem(columns, row) for row in range(len(data))]
    bad = [row for row, problem in enumerate(problems) if problem]
    notes: tuple[str, ...] = ()
    if bad and not source.curated:
        raise DataError(
            f"{source.where}: row {bad[0] + 1} of {split} {problems[bad[0]]}; complete or remove it"
            + (f" ({len(bad)} such rows)" if len(bad) > 1 else "")
        )
    if bad:
        notes += (f"{source.where}: {len(bad)} rows of {split} without text or label dropped",)
    for key in columns:
        if key in data.column_names and key not in wanted.values():
            notes += (f"{source.where}: its column {key!r} was replaced by {wanted[key]!r} (task.{key})",)
    kept = [row for row, problem in enumerate(problems) if not problem]
    others = [name for name in data.column_names if name not in wanted.values() and name not in columns]
    table = {key: [values[row] for row in kept] for key, values in columns.items()}
    return with_columns(data.select_columns(others).select(kept), table), notes


def column_values(data: Dataset, name: str) -> list[Any]:
    """One column, read at once: row by row `datasets` takes many times as long."""
    return data.select_columns([name])[:][name]


def with_columns(data: Dataset, columns: Mapping[str, Sequence[Any]], **types: Any) -> Dataset:
    """The dataset with `columns` put first; the others keep their types, undecoded.

    Args:
        data: the table.
        columns: strings or numbers, unless `types` says otherwise.
        types: features of single columns.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features, Value

    for name, values in columns.items():
        if name not in types:
            number = {int: "int64", float: "float64"}.get(type(values[0])) if values else None
            types[name] = Value(number or "string")
    types = {name: types[name] for name in columns}
    schema = Features(types).arrow_schema
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    others = [name for name in data.column_names if name not in columns]
    if others:
        rest: Any = data.select_columns(others).with_format("arrow")[:]
        arrays |= {name: rest.column(name) for name in others}
    features = Features({**types, **{name: data.features[name] for name in others}})
    return Dataset(pa.table(arrays), info=DatasetInfo(features=features))


def holds_images(data: Dataset, name: str) -> bool:
    """Whether a column holds files (as bytes, with or without a path) rather than texts or numbers."""
    import pyarrow.types as kinds

    stored = data.data.schema.field(name).type
    if kinds.is_struct(stored):
        return {field.name for field in stored} <= {"bytes", "path"}
    return bool(kinds.is_binary(stored) or kinds.is_large_binary(stored))


def number_labels(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names in the order of their class numbers: numeric if all are integers, else alphabetical.

    >>> number_labels(["10", "9", "9"]), number_labels(["spam", "ham"])
    (('9', '10'), ('ham', 'spam'))
    """
    distinct = set(names)
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(sorted(distinct))


def declared_labels(source: Source) -> tuple[str, ...] | None:
    """The class names that the source itself declares, in its order."""
    from datasets import ClassLabel

    feature = source.train.features.get(source.label)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def check_column(data: Dataset, source: Source, split: str, key: str, name: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: the nearest name is offered.
    """
    if name not in data.column_names:
        raise DataError(
            f"{source.where}: {split} has no column {name!r} (task.{key}); "
            f"{nearest(name, data.column_names)}. "
            f"Set task.{key} = ... to one of them"
        )


def label_names(data: Dataset, source: Source, values: list[Any]) -> list[str | None]:
    """Labels as text, None where there is none.

    Raises:
        DataError: a value that is not a class.
    """
    from datasets import ClassLabel

    feature = data.features[source.label]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    return [_label_name(source, row, value) for row, value in enumerate(values)]


def _label_name(source: Source, row: int, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int)):
        return str(value).strip() or None
    raise DataError(
        f"{source.where}: row {row + 1} has the label {value!r} in column {source.label!r}; expected a "
        "class as text or "
        "integer (set task.label = ... if the classes are in another column)"
    )


def _problem(columns: dict[str, list[Any]], row: int) -> str:
    """What is wrong with a row, or nothing."""
    texts = [columns[key][row] for key in ("text", "text_pair") if key in columns]
    for text in texts:
        if text is not None and not isinstance(text, str):
            return f"has {text!r} as text (expected a string)"
    # One empty half of a pair still is an example; public corpora of pairs have such.
    if None in texts or not any(text.strip() for text in texts):
        return "has no text"
    return "has no label" if columns["label"][row] is None else ""
