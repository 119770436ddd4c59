"""Texts as tokens, stored without padding, and the batches gathered from them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedrot.errors import DataError
from fedrot.tasks.batch import Asked, Padding
from fedrot.tasks.packing import Layout, packed, padded


class TokenBatch(NamedTuple):
    """`n` examples in a grid of `(k, L)` tokens: one a row, or several where they are packed.

    `input_ids`, their mask (1 or 0) and `where`, the index of each token in its data set, are `(k, L)` int64; labels
    and row numbers `(n,)` int64. `position_ids: (k, L)` are there in packed batches only, in which every sequence
    starts again at 0 and attends to itself alone.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    rows: Tensor
    where: Tensor
    position_ids: Tensor | None = None
    asked: Asked | None = None
    padding: Padding | None = None

    @property
    def mask(self) -> Tensor:
        """See `Batch`."""
        return self.attention_mask

    @property
    def inputs(self) -> dict[str, Tensor]:
        """See `Batch`."""
        if self.position_ids is None:
            inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        else:  # packed: positions that start again tell transformers where attention must end
            inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}


@dataclass(frozen=True, eq=False)
class EncodedTokens:
    """`n` token sequences laid end to end, so that nothing is stored for padding.

    Attributes:
        input_ids: `(total,)` int64; sequence `i` is `input_ids[offsets[i]:offsets[i + 1]]`.
        token_type_ids: `(total,)` int64, for tokenizers that make them.
        offsets: `(n + 1,)` int64.
        labels: `(n,)` int64.
        pad_id: what padding is filled with in `input_ids`; its mask is 0.
        padding_side: where batches are padded.
        truncated: how many sequences lost tokens to `max_length`.
        asked: `(total,)` boolean, on the CPU: the tokens that a language model is to predict, if it is one.
        pack: tokens of a row in which several sequences may lie, or None for a row each.
        lengths: `(n,)` int64, always on the CPU, so that the width of a batch is known without waiting for
            the device.
        counts: `(n,)` int64, on the CPU: tokens asked of each sequence; 1 where none are.
    """

    input_ids: Tensor
    offsets: Tensor
    labels: Tensor
    pad_id: int
    token_type_ids: Tensor | None = None
    padding_side: Literal["left", "right"] = "right"
    truncated: int = 0
    asked: Tensor | None = None
    pack: int | None = None
    lengths: Tensor = field(init=False)
    counts: Tensor = field(init=False)
    _begins: Tensor = field(init=False)
    _spots: Tensor = field(init=False)

    def __post_init__(self) -> None:
        starts = self.offsets.cpu()
        lengths = starts.diff()
        spots = torch.empty(0, dtype=torch.long) if self.asked is None else self.asked.nonzero().squeeze(1)
        owner = torch.searchsorted(starts, spots, right=True) - 1
        counts = torch.bincount(owner, minlength=len(lengths))
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "counts", torch.ones_like(lengths) if self.asked is None else counts)
        object.__setattr__(self, "_begins", counts.cumsum(0) - counts)
        object.__setattr__(self, "_spots", spots - starts[owner])

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def device(self) -> torch.device:
        """Where batches are gathered."""
        return self.input_ids.device

    @property
    def places(self) -> int:
        """Tokens of all sequences together, over which `TokenBatch.where` counts."""
        return self.input_ids.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Encoded`."""
        return self.input_ids, self.offsets, self.labels

    def to(self, device: torch.device | str) -> EncodedTokens:
        """The same on another device. `lengths`, `counts` and `asked` stay where they are."""
        moved = copy(self)
        for name in ("input_ids", "offsets", "labels", "token_type_ids"):
            tensor = getattr(self, name)
            object.__setattr__(moved, name, None if tensor is None else tensor.to(device))
        return moved

    def batch(self, rows: Tensor, pad_to: int | None = None, *, clients: int = 1) -> TokenBatch:
        """The padded or packed batch of sequences `rows`, on the device of the tokens, gathered without a loop.

        Args:
            rows: `(n,)` int64, repeats allowed. Rows on the CPU cost no wait for the device.
            pad_to: width of the batch; that of the longest sequence unless given.
            clients: whose examples follow each other; only a packed batch needs to know.

        Raises:
            DataError: `pad_to` is less than the longest sequence of the batch.
        """
        here = rows.cpu()
        lengths = self.lengths[here]
        longest = int(lengths.max()) if rows.numel() else 0
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise DataError(
                f"pad_to = {pad_to}: the batch has a sequence of {longest} tokens; pad to at least that"
            )
        if self.pack is not None and rows.numel():
            return self._packed(rows, here, packed(lengths, clients, self.pack))
        device = self.input_ids.device
        layout = padded(lengths, width, left=self.padding_side == "left")
        rows = rows.to(device, non_blocking=True)
        start = self.offsets[rows].unsqueeze(-1)
        length = self.offsets[rows + 1].unsqueeze(-1) - start
        column = torch.arange(width, device=device)
        if self.padding_side == "left":
            column = column - (width - length)
        mask = (column >= 0) & (column < length)
        # Padding looks at its own sequence: what is kept of other tokens may not be there yet.
        where = start + column.clamp(min=0).minimum(length - 1)
        types = self.token_type_ids
        return TokenBatch(
            input_ids=self.input_ids[where].masked_fill(~mask, self.pad_id),
            attention_mask=mask.long(),
            token_type_ids=None if types is None else types[where].masked_fill(~mask, 0),
            labels=self.labels[rows],
            rows=rows,
            where=where,
            asked=self._asked(here, layout),
            padding=self.padding_side if bool((lengths < width).any()) else "none",
        )

    @property
    def longest(self) -> int:
        """See `Encoded`."""
        return int(self.lengths.max()) if len(self) else 0

    def sequence(self, row: int) -> list[int]:
        """The tokens of one sequence."""
        return self.input_ids[self.offsets[row] : self.offsets[row + 1]].tolist()

    def last_answer(self, row: int) -> tuple[list[int], list[int]]:
        """Tokens before the last answer of a conversation, and those of the answer."""
        assert self.asked is not None
        tokens = self.sequence(row)
        asked = self.asked[self.offsets[row].cpu() : self.offsets[row + 1].cpu()].tolist()
        last = max(place for place, flag in enumerate(asked) if flag)
        first = last
        while asked[first - 1]:
            first -= 1
        return tokens[:first], tokens[first : last + 1]

    def unpacked(self, rows: Tensor) -> TokenBatch:
        """Like `batch`, with a row for each sequence."""
        alone = copy(self)
        object.__setattr__(alone, "pack", None)
        return alone.batch(rows)

    def _packed(self, rows: Tensor, here: Tensor, layout: Layout) -> TokenBatch:
        device, lengths = self.input_ids.device, self.lengths[here]
        owner = torch.arange(len(here)).repeat_interleave(lengths)
        token = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
        place = (layout.start[owner] + token).to(device, non_blocking=True)
        owner, token = owner.to(device, non_blocking=True), token.to(device, non_blocking=True)
        rows = rows.to(device, non_blocking=True)
        size = (layout.rows, layout.width)
        where = self.offsets[rows[:1]].repeat(layout.rows * layout.width)
        where[place] = self.offsets[rows][owner] + token
        mask = torch.zeros_like(where)
        mask[place] = 1
        position = torch.zeros_like(where)  # padding starts afresh at every token, so each attends to itself
        position[place] = token
        tokens, types = self.input_ids[where], self.token_type_ids
        return TokenBatch(
            input_ids=torch.where(mask.bool(), tokens, self.pad_id).view(size),
            attention_mask=mask.view(size),
            token_type_ids=None if types is None else (types[where] * mask).view(size),
            labels=self.labels[rows],
            rows=rows,
            where=where.view(size),
            position_ids=position.view(size),
            asked=self._asked(here, layout),
        )

    def _asked(self, here: Tensor, layout: Layout) -> Asked | None:
        """Where the tokens to be predicted lie; laid out on the CPU, so that their number is known there."""
        if self.asked is None:
            return None
        counts = self.counts[here]
        example = torch.arange(len(here)).repeat_interleave(counts)
        each = torch.arange(len(example)) - (counts.cumsum(0) - counts)[example]
        place = layout.start[example] + self._spots[self._begins[here][example] + each]
        device = self.input_ids.device
        return Asked(place.to(device, non_blocking=True), example.to(device, non_blocking=True))
