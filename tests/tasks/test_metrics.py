"""Loss and metrics against their definitions."""

from __future__ import annotations

import pytest
import torch

from fedrot.core.rng import generator
from fedrot.errors import DataError
from fedrot.tasks import loss, metrics


def test_loss_is_the_negative_log_probability_of_each_label() -> None:
    logits = torch.randn(7, 4, generator=generator(1, "logits"))
    labels = torch.arange(7) % 4
    expected = torch.stack([-row.log_softmax(-1)[label] for row, label in zip(logits, labels, strict=True)])
    torch.testing.assert_close(loss(logits, labels), expected)
    stacked = loss(logits[:6].view(2, 3, 4), labels[:6].view(2, 3))
    torch.testing.assert_close(stacked, expected[:6].view(2, 3))


def test_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    logits = torch.randn(5, 3, generator=generator(1, "logits")).bfloat16()
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert loss(logits, labels).dtype == torch.float32
    assert torch.equal(loss(logits, labels), loss(logits.float(), labels))


def test_metrics_of_a_worked_example() -> None:
    predicted = torch.tensor([0, 0, 1, 1, 0])
    labels = torch.tensor([0, 1, 1, 1, 0])
    logits = torch.nn.functional.one_hot(predicted, 4).double() * 2
    scores = metrics(logits, labels)
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 * 2 / 5) / 2)
    assert scores["loss"] == pytest.approx(float(loss(logits, labels).mean()))


def test_a_class_that_is_only_predicted_counts_in_macro_f1() -> None:
    logits = torch.eye(3)[[0, 2]]
    scores = metrics(logits, torch.tensor([0, 0]))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_no_examples_have_no_metrics() -> None:
    with pytest.raises(DataError, match="no examples to evaluate"):
        metrics(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
