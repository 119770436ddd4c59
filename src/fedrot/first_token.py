"""Encoders whose head sees the first token alone: after its attention the last block works on that token alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedrot.model import BaseModel
from fedrot.model.base import CLASSIFIER

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose own classifier reads position 0, and whose blocks are `attention.self`, `attention.output`, and
layers that treat every token by itself."""
OUTPUT = ".attention.output"


def keep_first_token(base: BaseModel) -> RemovableHandle | None:
    """Let the last block drop all tokens but the first once they have been attended to; the head sees no other.

    Three quarters of that block's dense products, forward and back, are for tokens that nobody looks at: its attention
    output and its feed-forward layers treat each token by itself. Logits and gradients stay the same up to the
    rounding of products with fewer rows.

    Args:
        base: its module; other kinds of models, and heads that see the mean over tokens, are left as they are.

    Returns:
        The hook, to be removed when the module is given back; None where there is nothing to leave out.
    """
    settings = getattr(base.module, "config", None)
    family = getattr(settings, "model_type", None)
    if base.kind != CLASSIFIER or base.pooling == "mean" or family not in FAMILIES:
        return None
    outputs = [module for name, module in base.module.named_modules() if name.endswith(OUTPUT)]
    return outputs[-1].register_forward_pre_hook(_first) if outputs else None


def _first(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`(n, length, width)` of attention and of the block's input -> `(n, 1, width)`."""
    return tuple(tensor[:, :1] for tensor in args)
