"""From a file to checked, stratified, disjoint splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError
from fedrot.tasks import TaskData, load_task

NAMES = ("ham", "news", "spam")


def rows(count: int, prefix: str = "text") -> list[dict[str, Any]]:
    """Texts of three classes in the shares 1/2, 3/10, 1/5."""
    shares = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)
    return [
        {"text": f"{prefix} {i}", "label": NAMES[shares[i % 10]], "user": f"u{i % 4}"} for i in range(count)
    ]


def jsonl(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def load(path: Path, records: list[dict[str, Any]], seed: int = 3, **keys: Any) -> TaskData:
    return load_task(TaskConfig(data=jsonl(path / "data.jsonl", records), **keys), seed)


def texts(data: Dataset | None) -> list[str]:
    assert data is not None
    return list(data["text"])


def shares(data: Dataset | None) -> dict[int, int]:
    assert data is not None
    return dict(sorted(Counter(data["label"]).items()))


def test_splits_are_stratified_disjoint_and_complete(tmp_path: Path) -> None:
    data = load(tmp_path, rows(200), test_fraction=0.2, validation_fraction=0.1)
    assert data.labels == NAMES
    assert shares(data.test) == {0: 20, 1: 12, 2: 8}
    assert shares(data.validation) == {0: 10, 1: 6, 2: 4}
    assert sorted(texts(data.train) + texts(data.validation) + texts(data.test)) == sorted(
        row["text"] for row in rows(200)
    )
    assert data.notes == ()
    assert not data.pairs


def test_rows_keep_their_label_and_their_other_columns(tmp_path: Path) -> None:
    data = load(tmp_path, rows(60))
    given = {row["text"]: (row["label"], row["user"]) for row in rows(60)}
    for row in data.train:
        assert isinstance(row, dict)
        assert (data.labels[row["label"]], row["user"]) == given[row["text"]]


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    once, again, other = (load(tmp_path, rows(200), seed=seed) for seed in (3, 3, 4))
    assert texts(once.test) == texts(again.test)
    assert texts(once.validation) == texts(again.validation)
    assert texts(once.test) != texts(other.test)


def test_no_validation_split_unless_asked_for(tmp_path: Path) -> None:
    data = load(tmp_path, rows(50), validation_fraction=0.0)
    assert data.validation is None
    assert len(data.train) + len(data.test) == 50


def test_a_class_of_one_example_stays_in_training(tmp_path: Path) -> None:
    data = load(tmp_path, [*rows(60), {"text": "alone", "label": "rare", "user": "u0"}], test_fraction=0.5)
    assert "alone" in texts(data.train)


def test_own_test_split_is_kept_and_its_texts_leave_training(tmp_path: Path) -> None:
    test = [*rows(20, "held"), {"text": "text  7\n", "label": "news", "user": "u0"}]
    path = jsonl(tmp_path / "test.jsonl", test)
    data = load(tmp_path, rows(100), test_data=path, validation_fraction=0.1)
    assert texts(data.test) == [row["text"] for row in test]
    assert "text 7" not in texts(data.train) + texts(data.validation)
    assert len(data.train) + len(data.validation or []) == 99
    assert sum(note.startswith("1 examples removed from ") for note in data.notes) == 1


def test_repeated_texts_never_straddle_splits(tmp_path: Path) -> None:
    repeated = [{**row, "text": f"text {i // 4}"} for i, row in enumerate(rows(200))]
    data = load(tmp_path, repeated, test_fraction=0.3, validation_fraction=0.3)
    splits = [texts(data.train), texts(data.validation), texts(data.test)]
    assert sum(len(set(split)) for split in splits) == 50
    assert sorted(splits[0] + splits[1] + splits[2]) == sorted(row["text"] for row in repeated)
    assert data.notes == ()


def test_pairs_are_the_same_only_if_both_texts_are(tmp_path: Path) -> None:
    records = [{"text": "premise", "text_pair": f"hypothesis {i}", "label": i % 2} for i in range(40)]
    data = load(tmp_path, records, text_pair="text_pair")
    assert data.pairs
    assert data.notes == ()
    assert data.labels == ("0", "1")


def test_limits_take_stratified_subsamples(tmp_path: Path) -> None:
    data = load(
        tmp_path,
        rows(400),
        test_fraction=0.2,
        validation_fraction=0.2,
        max_train=100,
        max_test=20,
        max_validation=10,
    )
    assert shares(data.train) == {0: 50, 1: 30, 2: 20}
    assert shares(data.test) == {0: 10, 1: 6, 2: 4}
    assert shares(data.validation) == {0: 5, 1: 3, 2: 2}


def test_a_limited_training_split_keeps_every_class(tmp_path: Path) -> None:
    records = [{"text": f"t{i}", "label": "big" if i < 300 else f"small{i % 3}"} for i in range(320)]
    data = load(tmp_path, records, max_train=8)
    assert set(shares(data.train)) == {0, 1, 2, 3}
    assert len(data.train) == 8
    with pytest.raises(ConfigError, match=r"task\.max_train = 3: expected at least .* 4 classes"):
        load(tmp_path, records, max_train=3)


def test_csv_and_parquet_and_jsonl_agree(tmp_path: Path) -> None:
    table = Dataset.from_list(rows(100))
    table.to_csv(tmp_path / "data.csv", index=False)
    table.to_parquet(tmp_path / "data.parquet")
    jsonl(tmp_path / "data.jsonl", rows(100))
    loaded = [
        load_task(TaskConfig(data=str(tmp_path / f"data.{kind}")), 5) for kind in ("csv", "jsonl", "parquet")
    ]
    assert len({str(data.train.to_list()) for data in loaded}) == 1
    assert len({data.labels for data in loaded}) == 1


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    records = [{"body": row["text"], "kind": row["label"], "label": "old"} for row in rows(40)]
    data = load(tmp_path, records, text="body", label="kind")
    assert data.labels == NAMES
    assert set(data.train.column_names) == {"text", "label"}
    assert any("'label' was replaced by 'kind' (task.label)" in note for note in data.notes)


def test_integer_labels_are_ordered_by_number(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{9 + i % 2}\n" for i in range(40)), "utf-8")
    data = load_task(TaskConfig(data=str(path)), 1)
    assert data.labels == ("9", "10")
    assert all((int(row["text"].split()[1]) % 2) == row["label"] for row in data.train)  # type: ignore[index]


def test_declared_class_names_keep_their_order(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["positive", "negative"])})
    records = {"text": [f"text {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    Dataset.from_dict(records, features=features).to_parquet(tmp_path / "data.parquet")
    assert load_task(TaskConfig(data=str(tmp_path / "data.parquet")), 1).labels == ("positive", "negative")


def test_a_quoted_csv_field_may_hold_commas_and_line_breaks(tmp_path: Path) -> None:
    lines = "".join(f'"one, two\nline {i}",{i % 2}\n\n' for i in range(20))
    (tmp_path / "data.csv").write_text("\ufefftext,label\n" + lines, "utf-8")
    data = load_task(TaskConfig(data=str(tmp_path / "data.csv")), 1)
    assert all(text.startswith("one, two\nline ") for text in texts(data.train))
