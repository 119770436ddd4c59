"""Runs whose clients send their updates in frames of their own, and runs that record the theory's quantities."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedrot.config import RunConfig
from fedrot.engines.run import run
from fedrot.errors import ConfigError, OutputError
from fedrot.report import write_report

Make = Callable[..., RunConfig]


@pytest.mark.parametrize("frame", ["svd", "random"])
def test_other_frames_spoil_averages_of_factors_and_nothing_else(
    recipe: Make, tmp_path: Path, frame: str
) -> None:
    def records(method: str, **federation: str) -> list[dict[str, float]]:
        options = {f"federation__{key}": value for key, value in federation.items()}
        name = "-".join([method, *federation.values()])
        return run(recipe(method={"name": method}, **options), out=tmp_path / name).records

    own, other = records("fedit"), records("fedit", upload_frame=frame)
    assert other[0]["loss"] == own[0]["loss"], "clients train as before"
    assert other[0]["bytes_up"] == own[0]["bytes_up"]
    assert other[0]["aggregation_error_relative"] > 2 * own[0]["aggregation_error_relative"]
    own, other = records("flexlora"), records("flexlora", upload_frame=frame)
    for mine, theirs in zip(own, other, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3), "products alone count here"


def test_alignment_undoes_other_frames(recipe: Make, tmp_path: Path) -> None:
    options = {"name": "fedrot", "strength": 1.0, "anchor": "joint"}
    config = recipe(method=options, federation__upload_frame="random", federation__rounds=3)
    last = run(config, out=tmp_path / "run").records[-1]
    assert last["aggregation_error_relative"] < 0.7 * last["aggregation_error_relative_unaligned"]


@pytest.mark.parametrize("method", ["ffa", "rolora", "fedsa"])
def test_methods_that_keep_a_factor_back_are_refused(recipe: Make, tmp_path: Path, method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"upload_frame = 'svd': method '{method}' does not send both factors"
    ):
        run(recipe(method={"name": method}, federation__upload_frame="svd"), out=tmp_path / "run")


def test_diagnostics_are_recorded_and_drawn(recipe: Make, tmp_path: Path) -> None:
    config = recipe(
        method={"name": "fedrot", "strength": 0.5, "anchor": "a"},
        output__diagnostics=True,
        output__report=True,
        federation__rounds=3,
    )
    result = run(config, out=tmp_path / "run")
    assert "diagnostics" not in result.records[0], "the first round has no reference"
    for record in result.records[1:]:
        errors = record["diagnostics"]["error_by_strength"]
        assert errors["0.5"] == pytest.approx(record["aggregation_error_relative"], rel=1e-3)
        assert errors["0"] == pytest.approx(record["aggregation_error_relative_unaligned"], rel=1e-5)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert 'id="plot-strength"' in page
    assert (tmp_path / "run" / "plots" / "strength.png").exists()
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[1]["diagnostics"]["error_by_strength"] = {"0": "much"}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(OutputError, match=r"line 2: diagnostics\.error_by_strength = .*expected an object"):
        write_report(tmp_path / "run")


def test_a_run_without_diagnostics_says_nothing_of_them(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(output__report=True), out=tmp_path / "run")
    assert all("diagnostics" not in record for record in result.records)
    assert "Error by strength" not in (tmp_path / "run" / "report.html").read_text("utf-8")
