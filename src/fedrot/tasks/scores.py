"""Scores of GLUE beside accuracy, all in float64: F1, Matthews correlation, Pearson and Spearman correlation."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`(C, C)` float64: how many examples of class `i` were taken for class `j`, from `(n,)` class numbers."""
    pairs = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.view(classes, classes).double()


def positive_f1(table: Tensor) -> float:
    """`2 TP / (2 TP + FP + FN)` of class 1 of two; 0 where class 1 neither occurs nor is predicted.

    >>> positive_f1(torch.tensor([[5.0, 1.0], [2.0, 4.0]]).double())  # 8 / (8 + 1 + 2)
    0.7272727272727273
    """
    right, taken, there = table[1, 1], table[:, 1].sum(), table[1].sum()
    return float(2 * right / (taken + there)) if float(taken + there) else 0.0


def matthews(table: Tensor) -> float:
    """The correlation of predicted and true classes (Matthews 1975; for several classes Gorodkin 2004).

    With `s` examples, `c` of them right, `t_k` of class `k` and `p_k` taken for it, `(c s - sum t_k p_k) /
    sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2))`. 0 where all examples are of one class or taken for one.

    >>> round(matthews(torch.tensor([[5.0, 1.0], [2.0, 4.0]]).double()), 12)  # (4 5 - 1 2) / sqrt(5 6 6 7)
    0.507092552837
    """
    total, right = table.sum(), table.diagonal().sum()
    there, taken = table.sum(1), table.sum(0)
    spread = (total**2 - taken.square().sum()) * (total**2 - there.square().sum())
    return float((right * total - (there * taken).sum()) / spread.sqrt()) if float(spread) > 0 else 0.0


def pearson(x: Tensor, y: Tensor) -> float:
    """The linear correlation of two `(n,)` series; 0 where one of them is constant, since it then explains nothing.

    >>> round(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])), 12)
    0.5
    """
    x, y = (series.double() - series.double().mean() for series in (x, y))
    size = x.norm() * y.norm()
    return float((x @ y / size).clamp(-1, 1)) if float(size) > 0 else 0.0


def spearman(x: Tensor, y: Tensor) -> float:
    """The Pearson correlation of ranks; equal values share the mean of their ranks.

    >>> round(spearman(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([1.0, 3.0, 3.0])), 12)
    0.866025403784
    """
    return pearson(ranks(x), ranks(y))


def ranks(x: Tensor) -> Tensor:
    """Ranks from 1 of `(n,)` values, in float64; equal values share the mean of theirs.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, where, counts = x.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[where]
