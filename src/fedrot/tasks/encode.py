"""Token storage without padding, and the batches gathered from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedrot.errors import ConfigError, DataError
from fedrot.tasks.columns import column_values

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1000


class Batch(NamedTuple):
    """A padded batch: tokens `(k, L)` int64 with their mask (1 or 0), labels and row numbers `(k,)` int64."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """`n` token sequences laid end to end, so that nothing is stored for padding.

    Attributes:
        input_ids: `(total,)` int64; sequence `i` is `input_ids[offsets[i]:offsets[i + 1]]`.
        token_type_ids: `(total,)` int64, for tokenizers that make them.
        offsets: `(n + 1,)` int64.
        labels: `(n,)` int64.
        pad_id: what padding is filled with in `input_ids`; its mask is 0.
        padding_side: where batches are padded.
        truncated: how many sequences lost tokens to `max_length`.
        lengths: `(n,)` int64, always on the CPU, so that the width of a batch is known without waiting for
            the device.
    """

    input_ids: Tensor
    offsets: Tensor
    labels: Tensor
    pad_id: int
    token_type_ids: Tensor | None = None
    padding_side: Literal["left", "right"] = "right"
    truncated: int = 0
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", self.offsets.diff().cpu())

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> Encoded:
        """The same on another device. `lengths` stay where they are."""
        moved = copy(self)
        for name in ("input_ids", "offsets", "labels", "token_type_ids"):
            tensor = getattr(self, name)
            object.__setattr__(moved, name, None if tensor is None else tensor.to(device))
        return moved

    def batch(self, rows: Tensor, pad_to: int | None = None) -> Batch:
        """The padded batch of sequences `rows`, on the device of the tokens, gathered without a loop.

        Args:
            rows: `(k,)` int64, repeats allowed. Rows on the CPU cost no wait for the device.
            pad_to: width of the batch; that of the longest sequence unless given.

        Raises:
            DataError: `pad_to` is less than the longest sequence of the batch.
        """
        longest = int(self.lengths[rows.cpu()].max()) if rows.numel() else 0
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise DataError(
                f"pad_to = {pad_to}: the batch has a sequence of {longest} tokens; pad to at least that"
            )
        device = self.input_ids.device
        rows = rows.to(device, non_blocking=True)
        start = self.offsets[rows].unsqueeze(-1)
        length = self.offsets[rows + 1].unsqueeze(-1) - start
        column = torch.arange(width, device=device)
        if self.padding_side == "left":
            column = column - (width - length)
        mask = (column >= 0) & (column < length)
        where = (start + column).masked_fill(~mask, 0)
        types = self.token_type_ids
        return Batch(
            input_ids=self.input_ids[where].masked_fill(~mask, self.pad_id),
            attention_mask=mask.long(),
            token_type_ids=None if types is None else types[where].masked_fill(~mask, 0),
            labels=self.labels[rows],
            rows=rows,
        )


def encode(dataset: Dataset, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize `text` (and `text_pair`) of every example once, truncated to `max_length` tokens.

    Raises:
        ConfigError: `max_length` leaves no room beside the tokenizer's special tokens, or there is nothing to
            pad with.
        DataError: an example without tokens.
    """
    pairs = "text_pair" in dataset.column_names
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ConfigError(
            f"task.max_length = {max_length}: the tokenizer adds {special} special tokens to each example; "
            f"expected more than that, for instance {special + 64}"
        )
    with_types = "token_type_ids" in tokenizer.model_input_names
    ids: list[Tensor] = []
    types: list[Tensor] = []
    lengths: list[int] = []
    truncated = 0
    for chunk in _chunks(dataset, pairs):
        output, lost = _tokenize(tokenizer, chunk, max_length, with_types)
        truncated += lost
        lengths += [len(sequence) for sequence in output["input_ids"]]
        ids.append(_flat(output["input_ids"]))
        if with_types:
            types.append(_flat(output["token_type_ids"]))
    if 0 in lengths:
        raise DataError(
            f"row {lengths.index(0) + 1}: the tokenizer makes no tokens of its text; remove the row"
        )
    return Encoded(
        input_ids=torch.cat(ids) if ids else torch.empty(0, dtype=torch.long),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        labels=torch.tensor(column_values(dataset, "label"), dtype=torch.long),
        pad_id=_pad_id(tokenizer),
        token_type_ids=torch.cat(types) if types else None,
        padding_side=tokenizer.padding_side,
        truncated=truncated,
    )


def batches_by_length(encoded: Encoded, size: int) -> list[Tensor]:
    """All rows once, in batches of `size` on the CPU: an order for evaluation with little padding.

    The longest come first so that a batch too large for the memory fails at once.
    """
    return list(encoded.lengths.argsort(descending=True, stable=True).split(size)) if len(encoded) else []


def _chunks(dataset: Dataset, pairs: bool) -> Iterator[tuple[list[str], list[str] | None]]:
    columns = dataset.select_columns(["text", "text_pair"] if pairs else ["text"])
    for start in range(0, len(columns), _CHUNK):
        rows = columns[start : start + _CHUNK]
        yield rows["text"], rows["text_pair"] if pairs else None


def _tokenize(
    tokenizer: Any, chunk: tuple[list[str], list[str] | None], max_length: int, with_types: bool
) -> tuple[Any, int]:
    options = {"return_attention_mask": False, "return_token_type_ids": with_types, "verbose": False}
    output = tokenizer(*chunk, truncation=True, max_length=max_length, **options)
    if tokenizer.is_fast:
        return output, sum(bool(encoding.overflowing) for encoding in output.encodings)
    whole = tokenizer(*chunk, truncation=False, **options)["input_ids"]
    return output, sum(len(a) > len(b) for a, b in zip(whole, output["input_ids"], strict=True))


def _flat(sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long)


def _pad_id(tokenizer: Any) -> int:
    # A masked position may hold any token, so that a tokenizer without a padding token can lend its end
    # token.
    for name in ("pad_token_id", "eos_token_id"):
        if (number := getattr(tokenizer, name, None)) is not None:
            return int(number)
    raise ConfigError(
        "model.path: its tokenizer has neither a padding nor an end token; set tokenizer.pad_token"
    )
