"""From finished cells to `results.json`: per variant and grid point, means, intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedrot.comparison.design import Arm, Design
from fedrot.comparison.fairness import Fairness
from fedrot.comparison.options import show_value
from fedrot.comparison.reading import as_table
from fedrot.comparison.stats import estimate, paired
from fedrot.comparison.store import Json, Store, cell_key
from fedrot.comparison.tuning import Trial, choose, trials
from fedrot.report.scores import Score

OWN = ("loss", "error", "error_unaligned", "error_absolute", "bytes", "seconds")
"""Figures of a cell that are no scores."""
CURVES = ("aggregation_error_relative", "aggregation_error_relative_unaligned")
MIXED = "score"
"""What scores are called where the runs of a comparison are judged by different ones."""


def figure(cell: Json, metric: str) -> float | None:
    """One figure of a cell, None without one; `score` is what the cell is judged by, `best_...` that at its best round.

    Cells of before there were other scores are judged by accuracy.
    """
    score = Score.of(cell.get("metric")).name
    if metric == MIXED:
        metric = score
    if metric.startswith("best_"):
        return None if cell["best"] is None else cell["best"][score]
    value = cell["final"].get(metric, cell.get(metric))
    return None if value is None or not math.isfinite(value) else float(value)


def judged_by(cells: Iterable[Json]) -> Score:
    """What runs are judged by; `score` where they differ, of which all have the same direction (`check_design`)."""
    scores = dict.fromkeys(Score.of(cell.get("metric")) for cell in cells)
    if len(scores) > 1:
        return Score(MIXED, next(iter(scores)).better)
    return next(iter(scores), Score())


def measured(score: Score, cells: Sequence[Json]) -> list[str]:
    """The figures that these cells have, what they are judged by first."""
    others = sorted({name for cell in cells for name in cell["final"] if name != "round"} - {score.name})
    return [score.name, f"best_{score.name}", *others, *OWN]


def collect(design: Design, store: Store) -> Json:
    """Everything the comparison found.

    Raises:
        ConfigError: variants that did not start alike.
    """
    fairness = Fairness()
    arms = [_arm(design, arm, store, fairness) for arm in design.arms()]
    score = judged_by(cell for entry in arms for cell in entry["cells"])
    for entry in arms:
        entry.update(_measures(score, entry["cells"], store))
    for entry in arms:
        base = next(a for a in arms if a["variant"] == design.baseline and a["point"] == entry["point"])
        entry["difference"] = {} if entry is base else _differences(entry, base)
    cells = [cell for entry in arms for cell in entry.pop("cells")]
    return {
        "baseline": design.baseline,
        "metric": {"name": score.name, "better": score.better},
        "seeds": list(design.seeds),
        "variants": list(design.variants),
        "recipe": design.recipe,
        "compare": as_table(design),
        "points": [{"name": design.shown(point), "setting": point} for point in design.points],
        "arms": arms,
        "notes": _notes(design, arms, cells),
        "versions": _one_or_all(cell["versions"] for cell in cells),
        "device": _one_or_all(cell["device"] for cell in cells),
        "threads": _one_or_all(cell["threads"] for cell in cells),
        "examples": _one_or_all(cell["examples"] for cell in cells),
        "cpu_seconds": sum(cell["wall_seconds"] for cell in {c["key"]: c for c in cells}.values()),
    }


def _arm(design: Design, arm: Arm, store: Store, fairness: Fairness) -> Json:
    tried = trials(design, arm, store) if design.tuned else []
    best = choose(tried)
    entry: Json = {
        "variant": arm.variant,
        "point": arm.point,
        "method": design.config(arm.variant, arm.point, arm.candidates[0], 0).method.name,
        "tuning": [_trial(trial) for trial in tried],
        "chosen": best.setting if best else None,
    }
    failed: Json = {}
    cells: list[Json] = []
    if design.tuned and best is None:
        failed = {
            str(seed): {"kind": "Tuning", "message": "no setting finished on the tuning seeds"}
            for seed in design.seeds
        }
    else:
        for seed in design.seeds:
            key = cell_key(design.config(arm.variant, arm.point, best.setting if best else {}, seed))
            cell = store.cell(key)
            if cell is None or "failure" in cell:
                failed[str(seed)] = (cell or {}).get("failure", {"kind": "Missing", "message": "was not run"})
                continue
            fairness.check(arm, cell)
            cells.append(cell)
    keys = {str(cell["config"]["seed"]): cell["key"] for cell in cells}
    return entry | {"keys": keys, "failed": failed, "cells": cells}


def _measures(score: Score, cells: Sequence[Json], store: Store) -> Json:
    """Every figure by seed, its mean over seeds, and curves by round."""
    names = measured(score, cells)
    values = {
        name: {
            str(cell["config"]["seed"]): value for cell in cells if (value := figure(cell, name)) is not None
        }
        for name in names
    }
    means = {name: found.to_json() for name in names if (found := estimate(list(values[name].values())))}
    own = judged_by(cells)
    curves = {score.name: own.name, score.validation: own.validation} | {name: name for name in CURVES}
    return {
        "values": {name: by_seed for name, by_seed in values.items() if by_seed},
        "mean": means,
        "by_round": _by_round([store.metrics(cell["key"]) for cell in cells], curves),
    }


def _trial(trial: Trial) -> Json:
    return {
        "setting": trial.setting,
        trial.score.validation: {str(seed): value for seed, value in trial.scores.items()},
        "mean": trial.mean,
        "failed": {str(seed): error for seed, error in trial.failed.items()},
    }


def _differences(entry: Json, base: Json) -> Json:
    found: Json = {}
    for metric, ours in entry["values"].items():
        theirs = base["values"].get(metric, {})
        both = {int(s): v for s, v in ours.items()}, {int(s): v for s, v in theirs.items()}
        if (difference := paired(*both)) is not None:
            found[metric] = difference.to_json() | {
                "by_seed": {s: ours[s] - theirs[s] for s in ours if s in theirs}
            }
    return found


def _by_round(runs: Sequence[Sequence[Mapping[str, Any]]], curves: Mapping[str, str]) -> list[Json]:
    """Means over seeds, with intervals, for the rounds that every seed has; bytes are summed up to the round."""
    table: list[Json] = []
    sent = [0.0] * len(runs)
    for records in zip(*runs, strict=False):
        sent = [total + r["bytes_up"] + r["bytes_down"] for total, r in zip(sent, records, strict=True)]
        row: Json = {"round": records[0]["round"], "bytes": math.fsum(sent) / len(sent)}
        for name, key in curves.items():
            values = [record[key] for record in records if key in record and math.isfinite(record[key])]
            if len(values) == len(records) and (found := estimate(values)) is not None:
                row[name] = found.to_json()
        table.append(row)
    return table


def _one_or_all(values: Any) -> Any:
    """The value that all share, or the list of different ones."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _notes(design: Design, arms: Sequence[Json], cells: Sequence[Json]) -> list[str]:
    notes: list[str] = []
    if len(design.seeds) == 1:
        notes.append("One seed: there are no intervals, and no difference here can be told from chance.")
    if missing := [
        f"{_name(design, a)}, seed {seed}: {e['message']}" for a in arms for seed, e in a["failed"].items()
    ]:
        notes.append("Without a result: " + "; ".join(missing) + ".")
    ruled_out = [
        f"{_name(design, a)}, {design.shown(t['setting'])}, seed {seed}: {error['message']}"
        for a in arms
        for t in a["tuning"]
        for seed, error in t["failed"].items()
    ]
    if ruled_out:
        notes.append("Settings ruled out because a run failed: " + "; ".join(dict.fromkeys(ruled_out)) + ".")
    for what in ("device", "threads", "versions"):
        if isinstance(found := _one_or_all(cell[what] for cell in cells), list) and len(found) > 1:
            notes.append(f"The cells were not all run with the same {what}; figures can differ by rounding.")
    if edges := [edge for arm in arms for edge in _edges(design, arm)]:
        notes.append(
            "Chosen at the edge of its list, so better values may lie beyond: " + "; ".join(edges) + "."
        )
    if rejected := sum(cell["rejected"] for cell in cells):
        notes.append(f"{rejected} updates that were not finite were rejected (see the cells' metrics).")
    return notes


def _edges(design: Design, arm: Json) -> list[str]:
    lists = design.tune | design.own_tune.get(arm["variant"], {})
    found: list[str] = []
    for key, value in (arm["chosen"] or {}).items():
        numeric = [v for v in lists[key] if isinstance(v, int | float) and not isinstance(v, bool)]
        ends_open = key.startswith("train.")  # a learning rate has values beyond; a strength of 1 has none
        if ends_open and len(numeric) > 2 and value in (min(numeric), max(numeric)):
            found.append(f"{_name(design, arm)}: {key} = {show_value(value)}")
    return found


def _name(design: Design, arm: Json) -> str:
    where = design.shown(arm["point"])
    return arm["variant"] + (f" at {where}" if where else "")
