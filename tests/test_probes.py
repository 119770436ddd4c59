"""Linear probes are compared with a run by the score that the run is judged by, and by no other."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from rich.console import Console

from fedrot.config import RunConfig
from fedrot.engines.run import run
from fedrot.errors import OutputError
from fedrot.outcome import print_outcome
from fedrot.report import load_run, verdict
from fedrot.report.lines import score_by_bytes_chart, score_chart
from fedrot.report.page import CHARTS, write_report
from fedrot.report.plot import Plot
from tests.run_directory import make_run

Make = Callable[..., RunConfig]
MATTHEWS = {"name": "matthews", "better": "higher"}


def judged(tmp_path: Path, **probe: Any) -> Path:
    """A run judged by Matthews correlation, .412 in the end, whose probe scored this."""

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        for record in records:
            record["matthews"] = 0.412
        summary.update(metric=MATTHEWS, probe=probe)

    return make_run(tmp_path / "run", edit=edit)


def floors_drawn(path: Path) -> list[float | None]:
    found = load_run(path)
    plots = [
        chart.draw
        for chart in (score_chart(found), score_by_bytes_chart(found))
        if not isinstance(chart, str)
    ]
    return [plot.floor for plot in plots if isinstance(plot, Plot)]


def test_a_probe_that_has_not_the_run_s_score_is_no_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedrot.report.page.CHARTS", {"accuracy": CHARTS["accuracy"]})
    path = judged(tmp_path, accuracy=0.69, macro_f1=0.6, central={"accuracy": 0.75})
    found = load_run(path)
    assert verdict(found.records, found.summary).startswith(
        "Final Matthews correlation .412 after 15 rounds. "
    )
    assert floors_drawn(path) == [None, None]
    page = write_report(path).read_text("utf-8")
    assert "not judged by Matthews correlation" in page
    assert "floor: linear probe" not in page
    assert "central linear probe" not in page
    assert "fitted centrally" not in page


def test_a_probe_that_has_the_run_s_score_is_compared_by_it(tmp_path: Path) -> None:
    path = judged(tmp_path, accuracy=0.69, matthews=0.312, central={"accuracy": 0.75, "matthews": 0.432})
    found = load_run(path)
    assert verdict(found.records, found.summary).startswith(
        "Final Matthews correlation .412, 10.0 points above the linear probe on the frozen encoder (.312) and "
        "2.0 points below one fitted centrally (.432)."
    )
    assert floors_drawn(path) == [0.312, 0.312]


def test_a_probe_s_score_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"probe\.matthews: expected a number"):
        load_run(judged(tmp_path, accuracy=0.69, matthews="good"))


def test_probes_of_cola_have_its_score(recipe: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = Features({"sentence": Value("string"), "label": ClassLabel(names=["unacceptable", "acceptable"])})

    def table(prefix: str, count: int) -> Dataset:
        rows = {
            "sentence": [f"{prefix} {n % 5} goal {n}" for n in range(count)],
            "label": [n % 2 for n in range(count)],
        }
        return Dataset.from_dict(rows, features=kinds)

    splits = DatasetDict(train=table("a", 60), validation=table("b", 20))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    config = recipe(
        task__data="glue:cola",
        partition={"kind": "iid"},
        federation={"clients": 2, "rounds": 1},
        output={"probe": True, "report": False},
    )
    result = run(config, out=tmp_path / "run")
    probe = result.summary["probe"]
    for found in (probe, probe["central"]):
        assert {"accuracy", "macro_f1", "matthews"} <= found.keys()
        assert "loss" not in found
    shown = io.StringIO()
    print_outcome(Console(file=shown, width=200), result.directory, result.summary)
    assert f"(the floor): {probe['matthews']:.4f}; the adapter is" in shown.getvalue()
