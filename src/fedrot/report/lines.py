"""Line charts of the report: score, loss, aggregation error, traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from fedrot.report.canvas import Chart, Key
from fedrot.report.digits import byte_unit, decimal, fraction
from fedrot.report.load import Record, Run, finite, number, rotated
from fedrot.report.plot import Line, Plot, Point
from fedrot.report.probes import central_of, floor_of
from fedrot.report.scores import Score


def _series(records: Sequence[Record], key: str) -> list[Point]:
    return [(int(r["round"]), value) for r in records if (value := number(r, key)) is not None]


def _keys(lines: Sequence[Line], floor: float | None = None) -> list[Key]:
    keys = [Key(line.label, line.colour, line.shape) for line in lines]
    return keys if floor is None else [*keys, Key(f"floor: linear probe {fraction(floor)}", None, "dotted")]


def _round_tips(
    records: Sequence[Record], shown: Sequence[tuple[str, str]], show_share: bool
) -> list[tuple[float, str]]:
    tips: list[tuple[float, str]] = []
    for record in records:
        rows = [
            f"{label}\t{fraction(value) if show_share else decimal(value)}"
            for label, key in shown
            if (value := number(record, key)) is not None
        ]
        tips.append((int(record["round"]), "\n".join([f"Round {record['round']}", *rows])))
    return tips


BESIDE = ("macro_f1", "f1", "spearman", "mismatched_accuracy")
"""Scores of the test split that are drawn beside the one a run is judged by, the first that it has."""


def score_chart(run: Run) -> Chart | str:
    """Test and validation score by round, with the probe's floor; a sentence if nothing was evaluated."""
    score = run.score
    shown = [("test", score.name), ("validation", score.validation)]
    others = [name for name in BESIDE if score.share and name != score.name and _series(run.records, name)]
    if score.name == "accuracy" and "f1" in others:
        others.remove("macro_f1")
    shown += [(Score(name).words, name) for name in others[:1]]
    styles = {"test": (0, "line", "o"), "validation": (4, "dashed", "s")}
    styles |= {Score(name).words: (5, "dotted", "D") for name in others[:1]}
    lines = [
        Line(label, points, *styles[label]) for label, key in shown if (points := _series(run.records, key))
    ]
    if not any(math.isfinite(y) for line in lines for _, y in line.points):
        return (
            f"No round was evaluated, so there is no {score.words} to plot (see federation.evaluate_every)."
        )
    probe = run.fact("probe")
    floor = floor_of(probe, score)
    if (central := central_of(probe, score)) is not None:
        ends = [(int(run.records[0]["round"]), central), (int(run.records[-1]["round"]), central)]
        lines.append(Line(f"central linear probe {fraction(central)}", ends, 2, "dashed"))
    tips = _round_tips(run.records, shown, score.share)
    title = f"Score{score.range}" if score.share else score.axis
    plot = Plot(lines, "Round", title, tips, floor=floor, share=score.share)
    caption = (
        "The dotted line is a linear classifier on the frozen encoder, trained in the same federation: the floor an "
        "adapter must beat. A central one would need all clients' data in one place."
        if floor is not None
        else f"The linear probe of this run was not judged by {score.words}, so there is no floor to draw."
        if probe
        else "No linear probe was fitted; set output.probe = true to see the floor an adapter must beat."
        if run.summary is not None
        else "The linear-probe floor, if one was asked for, is drawn when the run has finished."
    )
    if not score.share:
        caption = "Less is better."
    return Chart("accuracy", f"{score.title} by round", caption, plot, _keys(lines, floor))


def loss_chart(run: Run) -> Chart | str:
    """Local training loss and, where evaluated, test and validation loss by round."""
    shown = [("training", "loss"), ("test", "eval_loss"), ("validation", "validation_loss")]
    styles = {"training": (1, "line", "o"), "test": (0, "line", "o"), "validation": (4, "dashed", "s")}
    lines = [
        Line(label, points, *styles[label]) for label, key in shown if (points := _series(run.records, key))
    ]
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    if not values:
        return "No round recorded a finite loss."
    log = min(values) > 0 and max(values) / min(values) > 50
    plot = Plot(lines, "Round", run.loss, _round_tips(run.records, shown, False), log=log)
    caption = "Training loss is the mean over clients and their local steps; it is taken before averaging."
    return Chart("loss", "Loss by round", caption, plot, _keys(lines))


def error_chart(run: Run) -> Chart | str:
    """Relative aggregation error of the broadcast, beside plain averaging where the two can differ."""
    ours = _series(run.records, "aggregation_error_relative")
    plain = _series(run.records, "aggregation_error_relative_unaligned")
    if not any(math.isfinite(y) for _, y in ours):
        if run.setting("privacy", "secure_aggregation", False):
            return (
                "With secure aggregation the server sees the mean of the uploads and no upload, so the error of that "
                "mean cannot be measured."
            )
        return "No round recorded an aggregation error."
    turning = rotated(run.records)
    by_round = dict(ours)
    differ = any(abs(y - by_round.get(x, y)) > 1e-6 * abs(y) for x, y in plain)
    label, other = ("aligned", "without alignment") if turning else ("broadcast", "plain averaging")
    lines = [Line(label, ours, 0)]
    measured = any(math.isfinite(y) for _, y in plain)
    if measured and (turning or differ):
        lines.append(Line(other, plain, 1, "dashed", "s"))
    positive = [y for line in lines for _, y in line.points if math.isfinite(y) and y > 0]
    log = bool(positive) and max(positive) / min(positive) > 20
    zeros = any(y == 0 for line in lines for _, y in line.points)
    caption = "Distance of what was broadcast from the clients' ideal mean update, relative to that update."
    if turning and not measured:
        caption += " Updates as they were before alignment stay with the nodes, so there is one line."
    elif len(lines) == 1:
        caption += " Nothing was rotated, and what was broadcast is the plain average: there is one line."
    if log and zeros:
        caption += (
            " Rounds with an error of exactly zero have no place on the logarithmic scale and are not drawn."
        )
        lines = [
            Line(li.label, [(x, y or math.nan) for x, y in li.points], li.colour, li.shape, li.marker)
            for li in lines
        ]
    shown = [(label, "aggregation_error_relative"), (other, "aggregation_error_relative_unaligned")][
        : len(lines)
    ]
    tips = _round_tips(run.records, shown, False)
    plot = Plot(lines, "Round", f"Relative error{', log scale' if log else ''}", tips, log=log)
    return Chart("aggregation_error", "Aggregation error", caption, plot, _keys(lines))


def _traffic(run: Run) -> tuple[list[float], list[float]] | None:
    if all(finite(r, "bytes_up") is None and finite(r, "bytes_down") is None for r in run.records):
        return None
    up = list(accumulate(finite(r, "bytes_up") or 0.0 for r in run.records))
    down = list(accumulate(finite(r, "bytes_down") or 0.0 for r in run.records))
    return up, down


def bytes_chart(run: Run) -> Chart | str:
    """Bytes sent up and down by all clients together, summed over the rounds so far."""
    traffic = _traffic(run)
    if traffic is None:
        return "No round recorded its bytes."
    up, down = traffic
    size, unit = byte_unit(max(up[-1], down[-1]))
    rounds = [int(r["round"]) for r in run.records]
    sent = [(x, y / size) for x, y in zip(rounds, up, strict=True)]
    received = [(x, y / size) for x, y in zip(rounds, down, strict=True)]
    if sent == received:
        lines, caption = (
            [Line("up, and as much down", sent, 0)],
            "Cumulative, all clients together; both ways alike.",
        )
    else:
        lines = [
            Line("up (clients to server)", sent, 0),
            Line("down (server to clients)", received, 1, "dashed", "s"),
        ]
        caption = "Cumulative, all clients together."
    tips = [
        (x, f"Round {x}\nup\t{u / size:.3g} {unit}\ndown\t{d / size:.3g} {unit}")
        for x, u, d in zip(rounds, up, down, strict=True)
    ]
    plot = Plot(lines, "Round", f"Sent so far ({unit})", tips, from_zero=True)
    return Chart("bytes", "Bytes sent", caption, plot, _keys(lines))


def score_by_bytes_chart(run: Run) -> Chart | str:
    """The test score against everything sent so far, up and down."""
    traffic, score = _traffic(run), run.score
    totals = [u + d for u, d in zip(*traffic, strict=True)] if traffic else [0.0] * len(run.records)
    scored = [
        (total, value, int(r["round"]))
        for r, total in zip(run.records, totals, strict=True)
        if (value := finite(r, score.name)) is not None
    ]
    if not traffic or not scored:
        return (
            f"{score.title} against bytes needs evaluated rounds that recorded their bytes; there are none."
        )
    size, unit = byte_unit(totals[-1])
    points = [(total / size, value) for total, value, _ in scored]
    floor = floor_of(run.fact("probe"), score)
    tips = [(t / size, f"{t / size:.3g} {unit}, round {r}\ntest\t{score.show(v)}") for t, v, r in scored]
    lines = [Line("test", points, 0)]
    title = f"Sent so far, up and down ({unit})"
    plot = Plot(lines, title, score.axis, tips, floor=floor, share=score.share, rounds=False)
    caption = f"What the {score.words} cost on the wire."
    return Chart("accuracy_by_bytes", f"{score.title} against bytes", caption, plot, _keys(lines, floor))
