"""Comparisons by other scores than accuracy: which is best, how it is told, and files from before."""

from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedrot.comparison.cell import figures
from fedrot.comparison.charts import rounds_chart
from fedrot.comparison.drawing import Spread
from fedrot.comparison.reading import make_design
from fedrot.comparison.results import figure, judged_by
from fedrot.comparison.table import difference, headers, verdict
from fedrot.comparison.tuning import Trial, choose
from fedrot.errors import ConfigError
from fedrot.report.canvas import PRINT
from fedrot.report.scores import ACCURACY, Score

PERPLEXITY = Score("perplexity", "lower")
ROUND = {"bytes_up": 1, "bytes_down": 1, "seconds": 0.1, "rejected": 0, "loss": 1.0}


def records(*values: float) -> list[dict[str, Any]]:
    return [
        {
            "round": n,
            "perplexity": v,
            "validation_perplexity": v,
            "validation_loss": 1.0,
            "eval_loss": 1.0,
            **ROUND,
        }
        for n, v in enumerate(values, 1)
    ]


def test_of_perplexities_the_lowest_round_is_the_best_one() -> None:
    cell = figures(records(9.0, 5.0, 7.0), None, PERPLEXITY)
    assert cell["final"]["perplexity"] == 7.0
    assert cell["best"] == {"round": 2, "perplexity": 5.0}


def test_a_setting_is_chosen_by_the_lowest_validation_perplexity() -> None:
    low, high = (Trial({"lr": v}, {1: v}, {1: 0.0}, {}, PERPLEXITY) for v in (4.0, 6.0))
    assert choose([high, low]) is low
    low, high = (Trial({"lr": v}, {1: v}, {1: 0.0}, {}) for v in (0.4, 0.6))
    assert choose([high, low]) is high


def test_cells_from_before_are_judged_by_accuracy() -> None:
    old = {"final": {"round": 3, "accuracy": 0.7}, "best": {"round": 2, "accuracy": 0.8}}
    assert judged_by([old]) == ACCURACY
    assert (figure(old, "accuracy"), figure(old, "best_accuracy")) == (0.7, 0.8)


def test_tasks_with_different_scores_share_a_table_of_scores() -> None:
    cola = {"metric": {"name": "matthews", "better": "higher"}, "final": {"matthews": 0.4}, "best": None}
    rte = {"metric": {"name": "accuracy", "better": "higher"}, "final": {"accuracy": 0.7}, "best": None}
    assert judged_by([cola, rte]) == Score("score")
    assert (figure(cola, "score"), figure(rte, "score")) == (0.4, 0.7)


def test_a_perplexity_is_told_in_its_own_units() -> None:
    assert PERPLEXITY.show(12.3456) == "12.346"
    assert PERPLEXITY.change(-0.5) == "\u22120.500"
    assert ACCURACY.change(-0.005) == "\u22120.5"
    arm = {
        "variant": "fedrot",
        "point": {},
        "mean": {"perplexity": {"mean": 5.0, "low": 4.9, "high": 5.1}},
        "difference": {"perplexity": {"mean": -0.4, "low": -0.5, "high": -0.3, "by_seed": {}}},
    }
    results = {
        **{"metric": {"name": "perplexity", "better": "lower"}, "baseline": "fedit", "seeds": [1, 2]},
        "arms": [arm],
    }
    assert headers(results)[1] == "perplexity"
    assert difference(arm, "fedit", PERPLEXITY) == "\u22120.400 [\u22120.500, \u22120.300]"
    assert verdict(results) == (
        "Test perplexity differs by more than its 95% interval in 1 of one comparison with fedit: "
        "fedrot by \u22120.400."
    )


def by_round(name: str) -> dict[str, Any]:
    """Results of a variant whose score rises from .05 to .45, with intervals of .3 to either side."""
    rows = [
        {"round": n, name: {"mean": mean, "low": mean - 0.3, "high": mean + 0.3}}
        for n, mean in ((1, 0.05), (2, 0.45))
    ]
    return {
        **{"metric": {"name": name, "better": "higher"}, "seeds": [1, 2], "variants": ["fedit"]},
        "points": [{"name": "", "setting": {}}],
        "arms": [{"variant": "fedit", "point": {}, "by_round": rows}],
    }


@pytest.mark.parametrize(
    ("name", "least", "axis"),
    [
        ("accuracy", 0.0, "Test accuracy, 0 to 1"),
        ("matthews", -1.0, "Test Matthews correlation, \u22121 to 1"),
        ("pearson", -1.0, "Test Pearson correlation, \u22121 to 1"),
        ("spearman", -1.0, "Test Spearman correlation, \u22121 to 1"),
        ("score", -1.0, "Test score, \u22121 to 1"),
    ],
)
def test_a_score_has_its_own_lower_bound(name: str, least: float, axis: str) -> None:
    assert Score(name).bounds == (least, 1.0)
    assert Score(name).axis == axis
    assert PERPLEXITY.bounds == (-math.inf, math.inf)
    assert PERPLEXITY.axis == "Test perplexity"


@pytest.mark.parametrize(
    ("name", "said", "least"), [("matthews", "-0.250", -0.25), ("accuracy", ".000", -0.01)]
)
def test_an_interval_below_zero_is_told_and_drawn_where_there_can_be_one(
    name: str, said: str, least: float
) -> None:
    chart = rounds_chart(by_round(name), 0)
    assert chart is not None
    assert isinstance(chart.draw, Spread)
    assert f"fedit\t.050 ({said} to .350)" in chart.draw.plot.tips[0][1]
    figure = Figure()
    chart.draw(figure, PRINT)
    assert figure.axes[0].get_ylim()[0] == pytest.approx(least)


def test_scores_of_opposite_direction_are_not_compared() -> None:
    recipe = {"model": {"path": "x"}, "task": {"data": "tweets"}, "federation": {"clients": 2}}
    table = {
        "methods": ["fedit"],
        "seeds": [1],
        "listed": [
            {"task.name": "classify", "task.data": "tweets"},
            {"task.name": "generate", "task.data": "bbc-headlines"},
        ],
    }
    with pytest.raises(ConfigError, match="accuracy and perplexity have no common scale"):
        make_design(recipe, table, {})
