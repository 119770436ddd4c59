"""What a run's privacy cost and covers: a line of facts, a sentence of the verdict, a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrot.report.canvas import Chart, Key
from fedrot.report.load import Run, finite
from fedrot.report.plot import Line, Plot


def is_private(config: Mapping[str, Any] | None) -> bool:
    """Whether the recipe names a mechanism."""
    return _settings(config).get("mechanism", "none") != "none"


def _settings(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    section = (config or {}).get("privacy", {})
    return section if isinstance(section, Mapping) else {}


def privacy_words(run: Run) -> str:
    """A sentence with epsilon, delta, mechanism and adjacency; empty without a mechanism."""
    if not is_private(run.config):
        return ""
    settings = _settings(run.config)
    # The summary also counts a release that the run ended in; of a run that goes on, it is of before.
    spent = [
        value
        for record in (*run.records, run.fact("privacy", {}))
        if (value := finite(record, "epsilon")) is not None
    ]
    mechanism = settings["mechanism"]
    if not spent:
        return f"Updates were clipped ({mechanism}), but without noise nothing is promised about privacy."
    source = settings.get("noise_source")
    hedge = (
        ", had its noise not come from the recipe's seed, which anyone may know" if source == "seed" else ""
    )
    return (
        f"It is differentially private for whole clients with ε = {max(spent):.3g} at δ = {settings['delta']:g} "
        f"({mechanism}, {settings['adjacency']}){hedge}."
    )


def privacy_fact(run: Run) -> str:
    """What the promise covers and leaves out, for the facts of the page."""
    facts = run.fact("privacy", {})
    sizes = ", ".join(f"{key} {value:g}" for key, value in facts.items() if key in ("clip", "noise"))
    if not facts:
        return "known when the run finishes"
    again = ", ".join(str(round) for round in facts.get("released_again", ()))
    repeated = f" Released more than once, and counted as often: round {again}." if again else ""
    return f"{sizes}. Covered: {facts['covered']}. Not covered: {facts['not_covered']}.{repeated}"


def privacy_chart(run: Run) -> Chart | str:
    """Epsilon spent by round."""
    points = [
        (int(record["round"]), value)
        for record in run.records
        if (value := finite(record, "epsilon")) is not None
    ]
    if not points:
        return "No round recorded an epsilon: without noise nothing is promised."
    scores = {int(r["round"]): value for r in run.records if (value := finite(r, run.score.name)) is not None}
    tips = [
        (
            x,
            f"Round {x}\nε\t{y:.4g}"
            + (f"\ntest {run.score.words}\t{run.score.show(scores[x])}" if x in scores else ""),
        )
        for x, y in points
    ]
    lines = [Line("ε spent", points, 0)]
    plot = Plot(lines, "Round", f"ε at δ = {_settings(run.config)['delta']:g}", tips, from_zero=True)
    caption = (
        "By the client that was chosen most often so far; smaller is more private, and no amplification by sampling "
        "is claimed."
    )
    return Chart("epsilon", "Privacy spent", caption, plot, [Key(lines[0].label, 0, "line")])
