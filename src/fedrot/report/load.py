"""Reading a run directory. Whatever is missing or odd becomes a note on the page or an OutputError."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrot.errors import OutputError
from fedrot.report.schema import BROKEN_SUMMARY, Record, check_record, check_summary
from fedrot.report.scores import ACCURACY, Score

_NOT_A_RUN = "give the directory a `fedrot run` wrote, or run the recipe again"
GRADES = ("classify", "glue:stsb")
"""Name and data of the task whose labels are grades, see `fedrot.tasks.grade`."""
_RESUME = "To go on with it: fedrot run --resume --out DIR."


@dataclass(frozen=True)
class Run:
    """A run as read from its directory. `notes` are things the reader of the report must be told."""

    directory: Path
    config: Mapping[str, Any]
    config_text: str
    records: tuple[Record, ...]
    summary: Mapping[str, Any] | None
    notes: tuple[str, ...]

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """`[section] key` of the resolved recipe, or `default`."""
        table = self.config.get(section, {})
        return table.get(key, default) if isinstance(table, Mapping) else default

    def fact(self, key: str, default: Any = None) -> Any:
        """`key` of summary.json, or `default` if the key or the file is missing."""
        value = (self.summary or {}).get(key)
        return default if value is None else value

    @property
    def score(self) -> Score:
        """What the run is judged by; of a run that has not finished, what its rounds recorded."""
        found = self.fact("metric")
        if found is None and not any("accuracy" in record for record in self.records):
            lower = any("perplexity" in record for record in self.records)
            return Score("perplexity", "lower") if lower else ACCURACY
        return Score.of(found)

    @property
    def loss(self) -> str:
        """What clients minimise: the squared error of grades, elsewhere cross-entropy."""
        graded = (self.setting("task", "name", "classify"), self.setting("task", "data")) == GRADES
        return "Mean squared error" if graded else "Cross-entropy (nats)"

    @property
    def method(self) -> str:
        """Name of the aggregation method."""
        return str(self.fact("method", self.setting("method", "name", "unknown method")))

    @property
    def rounds_planned(self) -> int:
        """Rounds the recipe asks for."""
        planned = self.setting("federation", "rounds")
        return int(planned) if isinstance(planned, int) else int(self.records[-1]["round"])

    @property
    def best_round(self) -> int | None:
        """The round with the best validation score (the first of equals), so far if still running."""
        if self.summary is not None:
            return self.fact("best_validation_round")
        scored = [
            (self.score.gain(value), -int(r["round"]))
            for r in self.records
            if (value := finite(r, self.score.validation)) is not None
        ]
        return -max(scored)[1] if scored else None

    @property
    def unlabelled(self) -> bool:
        """Whether examples have no classes, as where answers are learned."""
        return self.setting("task", "name", "classify") == "generate"

    @property
    def labels(self) -> list[str]:
        """Names of the labels; numbered ones if the run wrote counts without names, empty if neither."""
        counts = self.counts
        names = [str(name) for name in self.fact("labels", [])]
        if not names and self.unlabelled:
            return ["examples"]
        return names or [f"label {i}" for i in range(len(counts[0]) if counts else 0)]

    @property
    def counts(self) -> list[list[int]]:
        """Training examples per client and label; empty if the run did not write them."""
        return self.fact("partition", {}).get("counts") or []


def number(record: Record, key: str) -> float | None:
    """A metric as a float, possibly not finite; None if the round did not record it."""
    value = record.get(key)
    return None if value is None else float(value)


def finite(record: Record, key: str) -> float | None:
    """A metric if it was recorded and is finite, else None."""
    value = number(record, key)
    return value if value is not None and math.isfinite(value) else None


def rotated(records: Sequence[Record]) -> bool:
    """Whether any client's factors were turned in any round."""
    return any((finite(record, "rotation") or 0.0) > 0.0 for record in records)


def load_run(run_dir: Path) -> Run:
    """Read and check a run directory.

    Raises:
        OutputError: a needed file is missing, a line or value is malformed, or no round is complete.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        raise OutputError(f"run directory '{directory}': not found; {_NOT_A_RUN}")
    if (directory / "plan.json").exists() and not (directory / "config.toml").exists():
        raise OutputError(
            f"'{directory}' holds a comparison and no single run; its page is '{directory / 'compare.html'}', which "
            f"`fedrot compare --resume --out {directory}` writes again"
        )
    config, config_text = _read_config(directory / "config.toml")
    records, notes = _read_metrics(directory / "metrics.jsonl")
    summary = _read_summary(directory / "summary.json")
    run = Run(directory, config, config_text, records, summary, ())
    return Run(directory, config, config_text, records, summary, (*_progress(run), *notes, *_oddities(run)))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"'{path}': cannot be read ({error.strerror}); {_NOT_A_RUN}") from error


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = _read_bytes(path).decode("utf-8")
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OutputError(f"'{path}': not valid TOML ({error}); {_NOT_A_RUN}") from error


def _read_metrics(path: Path) -> tuple[tuple[Record, ...], list[str]]:
    lines = _read_bytes(path).split(b"\n") if path.exists() else []
    notes: list[str] = []
    by_round: dict[int, Record] = {}
    repeated: Counter[int] = Counter()
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except ValueError as error:
            # Only a last line without its line end can be the work of a run killed while writing.
            if position == len(lines):
                notes.append(
                    f"The last line of metrics.jsonl (line {position}) is incomplete, as when a run is "
                    "killed while writing; it was left out."
                )
                continue
            raise OutputError(
                f"'{path}' line {position}: not valid JSON ({error}); remove it, or run the recipe again"
            ) from error
        record = check_record(value, path, position)
        repeated[record["round"]] += 1
        by_round[record["round"]] = record
    if not by_round:
        raise OutputError(f"'{path.parent}' has no finished round yet; continue it with --resume")
    twice = [r for r, times in sorted(repeated.items()) if times > 1]
    if twice:
        notes.append(f"{_rounds(twice)} recorded more than once in metrics.jsonl; the last record is shown.")
    return tuple(by_round[r] for r in sorted(by_round)), notes


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        summary = json.loads(_read_bytes(path).decode("utf-8"))
    except ValueError as error:
        raise OutputError(f"'{path}': not valid JSON ({error}); {BROKEN_SUMMARY}") from error
    return check_summary(summary, path)


def _progress(run: Run) -> list[str]:
    last, planned = int(run.records[-1]["round"]), run.rounds_planned
    if run.summary is None:
        return [
            f"This run has not finished (there is no summary.json): round {last} of {planned} came last. "
            f"What only a finished run knows (label counts, linear probe, versions) is missing. {_RESUME}"
        ]
    if run.summary.get("interrupted"):
        return [f"This run was interrupted: round {last} of {planned} is the last recorded. {_RESUME}"]
    return [f"The recipe asks for {planned} rounds; {last} were recorded."] if last < planned else []


def _oddities(run: Run) -> list[str]:
    notes: list[str] = []
    seen = [int(record["round"]) for record in run.records]
    missing = sorted(set(range(1, seen[-1] + 1)) - set(seen))
    if missing:
        notes.append(f"{_rounds(missing)} missing from metrics.jsonl.")
    for key, words in (
        ("loss", "training loss"),
        (run.score.name, run.score.words),
        ("eval_loss", "test loss"),
    ):
        values = {int(record["round"]): number(record, key) for record in run.records}
        bad = [round_ for round_, value in values.items() if value is not None and not math.isfinite(value)]
        if bad:
            notes.append(f"The {words} is not finite in {_rounds(bad).lower()}; the plots leave a gap there.")
    best = run.fact("best_validation_round")
    if best is not None and not any(
        r["round"] == best and finite(r, run.score.name) is not None for r in run.records
    ):
        notes.append(f"The best-validation round ({best}) has no test {run.score.words} in metrics.jsonl.")
    return notes


def _rounds(rounds: Sequence[int]) -> str:
    shown = ", ".join(str(r) for r in rounds[:12]) + (
        f" and {len(rounds) - 12} more" if len(rounds) > 12 else ""
    )
    return f"Round{'s' if len(rounds) > 1 else ''} {shown}"
