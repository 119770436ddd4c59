"""Tasks: their data, its encoding, batches, losses and metrics."""

from fedrot.tasks.base import TaskData
from fedrot.tasks.batch import Batch, Encoded, batches_by_length
from fedrot.tasks.catalogue import load_task, objective
from fedrot.tasks.classify import loss, metrics, recalls
from fedrot.tasks.draw import draw_epochs, draw_rows
from fedrot.tasks.encode import encode
from fedrot.tasks.objective import Metric, Objective
from fedrot.tasks.probe import ProbeResult, linear_probe

__all__ = [
    "Batch",
    "Encoded",
    "Metric",
    "Objective",
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
    "objective",
    "recalls",
]
