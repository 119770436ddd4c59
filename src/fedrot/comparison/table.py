"""Results as rows of words, for table.md, the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrot.comparison.options import shown
from fedrot.report.words import MISSING, data_size, decimal, fraction

Json = Mapping[str, Any]

EXACT = 1e-5
"""A relative aggregation error below is rounding of float32."""
_COLUMNS = (
    ("best_accuracy", "best validation"),
    ("macro_f1", "macro F1"),
    ("local_accuracy", "local accuracy"),
    ("eval_loss", "test loss"),
    ("error", "error (unaligned)"),
    ("bytes", "sent"),
    ("seconds", "seconds"),
)


def headers(results: Json) -> list[str]:
    """Column titles; those that no arm has are left out."""
    return [
        "variant",
        "accuracy",
        f"against {results['baseline']}",
        "seeds",
        *(title for _, title in _shown(results)),
    ]


def rows(results: Json, point: Json) -> list[list[str]]:
    """One row per variant at a grid point, in the order of the variants."""
    table: list[list[str]] = []
    for arm in (arm for arm in results["arms"] if arm["point"] == point):
        accuracy = arm["mean"].get("accuracy")
        count = f"{len(arm['values'].get('accuracy', {}))}"
        if arm["failed"]:
            count += f" of {len(results['seeds'])}: {len(arm['failed'])} failed"
        cells = [_cell(key, arm["mean"]) for key, _ in _shown(results)]
        table.append(
            [arm["variant"], with_interval(accuracy), difference(arm, results["baseline"]), count, *cells]
        )
    return table


def _shown(results: Json) -> list[tuple[str, str]]:
    return [(key, title) for key, title in _COLUMNS if any(key in arm["mean"] for arm in results["arms"])]


def _cell(key: str, means: Json) -> str:
    found = means.get(key)
    if found is None:
        return MISSING
    if key in ("best_accuracy", "macro_f1", "local_accuracy"):
        return fraction(found["mean"])
    if key == "bytes":
        return data_size(found["mean"])
    if key == "error":
        ours, plain = _error(found), _error(means.get("error_unaligned"))
        return ours if ours == plain == "exact" else f"{ours} ({plain})"
    return f"{found['mean']:,.1f}" if key == "seconds" else decimal(found["mean"], 3)


def _error(found: Json | None) -> str:
    return MISSING if found is None else "exact" if found["mean"] < EXACT else decimal(found["mean"], 3)


def with_interval(found: Json | None) -> str:
    """`.731 ± .012`; without an interval the mean alone."""
    if found is None:
        return MISSING
    half = "" if found["low"] is None else f" ± {fraction(found['high'] - found['mean'])}"
    return fraction(found["mean"]) + half


def difference(arm: Json, baseline: str, key: str = "accuracy") -> str:
    """Paired difference in points with its interval: `+1.2 [-0.3, +2.7]`."""
    if arm["variant"] == baseline:
        return "baseline"
    found = arm["difference"].get(key)
    if found is None:
        return MISSING
    mean = points(found["mean"])
    return mean if found["low"] is None else f"{mean} [{points(found['low'])}, {points(found['high'])}]"


def points(value: float) -> str:
    """A difference of shares in points, always with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def decided(arm: Json, key: str = "accuracy") -> bool:
    """Whether the interval of the paired difference leaves zero out."""
    found = arm["difference"].get(key)
    return bool(found) and found["low"] is not None and not found["low"] <= 0 <= found["high"]


def verdict(results: Json) -> str:
    """What the comparison showed against its baseline, in words, from its numbers alone."""
    others = [arm for arm in results["arms"] if arm["variant"] != results["baseline"] and arm["difference"]]
    if not others:
        return "There is nothing to compare: no variant finished beside the baseline."
    if len(results["seeds"]) == 1:
        return "With one seed, no difference can be told from chance."
    clear = [arm for arm in others if decided(arm)]
    many = f"{len(others)} comparisons" if len(others) > 1 else "one comparison"
    places = f" in the {many} with {results['baseline']}"
    if not clear:
        return f"No difference in test accuracy is larger than its 95% interval{places}."
    said = [
        f"{name_of(arm)} by {points(arm['difference']['accuracy']['mean'])} points"
        for arm in sorted(clear, key=lambda arm: -abs(arm["difference"]["accuracy"]["mean"]))
    ]
    more = f", and {len(said) - 4} more" if len(said) > 4 else ""
    return (
        f"Test accuracy differs by more than its 95% interval in {len(clear)} of {many} with "
        f"{results['baseline']}: {'; '.join(said[:4])}{more}."
    ) + (f" With {len(others)} intervals of 95%, some miss by chance." if len(others) > 5 else "")


def name_of(arm: Json) -> str:
    """The variant with its grid point."""
    return arm["variant"] + (f" ({shown(arm['point'])})" if arm["point"] else "")


def tuning_rows(results: Json) -> list[list[str]]:
    """Variant, grid point, setting, mean validation accuracy and whether it was chosen."""
    return [
        [
            arm["variant"],
            shown(arm["point"]) or MISSING,
            shown(trial["setting"]),
            "failed" if trial["mean"] is None else fraction(trial["mean"], 4),
            "chosen" if trial["setting"] == arm["chosen"] else "",
        ]
        for arm in results["arms"]
        for trial in arm["tuning"]
    ]


TUNING_HEADERS = ["variant", "where", "setting", "validation accuracy", ""]


def explanation(results: Json) -> str:
    """What the numbers are."""
    seeds = results["seeds"]
    interval = (
        "± and brackets are 95% t-intervals over seeds; differences are paired by seed, in points of accuracy. "
        if len(seeds) > 1
        else "One seed: no intervals. "
    )
    return (
        f"Test accuracy of the last round, mean over seeds {', '.join(map(str, seeds))}. {interval}The error is the "
        'relative aggregation error, mean over rounds, in brackets that of plain averaging without alignment; "best '
        'validation" is the test accuracy of the round that was best on validation.'
    )


def markdown(results: Json) -> str:
    """The whole table as Markdown."""
    parts = [f"# Comparison\n\n{verdict(results)}\n\n{explanation(results)}\n"]
    for point in results["points"]:
        title = f"## {point['name']}\n\n" if point["name"] else ""
        parts.append(title + _markdown(headers(results), rows(results, point["setting"])))
    if tuning := tuning_rows(results):
        parts.append("## Settings tried\n\n" + _markdown(TUNING_HEADERS, tuning))
    parts += [f"> {note}\n" for note in results["notes"]]
    return "\n".join(parts)


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return (
        "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"
    )
