"""Numbers to words: the verdict, the table of rounds, short names. Pure strings, no drawing library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrot.report.digits import decimal, megabytes
from fedrot.report.load import Record, finite, load_run, number, rotated
from fedrot.report.probes import central_of, floor_of
from fedrot.report.scores import ACCURACY, Score

HEADERS = ["round", "loss", "accuracy", "error", "error without alignment", "rotation", "MB up", "seconds"]
"""Of a run that is judged by accuracy."""


def final_score(records: Sequence[Record], score: Score = ACCURACY) -> tuple[int, float] | None:
    """Round and test score of the last evaluated round."""
    scored = [(int(r["round"]), value) for r in records if (value := finite(r, score.name)) is not None]
    return scored[-1] if scored else None


def alignment_change(records: Sequence[Record]) -> tuple[float, int] | None:
    """Mean relative change of the aggregation error against plain averaging, and over how many rounds.

    Where the method rotates, only rounds in which something turned count; else every round with both errors.
    """
    turning = rotated(records)
    ratios: list[float] = []
    for record in records:
        ours = finite(record, "aggregation_error_relative")
        plain = finite(record, "aggregation_error_relative_unaligned")
        if ours is None or not plain or (turning and not finite(record, "rotation")):
            continue
        ratios.append(ours / plain - 1.0)
    return (sum(ratios) / len(ratios), len(ratios)) if ratios else None


def verdict(
    records: Sequence[Record], summary: Mapping[str, Any] | None, config: Mapping[str, Any] | None = None
) -> str:
    """What the run showed, in plain words, computed from its numbers and nothing else.

    Args:
        records: the rounds, as in metrics.jsonl.
        summary: summary.json; None for a run that has not finished.
        config: the recipe; with it a refit on top of the alignment gets its share of the credit.
    """
    return " ".join(part for part in (_score_words(records, summary), _error_words(records, config)) if part)


def _score_words(records: Sequence[Record], summary: Mapping[str, Any] | None) -> str:
    score = Score.of((summary or {}).get("metric"))
    final, name = final_score(records, score), score.words
    if final is None:
        return f"No round was evaluated on the test split, so there is no {name} to report."
    round_, value = final
    whole = opening = f"Final {name}"
    if summary is None:
        opening = f"Unfinished: {name} at round {round_} is"
    elif summary.get("interrupted"):
        opening = f"Interrupted: {name} at round {round_} is"
    elif round_ != int(records[-1]["round"]):
        opening = f"{score.title} at round {round_}, the last one evaluated, is"
    probe = (summary or {}).get("probe")
    floor = floor_of(probe, score)
    if floor is None:
        after = f" after {_plural(round_, 'round')}" if opening == whole else ""
        return f"{opening} {score.show(value)}{after}" + (
            "; no linear probe was fitted to compare it with." if summary and name == "accuracy" else "."
        )
    said = f"{_distance(value, floor)} the linear probe on the frozen encoder ({score.show(floor)})"
    if (central := central_of(probe, score)) is not None:
        said += f" and {_distance(value, central)} one fitted centrally ({score.show(central)})"
    return f"{opening} {score.show(value)}, {said}."


def _distance(value: float, floor: float) -> str:
    points = 100 * (value - floor)
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _error_words(records: Sequence[Record], config: Mapping[str, Any] | None) -> str:
    errors = [error for r in records if (error := finite(r, "aggregation_error_relative")) is not None]
    if errors and max(errors) < 1e-5:
        return "Its aggregation was exact (to float32 rounding)."
    change = alignment_change(records)
    if change is None:
        return ""
    mean, rounds = change
    over = f"on average over {_plural(rounds, 'round')}" if rounds > 1 else "in the one round measured"
    if rotated(records):
        method = (config or {}).get("method", {})
        subject = (
            "Alignment with refit" if isinstance(method, Mapping) and method.get("refit") else "Alignment"
        )
        if abs(mean) < 0.0005:
            return f"{subject} left the aggregation error as it was {over}."
        verb = "lowered" if mean < 0 else "raised"
        return f"{subject} {verb} the aggregation error by {percent(mean)} {over}."
    if abs(mean) < 0.0005:
        return ""
    where = "below" if mean < 0 else "above"
    return f"Its aggregation error was {percent(mean)} {where} that of plain averaging {over}."


def percent(change: float) -> str:
    """The size of a relative change: `0.4%`, `3%`, `112%`."""
    size = 100 * abs(change)
    if 99.5 <= size < 100:
        return "more than 99%"
    return f"{size:.0f}%" if size >= 2 else f"{size:.1f}%"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def final_rows(run_dir: Path) -> tuple[list[str], list[list[str]]]:
    """The rounds of a run as a table of strings, ready to print: headers, and one row a round.

    Errors are relative to the ideal update; MB are 1,000,000 bytes; a dash is what a round did not record.

    Raises:
        OutputError: the directory is not a readable run.
    """
    run = load_run(run_dir)
    return headers_of(run.score), rows_of(run.records, run.score)


def headers_of(score: Score) -> list[str]:
    """Of the table of rounds."""
    return [score.words if header == "accuracy" else header for header in HEADERS]


def rows_of(records: Sequence[Record], score: Score = ACCURACY) -> list[list[str]]:
    """One row of `headers_of` per record."""
    return [
        [
            str(record["round"]),
            decimal(number(record, "loss")),
            score.show(number(record, score.name), 4),
            decimal(number(record, "aggregation_error_relative")),
            decimal(number(record, "aggregation_error_relative_unaligned")),
            decimal(number(record, "rotation"), 3),
            megabytes(number(record, "bytes_up")),
            decimal(number(record, "seconds"), 2),
        ]
        for record in records
    ]


def shorten_sites(names: Sequence[str]) -> list[str]:
    """Readable, still distinct labels: layer numbers plus as few trailing name parts as tell the sites apart.

    >>> shorten_sites(["bert.encoder.layer.0.attention.query", "bert.encoder.layer.1.attention.value"])
    ['0 · query', '1 · value']
    """
    parts = [name.split(".") for name in names]
    numbers = [[part for part in words if part.isdigit()] for words in parts]
    words = [[part for part in row if not part.isdigit()] for row in parts]
    longest = max((len(row) for row in words), default=0)
    endings = [
        Counter((*n, "|", *w[-k:]) for n, w in zip(numbers, words, strict=True))
        for k in range(1, longest + 1)
    ]
    labels: list[str] = []
    for layer, row in zip(numbers, words, strict=True):
        keep = next(
            (k for k in range(1, len(row)) if endings[k - 1][(*layer, "|", *row[-k:])] == 1), len(row)
        )
        labels.append(
            " · ".join(part for part in (".".join(layer), ".".join(row[-keep:] if row else [])) if part)
        )
    return labels if len(set(labels)) == len(labels) else list(names)


def tidy(text: object, limit: int = 60) -> str:
    """One printable line of at most `limit` characters, for labels drawn in a plot."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
