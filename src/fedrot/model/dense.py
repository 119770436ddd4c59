"""Dense layers, whichever way their weights lie: `(d_out, d_in)` in `nn.Linear`, turned in the `Conv1D` of GPT-2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

KINDS = "nn.Linear or Conv1D"
"""How messages call what can be adapted."""


def is_dense(module: nn.Module) -> bool:
    """Whether it computes `x W^T + bias`, so that it can be adapted."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a `Conv1D` of transformers, whose weight is `W^T`."""
    if isinstance(module, nn.Linear):
        return False
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def facing(layer: nn.Module, weight: Tensor) -> Tensor:
    """From the layer's own layout to `(d_out, d_in)`, and back: a view, the weight itself for `nn.Linear`."""
    return weight.mT if is_transposed(layer) else weight


def sizes(layer: nn.Module) -> tuple[int, int]:
    """`(d_in, d_out)`, which the shape of a quantised weight does not tell."""
    dense: Any = layer
    return (dense.nx, dense.nf) if is_transposed(layer) else (dense.in_features, dense.out_features)
