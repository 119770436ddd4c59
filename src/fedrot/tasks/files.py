"""The user's own table: CSV, JSON Lines or parquet."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrot.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (".csv", ".jsonl", ".parquet")


def read_table(path: str, key: str = "task.data") -> Dataset:
    """Read a `.csv` (header row, UTF-8), `.jsonl` (one object a line, UTF-8) or `.parquet` file, whole.

    Args:
        key: the recipe key that named the file, for messages.

    Raises:
        DataError: missing, unreadable, undecodable, malformed (with the line) or empty file.
    """
    where, file = f"{key} = {path!r}", Path(path).expanduser()
    if not file.is_file():
        raise DataError(
            f"{where}: no such file (looked for '{file.absolute()}'); give the path of an existing one"
        )
    try:
        if file.suffix == ".parquet":
            table = _parquet(where, file)
        else:
            columns = _csv(where, file) if file.suffix == ".csv" else _jsonl(where, file)
            table = _from_columns(where, columns)
    except UnicodeDecodeError as error:
        with file.open("rb") as opened:
            wide = opened.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        what = "it is UTF-16" if wide else f"byte {error.object[error.start]:#04x} is not valid UTF-8"
        raise DataError(
            f"{where}: {what}; save the file as UTF-8, for instance with: iconv -f {'utf-16' if wide else 'latin1'} "
            "-t utf-8"
        ) from error
    except OSError as error:
        raise DataError(
            f"{where}: cannot be read ({error.strerror or error}); check the file's permissions"
        ) from error
    if len(table) == 0:
        raise DataError(f"{where}: the file holds no examples; expected a header and at least one row")
    return table


def _csv(where: str, file: Path) -> dict[str, list[Any]]:
    # Fields of whole documents are longer than the csv module allows unless told otherwise.
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            _check_header(where, header)
            rows = []
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{where}: line {reader.line_num} has {len(row)} fields, the header {len(header)}; "
                        "put fields "
                        "that contain commas or line breaks in double quotes"
                    )
                if row:
                    rows.append(row)
        except csv.Error as error:
            raise DataError(
                f"{where}: line {reader.line_num} is not valid CSV ({error}); mend the quotes"
            ) from error
    return {name: [row[index] for row in rows] for index, name in enumerate(header)}


def _check_header(where: str, header: list[str]) -> None:
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(
            f"{where}: the header names column {repeated[0]!r} more than once; rename one of them"
        )


def _jsonl(where: str, file: Path) -> dict[str, list[Any]]:
    records = list(_objects(where, file))
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _objects(where: str, file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: line {number} is not valid JSON ({error}); expected one object a line"
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: line {number} holds a {type(record).__name__}; expected an object such as "
                    '{"text": "...", "label": "..."}'
                )
            yield record


def _parquet(where: str, file: Path) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        table = pq.ParquetFile(file).read()
        # Categories of data frames come as dictionaries, for which `datasets` has no type.
        for index, column in enumerate(table.schema):
            if pa.types.is_dictionary(column.type):
                plain = table.column(index).cast(column.type.value_type)
                table = table.set_column(index, column.name, plain)
        return Dataset(table)
    except pa.ArrowException as error:
        raise DataError(f"{where}: not a readable parquet file ({error}); write it again") from error


def _from_columns(where: str, columns: dict[str, list[Any]]) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(values)
        except pa.ArrowException as error:
            raise DataError(
                f"{where}: column {name!r} mixes types ({error}); give every row the same type, for "
                "instance text"
            ) from error
    return Dataset(pa.table(arrays))
