"""A linear probe on frozen features: the floor that an adapter must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedrot.errors import DataError
from fedrot.tasks.classify import loss, metrics
from fedrot.tasks.splits import part, stratified

L2_GRID = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
"""Strengths tried, strongest first; each solution starts the next search."""


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a linear probe reaches on the test split.

    Attributes:
        l2: the strength chosen.
        examples: how many it was trained on.
        logits: `(n, classes)` float32, of the test split.
    """

    accuracy: float
    macro_f1: float
    l2: float
    examples: int
    logits: Tensor


@torch.inference_mode(False)
def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor | None,
    val_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    seed: int,
) -> ProbeResult:
    """Multinomial logistic regression on standardised features.

    Minimises `mean cross-entropy + l2 / 2 * ||W||^2` (the bias is free) with L-BFGS in float64 from zero, so
    that equal arguments give equal results. `l2` is the one of `L2_GRID` with the best validation accuracy,
    then the lowest validation loss. Without a validation split a seeded, stratified tenth of training serves
    to choose it, and all of training is fitted again.

    Args:
        train_x, val_x, test_x: `(n, d)` features, on one device.
        train_y, val_y, test_y: `(n,)` int64 labels below `classes`.

    Raises:
        DataError: no training examples, or a feature that is not finite.
    """
    for name, features in (("training", train_x), ("validation", val_x), ("test", test_x)):
        if features is not None and not bool(features.isfinite().all()):
            raise DataError(f"linear probe: a {name} feature is not finite; compute the features in float32")
    if len(train_y) == 0:
        raise DataError(
            "linear probe: no training examples; raise task.max_train or lower task.test_fraction"
        )
    train_y = train_y.clone()  # labels made in inference mode could not take part in a gradient
    mean, deviation = _moments(train_x)
    x, test = (train_x.double() - mean) / deviation, (test_x.double() - mean) / deviation
    if val_x is None or val_y is None:
        l2 = _inner_choice(x, train_y, classes, seed)
        path = _path(x, train_y, classes, [s for s in L2_GRID if s >= l2])
        weights = path[l2]
    else:
        path = _path(x, train_y, classes, L2_GRID)
        l2 = _best(path, (val_x.double() - mean) / deviation, val_y)
        weights = path[l2]
    logits = _with_ones(test) @ weights
    scores = metrics(logits, test_y)
    return ProbeResult(scores["accuracy"], scores["macro_f1"], l2, len(train_y), logits.float())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.double()
    deviation = wide.std(0, unbiased=False)
    return wide.mean(0), torch.where(deviation > 1e-12, deviation, 1.0)


def _inner_choice(x: Tensor, y: Tensor, classes: int, seed: int) -> float:
    held = torch.from_numpy(stratified(y.cpu().numpy(), part(len(y), 0.1), seed, "probe", spare=1)).to(
        x.device
    )
    if len(held) == 0:
        return L2_GRID[len(L2_GRID) // 2]
    fitted = torch.ones(len(y), dtype=torch.bool, device=x.device)
    fitted[held] = False
    return _best(_path(x[fitted], y[fitted], classes, L2_GRID), x[held], y[held])


def _best(path: dict[float, Tensor], x: Tensor, y: Tensor) -> float:
    scores = {l2: metrics(_with_ones(x) @ weights, y) for l2, weights in path.items()}
    return max(scores, key=lambda l2: (scores[l2]["accuracy"], -scores[l2]["loss"]))


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _path(
    x: Tensor, y: Tensor, classes: int, strengths: tuple[float, ...] | list[float]
) -> dict[float, Tensor]:
    """`(d + 1, classes)` weights for each strength, the last row being the bias."""
    inputs = _with_ones(x)
    start = inputs.new_zeros(inputs.shape[1], classes)
    path: dict[float, Tensor] = {}
    for l2 in strengths:
        start = path[l2] = _fit(inputs, y, start, l2)
    return path


def _fit(inputs: Tensor, y: Tensor, start: Tensor, l2: float) -> Tensor:
    weights = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weights],
        max_iter=100,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        value = loss(inputs @ weights, y).mean() + l2 / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(objective)  # pyright: ignore[reportArgumentType]
    return weights.detach()
