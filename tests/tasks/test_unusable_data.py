"""Data that cannot be used, and what the message says: key, value, row, remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedrot.config import TaskConfig
from fedrot.errors import DataError
from fedrot.tasks import TaskData, load_task

NAMES = ("ham", "news", "spam")


def rows(count: int, prefix: str = "text") -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {i}", "label": NAMES[i % 3]} for i in range(count)]


def jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def load(path: Path, records: list[dict[str, Any]], **keys: Any) -> TaskData:
    return load_task(TaskConfig(data=jsonl(path / "data.jsonl", records), **keys), 3)


@pytest.mark.parametrize(
    ("name", "content", "keys", "expected"),
    [
        ("a.csv", b"text,label\n", {}, "holds no examples"),
        ("a.csv", b"", {}, "holds no examples"),
        ("a.jsonl", b"\n", {}, "holds no examples"),
        (
            "a.csv",
            b"text,label\nhi,0\nho,1\n",
            {"text": "txt"},
            r"'txt' .*did you mean 'text'.*Set task.text =",
        ),
        ("a.csv", b"text,label\nhi,0\n", {"label": "class"}, r"no column 'class'.*known: 'label', 'text'"),
        ("a.csv", b"text,label\nhi,0\n", {"text_pair": "b"}, r"no column 'b' \(task.text_pair\)"),
        ("a.csv", b"text,label\nhi,0\n  ,1\nho,\n", {}, r"row 2 of train has no text.*2 such rows"),
        ("a.csv", b"text,label\nhi,0\nho,\n", {}, "row 2 of train has no label; complete or remove"),
        ("a.csv", b"text,label\nhi,0\nho,1,2\n", {}, "line 3 has 3 fields, the header 2"),
        ("a.csv", b'text,label\n"hi,0\n', {}, "line 2 is not valid CSV"),
        ("a.csv", b"text,text\nhi,0\n", {}, "column 'text' more than once"),
        (
            "a.csv",
            "text,label\nf\u00fcr,0\n".encode("latin-1"),
            {},
            r"0xfc is not valid UTF-8.*iconv -f latin1",
        ),
        (
            "a.csv",
            "text,label\nf\u00fcr,0\n".encode("utf-16"),
            {},
            r"it is UTF-16; .*iconv -f utf-16 -t utf-8",
        ),
        (
            "a.jsonl",
            b"\xfe\xff" + '{"text": 1}'.encode("utf-16-be"),
            {},
            r"it is UTF-16; .*iconv -f utf-16 -t",
        ),
        ("a.jsonl", b'{"text": "hi", "label": 0}\n{"text": \n', {}, "line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "hi", "label": 0}\n[1]\n', {}, "line 2 holds a list"),
        ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", "label": "x"}\n', {}, "'label' mixes types"),
        ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": 5, "label": 1}\n', {}, "'text' mixes types"),
        (
            "a.jsonl",
            b'{"text": 4, "label": 0}\n{"text": 5, "label": 1}\n',
            {},
            "row 1 of train has 4 as text",
        ),
        ("a.jsonl", b'{"text": "a", "label": 0.5}\n', {}, r"row 1 has the label 0.5.*task.label"),
        ("a.jsonl", b'{"text": "a", "label": 0}\n{"label": 1}\n', {}, "row 2 of train has no text"),
        ("a.parquet", b"PAR2", {}, "not a readable parquet file"),
        ("a.csv", b"text,label\nhi,0\nho,0\nha,0\n", {}, "cannot be split|of 1 classes"),
        ("a.csv", b"text,label\nhi,0\nho,1\n", {}, r"task.test_fraction = 0.1: 2 examples of 2 classes"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, name: str, content: bytes, keys: dict[str, Any], expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        load_task(TaskConfig(data=str(path), **keys), 0)
    assert str(caught.value).startswith("task.")


def test_a_missing_file_names_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.data = '.*none\.csv': no such file"):
        load_task(TaskConfig(data=str(tmp_path / "none.csv")), 0)
    with pytest.raises(DataError, match=r"task\.test_data = '.*none\.csv': no such file"):
        load(tmp_path, rows(20), test_data=str(tmp_path / "none.csv"))


def test_an_unknown_source_offers_the_nearest_corpus() -> None:
    with pytest.raises(DataError, match=r"task\.data = 'tweet': .*did you mean 'tweets'"):
        load_task(TaskConfig(data="tweet"), 0)


def test_a_test_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "test.jsonl", [{"text": "new", "label": "fraud"}])
    with pytest.raises(DataError, match=r"label 'fraud' occurs in test but not in training.*task\.test_data"):
        load(tmp_path, rows(30), test_data=path)


@pytest.mark.parametrize(("count", "left"), [(30, "none"), (29, "1 examples of a single class")])
def test_training_that_test_takes_away_is_named(tmp_path: Path, count: int, left: str) -> None:
    path = jsonl(tmp_path / "test.jsonl", rows(count))
    expected = rf"task\.test_data = '.*test\.jsonl': {count} of 30 examples of training .*, which leaves {left}; name a"
    with pytest.raises(DataError, match=expected):
        load(tmp_path, rows(30), test_data=path, validation_fraction=0)
    said = [{"prompt": f"say {number}", "response": "hi"} for number in range(5)]
    config = TaskConfig(
        name="generate",
        data=jsonl(tmp_path / "said.jsonl", said),
        test_data=jsonl(tmp_path / "again.jsonl", said),
        validation_fraction=0,
    )
    with pytest.raises(
        DataError, match=r"task\.test_data = .*: 5 of 5 .* their conversation is also in test"
    ):
        load_task(config, 3)


def test_a_label_whose_training_texts_are_all_in_test_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "test.jsonl", [{"text": "only", "label": "rare"}, *rows(5, "held")])
    with pytest.raises(DataError, match=r"label 'rare' occurs in test but not in training"):
        load(tmp_path, [*rows(30), {"text": "only", "label": "rare"}], test_data=path)


def test_test_data_must_have_pairs_if_training_has(tmp_path: Path) -> None:
    records = [{**row, "text_pair": "b"} for row in rows(30)]
    path = jsonl(tmp_path / "test.jsonl", rows(5, "held"))
    with pytest.raises(DataError, match=r"task\.test_data = .*no column 'text_pair'"):
        load(tmp_path, records, text_pair="text_pair", test_data=path)
