"""What the tasks of GLUE are judged by (Wang et al., ICLR 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fedrot.tasks.objective import Metric
from fedrot.tasks.scores import confusion, matthews, positive_f1

ACCURACY = Metric("accuracy")

METRICS: Mapping[str, Metric] = {"glue:cola": Metric("matthews"), "glue:stsb": Metric("pearson")}
"""What choices are made by, where it is not accuracy; so it is for MRPC and QQP, which tell F1 beside it."""

_EXTRA: Mapping[str, tuple[str, Callable[[Tensor], float]]] = {
    "glue:cola": ("matthews", matthews),
    "glue:mrpc": ("f1", positive_f1),
    "glue:qqp": ("f1", positive_f1),
}

REGRESSION = "glue:stsb"
"""The one task whose labels are grades, from 0 to 5."""


def metric_of(data: str) -> Metric:
    """What a classification task is judged by, from its `task.data`."""
    return METRICS.get(data, ACCURACY)


def extra_scores(data: str, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of a task of GLUE beside accuracy, from `(n, C)` logits and `(n,)` class numbers; none for other data."""
    if data not in _EXTRA:
        return {}
    name, score = _EXTRA[data]
    return {name: score(confusion(logits.argmax(-1), labels, logits.shape[-1]))}
