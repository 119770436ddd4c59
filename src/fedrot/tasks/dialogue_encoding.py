"""Conversations as tokens: which of them are asked, and what gives way when there are too many."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedrot.config import TaskConfig
from fedrot.errors import DataError, ModelError
from fedrot.tasks.dialogues import messages_of
from fedrot.tasks.encode import flat, pad_id
from fedrot.tasks.templates import Rendered, renderer
from fedrot.tasks.tokens import EncodedTokens

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1000


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    asked: list[bool]
    cuttable: range
    """Positions of the tokens that may be left out."""


def fitting(dataset: Dataset, tokenizer: Any, config: TaskConfig) -> list[int]:
    """Rows of at most `task.max_length` tokens.

    Raises:
        ConfigError: a template that does not fit.
        ModelError: a tokenizer that does not tell which characters a token stands for.
    """
    lengths = (len(tokens.ids) for tokens in _tokens(dataset, tokenizer, config))
    return [row for row, length in enumerate(lengths) if length <= config.max_length]


def encode_dialogues(dataset: Dataset, tokenizer: Any, config: TaskConfig) -> EncodedTokens:
    """Tokenize every conversation once. Asked are the answers' tokens with the mark that ends the turn.

    The text is tokenized whole; a token belongs to an answer if it begins in it. What exceeds `task.max_length` is cut
    as `task.overlong` says, in tokens.

    Raises:
        ConfigError: a template that does not fit.
        DataError: an answer that does not fit into `task.max_length` (with its row), or one without tokens.
        ModelError: a tokenizer that does not tell which characters a token stands for.
    """
    ids: list[list[int]] = []
    asked: list[Tensor] = []
    truncated = 0
    for number, tokens in enumerate(_tokens(dataset, tokenizer, config), start=1):
        kept = _fitted(tokens, config, number)
        truncated += len(kept) < len(tokens.ids)
        mask = torch.tensor([tokens.asked[index] for index in kept], dtype=torch.bool)
        if not bool(mask[1:].any()):
            raise DataError(
                f"row {number}: no token of its answer is left to learn; raise task.max_length = {config.max_length}, "
                "or leave such rows out by task.overlong = 'drop'"
            )
        mask[0] = False  # nothing comes before the first token that it could be predicted from
        ids.append([tokens.ids[index] for index in kept])
        asked.append(mask)
    return EncodedTokens(
        input_ids=flat(ids),
        offsets=torch.tensor([0, *map(len, ids)]).cumsum(0),
        labels=torch.zeros(len(ids), dtype=torch.long),
        pad_id=pad_id(tokenizer),
        truncated=truncated,
        asked=torch.cat(asked) if asked else torch.empty(0, dtype=torch.bool),
        pack=config.max_length if config.packing else None,
    )


def _tokens(dataset: Dataset, tokenizer: Any, config: TaskConfig) -> Iterator[_Tokens]:
    if not tokenizer.is_fast:
        raise ModelError(
            "task.name = 'generate': this tokenizer does not tell which characters its tokens stand for; install the "
            "`tokenizers` version of it (a tokenizer.json beside the model)"
        )
    render = renderer(config.template, tokenizer, config.answers == "all")
    rows = messages_of(dataset)
    for start in range(0, len(rows), _CHUNK):
        texts = [render(messages) for messages in rows[start : start + _CHUNK]]
        output = tokenizer(
            [rendered.text for rendered in texts],
            add_special_tokens=bool(texts and texts[0].special),
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for rendered, sequence, spans in zip(
            texts, output["input_ids"], output["offset_mapping"], strict=True
        ):
            yield _marked(rendered, sequence, spans, tokenizer.eos_token_id)


def _marked(rendered: Rendered, ids: list[int], spans: Sequence[tuple[int, int]], end: int | None) -> _Tokens:
    """Which tokens begin in an answer. A special token that the tokenizer added stands for no characters."""
    asked = [
        last > first and any(start <= first < stop for start, stop in rendered.answers)
        for first, last in spans
    ]
    if rendered.special and end is not None and len(ids) > 1 and ids[-1] == ids[-2] == end:
        ids, asked, spans = ids[:-1], asked[:-1], spans[:-1]  # the tokenizer closes sequences itself
    start, stop = rendered.cuttable
    within = [index for index, (first, last) in enumerate(spans) if first >= start and first < last <= stop]
    return _Tokens(ids, asked, range(within[0], within[-1] + 1) if within else range(0))


def _fitted(tokens: _Tokens, config: TaskConfig, row: int) -> list[int]:
    """Positions of the tokens to keep, at most `task.max_length`."""
    total, limit = len(tokens.ids), config.max_length
    positions = list(range(total))
    excess = total - limit
    if excess <= 0:
        return positions
    where = f"row {row}: {total} tokens, of which {sum(tokens.asked)} are answer; task.max_length = {limit}"
    if config.overlong in ("error", "drop"):  # what is to be dropped has been, where rows are numbered
        raise DataError(
            f"{where} and task.overlong = {config.overlong!r}; raise task.max_length, or set task.overlong = 'cut-end'"
        )
    if config.overlong == "cut-answer":
        return positions[:limit]
    room = tokens.cuttable
    if excess > len(room):
        raise DataError(
            f"{where}: cutting the whole of its longest user message ({len(room)} tokens) does not make room; raise "
            "task.max_length, or leave such rows out by task.overlong = 'drop'"
        )
    cut = room[:excess] if config.overlong == "cut-start" else room[len(room) - excess :]
    first = bisect_left(positions, cut[0])
    return positions[:first] + positions[first + excess :]
