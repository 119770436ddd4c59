"""Grid points and settings whose keys end alike, as `partition.alpha` and `lora.alpha`, are told apart everywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedrot.comparison.cells import tuning_cells
from fedrot.comparison.charts import grid_charts
from fedrot.comparison.command import print_estimate
from fedrot.comparison.design import Design
from fedrot.comparison.reading import as_table, make_design
from fedrot.comparison.results import collect
from fedrot.comparison.store import Store
from fedrot.comparison.table import markdown, name_of, tuning_rows

RECIPE = {
    "model": {"path": "roberta-large"},
    "task": {"data": "glue:rte"},
    "partition": {"kind": "dirichlet", "alpha": 0.5},
    "federation": {"clients": 2},
}
ALIKE = {"grid": {"partition.alpha": [1, 5], "lora.alpha": [1, 8]}, "one_factor": True}
APART = ["partition.alpha = 1", "partition.alpha = 5", "lora.alpha = 1", "lora.alpha = 8"]


def design(**table: Any) -> Design:
    return make_design({**RECIPE}, {"methods": ["fedit"], "seeds": [1], **table}, {})


def results(of: Design) -> dict[str, Any]:
    """Of a comparison of which nothing was run."""
    return collect(of, Store(Path("nowhere")))


@pytest.mark.parametrize(
    "table",
    [
        ALIKE,
        {"listed": [{"partition.alpha": 1}, {"partition.alpha": 5}, {"lora.alpha": 1}, {"lora.alpha": 8}]},
    ],
)
def test_keys_that_end_alike_keep_their_section(table: dict[str, Any]) -> None:
    of = design(**table)
    assert [arm.name for arm in of.arms()] == [f"fedit at {where}" for where in APART]
    found = results(of)
    assert [point["name"] for point in found["points"]] == APART
    assert [name_of(found, arm) for arm in found["arms"]] == [f"fedit ({where})" for where in APART]
    assert all(markdown(found).count(f"## {where}\n") == 1 for where in APART)
    assert all(f"fedit at {where}, seed 1" in found["notes"][1] for where in APART)


def test_other_keys_are_told_without_their_section() -> None:
    of = design(grid={"partition.alpha": [1], "lora.rank": [4]})
    assert [arm.where for arm in of.arms()] == ["alpha = 1, rank = 4"]


def test_a_chosen_key_that_ends_like_a_varied_one_keeps_its_section() -> None:
    of = design(grid={"partition.alpha": [1]}, tune={"lora.alpha": [1, 8]}, trials=2)
    names = [cell.name for cell in tuning_cells(of, list(of.arms())).values()]
    assert names == [f"fedit at partition.alpha = 1, lora.alpha = {value}, seed 1" for value in (1, 8)]
    rows = tuning_rows(results(of))
    assert [row[1:3] for row in rows] == [["partition.alpha = 1", f"lora.alpha = {v}"] for v in (1, 8)]
    own = design(grid={"partition.alpha": [1]}, tune={"fedit:lora.alpha": [1, 8]}, trials=2)
    assert next(own.arms()).where == "partition.alpha = 1"
    assert tuning_rows(results(own)) == rows


def test_a_chart_of_one_key_names_the_other_in_full() -> None:
    of = design(grid={"partition.alpha": [1, 5], "lora.alpha": [8]})
    mean = {"accuracy": {"mean": 0.5, "low": None, "high": None}}
    found = results(of) | {"compare": as_table(of)}
    for arm in found["arms"]:
        arm["mean"] = mean
    (chart,) = grid_charts(found)
    assert chart.title == "Accuracy by partition.alpha (lora.alpha = 8)"


def test_the_estimate_has_a_table_for_every_grid_point() -> None:
    printed = io.StringIO()
    print_estimate(design(**ALIKE), Console(file=printed, width=200))
    lines = [line.strip() for line in printed.getvalue().splitlines()]
    assert [line for line in lines if line in APART] == APART
    close = design(grid={"train.lr": [0.10000001, 0.10000002]})
    printed = io.StringIO()
    print_estimate(close, Console(file=printed, width=200))
    assert printed.getvalue().count("variant") == 2, "values that read alike are two points all the same"
    assert "hours of all 2 runs" in printed.getvalue()
