"""Texts as tokens, each tokenized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedrot.errors import ConfigError
from fedrot.tasks.columns import column_values
from fedrot.tasks.named import RowError
from fedrot.tasks.tokens import EncodedTokens

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1000


def encode(dataset: Dataset, tokenizer: Any, max_length: int) -> EncodedTokens:
    """Tokenize `text` (and `text_pair`) of every example once, truncated to `max_length` tokens.

    Raises:
        ConfigError: `max_length` leaves no room beside the tokenizer's special tokens, or there is nothing to
            pad with.
        RowError: an example without tokens.
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
        ids.append(flat(output["input_ids"]))
        if with_types:
            types.append(flat(output["token_type_ids"]))
    if 0 in lengths:
        raise RowError(lengths.index(0), "the tokenizer makes no tokens of its text; remove the row")
    return EncodedTokens(
        input_ids=torch.cat(ids) if ids else torch.empty(0, dtype=torch.long),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        labels=_labels(column_values(dataset, "label")),
        pad_id=pad_id(tokenizer),
        token_type_ids=torch.cat(types) if types else None,
        padding_side=tokenizer.padding_side,
        truncated=truncated,
    )


def _labels(values: Sequence[Any]) -> Tensor:
    """Class numbers as int64, grades as float32."""
    return torch.tensor(
        values, dtype=torch.float32 if values and isinstance(values[0], float) else torch.long
    )


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


def flat(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences end to end."""
    return torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long)


def pad_id(tokenizer: Any) -> int:
    """What batches are padded with.

    Raises:
        ConfigError: the tokenizer has neither a padding nor an end token.
    """
    # A masked position may hold any token, so that a tokenizer without a padding token can lend its end
    # token.
    for name in ("pad_token_id", "eos_token_id"):
        if (number := getattr(tokenizer, name, None)) is not None:
            return int(number)
    raise ConfigError(
        "model.path: its tokenizer has neither a padding nor an end token; set tokenizer.pad_token"
    )
