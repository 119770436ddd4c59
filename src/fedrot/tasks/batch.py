"""What training and evaluation ask of encoded examples, be they texts or images."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Padding = Literal["none", "left", "right"]
"""On which side texts of a batch are padded, if they are."""


class Asked(NamedTuple):
    """The tokens of a batch that a language model is to predict.

    `place: (m,)` int64 in the flattened `(k * L)` grid of tokens (those of the decoder, where there is an encoder too),
    never at a sequence's first token; `example: (m,)` int64, which of the batch's `n` examples each belongs to.
    """

    place: Tensor
    example: Tensor


class Batch(Protocol):
    """`n` examples, ready for a model."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a transformers model."""
        ...

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64 class numbers."""
        ...

    @property
    def rows(self) -> Tensor:
        """`(n,)` int64 numbers of the examples in their data set."""
        ...

    @property
    def where(self) -> Tensor:
        """Int64 places among `Encoded.places` of what the model computes hidden states of: `(k, L)` tokens, `(n,)`
        images. A hidden state has one index for each of its dimensions, and further ones."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """1 where `where` is an example's own and 0 where it is padding; None where there is no padding."""
        ...

    @property
    def padding(self) -> Padding | None:
        """How what attention sees is padded; None where that is for the model to find out."""
        ...

    @property
    def asked(self) -> Asked | None:
        """The tokens to be predicted, if there are any."""
        ...


class Encoded(Protocol):
    """The examples of a split as tensors."""

    @property
    def labels(self) -> Tensor:
        """`(n,)` int64 class numbers, on the device."""
        ...

    @property
    def lengths(self) -> Tensor:
        """`(n,)` int64 on the CPU: what an example takes of a batch's width."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a model reads at once; 0 of no examples."""
        ...

    @property
    def counts(self) -> Tensor:
        """`(n,)` int64 on the CPU: tokens asked of an example; 1 where none are."""
        ...

    @property
    def truncated(self) -> int:
        """How many examples lost something to a limit."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches are gathered."""
        ...

    @property
    def places(self) -> int:
        """How many places `Batch.where` counts over."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the examples are, for a digest."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Encoded:
        """The same on another device."""
        ...

    def batch(self, rows: Tensor, *, clients: int = 1) -> Batch:
        """The examples `rows: (n,)`, repeats allowed, those of each client following each other."""
        ...

    def unpacked(self, rows: Tensor) -> Batch:
        """Like `batch`, with nothing shared between examples."""
        ...


def batches_by_length(encoded: Encoded, size: int) -> list[Tensor]:
    """All rows once, in batches of `size` on the CPU: an order for evaluation with little padding.

    The longest come first so that a batch too large for the memory fails at once.
    """
    return list(encoded.lengths.argsort(descending=True, stable=True).split(size)) if len(encoded) else []
