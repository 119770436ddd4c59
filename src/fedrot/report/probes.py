"""What the linear probes of a run score by the measure that the run is judged by, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrot.report.scores import Score

Probe = Mapping[str, Any] | None
"""`probe` in summary.json."""


def floor_of(probe: Probe, score: Score) -> float | None:
    """Of the probe fitted in the same federation; None without a probe, or where it was not judged by this score."""
    value = (probe or {}).get(score.name)
    return None if value is None else float(value)


def central_of(probe: Probe, score: Score) -> float | None:
    """Of the probe fitted to all clients' examples in one place, where a run has one."""
    return floor_of((probe or {}).get("central"), score)
