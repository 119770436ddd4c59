"""The fused layer is the plain formula, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrot.core.linear import stacked_linear


def inputs(frozen: str = "") -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = {
        "x": random(3, 5, 6),
        "weight": random(4, 6),
        "bias": random(4),
        "a": random(3, 2, 6),
        "b": random(3, 4, 2),
    }
    for name in ("x", "a", "b"):
        tensors[name].requires_grad_(name not in frozen.split())
    return tensors


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    low = x if mask is None else x * mask
    return x @ weight.T + bias + scale * torch.einsum("gni,gri,gor->gno", low, a, b)


@pytest.mark.parametrize("frozen", ["", "x", "a", "b", "x a", "x b"])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(frozen: str, masked: bool) -> None:
    mask = None
    if masked:
        mask = (torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) > 0.3).double() / 0.7
    mine, theirs = inputs(frozen), inputs(frozen)
    out = stacked_linear(**mine, scale=1.7, mask=mask)
    expected = plain(**theirs, scale=1.7, mask=mask)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for name in ("x", "a", "b"):
        if name in frozen.split():
            assert mine[name].grad is None
        else:
            torch.testing.assert_close(mine[name].grad, theirs[name].grad)


def test_gradcheck() -> None:
    tensors = inputs()
    assert torch.autograd.gradcheck(lambda *given: stacked_linear(*given, 0.5), tuple(tensors.values()))
