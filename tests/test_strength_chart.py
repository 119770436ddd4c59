"""The paper's bound in the report: the curve drawn is its formula, and where it is positive is marked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedrot.config import RunConfig
from fedrot.engines.run import run
from fedrot.errors import OutputError
from fedrot.report import load_run
from fedrot.report.canvas import PRINT, Chart
from fedrot.report.strength import strength_chart
from tests.run_directory import make_run

Make = Callable[..., RunConfig]
ERRORS = {"0": 0.30, "0.25": 0.28, "0.5": 0.27, "0.75": 0.29, "1": 0.33}


def drawn(directory: Path) -> tuple[Chart, Figure]:
    chart = strength_chart(load_run(directory))
    assert isinstance(chart, Chart)
    figure = Figure()
    chart.draw(figure, PRINT)
    return chart, figure


def curve(figure: Figure) -> np.ndarray:
    """`(points, 2)`: strengths and values of the panel below."""
    (line,) = (line for line in figure.axes[1].lines if line.get_gid() == "bound")
    return np.asarray(line.get_xydata())


def with_bound(directory: Path, slope: Any, curvature: float, admissible: list[float] | None) -> Path:
    def edit(records: list[dict[str, Any]], _: dict[str, Any]) -> None:
        found = {"slope": slope, "curvature": curvature, "admissible": admissible}
        for record in records[1:]:
            record["diagnostics"] = {"anchor": "a", "error_by_strength": ERRORS, **found}

    return make_run(directory, rounds=3, edit=edit)


def test_the_curve_of_a_run_is_the_formula_of_what_it_recorded(recipe: Make, tmp_path: Path) -> None:
    config = recipe(
        method={"name": "fedrot", "anchor": "a"},
        train__lr=0.002,  # a small rate and frames drawn anew: there the bound has a positive part
        output__diagnostics=True,
        output__report=True,
        federation__upload_frame="random",
    )
    found = run(config, out=tmp_path / "run").records[-1]["diagnostics"]
    steps, rate = 3, 0.002

    def gamma(strength: float) -> float:
        cost = 4 * math.sqrt(steps) * found["kappa"] * rate * found["gradient"] / found["distance"]
        return (found["c0"] - cost) * strength - 4 * found["kappa"] ** 2 * strength**2 * steps

    chart, figure = drawn(tmp_path / "run")
    points = curve(figure)
    assert (points[0, 0], points[-1, 0]) == (0, 1)
    assert points[:, 1] == pytest.approx([gamma(x) for x in points[:, 0]], rel=1e-6, abs=1e-12)

    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    for number in (0.25, 0.5, 1.0):
        (value,) = set(re.findall(rf"strength {number:g}\n[^\"]*Γ\(λ\), round 2\t([^\"\n]+)", page))
        assert float(value.replace("−", "-").replace(",", "")) == pytest.approx(gamma(number), rel=5e-3)
    assert found["admissible"] is not None, "a run that shows a positive part is wanted here"
    end = found["admissible"][1]
    assert gamma(end / 2) > 0 > gamma(end + 1e-6)
    assert f"Γ above zero, up to λ = {end:.3g}" in [key.label for key in chart.keys]


def test_the_lines_in_the_svg_have_the_bounds_shape(tmp_path: Path) -> None:
    from fedrot.report.canvas import render_svg

    chart, _ = drawn(with_bound(tmp_path / "run", -0.5, 2.0, None))
    svg = str(render_svg(chart, "roomy"))

    def path(name: str) -> np.ndarray:
        found = re.search(rf'id="strength-{name}">.*?d="([^"]+)"', svg, re.S)
        assert found is not None
        return np.array([float(n) for n in re.findall(r"-?[\d.]+", found[1])]).reshape(-1, 2)

    points, zero = path("bound"), path("bound-zero")[0, 1]
    strength = (points[:, 0] - points[0, 0]) / (points[-1, 0] - points[0, 0])
    value = (points[:, 1] - zero) / (points[-1, 1] - zero) * -2.5
    assert len(points) > 10
    assert value == pytest.approx(-0.5 * strength - 2.0 * strength**2, abs=2e-3)


def test_where_the_bound_is_positive_is_marked_in_both_panels(tmp_path: Path) -> None:
    chart, figure = drawn(with_bound(tmp_path / "run", 0.4, 1.0, [0.0, 0.4]))
    for axes in figure.axes:
        (span,) = (patch for patch in axes.patches if patch.get_gid() == "positive")
        box = span.get_window_extent().transformed(axes.transData.inverted())
        assert (box.x0, box.x1) == pytest.approx((0.0, 0.4))
    assert "Γ above zero, up to λ = 0.4" in [key.label for key in chart.keys]
    assert "positive at some strength in 2 of 2 rounds" in chart.caption

    chart, figure = drawn(with_bound(tmp_path / "never", -0.5, 2.0, None))
    assert not any(patch.get_gid() == "positive" for axes in figure.axes for patch in axes.patches)
    assert "positive at some strength in 0 of 2 rounds" in chart.caption


@pytest.mark.parametrize(("curvature", "cut"), [(1.0, True), (400.0, True), (0.5, False)])
def test_a_positive_part_stays_visible_beside_a_deep_fall(
    tmp_path: Path, curvature: float, cut: bool
) -> None:
    end = min(1.0, 0.4 / curvature)
    chart, figure = drawn(with_bound(tmp_path / "run", 0.4, curvature, [0.0, end]))
    low, high = figure.axes[1].get_ylim()
    top = curve(figure)[:, 1].max()
    assert top == pytest.approx(0.4**2 / (4 * curvature), rel=1e-3)
    assert low < 0 < top < high
    assert top / (high - low) > 0.25
    assert ("cut off" in chart.caption) == cut


@pytest.mark.parametrize("slope", [None, "steep", math.nan])
def test_a_bound_that_is_no_number_is_refused(tmp_path: Path, slope: Any) -> None:
    directory = with_bound(tmp_path / "run", slope, 1.0, None)
    said = re.escape(str(json.loads(json.dumps(slope)))) if slope != "steep" else "'steep'"
    with pytest.raises(OutputError, match=rf"line 2: diagnostics\.slope = {said}: expected a finite number"):
        load_run(directory)
