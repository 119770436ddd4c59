"""The cross-entropy behind a frozen output layer against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedrot.core.token_loss import frozen_cross_entropy


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(13, 6, generator=draw, dtype=dtype)
    weight, bias = (
        torch.randn(11, 6, generator=draw, dtype=dtype),
        torch.randn(11, generator=draw, dtype=dtype),
    )
    targets = torch.randint(11, (13,), generator=draw)
    return hidden, weight, bias, targets, torch.rand(13, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 33, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradient_are_those_of_the_plain_computation(chunk: int, with_bias: bool) -> None:
    hidden, weight, bias, targets, shares = case(torch.float64)
    own = bias if with_bias else None
    plain, mine = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = F.cross_entropy(F.linear(plain, weight, own), targets, reduction="none")
    (expected * shares).sum().backward()
    found = frozen_cross_entropy(mine, weight, own, targets, chunk)
    (found.loss * shares).sum().backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.correct, F.linear(hidden, weight, own).argmax(1) == targets)


def test_loss_is_in_float32_where_the_model_is_in_bfloat16() -> None:
    hidden, weight, bias, targets, _ = case(torch.bfloat16)
    found = frozen_cross_entropy(hidden.requires_grad_(), weight, bias, targets)
    assert found.loss.dtype == torch.float32
    found.loss.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_nothing_is_kept_for_a_gradient_that_nobody_wants() -> None:
    hidden, weight, bias, targets, _ = case(torch.float32)
    with torch.no_grad():
        assert frozen_cross_entropy(hidden, weight, bias, targets).loss.grad_fn is None
    assert not frozen_cross_entropy(hidden, weight, bias, targets).loss.requires_grad


def test_no_tokens_is_no_loss() -> None:
    _, weight, bias, _, _ = case(torch.float32)
    found = frozen_cross_entropy(torch.empty(0, 6), weight, bias, torch.empty(0, dtype=torch.long))
    assert found.loss.shape == found.correct.shape == (0,)
