"""Prompts for an encoder and answers for its decoder, and the batches gathered from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedrot.tasks.batch import Asked, Padding
from fedrot.tasks.tokens import EncodedTokens, TokenBatch


class ExchangeBatch(NamedTuple):
    """`n` prompts in a grid of `(n, L)` tokens and their answers in one of `(n, M)`.

    An answer begins with the token that opens every answer, so that each of its own tokens is predicted from the one
    before it, as in a text. A decoder sees no later token, so that its padding needs no mask.
    """

    prompts: TokenBatch
    answers: TokenBatch

    @property
    def inputs(self) -> dict[str, Tensor]:
        """See `Batch`."""
        return {**self.prompts.inputs, "decoder_input_ids": self.answers.input_ids}

    @property
    def labels(self) -> Tensor:
        """See `Batch`."""
        return self.answers.labels

    @property
    def rows(self) -> Tensor:
        """See `Batch`."""
        return self.answers.rows

    @property
    def where(self) -> Tensor:
        """See `Batch`: of the answers, whose hidden states scores are made of."""
        return self.answers.where

    @property
    def mask(self) -> Tensor:
        """See `Batch`."""
        return self.answers.mask

    @property
    def padding(self) -> Padding | None:
        """See `Batch`: of the prompts, the only ones with a mask."""
        return self.prompts.padding

    @property
    def asked(self) -> Asked | None:
        """See `Batch`: places among the answers' tokens."""
        return self.answers.asked


@dataclass(frozen=True, eq=False)
class EncodedExchanges:
    """`n` prompts, and `n` answers with the decoder's opening token before each; see `EncodedTokens`."""

    prompts: EncodedTokens
    answers: EncodedTokens
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def labels(self) -> Tensor:
        """See `Encoded`."""
        return self.answers.labels

    @property
    def lengths(self) -> Tensor:
        """`(n,)` int64 on the CPU: tokens of prompt and answer together."""
        return self.prompts.lengths + self.answers.lengths

    @property
    def longest(self) -> int:
        """See `Encoded`."""
        return max(self.prompts.longest, self.answers.longest)

    @property
    def counts(self) -> Tensor:
        """See `Encoded`."""
        return self.answers.counts

    @property
    def device(self) -> torch.device:
        """See `Encoded`."""
        return self.answers.device

    @property
    def places(self) -> int:
        """See `Encoded`: of the answers."""
        return self.answers.places

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Encoded`."""
        return *self.prompts.tensors, *self.answers.tensors

    def to(self, device: torch.device | str) -> EncodedExchanges:
        """See `Encoded`."""
        return EncodedExchanges(self.prompts.to(device), self.answers.to(device), self.truncated)

    def batch(self, rows: Tensor, *, clients: int = 1) -> ExchangeBatch:
        """See `Encoded`."""
        return ExchangeBatch(
            self.prompts.batch(rows, clients=clients), self.answers.batch(rows, clients=clients)
        )

    def unpacked(self, rows: Tensor) -> ExchangeBatch:
        """See `Encoded`: they never share a row."""
        return self.batch(rows)

    def last_answer(self, row: int) -> tuple[list[int], list[int]]:
        """Tokens of the prompt, and those of the answer."""
        return self.prompts.sequence(row), self.answers.last_answer(row)[1]
