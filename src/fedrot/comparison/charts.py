"""Charts of a comparison: curves with bands, paired differences, the grid, and errors with and without alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedrot.comparison.drawing import Bands, RowMark, Rows, Spread
from fedrot.comparison.options import show_value
from fedrot.comparison.table import in_words, name_of, score_of
from fedrot.report.canvas import WIDE, Chart, Key
from fedrot.report.digits import byte_unit, decimal
from fedrot.report.plot import Line, Plot
from fedrot.report.scores import Score
from fedrot.report.words import tidy

Json = Mapping[str, Any]
_SHAPES, _MARKERS = ("line", "dashed", "dotted"), "osD^vP"
COLOURS = 6
CROWD = 4
"""Lines beyond which their bands would cover each other; the intervals are then under the pointer alone."""
ROW = 24
"""Height of a row of a chart by rows, in CSS pixels."""


@dataclass(frozen=True)
class Look:
    """How a variant is drawn everywhere on the page: colours first, then dashes, so that 18 differ."""

    colour: int
    shape: str
    marker: str


def looks(results: Json) -> dict[str, Look]:
    """A look for each variant."""
    return {
        label: Look(i % COLOURS, _SHAPES[i // COLOURS % 3], _MARKERS[i % COLOURS])
        for i, label in enumerate(results["variants"])
    }


def _keys(results: Json, labels: Sequence[str]) -> list[Key]:
    look = looks(results)
    return [Key(label, look[label].colour, look[label].shape) for label in labels]


def _arms(results: Json, point: Json) -> list[Json]:
    return [arm for arm in results["arms"] if arm["point"] == point and arm["by_round"]]


def _curve(arm: Json, score: Score, x: str, size: float = 1.0) -> list[tuple[float, Json]]:
    return [(row[x] / size, row[score.name]) for row in arm["by_round"] if score.name in row]


def _lines(results: Json, curves: Mapping[str, Sequence[tuple[float, Json]]]) -> tuple[list[Line], Bands]:
    look = looks(results)
    lines = [
        Line(
            label,
            [(x, y["mean"]) for x, y in curve],
            look[label].colour,
            look[label].shape,
            look[label].marker,
        )
        for label, curve in curves.items()
    ]
    bands = [
        (look[label].colour, band)
        for label, curve in curves.items()
        if len(curves) <= CROWD
        and (band := [(x, y["low"], y["high"]) for x, y in curve if y["low"] is not None])
    ]
    return lines, bands


def rounds_chart(results: Json, number: int) -> Chart | None:
    """The test score by round at a grid point, with bands of the 95% interval."""
    point, score = results["points"][number], score_of(results)
    curves = {
        arm["variant"]: curve
        for arm in _arms(results, point["setting"])
        if (curve := _curve(arm, score, "round"))
    }
    if not curves:
        return None
    lines, bands = _lines(results, curves)
    at: dict[float, list[str]] = {}
    for label, curve in curves.items():
        for x, y in curve:
            at.setdefault(x, []).append(f"{label}\t{_interval(y, score)}")
    tips = [(x, "\n".join([f"Round {x:g}", *rows])) for x, rows in sorted(at.items())]
    plot = Plot(lines, "Round", score.axis, tips, share=score.share)
    caption = "Mean over seeds" + (
        "; bands are 95% t-intervals, cut off where they leave the frame."
        if bands
        else "; intervals are under the pointer."
        if len(results["seeds"]) > 1
        else "."
    )
    title = f"{score.title} by round" + _at(point)
    return Chart(
        f"rounds-{number}",
        title,
        caption,
        Spread(plot, bands, within=score.bounds),
        _keys(results, list(curves)),
    )


def bytes_chart(results: Json, number: int) -> Chart | None:
    """The test score against all that was sent, at a grid point."""
    point, score = results["points"][number], score_of(results)
    arms = _arms(results, point["setting"])
    largest = max((row["bytes"] for arm in arms for row in arm["by_round"]), default=0.0)
    size, unit = byte_unit(largest)
    curves = {arm["variant"]: curve for arm in arms if (curve := _curve(arm, score, "bytes", size))}
    if not curves:
        return None
    lines, _ = _lines(results, curves)
    at: dict[float, list[str]] = {}
    for label, curve in curves.items():
        for x, y in curve:
            at.setdefault(x, []).append(f"{label}\t{score.show(y['mean'])}")
    tips = [(x, "\n".join([f"{x:.3g} {unit}", *rows])) for x, rows in sorted(at.items())]
    title = f"Sent so far, up and down ({unit})"
    plot = Plot(lines, title, score.axis, tips, share=score.share, rounds=False)
    caption = f"What the {score.words} cost on the wire, all clients together; means over seeds."
    heading = f"{score.title} against bytes" + _at(point)
    return Chart(f"bytes-{number}", heading, caption, plot, _keys(results, list(curves)))


def grid_charts(results: Json) -> list[Chart]:
    """Last-round test score by the values of a grid key, a chart for each choice of the other keys' values."""
    charts: list[Chart] = []
    grid: Mapping[str, Sequence[Any]] = results["compare"]["grid"]
    for key in grid if results["compare"]["one_factor"] else list(grid)[:1]:
        others = [
            {k: v for k, v in point["setting"].items() if k != key}
            for point in results["points"]
            if key in point["setting"]
        ]
        for other in [other for i, other in enumerate(others) if other not in others[:i]]:
            if (chart := _grid_chart(results, key, grid[key], other, len(charts))) is not None:
                charts.append(chart)
    return _single(charts)


def _single(charts: list[Chart]) -> list[Chart]:
    """A lone chart takes the whole row."""
    return [replace(charts[0], width=WIDE, height=300)] if len(charts) == 1 else charts


def _grid_chart(results: Json, key: str, values: Sequence[Any], other: Json, number: int) -> Chart | None:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values = sorted(values)  # equally spaced all the same: 3, 10 and 50 clients are three cases
    labels: list[str] = results["variants"]
    score = score_of(results)
    shift = min(0.05, 0.4 / len(labels)) * len(values) / 5  # side by side, so that no bar hides another
    curves: dict[str, list[tuple[float, Json]]] = {}
    tips: list[tuple[float, str]] = []
    for x, value in enumerate(values):
        here = [f"{key} = {show_value(value)}"]
        for arm in results["arms"]:
            if arm["point"] == {**other, key: value} and score.name in arm["mean"]:
                place = x + shift * (labels.index(arm["variant"]) - (len(labels) - 1) / 2)
                curves.setdefault(arm["variant"], []).append((place, arm["mean"][score.name]))
                here.append(f"{arm['variant']}\t{_interval(arm['mean'][score.name], score)}")
        tips.append((x, "\n".join(here)))
    if not curves or len(values) < 2:
        return None
    lines, bands = _lines(results, curves)
    ticks = [(x, tidy(show_value(value), 12)) for x, value in enumerate(values)]
    plot = Plot(lines, key, score.axis, tips, share=score.share)
    caption = f"Test {score.words} of the last round, mean over seeds; values are equally spaced." + (
        " Bars are 95% t-intervals, cut off where they leave the frame." if bands else ""
    )
    title = f"{score.title} by {key}" + (f" ({in_words(results, other)})" if other else "")
    return Chart(
        f"grid-{number}",
        title,
        caption,
        Spread(plot, bands, ticks, within=score.bounds),
        _keys(results, list(curves)),
    )


def differences_chart(results: Json) -> Chart | None:
    """Paired differences of the test score to the baseline, a row per variant and grid point."""
    look = looks(results)
    rows: list[RowMark] = []
    score = score_of(results)
    points, scale = score.change, score.scale
    for arm in results["arms"]:
        found = arm["difference"].get(score.name)
        if found is None:
            continue
        span = None if found["low"] is None else (scale * found["low"], scale * found["high"])
        seeds = [f"seed {seed}\t{points(value)}" for seed, value in found["by_seed"].items()]
        interval = [] if span is None else [f"95%\t{points(found['low'])} to {points(found['high'])}"]
        name = name_of(results, arm)
        tip = "\n".join([name, f"mean\t{points(found['mean'])}", *interval, *seeds])
        dots = [scale * value for value in found["by_seed"].values()]
        rows.append(RowMark(name, tip, look[arm["variant"]].colour, scale * found["mean"], span, dots))
    if not rows:
        return None
    caption = (
        f"{'Points of test' if score.share else 'Test'} {score.words} in the last round, paired by seed: strokes are "
        "seeds, dots their mean, bars 95% t-intervals. An interval that holds zero shows no difference."
    )
    title = f"Difference to {results['baseline']}"
    draw = Rows(
        rows,
        f"{score.unit.strip().title() or score.title} above (+) or below (−) {results['baseline']}",
        True,
    )
    return Chart("differences", title, caption, draw, width=WIDE, height=90 + ROW * len(rows))


def errors_chart(results: Json) -> Chart | None:
    """Relative aggregation error with and without alignment, a row per variant and grid point."""
    look = looks(results)
    rows: list[RowMark] = []
    for arm in results["arms"]:
        ours, plain = arm["mean"].get("error"), arm["mean"].get("error_unaligned")
        if ours is None or plain is None:
            continue
        name = name_of(results, arm)
        tip = f"{name}\nbroadcast\t{decimal(ours['mean'])}\nwithout alignment\t{decimal(plain['mean'])}"
        rows.append(RowMark(name, tip, look[arm["variant"]].colour, ours["mean"], None, (), plain["mean"]))
    if not rows:
        return None
    caption = (
        "Mean over rounds and seeds of the distance from the clients' ideal mean update, relative to it. Full: what "
        "was broadcast; hollow: plain averaging of the same updates, without alignment. One on the other: no change."
    )
    draw = Rows(rows, "Relative aggregation error", False)
    return Chart("errors", "Aggregation error", caption, draw, width=WIDE, height=90 + ROW * len(rows))


def _interval(found: Json, score: Score) -> str:
    if found["low"] is None:
        return score.show(found["mean"])
    least, most = score.bounds
    low, high = max(found["low"], least), min(found["high"], most)
    return f"{score.show(found['mean'])} ({score.show(low)} to {score.show(high)})"


def _at(point: Json) -> str:
    return f" ({point['name']})" if point["name"] else ""
