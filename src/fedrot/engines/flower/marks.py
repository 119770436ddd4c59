"""What a client's own model scores on the splits of a node, as it travels: numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from flwr.app import MetricRecord, RecordDict

from fedrot.engines.evaluation import Seen
from fedrot.errors import AdapterError

RECALL = "recall"


def pack_marks(client: int, split: str, seen: Seen) -> dict[str, MetricRecord]:
    """A client's scores on a split, as a record under its name."""
    recall = {} if seen.recall is None else {RECALL: seen.recall.tolist()}
    return {_name(client, split): MetricRecord({**seen.scores, **recall})}


def unpack_marks(
    content: RecordDict, client: int, splits: Sequence[str], metric: str, classes: int
) -> dict[str, Seen]:
    """The inverse of `pack_marks`, for every split.

    Args:
        content: as a node sent it.
        client: whose scores.
        splits: that must be there.
        metric: the task's own, which must be among the scores, as must the loss.
        classes: of the task; 0 where examples have none.

    Raises:
        AdapterError: a split or a score is missing, or a number is not finite or out of range.
    """
    return {split: _unpack(content, client, split, metric, classes) for split in splits}


def _unpack(content: RecordDict, client: int, split: str, metric: str, classes: int) -> Seen:
    where = f"client {client}, split {split!r}"
    record = content.metric_records.get(_name(client, split))
    if record is None:
        raise AdapterError(f"{where}: no scores")
    scores = {name: value for name, value in record.items() if name != RECALL}
    for name in (metric, "loss", *scores):
        value = scores.get(name)
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise AdapterError(f"{where}: {name} = {value!r}: expected a finite number")
    named = {name: float(cast(float, value)) for name, value in scores.items()}
    if not classes:
        return Seen(named)
    recall = record.get(RECALL)
    if not (isinstance(recall, list) and len(recall) == classes):
        raise AdapterError(f"{where}: {RECALL} = {recall!r}: expected {classes} numbers, one for each class")
    if any(not (math.isnan(share) or 0 <= share <= 1) for share in recall):
        raise AdapterError(f"{where}: {RECALL} = {recall!r}: expected numbers from 0 to 1")
    return Seen(named, torch.tensor(recall, dtype=torch.float64))


def _name(client: int, split: str) -> str:
    return f"marks-{client}-{split}"
