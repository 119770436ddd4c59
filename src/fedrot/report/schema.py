"""What a line of metrics.jsonl and summary.json must look like; anything else is an error that says where."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedrot.errors import OutputError

Record = Mapping[str, Any]

_NUMBERS = (
    "loss",
    "accuracy",
    "local_accuracy",
    "eval_loss",
    "macro_f1",
    "validation_accuracy",
    "validation_loss",
    "f1",
    "matthews",
    "pearson",
    "spearman",
    "perplexity",
    "token_accuracy",
    "validation_perplexity",
    "aggregation_error",
    "aggregation_error_relative",
    "aggregation_error_unaligned",
    "aggregation_error_relative_unaligned",
    "rotation",
    "rotation_angle",
    "degenerate",
    "flips",
    "drift",
    "bytes_up",
    "bytes_down",
    "seconds",
    "clients",
    "rejected",
    "dropped",
    "stale",
    "residual_rank",
    "residual_lost",
    "epsilon",
)
BROKEN_SUMMARY = "mend it, or delete it to report from metrics.jsonl alone"


def check_record(value: Any, path: Path, position: int) -> Record:
    """One round as read from line `position`, if its values have the types the report reads.

    Raises:
        OutputError: names the line, the key, its value, what was expected and the remedy.
    """

    def refuse(key: str, found: Any, expected: str) -> OutputError:
        return OutputError(
            f"'{path}' line {position}: {key} = {found!r}: expected {expected}; "
            "correct that line, or run the recipe again"
        )

    if not isinstance(value, dict):
        raise refuse("the line", value, "a JSON object")
    round_ = value.get("round")
    if not isinstance(round_, int) or isinstance(round_, bool) or round_ < 1:
        raise refuse("round", round_, "a positive integer")
    for key in _NUMBERS:
        if not _is_number(value.get(key)):
            raise refuse(key, value[key], "a number or null")
    sites = value.get("rotation_by_site") or {}
    if not isinstance(sites, dict) or not all(_is_number(v) for v in sites.values()):
        raise refuse("rotation_by_site", sites, "an object of site name to number")
    check_diagnostics(value.get("diagnostics"), refuse)
    rejected = value.get("rejected_clients") or {}
    if not isinstance(rejected, dict):
        raise refuse("rejected_clients", rejected, "an object of client to reason")
    if not isinstance(dropped := value.get("dropped_clients") or [], list):
        raise refuse("dropped_clients", dropped, "a list of clients")
    if not isinstance(lost := value.get("lost_clients") or {}, dict):
        raise refuse("lost_clients", lost, "an object of client to reason")
    if not isinstance(stale := value.get("stale_clients") or {}, dict):
        raise refuse("stale_clients", stale, "an object of client to rounds")
    return value


def check_diagnostics(found: Any, refuse: Callable[[str, Any, str], OutputError]) -> None:
    """Refuse diagnostics of a round that the report cannot draw."""
    if found is None:
        return
    if not isinstance(found, dict):
        raise refuse("diagnostics", found, "an object")
    errors = found.get("error_by_strength") or {}
    if not isinstance(errors, dict) or not all(_is_number(v) and v is not None for v in errors.values()):
        raise refuse("diagnostics.error_by_strength", errors, "an object of strength to number")
    for key in ("slope", "curvature") if errors else ():
        if found.get(key) is None or not _is_number(found[key]) or not math.isfinite(found[key]):
            raise refuse(f"diagnostics.{key}", found.get(key), "a finite number")
    interval = found.get("admissible")
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        raise refuse("diagnostics.admissible", interval, "two numbers or null")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def check_summary(summary: Any, path: Path) -> dict[str, Any]:
    """`summary` if every key the report reads has its type.

    Raises:
        OutputError: names the key, what was expected and the remedy.
    """
    if not isinstance(summary, dict):
        raise OutputError(f"'{path}': expected a JSON object; {BROKEN_SUMMARY}")

    def need(key: str, kind: type, expected: str) -> Any:
        if summary.get(key) is not None and not isinstance(summary[key], kind):
            raise OutputError(f"'{path}': {key} = {summary[key]!r}: expected {expected}; {BROKEN_SUMMARY}")
        return summary.get(key)

    for key in ("versions", "partition", "final", "bytes", "examples", "metric"):
        need(key, dict, "an object")
    metric = summary.get("metric")
    if metric is not None and not (
        isinstance(metric.get("name"), str) and metric.get("better") in ("higher", "lower")
    ):
        raise OutputError(
            f"'{path}': metric = {metric!r}: expected a name and better, higher or lower; {BROKEN_SUMMARY}"
        )
    need("best_validation_round", int, "a round or null")
    need("notes", list, "a list of sentences")
    probe = need("probe", dict, "an object or null")
    if probe is not None and (probe.get("accuracy") is None or not _is_number(probe["accuracy"])):
        raise OutputError(f"'{path}': probe.accuracy: expected a number; {BROKEN_SUMMARY}")
    judged = (metric or {}).get("name", "accuracy")
    if probe is not None and not _is_number(probe.get(judged)):
        raise OutputError(f"'{path}': probe.{judged}: expected a number; {BROKEN_SUMMARY}")
    privacy = need("privacy", dict, "an object or null")
    if privacy is not None and not {"covered", "not_covered"} <= privacy.keys():
        raise OutputError(f"'{path}': privacy: expected the keys covered and not_covered; {BROKEN_SUMMARY}")
    labels = need("labels", list, "a list of names")
    shares = summary.get("partition") or {}
    counts = shares.get("counts") or []
    if not isinstance(counts, list) or not all(_is_count_row(row, counts[0], labels) for row in counts):
        raise OutputError(
            f"'{path}': partition.counts: expected one list of label counts per client, as long as `labels`; "
            f"{BROKEN_SUMMARY}"
        )
    if len(shares.get("listed", counts)) != len(counts):
        raise OutputError(
            f"'{path}': partition.listed: expected the numbers of the {len(counts)} clients in partition.counts; "
            f"{BROKEN_SUMMARY}"
        )
    return summary


def _is_count_row(row: Any, first: Any, labels: list[Any] | None) -> bool:
    if not isinstance(row, list) or not isinstance(first, list) or len(row) != len(first) or not row:
        return False
    return all(_is_number(v) and v is not None and v >= 0 for v in row) and (
        not labels or len(row) == len(labels)
    )
