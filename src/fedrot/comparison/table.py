"""Results as rows of words, for table.md, the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrot.comparison.options import shown, varied_keys
from fedrot.report.digits import MISSING, data_size, decimal, fraction
from fedrot.report.scores import ACCURACY, Score

Json = Mapping[str, Any]

EXACT = 1e-5
"""A relative aggregation error below is rounding of float32."""
_SCORES = ("macro_f1", "f1", "spearman", "token_accuracy", "local_accuracy", "mismatched_accuracy")
"""Scores that have a column, beside the one that runs are judged by."""


def score_of(results: Json) -> Score:
    """What the runs are judged by."""
    return Score.of(results.get("metric"))


def _columns(results: Json) -> tuple[tuple[str, str], ...]:
    score = score_of(results)
    return (
        (f"best_{score.name}", "best validation"),
        *((name, Score(name).words) for name in ("accuracy", *_SCORES) if name != score.name),
        ("eval_loss", "test loss"),
        ("error", "error (unaligned)"),
        ("bytes", "sent"),
        ("seconds", "seconds"),
    )


def headers(results: Json) -> list[str]:
    """Column titles; those that no arm has are left out."""
    return [
        "variant",
        score_of(results).words,
        f"against {results['baseline']}",
        "seeds",
        *(title for _, title in _shown(results)),
    ]


def rows(results: Json, point: Json) -> list[list[str]]:
    """One row per variant at a grid point, in the order of the variants."""
    table: list[list[str]] = []
    score = score_of(results)
    for arm in (arm for arm in results["arms"] if arm["point"] == point):
        count = f"{len(arm['values'].get(score.name, {}))}"
        if arm["failed"]:
            count += f" of {len(results['seeds'])}: {len(arm['failed'])} failed"
        cells = [_cell(key, arm["mean"], score) for key, _ in _shown(results)]
        shown_score = with_interval(arm["mean"].get(score.name), score)
        table.append(
            [arm["variant"], shown_score, difference(arm, results["baseline"], score), count, *cells]
        )
    return table


def _shown(results: Json) -> list[tuple[str, str]]:
    return [
        (key, title) for key, title in _columns(results) if any(key in arm["mean"] for arm in results["arms"])
    ]


def _cell(key: str, means: Json, score: Score) -> str:
    found = means.get(key)
    if found is None:
        return MISSING
    if key.startswith("best_"):
        return score.show(found["mean"])
    if key in ("accuracy", *_SCORES):
        return fraction(found["mean"])
    if key == "bytes":
        return data_size(found["mean"])
    if key == "error":
        ours, plain = _error(found), _error(means.get("error_unaligned"))
        return ours if ours == plain == "exact" else f"{ours} ({plain})"
    return f"{found['mean']:,.1f}" if key == "seconds" else decimal(found["mean"], 3)


def _error(found: Json | None) -> str:
    return MISSING if found is None else "exact" if found["mean"] < EXACT else decimal(found["mean"], 3)


def with_interval(found: Json | None, score: Score = ACCURACY) -> str:
    """`.731 ± .012`; without an interval the mean alone."""
    if found is None:
        return MISSING
    half = "" if found["low"] is None else f" ± {score.show(found['high'] - found['mean'])}"
    return score.show(found["mean"]) + half


def difference(arm: Json, baseline: str, score: Score = ACCURACY) -> str:
    """Paired difference, of shares in points, with its interval: `+1.2 [-0.3, +2.7]`."""
    if arm["variant"] == baseline:
        return "baseline"
    found = arm["difference"].get(score.name)
    if found is None:
        return MISSING
    mean = score.change(found["mean"])
    if found["low"] is None:
        return mean
    return f"{mean} [{score.change(found['low'])}, {score.change(found['high'])}]"


def decided(arm: Json, score: Score = ACCURACY) -> bool:
    """Whether the interval of the paired difference leaves zero out."""
    found = arm["difference"].get(score.name)
    return bool(found) and found["low"] is not None and not found["low"] <= 0 <= found["high"]


def verdict(results: Json) -> str:
    """What the comparison showed against its baseline, in words, from its numbers alone."""
    score = score_of(results)
    others = [arm for arm in results["arms"] if arm["variant"] != results["baseline"] and arm["difference"]]
    if not others:
        return "There is nothing to compare: no variant finished beside the baseline."
    if len(results["seeds"]) == 1:
        return "With one seed, no difference can be told from chance."
    clear = [arm for arm in others if decided(arm, score)]
    many = f"{len(others)} comparisons" if len(others) > 1 else "one comparison"
    places = f" in the {many} with {results['baseline']}"
    if not clear:
        return f"No difference in test {score.words} is larger than its 95% interval{places}."
    said = [
        f"{name_of(results, arm)} by {score.change(arm['difference'][score.name]['mean'])}{score.unit}"
        for arm in sorted(clear, key=lambda arm: -abs(arm["difference"][score.name]["mean"]))
    ]
    more = f", and {len(said) - 4} more" if len(said) > 4 else ""
    return (
        f"Test {score.words} differs by more than its 95% interval in {len(clear)} of {many} with "
        f"{results['baseline']}: {'; '.join(said[:4])}{more}."
    ) + (f" With {len(others)} intervals of 95%, some miss by chance." if len(others) > 5 else "")


def in_words(results: Json, setting: Json) -> str:
    """A grid point or chosen setting in one line that no other one has."""
    return shown(setting, varied_keys(results.get("compare", {})))


def name_of(results: Json, arm: Json) -> str:
    """The variant with its grid point."""
    return arm["variant"] + (f" ({in_words(results, arm['point'])})" if arm["point"] else "")


def tuning_rows(results: Json) -> list[list[str]]:
    """Variant, grid point, setting, mean validation score and whether it was chosen."""
    score = score_of(results)
    return [
        [
            arm["variant"],
            in_words(results, arm["point"]) or MISSING,
            in_words(results, trial["setting"]),
            "failed" if trial["mean"] is None else score.show(trial["mean"], 4),
            "chosen" if trial["setting"] == arm["chosen"] else "",
        ]
        for arm in results["arms"]
        for trial in arm["tuning"]
    ]


TUNING_HEADERS = ["variant", "where", "setting", "validation score", ""]


def explanation(results: Json) -> str:
    """What the numbers are."""
    seeds, score = results["seeds"], score_of(results)
    interval = (
        "± and brackets are 95% t-intervals over seeds; differences are paired by seed"
        + (f", in points of {score.words}. " if score.share else ". ")
        if len(seeds) > 1
        else "One seed: no intervals. "
    )
    return (
        f"Test {score.words} of the last round, mean over seeds {', '.join(map(str, seeds))}. {interval}The error is "
        "the relative aggregation error, mean over rounds, in brackets that of plain averaging without alignment; "
        '"best validation" is the test score of the round that was best on validation.'
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
