"""What an evaluation found, and the file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedrot.errors import OutputError
from fedrot.rundir import write_whole


@dataclass(frozen=True)
class Result:
    """Scores of one task, and all that they depend on."""

    task: str
    scores: Mapping[str, float]
    counts: Mapping[str, int]
    settings: Mapping[str, Any]
    seconds: float
    standard_errors: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of those scores that are means over examples: the root of (variance of the examples / their number)."""
    tokens_per_second: float | None = None
    """Of generation; None where nothing was generated."""
    evaluator: str = "fedrot"
    said: Sequence[Mapping[str, Any]] = ()
    """Of every example its prompt, the completions, and what was made of each; kept only where asked for."""

    def record(self) -> dict[str, Any]:
        """As JSON; numbers that JSON has no word for become None."""
        speed = self.tokens_per_second
        return {
            "task": self.task,
            "evaluator": self.evaluator,
            "scores": {name: _finite(value) for name, value in self.scores.items()},
            "standard_errors": {name: _finite(value) for name, value in self.standard_errors.items()},
            "counts": dict(self.counts),
            "settings": dict(self.settings),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": None if speed is None else round(speed, 1),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the examples' values, and its standard error; not a number for a single example.

    >>> mean_and_error([1.0, 0.0, 1.0, 0.0])
    (0.5, 0.28867513459481287)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def append_lines(path: Path, task: str, said: Sequence[Mapping[str, Any]]) -> None:
    """Add what the model said to a JSON Lines file, an example a line.

    Raises:
        OutputError: it cannot be written.
    """
    lines = [json.dumps({"task": task, **example}, ensure_ascii=False) + "\n" for example in said]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise OutputError(
            f"'{path}': cannot be written ({error.strerror}); choose another --completions"
        ) from error


def append_result(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to the list in the file; what is there stays, also of the same task.

    Raises:
        OutputError: the file holds something else, or cannot be written.
    """
    records = [*_records(path), dict(record)]
    write_whole(path, json.dumps({"results": records}, indent=2) + "\n", "choose another --out")


def _records(path: Path) -> list[Any]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text("utf-8"))
        return list(found["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"'{path}': expected results of an evaluation, a JSON object with the list 'results'; choose another --out "
            "or move the file away"
        ) from error
