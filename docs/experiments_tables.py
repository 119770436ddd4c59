"""Tables of the experiments' results, from the JSON files of `benchmarks/results/experiments`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrot.config import parse_config
from fedrot.privacy import Accountant

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "experiments"


def experiment(name: str) -> str:
    """Accuracy of every variant at every grid point, differences to the baseline, and how it was run."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "*Not run yet.*\n"
    found = json.loads(path.read_text("utf-8"))
    one = len(found["points"]) == 1
    parts = [single(found)] if one else [accuracies(found), differences(found)]
    return "\n".join([*parts, footnote(found, sent=one or sends_differ(found))])


def single(found: dict[str, Any]) -> str:
    """One row for each variant."""
    score = judged_by(found)
    rows = [
        ["variant", f"test {score}", f"against {found['baseline']}", "relative error", "MB sent", "chosen"]
    ]
    rows += [
        [
            f"`{arm['variant']}`",
            interval(arm["mean"].get(score)),
            against(arm, score),
            number(arm["mean"].get("error")),
            megabytes(arm),
            chosen(arm),
        ]
        for arm in found["arms"]
    ]
    return markdown(rows)


def private(name: str) -> str:
    """Accuracy of every variant beside the epsilon that it spends, computed from its recipe."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "*Not run yet.*\n"
    found = json.loads(path.read_text("utf-8"))
    rows = [["variant", "ε", "test accuracy", f"against {found['baseline']}"]]
    for arm in found["arms"]:
        spends = epsilon(found["recipe"], found["compare"]["variants"][arm["variant"]])
        rows.append([f"`{arm['variant']}`", spends, interval(arm["mean"].get("accuracy")), against(arm)])
    return "\n".join([markdown(rows), footnote(found, sent=False)])


def epsilon(recipe: dict[str, Any], setting: dict[str, Any]) -> str:
    """What a whole run of the recipe with these settings spends."""
    data = json.loads(json.dumps(recipe))
    for key, value in setting.items():
        section, _, name = key.partition(".")
        data.setdefault(section, {})[name] = value
    config = parse_config(data)
    if config.privacy.mechanism == "none":
        return "∞"
    clients, federation = config.federation.clients, config.federation
    spent = Accountant(config.privacy, config.seed, clients, federation.fraction).epsilon(federation.rounds)
    return "∞" if spent is None else f"{spent:.1f}"


def accuracies(found: dict[str, Any]) -> str:
    """One row for each grid point, one column for each variant, and bytes where runs do not all send as many."""
    score = judged_by(found)
    last = ("MB sent", lambda arms: sent(arms, found["baseline"])) if sends_differ(found) else None
    return grid(found, lambda arm: interval(arm["mean"].get(score)), f"test {score}", last=last)


def sends_differ(found: dict[str, Any]) -> bool:
    """Whether some runs send more than others."""
    return len({megabytes(arm) for arm in found["arms"]}) > 1


def sent(arms: dict[str, dict[str, Any]], baseline: str) -> str:
    """Megabytes of the baseline's run, and after it those of variants that send another amount."""
    usual = megabytes(arms[baseline])
    others = [f"`{name}` {megabytes(arm)}" for name, arm in arms.items() if megabytes(arm) != usual]
    return ", ".join([usual, *others])


def differences(found: dict[str, Any]) -> str:
    """The same of the paired differences to the baseline."""
    score = judged_by(found)
    unit = "points above" if score == "accuracy" else f"{score} above"
    return grid(found, lambda arm: against(arm, score), f"{unit} {found['baseline']}", skip=found["baseline"])


def grid(
    found: dict[str, Any],
    cell: Callable[[dict[str, Any]], str],
    title: str,
    skip: str = "",
    last: tuple[str, Callable[[dict[str, dict[str, Any]]], str]] | None = None,
) -> str:
    """One row for each grid point; `last` is the title of one more column, and what it says of a point's arms."""
    variants = [name for name in found["variants"] if name != skip]
    rows = [[title, *(f"`{name}`" for name in variants), *([last[0]] if last else [])]]
    for point in found["points"]:
        arms = {arm["variant"]: arm for arm in found["arms"] if arm["point"] == point["setting"]}
        more = [last[1](arms)] if last else []
        rows.append([point["name"], *(cell(arms[name]) for name in variants), *more])
    return markdown(rows)


def judged_by(found: dict[str, Any]) -> str:
    """The score of the experiment's task; experiments of before there were others have accuracies."""
    return found.get("metric", {}).get("name", "accuracy")


def interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "failed"
    digits = 3 if estimate["mean"] <= 1 else 2
    if estimate["low"] is None:
        return f"{estimate['mean']:.{digits}f}"
    return f"{estimate['mean']:.{digits}f} ± {estimate['high'] - estimate['mean']:.{digits}f}"


def against(arm: dict[str, Any], score: str = "accuracy") -> str:
    """The difference to the baseline, of accuracies in points, in bold where the interval leaves out zero."""
    difference = arm["difference"].get(score)
    if difference is None:
        return "–"
    unit, digits = (100, 1) if score == "accuracy" else (1, 2)
    text = f"{unit * difference['mean']:+.{digits}f}"
    if difference["low"] is None:
        return text
    clear = difference["low"] > 0 or difference["high"] < 0
    text += f" ({unit * difference['low']:+.{digits}f} to {unit * difference['high']:+.{digits}f})"
    return f"**{text}**" if clear else text


def number(estimate: dict[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['mean']:.3f}"


def megabytes(arm: dict[str, Any]) -> str:
    sent = arm["mean"].get("bytes")
    return "–" if sent is None else f"{sent['mean'] / 1e6:.1f}"


def chosen(arm: dict[str, Any]) -> str:
    return (
        ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in (arm["chosen"] or {}).items()) or "–"
    )


def footnote(found: dict[str, Any], sent: bool = True) -> str:
    """Seeds, tuning, what a column of bytes is, device, and what the comparison itself remarked."""
    seeds = ", ".join(map(str, found["seeds"]))
    tuned = found["compare"].get("tune", {})
    choice = "; ".join(f"{key} from {values}" for key, values in tuned.items())
    text = [
        f"Seeds {seeds}; mean and 95% t-interval; bold: the interval of the paired difference leaves out zero.",
        f"Chosen on validation, one seed, the same number of trials for all: {choice}."
        if choice
        else "Nothing tuned.",
        *(["MB sent: up and down, all clients and rounds of a run."] if sent else []),
        f"Last round, device {found['device']}, torch {found['versions']['torch']}.",
        *found["notes"],
    ]
    return "\n" + " ".join(text) + "\n"


def markdown(rows: list[list[str]]) -> str:
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
