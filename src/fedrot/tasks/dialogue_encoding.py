"""Conversations as tokens: which of them are asked, and what gives way when there are too many."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError, ModelError
from fedrot.tasks.dialogues import messages_of
from fedrot.tasks.encode import flat, pad_id
from fedrot.tasks.exchanges import EncodedExchanges
from fedrot.tasks.named import RowError
from fedrot.tasks.templates import Rendered, renderer
from fedrot.tasks.tokens import EncodedTokens

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1000
_Spans = Sequence[tuple[int, int]]
"""The characters that each token stands for."""


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    asked: list[bool]
    cuttable: range
    """Positions of the tokens that may be left out."""


def fitting(dataset: Dataset, tokenizer: Any, config: TaskConfig, opening: int | None = None) -> list[int]:
    """Rows of at most `task.max_length` tokens; see `encode_dialogues`.

    Raises:
        ConfigError: a template that does not fit.
        ModelError: a tokenizer that does not tell which characters a token stands for.
    """
    lengths = (len(tokens.ids) for tokens in _tokens(dataset, tokenizer, config, opening is not None))
    return [row for row, length in enumerate(lengths) if length <= config.max_length]


def encode_dialogues(
    dataset: Dataset, tokenizer: Any, config: TaskConfig, opening: int | None = None
) -> EncodedTokens | EncodedExchanges:
    """Tokenize every conversation once. Asked are the answers' tokens with the mark that ends the turn.

    The text is tokenized whole; a token belongs to an answer if it begins in it. For an encoder-decoder model the
    answer and what comes before it are tokenized apart, each closed as the tokenizer closes texts. What exceeds
    `task.max_length`, both together, is cut as `task.overlong` says, in tokens.

    Args:
        dataset: with a column `messages`.
        tokenizer: of the base model.
        config: template, limits and packing.
        opening: the token that opens every answer of an encoder-decoder model; None for other models.

    Raises:
        ConfigError: a template that does not fit, or packing or several answers a conversation with an encoder-decoder
            model.
        RowError: an answer that does not fit into `task.max_length`, or one without tokens.
        ModelError: a tokenizer that does not tell which characters a token stands for.
    """
    if opening is not None and config.packing:
        raise ConfigError(
            "task.packing = true: the encoder of this model reads a row as one text; set task.packing = false"
        )
    ids: list[list[int]] = []
    asked: list[Tensor] = []
    truncated = 0
    for row, tokens in enumerate(_tokens(dataset, tokenizer, config, opening is not None)):
        kept = _fitted(tokens, config, row)
        truncated += len(kept) < len(tokens.ids)
        mask = torch.tensor([tokens.asked[index] for index in kept], dtype=torch.bool)
        if not bool(mask[1:].any()):
            raise RowError(
                row,
                f"no token of its answer is left to learn; raise task.max_length = {config.max_length}, or leave such "
                "rows out by task.overlong = 'drop'",
            )
        if opening is not None and bool(mask[0]):
            raise RowError(
                row,
                f"no token of its prompt is left to read; raise task.max_length = {config.max_length}, or remove the "
                "row",
            )
        mask[0] = False  # nothing comes before the first token that it could be predicted from
        ids.append([tokens.ids[index] for index in kept])
        asked.append(mask)
    if opening is not None:
        return _apart(ids, asked, opening, pad_id(tokenizer), truncated)
    pack = config.max_length if config.packing else None
    return _sequences(ids, pad_id(tokenizer), asked, truncated=truncated, pack=pack)


def _apart(
    ids: list[list[int]], asked: list[Tensor], opening: int, pad: int, truncated: int
) -> EncodedExchanges:
    """Every sequence in two: what comes before its answer, and the answer behind `opening`."""
    sizes = [len(mask) - int(mask.sum()) for mask in asked]
    answers = [[opening, *each[size:]] for each, size in zip(ids, sizes, strict=True)]
    own = [torch.arange(len(answer)) > 0 for answer in answers]
    prompts = [each[:size] for each, size in zip(ids, sizes, strict=True)]
    return EncodedExchanges(_sequences(prompts, pad), _sequences(answers, pad, own), truncated)


def _sequences(
    ids: list[list[int]], pad: int, asked: list[Tensor] | None = None, **options: Any
) -> EncodedTokens:
    none = torch.empty(0, dtype=torch.bool)
    return EncodedTokens(
        input_ids=flat(ids),
        offsets=torch.tensor([0, *map(len, ids)]).cumsum(0),
        labels=torch.zeros(len(ids), dtype=torch.long),
        pad_id=pad,
        asked=None if asked is None else torch.cat([*asked, none]),
        **options,
    )


def _tokens(dataset: Dataset, tokenizer: Any, config: TaskConfig, apart: bool) -> Iterator[_Tokens]:
    if not tokenizer.is_fast:
        raise ModelError(
            "task.name = 'generate': this tokenizer does not tell which characters its tokens stand for; install the "
            "`tokenizers` version of it (a tokenizer.json beside the model)"
        )
    render = renderer(config.template, tokenizer, config.answers == "all")
    rows = messages_of(dataset)
    for start in range(0, len(rows), _CHUNK):
        texts = [render(messages) for messages in rows[start : start + _CHUNK]]
        if apart:
            yield from _in_two(texts, tokenizer)
            continue
        output = _tokenized([rendered.text for rendered in texts], tokenizer, texts[0].special)
        for rendered, ids, spans, added in zip(texts, *output, strict=True):
            yield _marked(rendered, ids, spans, added, tokenizer.eos_token_id)


def _tokenized(
    texts: list[str], tokenizer: Any, special: bool
) -> tuple[list[list[int]], list[_Spans], list[list[int]]]:
    """Token numbers, the characters that each stands for, and 1 where the tokenizer added it."""
    output = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    return output["input_ids"], output["offset_mapping"], output["special_tokens_mask"]


def _in_two(texts: list[Rendered], tokenizer: Any) -> Iterator[_Tokens]:
    """Conversations with one answer each, what comes before it and the answer tokenized by themselves."""
    if most := max((len(rendered.answers) for rendered in texts if len(rendered.answers) > 1), default=0):
        raise ConfigError(
            f"task.answers = 'all': a conversation has {most} answers, and the decoder of this model gives one to what "
            "its encoder reads; set task.answers = 'last'"
        )
    cuts = [rendered.answers[0] for rendered in texts]
    special, end = texts[0].special, tokenizer.eos_token_id
    heads = [rendered.text[:start] for rendered, (start, _) in zip(texts, cuts, strict=True)]
    answers = [rendered.text[slice(*cut)] for rendered, cut in zip(texts, cuts, strict=True)]
    prompts, offsets, _ = _tokenized(heads, tokenizer, special)
    for rendered, prompt, spans, answer in zip(
        texts, prompts, offsets, _tokenized(answers, tokenizer, special)[0], strict=True
    ):
        said = answer[:-1] if special and answer[-2:] == [end, end] else answer
        asked = [False] * len(prompt) + [True] * len(said)
        yield _Tokens(prompt + said, asked, _within(spans, rendered.cuttable))


def _marked(rendered: Rendered, ids: list[int], spans: _Spans, added: list[int], end: int | None) -> _Tokens:
    """Which tokens begin in an answer; those that the tokenizer added begin nowhere."""
    starts = [_begins(rendered.text, span) for span in spans]
    asked = [
        not own and any(start <= place < stop for start, stop in rendered.answers)
        for place, own in zip(starts, added, strict=True)
    ]
    if rendered.special and end is not None and len(ids) > 1 and ids[-1] == ids[-2] == end:
        ids, asked, spans = ids[:-1], asked[:-1], spans[:-1]  # the tokenizer closes sequences itself
    return _Tokens(ids, asked, _within(spans, rendered.cuttable))


def _begins(text: str, span: tuple[int, int]) -> int:
    """A token's first character. Some tokenizers leave white space out of spans: of a token of nothing else the end
    is left, and its last character stands in for the first."""
    first, last = span
    return first - 1 if first == last and text[first - 1 : first].isspace() else first


def _within(spans: _Spans, cuttable: tuple[int, int]) -> range:
    """Positions of the tokens that lie in those characters."""
    start, stop = cuttable
    within = [index for index, (first, last) in enumerate(spans) if first >= start and first < last <= stop]
    return range(within[0], within[-1] + 1) if within else range(0)


def _fitted(tokens: _Tokens, config: TaskConfig, row: int) -> list[int]:
    """Positions of the tokens to keep, at most `task.max_length`."""
    total, limit = len(tokens.ids), config.max_length
    positions = list(range(total))
    excess = total - limit
    if excess <= 0:
        return positions
    where = f"{total} tokens, of which {sum(tokens.asked)} are answer; task.max_length = {limit}"
    if config.overlong in ("error", "drop"):  # what is to be dropped has been, where rows are numbered
        raise RowError(
            row,
            f"{where} and task.overlong = {config.overlong!r}; raise task.max_length, or set task.overlong = 'cut-end'",
        )
    if config.overlong == "cut-answer":
        return positions[:limit]
    room = tokens.cuttable
    if excess > len(room):
        raise RowError(
            row,
            f"{where}: cutting the whole of its longest user message ({len(room)} tokens) does not make room; raise "
            "task.max_length, or leave such rows out by task.overlong = 'drop'",
        )
    cut = room[:excess] if config.overlong == "cut-start" else room[len(room) - excess :]
    first = bisect_left(positions, cut[0])
    return positions[:first] + positions[first + excess :]
