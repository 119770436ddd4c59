"""Attention masks of batches whose padding is known, without asking the device for it.

For scaled dot product attention transformers leaves the mask out where nothing is padded, so that faster kernels serve,
and to know it reads every batch's mask: the host waits for the device in each forward pass. What a batch holds the host
knows already, since lengths lie on the CPU. Under the name registered here attention is the same, and its mask is made
from what `padding_is` says:

- nothing is padded: no mask, where the model's attention needs none otherwise;
- padded on the right: likewise for attention that looks back only, since what is padded comes last and nobody looks at
  it; a mask for attention that looks both ways;
- padded on the left: a mask;
- not said, as while generating: as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from torch import Tensor, nn

from fedrot.model.words import quiet_transformers

USUAL, NAME = "sdpa", "sdpa_of_known_padding"
Padding = Literal["none", "left", "right"]

_PADDING: ContextVar[Padding | None] = ContextVar("padding", default=None)


@contextmanager
def padding_is(padding: Padding | None) -> Iterator[None]:
    """Within, and in this thread, forward passes get texts padded like this; None if that is not known."""
    before = _PADDING.set(padding)
    try:
        yield
    finally:
        _PADDING.reset(before)


def know_padding(module: nn.Module) -> None:
    """Let a transformers model that uses scaled dot product attention make its masks from `padding_is`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, ALL_ATTENTION_FUNCTIONS[USUAL])
    AttentionMaskInterface.register(NAME, _mask_by(ALL_MASK_ATTENTION_FUNCTIONS[USUAL]))
    _exchange(module, USUAL, NAME)


def forget_padding(module: nn.Module) -> None:
    """Give the model its own attention back."""
    _exchange(module, NAME, USUAL)


def _exchange(module: nn.Module, old: str, new: str) -> None:
    from transformers import PreTrainedModel

    for model in module.modules():
        if isinstance(model, PreTrainedModel) and model.config._attn_implementation == old:
            with quiet_transformers():
                model.set_attn_implementation(new)


def _mask_by(usual: Any) -> Any:
    def mask(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
        padding = _PADDING.get()
        if padding is None or attention_mask is None:
            return usual(attention_mask=attention_mask, **options)
        both_ways = "allow_is_bidirectional_skip" in options
        if padding == "none" or (padding == "right" and not both_ways):
            return usual(attention_mask=None, **options)
        skipped = "allow_is_bidirectional_skip" if both_ways else "allow_is_causal_skip"
        return usual(attention_mask=attention_mask, **{**options, skipped: False})

    return mask
