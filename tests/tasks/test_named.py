"""Examples that cannot be used are named by words that can be searched for in the file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedrot.config import RunConfig, parse_config
from fedrot.engines.setup import prepare
from fedrot.errors import DataError
from tests.shapes import build


def recipe(model: Path, data: Path, task: dict[str, Any], partition: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "model": {"path": str(model)},
            "lora": {"rank": 2},
            "task": {"data": str(data), **task},
            "partition": partition,
            "train": {"device": "cpu"},
            "federation": {"rounds": 1, "clients": None if partition["kind"] == "natural-id" else 2},
        }
    )


def test_a_conversation_that_is_too_long_is_quoted(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {number}", "response": "hi"} for number in range(40)]
    rows[33] = {"prompt": "tell the whole\nstory " + "on and on " * 20, "response": "no"}
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {
        "name": "generate",
        "overlong": "error",
        "max_length": 40,
        "system": "be brief",
        "template": "{system} <{prompt}>",
    }
    config = recipe(build("llama", tmp_path / "model"), file, task, {"kind": "iid"})
    with pytest.raises(
        DataError,
        match=r"^(train|test|validation), the example that begins 'tell the whole story on .*': 2\d\d tokens, of which",
    ) as caught:
        prepare(config)
    assert "row" not in str(caught.value)


def test_a_text_without_an_id_is_quoted(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    rows = [(f"number {number}", number % 2, "ab"[number // 2 % 2]) for number in range(40)]
    rows[21:23] = [("one of these", 1, ""), ("one of these", 0, " ")]  # whatever is split off, not both
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("text", "label", "user"), *rows])
    config = recipe(
        tiny_model,
        file,
        {"test_fraction": 0.1, "validation_fraction": 0},
        {"kind": "natural-id", "partition_by": "user"},
    )
    with pytest.raises(
        DataError,
        match=r"^train, the example 'one of these': it has no value in partition\.partition_by = 'user'",
    ):
        prepare(config)
