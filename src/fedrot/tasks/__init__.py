"""Tasks: labelled texts, their encoding, batches, loss and metrics."""

from fedrot.tasks.base import TaskData
from fedrot.tasks.classify import load_task, loss, metrics, recalls
from fedrot.tasks.draw import draw_epochs, draw_rows
from fedrot.tasks.encode import Batch, Encoded, batches_by_length, encode
from fedrot.tasks.probe import ProbeResult, linear_probe

__all__ = [
    "Batch",
    "Encoded",
    "ProbeResult",
    "TaskData",
    "batches_by_length",
    "draw_epochs",
    "draw_rows",
    "encode",
    "linear_probe",
    "load_task",
    "loss",
    "metrics",
    "recalls",
]
