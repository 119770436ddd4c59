"""The page Quickstart names every figure that a run writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrot.config import RunConfig
from fedrot.engines.finish import SCORES
from fedrot.engines.run import run

Make = Callable[..., RunConfig]
PAGE = (Path(__file__).parent.parent / "docs" / "quickstart.md").read_text("utf-8")


def documented(heading: str) -> set[str]:
    """Names in the first column of the tables under a heading, those of a table's parts without what follows a dot."""
    section = PAGE.split(f"### `{heading}`")[1].split("\n### ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name.partition(".")[0] for cell in cells for name in re.findall(r"`([a-z_0-9.]+)`", cell)}


@pytest.mark.parametrize(
    "options",
    [
        {
            "federation__dropout": 0.3,
            "federation__stale": 0.5,
            "method": {"name": "fedit"},
            "federation__rounds": 3,
        },
        {
            "privacy": {"mechanism": "central", "clip": 1.0, "noise": 1.0, "delta": 1e-3},
            "federation__weighting": "uniform",
        },
        {"method": {"name": "fedex"}, "lora__residual_rank": 2},
    ],
    ids=["absent", "private", "residual"],
)
def test_every_figure_is_in_the_quickstart(recipe: Make, tmp_path: Path, options: dict[str, object]) -> None:
    result = run(recipe(**options), out=tmp_path / "run")
    found = {key for record in result.records for key in record}
    assert found - documented("metrics.jsonl") == set()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.keys() - documented("summary.json") == set()


def test_every_score_is_in_the_quickstart() -> None:
    assert SCORES - documented("metrics.jsonl") == set()
