"""results.json, table.md and compare.html: one page that loads nothing from anywhere, in the look of a run's report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from fedrot.comparison.charts import (
    bytes_chart,
    differences_chart,
    errors_chart,
    grid_charts,
    looks,
    rounds_chart,
)
from fedrot.comparison.options import show_value
from fedrot.comparison.sent import sent_chart
from fedrot.comparison.store import Store
from fedrot.comparison.table import (
    TUNING_HEADERS,
    decided,
    explanation,
    headers,
    in_words,
    markdown,
    rows,
    score_of,
    tuning_rows,
    verdict,
)
from fedrot.report.canvas import Chart, render_svgs
from fedrot.report.digits import MISSING

Json = Mapping[str, Any]
SHOWN = 4
"""Grid points whose curves are open on the page; those of the others unfold."""


def write_results(store: Store, results: Json) -> None:
    """Write the three files into the comparison's directory, each whole or not at all."""
    store.write(store.path / "results.json", json.dumps(results, indent=1) + "\n")
    store.write(store.path / "table.md", markdown(results))
    store.write(store.path / "compare.html", page(results))


def page(results: Json) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    report, own = files("fedrot.report"), files("fedrot.comparison")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(own.joinpath("compare.html.jinja").read_text("utf-8"))
    each = [
        [chart for chart in (rounds_chart(results, n), bytes_chart(results, n)) if chart is not None]
        for n in range(len(results["points"]))
    ]
    return template.render(
        results=results,
        looks=looks(results),
        heading=f"{len(results['variants'])} variants on {Path(_setting(results, 'task', 'data')).name}",
        verdict=verdict(results),
        explanation=explanation(results),
        tiles=_tiles(results),
        facts=_facts(results),
        headers=headers(results),
        tables=[(p["name"], rows(results, p["setting"])) for p in results["points"]],
        clear={
            (a["variant"], i)
            for i, p in enumerate(results["points"])
            for a in results["arms"]
            if a["point"] == p["setting"] and decided(a, score_of(results))
        },
        differences=_panels([differences_chart(results)]),
        grid=_panels(grid_charts(results)),
        sent=_panels([sent_chart(results)]),
        errors=_panels([errors_chart(results)]),
        curves=_panels([chart for charts in each[:SHOWN] for chart in charts]),
        folded=_panels([chart for charts in each[SHOWN:] for chart in charts]),
        tuning_headers=TUNING_HEADERS,
        tuning=tuning_rows(results),
        recipe=tomli_w.dumps({**results["recipe"], "compare": _sweep(results["compare"])}),
        css=report.joinpath("page.css").read_text("utf-8") + own.joinpath("compare.css").read_text("utf-8"),
        script=report.joinpath("page.js").read_text("utf-8"),
    )


def _panels(charts: Sequence[Chart | None]) -> list[dict[str, Any]]:
    return [{"chart": chart, "svg": render_svgs(chart)} for chart in charts if chart is not None]


def _sweep(table: Json) -> dict[str, Any]:
    """The `[compare]` table without what is empty, so that it can be run again as it stands."""
    kept = {key: value for key, value in table.items() if value not in ({}, [], False)}
    return (
        kept
        if table["tune"]
        else {key: value for key, value in kept.items() if key not in ("trials", "tune_seeds")}
    )


def _setting(results: Json, section: str, key: str) -> str:
    return str(results["recipe"].get(section, {}).get(key, "unknown"))


def _tiles(results: Json) -> list[tuple[str, str, str]]:
    """Name, value and remark of the headline numbers, over all grid points."""
    score = score_of(results)
    arms = [arm for arm in results["arms"] if score.name in arm["mean"]]
    failed = sum(len(arm["failed"]) for arm in results["arms"])
    runs = len({key for arm in results["arms"] for key in arm["keys"].values()})
    tiles = []
    if arms:
        best = max(arms, key=lambda arm: score.gain(arm["mean"][score.name]["mean"]))
        name = f"{'Highest' if score.better == 'higher' else 'Lowest'} {score.words}"
        tiles.append((name, score.show(best["mean"][score.name]["mean"]), _place(results, best)))
        others = [arm for arm in arms if score.name in arm["difference"]]
        if others:
            far = max(others, key=lambda arm: abs(arm["difference"][score.name]["mean"]))
            remark = f"{score.unit.strip()} to {results['baseline']}: {_place(results, far)}".strip()
            tiles.append(("Largest difference", score.change(far["difference"][score.name]["mean"]), remark))
            count = sum(decided(arm, score) for arm in others)
            tiles.append(
                ("Beyond their interval", f"{count} of {len(others)}", f"paired differences in {score.words}")
            )
    tiles.append(
        (
            "Runs",
            str(runs),
            f"{failed} without a result" if failed else f"{len(results['seeds'])} seeds, none failed",
        )
    )
    hours = results["cpu_seconds"] / 3600
    told = f"{hours:.1f} h" if hours >= 1 else f"{results['cpu_seconds'] / 60:.1f} min"
    tiles.append(("Time", told, "summed over runs"))
    return tiles


def _place(results: Json, arm: Json) -> str:
    where = in_words(results, arm["point"])
    return arm["variant"] + (f", {where}" if where else "")


def _facts(results: Json) -> list[tuple[str, str]]:
    recipe, examples = results["recipe"], results["examples"]
    sizes = [examples] if isinstance(examples, dict) else examples
    told = "; ".join(", ".join(f"{count:,} {split}" for split, count in one.items()) for one in sizes)
    federation = recipe.get("federation", {})
    partition = recipe.get("partition", {})
    return [
        ("Task", _setting(results, "task", "data")),
        ("Model", _setting(results, "model", "path")),
        ("Seeds", ", ".join(map(str, results["seeds"]))),
        ("Baseline", results["baseline"]),
        ("Examples", told or MISSING),
        (
            "Clients × rounds",
            f"{federation.get('clients', 'by id')} × {federation.get('rounds', 10)} in the recipe",
        ),
        (
            "Partition",
            ", ".join(f"{k} {show_value(v)}" if k != "kind" else str(v) for k, v in partition.items())
            or "iid",
        ),
        ("Tuning", _tuning(results)),
        ("Device", _listed(results["device"])),
        ("Versions", _versions(results["versions"])),
    ]


def _tuning(results: Json) -> str:
    table = results["compare"]
    if not table["tune"]:
        return "none: every variant with the recipe's settings"
    count = table["trials"]
    return f"{count} settings each, on validation, {table['tune_seeds']} seed{'s' if table['tune_seeds'] > 1 else ''}"


def _listed(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _versions(found: Any) -> str:
    return (
        " / ".join(
            ", ".join(f"{name} {version}" for name, version in one.items())
            for one in (found if isinstance(found, list) else [found])
        )
        or MISSING
    )
