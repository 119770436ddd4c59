"""The report page: what a run showed, on one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedrot.errors import OutputError
from fedrot.report.canvas import Chart, render_png, render_svgs
from fedrot.report.digits import MISSING, data_size
from fedrot.report.lines import bytes_chart, error_chart, loss_chart, score_by_bytes_chart, score_chart
from fedrot.report.load import Record, Run, finite, load_run, rotated
from fedrot.report.maps import rotation_chart, skew_chart
from fedrot.report.privacy import is_private, privacy_chart, privacy_fact, privacy_words
from fedrot.report.probes import central_of, floor_of
from fedrot.report.samples import said
from fedrot.report.scores import Score
from fedrot.report.strength import diagnosed, strength_chart
from fedrot.report.words import (
    alignment_change,
    final_score,
    headers_of,
    percent,
    rows_of,
    verdict,
)

CHARTS: Mapping[str, tuple[str, Callable[[Run], Chart | str]]] = {
    "accuracy": ("Accuracy by round", score_chart),
    "loss": ("Loss by round", loss_chart),
    "aggregation_error": ("Aggregation error", error_chart),
    "rotation": ("Rotation by site", rotation_chart),
    "label_skew": ("Labels by client", skew_chart),
    "bytes": ("Bytes sent", bytes_chart),
    "accuracy_by_bytes": ("Accuracy against bytes", score_by_bytes_chart),
    "epsilon": ("Privacy spent", privacy_chart),
    "strength": ("Error by strength", strength_chart),
}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `plots/*.png` into a run directory and return the page's path.

    A run that is still going or was interrupted is reported as far as it got, and the page says so.

    Raises:
        OutputError: the directory is not a readable run, or the report cannot be written into it.
    """
    run = load_run(Path(run_dir))
    # A recipe that did not ask for diagnostics or privacy needs no word on them.
    unasked = {"strength": not diagnosed(run), "epsilon": not is_private(run.config)}
    asked = CHARTS.keys() - {name for name, left_out in unasked.items() if left_out}
    charts = {name: build(run) for name, (_, build) in CHARTS.items() if name in asked}
    try:
        notes = [*run.notes, *_write_plots(run.directory / "plots", charts)]
        target = run.directory / "report.html"
        scratch = target.with_suffix(".html.partial")
        scratch.write_text(_page(run, charts, notes), encoding="utf-8")
        scratch.replace(target)
    except OSError as error:
        raise OutputError(
            f"report in '{run.directory}': cannot be written ({error.strerror}); "
            "make the directory writable and free some space, then run `fedrot report` on it again"
        ) from error
    return target


def _write_plots(folder: Path, charts: Mapping[str, Chart | str]) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in CHARTS.keys() - charts.keys():
        (folder / f"{name}.png").unlink(missing_ok=True)
    poor: list[str] = []
    for name, chart in charts.items():
        path = folder / f"{name}.png"
        if isinstance(chart, str):
            path.unlink(missing_ok=True)  # else a plot of an earlier report would pass for this one's
        elif not render_png(chart, path):
            poor.append(path.name)
    if not poor:
        return []
    return [f"The font of the PNG plots lacks some characters of {', '.join(poor)}; this page has them."]


def _page(run: Run, charts: Mapping[str, Chart | str], notes: Sequence[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    source = files("fedrot.report")
    drawn = {name: chart for name, chart in charts.items() if isinstance(chart, Chart)}
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source.joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        run=run,
        heading=f"{run.method} on {_task(run)}",
        verdict=" ".join(filter(None, _verdict(run))),
        notes=notes,
        tiles=_tiles(run),
        facts=_facts(run),
        panels=[
            {"title": chart.title, "chart": chart, "svg": render_svgs(chart)} for chart in drawn.values()
        ],
        absent=[(name, CHARTS[name][0], chart) for name, chart in charts.items() if isinstance(chart, str)],
        # Two cards a row: with an even number of half-width charts the events get a row of their own.
        wide_events=sum(not chart.wide for chart in drawn.values()) % 2 == 0,
        samples=said(run),
        events=_events(run.records),
        no_events="No client was rejected, absent or stale; no reference was degenerate, no determinant was flipped.",
        headers=headers_of(run.score),
        rows=rows_of(run.records, run.score),
        snippet=_snippet(run),
        adapter_written=(run.directory / "adapter").is_dir(),
        css=source.joinpath("page.css").read_text("utf-8"),
        script=source.joinpath("page.js").read_text("utf-8"),
    )


def _verdict(run: Run) -> tuple[str, str]:
    return verdict(run.records, run.summary, run.config), privacy_words(run)


def _probe_remark(run: Run, score: Score) -> str:
    probe = run.fact("probe")
    if probe is None:
        return "not fitted (output.probe)" if run.summary is not None else "known when the run finishes"
    if floor_of(probe, score) is None:
        return f"not judged by {score.words}"
    central = central_of(probe, score)
    return "same federation, no adapter" + (
        f"; {score.show(central)} fitted centrally" if central is not None else ""
    )


def _task(run: Run) -> str:
    return str(run.fact("task", run.setting("task", "data", run.setting("task", "name", "unknown task"))))


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Name, value and remark of the headline numbers."""
    score = run.score
    final = final_score(run.records, score)
    done = run.summary is not None and not run.fact("interrupted", False)
    tiles = [
        (
            f"Final test {score.words}" if done else f"Test {score.words} so far",
            score.show(final[1] if final else None),
            _final_remark(run),
        )
    ]
    best = run.best_round
    at_best = next((finite(r, score.name) for r in run.records if r["round"] == best), None)
    remark = "no validation split was scored" if best is None else f"round {best}, chosen on validation"
    tiles.append(("At the best validation", score.show(at_best), remark))
    if not run.unlabelled:
        floor = floor_of(run.fact("probe"), score)
        tiles.append(("Linear-probe floor", score.show(floor), _probe_remark(run, score)))
    tiles.append(_error_tile(run))
    up = sum(finite(r, "bytes_up") or 0.0 for r in run.records)
    down = sum(finite(r, "bytes_down") or 0.0 for r in run.records)
    tiles.append(("Sent up", data_size(up), f"and {data_size(down)} down, all rounds"))
    return tiles


def _final_remark(run: Run) -> str:
    final = final_score(run.records, run.score)
    if final is None:
        return "no round was evaluated"
    round_, accuracy = final
    last = int(run.records[-1]["round"])
    which = f"round {round_}" + ("" if round_ == last else f", the last evaluated of {last}")
    examples = run.fact("examples", {}).get("test")
    if not examples or run.score.name != "accuracy":
        return which
    deviation = 100 * math.sqrt(accuracy * (1 - accuracy) / examples)
    return f"{which}; ±{deviation:.1f} points standard error"


def _error_tile(run: Run) -> tuple[str, str, str]:
    change = alignment_change(run.records)
    name = "Error, aligned vs not" if rotated(run.records) else "Error vs plain averaging"
    if change is None:
        return name, MISSING, "not recorded"
    mean, rounds = change
    if abs(mean) < 0.0005:
        return name, "0%", "no change" if rotated(run.records) else "the broadcast is the plain average"
    return (
        name,
        f"{'−' if mean < 0 else '+'}{percent(mean)}",
        f"mean of {rounds} round{'s' if rounds > 1 else ''}",
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    options = ", ".join(
        f"{key} {value}" for key, value in (run.config.get("method") or {}).items() if key != "name"
    )
    clients = run.fact("clients", run.setting("federation", "clients", "unknown"))
    recorded, planned = len(run.records), run.rounds_planned
    rounds = str(recorded) if recorded >= planned else f"{recorded} of {planned}"
    versions = {"fedrot": run.fact("fedrot"), **run.fact("versions", {})}
    seconds = run.fact("seconds", sum(finite(r, "seconds") or 0.0 for r in run.records))
    trained, whole = run.fact("adapter_parameters"), run.fact("parameters")
    head = run.fact("head_parameters", 0)
    sizes = (
        f"{trained:,} LoRA" + (f" + {head:,} head" if head else "") + f" of {whole:,}"
        if trained and whole
        else "not recorded"
    )
    examples = ", ".join(f"{count:,} {split}" for split, count in run.fact("examples", {}).items())
    return [
        ("Method", run.method + (f" ({options})" if options else "")),
        ("Task", _task(run)),
        ("Model", str(run.fact("model", run.setting("model", "path", "unknown")))),
        ("Examples", examples or "not recorded"),
        ("LoRA", f"rank {run.setting('lora', 'rank', '?')}, alpha {run.setting('lora', 'alpha', '?')}"),
        ("Parameters", sizes),
        ("Clients × rounds", f"{clients} × {rounds}"),
        *([("Privacy", privacy_fact(run))] if is_private(run.config) else []),
        ("Seed", str(run.fact("seed", run.config.get("seed", "not recorded")))),
        ("Device", str(run.fact("device", "not recorded"))),
        ("Time", f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"),
        (
            "Versions",
            ", ".join(f"{name} {value}" for name, value in versions.items() if value) or "not recorded",
        ),
    ]


def _events(records: Sequence[Record]) -> list[list[str]]:
    """Rows of round, clients with what kept them from a plain part in it, degenerate references, determinant flips."""
    rows: list[list[str]] = []
    for record in records:
        reasons: Mapping[str, Any] = record.get("rejected_clients") or {}
        rejected = int(finite(record, "rejected") or len(reasons))
        words = "; ".join(f"client {client}: {reason}" for client, reason in reasons.items())
        if rejected > len(reasons):
            words = "; ".join(
                part for part in (words, f"{rejected - len(reasons)} without a recorded reason") if part
            )
        lost: Mapping[str, Any] = record.get("lost_clients") or {}
        absent = ", ".join(
            f"client {client}" + (f" ({lost[str(client)]})" if str(client) in lost else "")
            for client in record.get("dropped_clients") or ()
        )
        late: Mapping[str, Any] = record.get("stale_clients") or {}
        behind = ", ".join(f"client {client} ({lag})" for client, lag in late.items())
        told = (words, absent and f"dropped out: {absent}", behind and f"stale, by rounds: {behind}")
        words = "; ".join(part for part in told if part)
        degenerate, flips = (int(finite(record, key) or 0) for key in ("degenerate", "flips"))
        if words or degenerate or flips:
            rows.append([str(record["round"]), words or MISSING, str(degenerate), str(flips)])
    return rows


def _snippet(run: Run) -> str:
    """Python that loads `adapter/`, to be run in the run directory."""
    path, labels = str(run.setting("model", "path", "PATH-OF-THE-BASE-MODEL")), run.labels
    classifies = run.setting("task", "name", "classify") == "classify"
    whole = run.setting("model", "pooling", "model") == "model"
    if classifies and whole and not path.startswith("package:"):
        count = f", num_labels={len(labels)}" if labels else ""
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForSequenceClassification\n\n"
            f"base = AutoModelForSequenceClassification.from_pretrained({path!r}{count})\n"
            'model = PeftModel.from_pretrained(base, "adapter")'
        )
    return (
        "import fedrot\n"
        "from peft import PeftModel\n\n"
        'base = fedrot.load_base_for("adapter")  # knows the kind of model, packages and pooling\n'
        'model = PeftModel.from_pretrained(base, "adapter")'
    )
