"""Numbers to words: the verdict, the table of rounds, short names. Pure strings, no drawing library."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrot.report.load import Record, finite, load_run, number, rotated

MISSING = "–"
HEADERS = ["round", "loss", "accuracy", "error", "error without alignment", "rotation", "MB up", "seconds"]


def fraction(value: float | None, digits: int = 3) -> str:
    """A number in [0, 1] without its leading zero: `.752`, `1.000`; a dash if there is none."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def decimal(value: float | None, digits: int = 4) -> str:
    """Fixed decimals, scientific where they would show zero, `nan` and `inf` as they are, a dash if None."""
    if value is None:
        return MISSING
    if math.isfinite(value) and value != 0 and abs(value) < 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def megabytes(value: float | None) -> str:
    """Bytes in MB (1,000,000 bytes), three significant digits or more."""
    if value is None:
        return MISSING
    mb = value / 1e6
    return f"{mb:,.0f}" if mb >= 100 else f"{mb:.3g}"


def byte_unit(largest: float) -> tuple[float, str]:
    """Size and name of the decimal unit in which `largest` bytes read well."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next(((size, name) for size, name in units if largest >= size), (1.0, "bytes"))


def data_size(value: float) -> str:
    """Bytes in the unit that suits them: `60.4 MB`."""
    size, unit = byte_unit(value)
    return f"{value / size:.3g} {unit}"


def final_accuracy(records: Sequence[Record]) -> tuple[int, float] | None:
    """Round and test accuracy of the last evaluated round."""
    scored = [(int(r["round"]), value) for r in records if (value := finite(r, "accuracy")) is not None]
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
    return " ".join(
        part for part in (_accuracy_words(records, summary), _error_words(records, config)) if part
    )


def _accuracy_words(records: Sequence[Record], summary: Mapping[str, Any] | None) -> str:
    final = final_accuracy(records)
    if final is None:
        return "No round was evaluated on the test split, so there is no accuracy to report."
    round_, accuracy = final
    opening = "Final accuracy"
    if summary is None:
        opening = f"Unfinished: accuracy at round {round_} is"
    elif summary.get("interrupted"):
        opening = f"Interrupted: accuracy at round {round_} is"
    elif round_ != int(records[-1]["round"]):
        opening = f"Accuracy at round {round_}, the last one evaluated, is"
    probe = (summary or {}).get("probe")
    if not probe:
        after = f" after {_plural(round_, 'round')}" if opening == "Final accuracy" else ""
        return f"{opening} {fraction(accuracy)}{after}" + (
            "; no linear probe was fitted to compare it with." if summary else "."
        )
    floor = float(probe["accuracy"])
    said = f"{_distance(accuracy, floor)} the linear probe on the frozen encoder ({fraction(floor)})"
    if (central := central_probe(probe)) is not None:
        said += f" and {_distance(accuracy, central)} one fitted centrally ({fraction(central)})"
    return f"{opening} {fraction(accuracy)}, {said}."


def central_probe(probe: Mapping[str, Any] | None) -> float | None:
    """Accuracy of the linear probe fitted to all clients' examples in one place, where a run has one."""
    value = ((probe or {}).get("central") or {}).get("accuracy")
    return None if value is None else float(value)


def _distance(accuracy: float, floor: float) -> str:
    points = 100 * (accuracy - floor)
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
    return list(HEADERS), rows_of(load_run(run_dir).records)


def rows_of(records: Sequence[Record]) -> list[list[str]]:
    """One row of `HEADERS` per record."""
    return [
        [
            str(record["round"]),
            decimal(number(record, "loss")),
            fraction(number(record, "accuracy"), 4),
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
