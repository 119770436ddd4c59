"""Datasets of the hub, the download replaced: which split serves as what, and what is said offline."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import config as datasets_config

from fedrot.config import TaskConfig
from fedrot.errors import DataError
from fedrot.tasks import load_task


def table(prefix: str, count: int, *names: str, hidden: bool = False) -> Dataset:
    columns = {name: [f"{prefix} {name} {i}" for i in range(count)] for name in names}
    labels = [-1 if hidden else i % 2 for i in range(count)]
    features = {name: Value("string") for name in names} | {"label": ClassLabel(names=["no", "yes"])}
    return Dataset.from_dict({**columns, "label": labels}, features=Features(features))


def serve(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Dataset]) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any) -> DatasetDict:
        asked.append(arguments)
        return DatasetDict(**splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_glue_uses_its_validation_split_as_test(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        "train": table("a", 60, "question1", "question2"),
        "validation": table("b", 20, "question1", "question2"),
        "test": table("c", 10, "question1", "question2", hidden=True),
    }
    asked = serve(monkeypatch, splits)
    data = load_task(TaskConfig(data="glue:qqp"), 1)
    assert asked == [("nyu-mll/glue", "qqp")]
    assert data.labels == ("no", "yes")
    assert data.pairs
    assert list(data.test["text"]) == list(splits["validation"]["question1"])
    assert list(data.test["text_pair"]) == list(splits["validation"]["question2"])
    assert len(data.train) == 54
    assert any("'validation' is used as test" in note for note in data.notes)


def test_mnli_is_tested_on_its_matched_split(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("premise", "hypothesis")
    serve(monkeypatch, {"train": table("a", 60, *names), "validation_matched": table("b", 20, *names)})
    assert len(load_task(TaskConfig(data="glue:mnli"), 1).test) == 20


def test_mnli_is_tested_on_its_mismatched_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("premise", "hypothesis")
    splits = {"train": table("a", 60, *names), "validation_matched": table("b", 20, *names)}
    splits["validation_mismatched"] = table("c", 30, *names)
    shared = splits["train"].select([0])
    splits["validation_mismatched"] = datasets.concatenate_datasets([splits["validation_mismatched"], shared])
    serve(monkeypatch, splits)
    data = load_task(TaskConfig(data="glue:mnli", max_test=15), 1)
    assert (len(data.test), len(data.further["mismatched"])) == (15, 15)
    assert any("1 examples removed from train" in note for note in data.notes)


def test_a_hub_dataset_keeps_its_three_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        "train": table("a", 60, "text"),
        "validation": table("b", 20, "text"),
        "test": table("c", 10, "text"),
    }
    asked = serve(monkeypatch, splits)
    data = load_task(TaskConfig(data="hub:someone/corpus:small"), 1)
    assert asked == [("someone/corpus", "small")]
    assert data.validation is not None
    assert [len(split) for split in (data.train, data.validation, data.test)] == [60, 20, 10]


def test_a_hidden_hub_test_split_is_replaced_by_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = table("c", 10, "text", hidden=True)
    serve(
        monkeypatch, {"train": table("a", 60, "text"), "validation": table("b", 20, "text"), "test": hidden}
    )
    data = load_task(TaskConfig(data="hub:someone/corpus"), 1)
    assert len(data.test) == 20
    assert data.validation is not None
    assert len(data.validation) == 6
    assert any("hidden" in note for note in data.notes)


def test_unusable_rows_of_a_public_corpus_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    train = table("a", 60, "text").to_list()
    train[3]["text"], train[5]["label"] = " ", -1
    serve(monkeypatch, {"train": Dataset.from_list(train, features=table("a", 1, "text").features)})
    data = load_task(TaskConfig(data="hub:someone/corpus", validation_fraction=0.0), 1)
    assert len(data.train) + len(data.test) == 58
    assert any("2 rows of train without text or label dropped" in note for note in data.notes)


def test_a_missing_hub_column_lists_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {"train": table("a", 60, "sentence")})
    with pytest.raises(DataError, match=r"hub:x/y'.*no column 'text'.*'sentence'.*Set task\.text ="):
        load_task(TaskConfig(data="hub:x/y"), 1)


def test_a_hub_dataset_without_training_lists_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {"all": table("a", 60, "text")})
    with pytest.raises(DataError, match=r"hub:x/y'.*splits 'all'.*'train'"):
        load_task(TaskConfig(data="hub:x/y"), 1)


@pytest.mark.parametrize(("task", "expected"), [("ax", "unknown GLUE task"), ("sst", "did you mean 'sst2'")])
def test_unknown_glue_tasks_are_refused(task: str, expected: str) -> None:
    with pytest.raises(DataError, match=rf"task\.data = 'glue:{task}'.*{expected}"):
        load_task(TaskConfig(data=f"glue:{task}"), 1)


@pytest.mark.parametrize("offline", [True, False])
def test_an_unreachable_hub_names_what_was_tried_and_the_remedy(
    offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", offline)
    tried = "local cache only, since HF_HUB_OFFLINE is set" if offline else "the local cache and the hub"
    with pytest.raises(
        DataError, match=rf"nyu-mll/glue \(rte\).*{tried}\): no route\. .*set task\.data to a \.csv"
    ):
        load_task(TaskConfig(data="glue:rte"), 1)


def test_progress_bars_come_back_after_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    def load_dataset(*arguments: Any) -> DatasetDict:
        shown.append(not datasets.are_progress_bars_disabled())
        return DatasetDict({"train": table("a", 60, "text")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = datasets.are_progress_bars_disabled()
    load_task(TaskConfig(data="hub:x/y"), 1)
    assert shown == [False]
    assert datasets.are_progress_bars_disabled() == before
