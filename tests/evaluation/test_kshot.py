"""Questions behind solved examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation.kshot import Solved, load_solved, prompts

TRAIN = [Solved(f"What is {n} + 1?", f"It is {n + 1}.\n#### {n + 1}") for n in range(20)]
TEST = [Solved("How many?", "#### 3"), Solved("How far?", "#### 4")]


def test_the_same_examples_stand_before_every_question() -> None:
    first, second = prompts(TEST, TRAIN, 2, seed=7)
    before, _, question = first.rpartition("\n\n")
    assert question == "Question: How many?\nAnswer:"
    assert second == f"{before}\n\nQuestion: How far?\nAnswer:"
    blocks = before.split("\n\n")
    assert len(blocks) == 2
    assert all(block in {f"Question: {t.question}\nAnswer: {t.answer}" for t in TRAIN} for block in blocks)


def test_examples_are_fixed_by_the_seed() -> None:
    assert prompts(TEST, TRAIN, 3, seed=7) == prompts(TEST, TRAIN, 3, seed=7)
    assert prompts(TEST, TRAIN, 3, seed=7) != prompts(TEST, TRAIN, 3, seed=8)
    assert prompts(TEST, [], 0, seed=7)[0] == "Question: How many?\nAnswer:"


def test_wrong_numbers_of_examples_are_refused() -> None:
    with pytest.raises(DataError, match="--k-shot 21: the training split has 20"):
        prompts(TEST, TRAIN, 21, seed=0)
    with pytest.raises(ConfigError, match="--k-shot -1"):
        prompts(TEST, TRAIN, -1, seed=0)
    with pytest.raises(
        DataError, match=r"1 test questions are in the training split too \(the first in row 2\)"
    ):
        prompts([*TEST[:1], TRAIN[4]], TRAIN, 1, seed=0)
    assert len(prompts([TRAIN[4]], TRAIN, 0, seed=0)) == 1
    with pytest.raises(DataError, match="no questions"):
        prompts([], TRAIN, 0, seed=0)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_a_folder_has_both_splits_and_a_file_the_test_split(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "#### 3"}
    file = write(tmp_path / "test.jsonl", [row])
    assert load_solved(file, "gsm8k", "x") == ([], [Solved("How many?", "#### 3")])
    write(tmp_path / "train.jsonl", [row, row])
    train, test = load_solved(str(tmp_path), "gsm8k", "x")
    assert (len(train), len(test)) == (2, 1)


def test_rows_without_an_answer_and_missing_columns_are_named(tmp_path: Path) -> None:
    file = write(
        tmp_path / "test.jsonl", [{"question": "q", "answer": "a"}, {"question": "q", "answer": None}]
    )
    with pytest.raises(DataError, match="gsm8k, test split: row 2 lacks"):
        load_solved(file, "gsm8k", "x")
    with pytest.raises(DataError, match="no column 'answer'; did you mean 'answers'"):
        load_solved(write(tmp_path / "t.jsonl", [{"question": "q", "answers": "a"}]), "gsm8k", "x")


def test_an_unreachable_hub_says_where_files_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="--data gsm8k=PATH"):
        load_solved(None, "gsm8k", "nobody/nothing-of-this-name")
