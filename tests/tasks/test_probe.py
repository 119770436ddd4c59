"""The linear probe finds what is linear, and the same thing each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrot.core.rng import generator
from fedrot.errors import DataError
from fedrot.tasks import linear_probe
from fedrot.tasks.probe import L2_GRID


def clouds(count: int, purpose: str, spread: float = 1.0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around three corners, on unequal scales, off the origin; the first is the largest."""
    labels = (torch.arange(count) % 5).clamp(max=classes - 1)
    labels = torch.where(torch.arange(count) % 2 == 0, 0, labels)
    corners = torch.eye(classes, 6) * 4
    noise = torch.randn(count, 6, generator=generator(9, purpose)) * spread
    return (corners[labels] + noise) * torch.tensor([1e-3, 1.0, 1e3, 1, 1, 1]) + 50, labels


def test_separable_classes_are_found() -> None:
    x, y = clouds(300, "train", 0.3)
    test_x, test_y = clouds(100, "test", 0.3)
    result = linear_probe(x, y, *clouds(100, "validation", 0.3), test_x, test_y, 3, seed=1)
    assert result.accuracy == 1.0
    assert result.macro_f1 == 1.0
    assert result.examples == 300
    assert result.logits.shape == (100, 3)
    assert result.logits.dtype == torch.float32
    assert result.l2 in L2_GRID


@pytest.mark.parametrize("validation", [True, False])
def test_it_beats_the_majority_and_is_deterministic(validation: bool) -> None:
    x, y = clouds(300, "train", 2.0)
    test_x, test_y = clouds(200, "test", 2.0)
    val_x, val_y = clouds(100, "validation", 2.0) if validation else (None, None)
    once, again = (linear_probe(x, y, val_x, val_y, test_x, test_y, 3, seed=1) for _ in range(2))
    majority = float((test_y == y.mode().values).float().mean())
    assert once.accuracy > majority + 0.1
    assert torch.equal(once.logits, again.logits)
    assert once.l2 == again.l2


def test_the_solution_is_stationary() -> None:
    """At the optimum the unpenalised bias makes predicted class frequencies equal those of training."""
    x, y = clouds(200, "train", 2.0)
    result = linear_probe(x, y, *clouds(50, "validation", 2.0), x, y, 3, seed=1)
    predicted = result.logits.double().softmax(-1).mean(0)
    torch.testing.assert_close(predicted, torch.bincount(y).double() / 200, atol=1e-4, rtol=0)


def test_scaling_and_shifting_the_features_changes_nothing() -> None:
    (x, y), (test_x, test_y) = clouds(200, "train", 2.0), clouds(100, "test", 2.0)
    plain = linear_probe(x.double(), y, None, None, test_x.double(), test_y, 3, seed=1)
    moved = linear_probe(x.double() * 7 - 3, y, None, None, test_x.double() * 7 - 3, test_y, 3, seed=1)
    torch.testing.assert_close(plain.logits, moved.logits, atol=1e-3, rtol=1e-3)


def test_a_constant_feature_and_features_of_inference_mode_are_fine() -> None:
    with torch.inference_mode():
        x, y = clouds(100, "train", 0.3)
        x = torch.cat([x, torch.ones(100, 1)], 1)
    result = linear_probe(x, y, None, None, x, y, 3, seed=1)
    assert result.accuracy == 1.0
    with torch.inference_mode():
        inside = linear_probe(x, y, None, None, x, y, 3, seed=1)
    assert torch.equal(inside.logits, result.logits)


def test_one_example_of_each_class_is_enough_to_fit() -> None:
    x = torch.eye(3)
    assert linear_probe(x, torch.arange(3), None, None, x, torch.arange(3), 3, seed=1).accuracy == 1.0


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = clouds(20, "train")
    broken = x.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(DataError, match="a training feature is not finite"):
        linear_probe(broken, y, None, None, x, y, 3, seed=1)
    with pytest.raises(DataError, match="a test feature is not finite"):
        linear_probe(x, y, None, None, broken, y, 3, seed=1)
    with pytest.raises(DataError, match="no training examples"):
        linear_probe(x[:0], y[:0], None, None, x, y, 3, seed=1)
