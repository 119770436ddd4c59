"""Text from a language model: one batch, with its key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedrot.core.rng import generator
from fedrot.errors import ConfigError

CHECK_EVERY = 4
"""Steps between two looks for stop strings. What is generated beyond one is cut off anyway."""

ANCHOR = 8
"""Tokens before those that are looked at, behind which these are decoded."""


@dataclass(frozen=True)
class Sampling:
    """Tokens are drawn: from `softmax(scores / temperature)`, of which only the likeliest may be kept.

    Every text draws from randomness of its own, derived from `seed` and the text's number, so that it does not depend
    on the batch it happens to be in.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities add up to this; 1 keeps all."""
    top_k: int | None = None
    """Keep so many tokens; None keeps all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature = {self.temperature}: expected a positive number; for greedy decoding leave it out"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: expected more than 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k = {self.top_k}: expected at least 1")


@torch.no_grad()
def generate_batch(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Sequence[str] = (),
    sampling: Sampling | None = None,
    numbers: Sequence[int] = (),
) -> list[list[int]]:
    """The tokens that follow each prompt, up to an end token (left out), a stop string (kept) or `max_new_tokens`.

    Padding is masked. A decoder's prompts are padded on the left, so that all end where the new tokens begin; it counts
    positions from each prompt's first token. An encoder's are padded on the right: many (BART's) count positions from
    the first column, whatever it holds.
    The model's own defaults for sampling and penalties are not used: greedy means the likeliest token.

    Args:
        model: a transformers language model, or a PEFT model around one; the prompts of an encoder-decoder model are
            what its encoder reads.
        tokenizer: its tokenizer.
        prompts: token numbers, none empty.
        max_new_tokens: of each text.
        stops: strings at which a text may end.
        sampling: None takes the likeliest token each time.
        numbers: one for each text, which its randomness is derived from; needed for sampling.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    module: Any = model
    device = next(model.parameters()).device
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    width = max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    column = torch.arange(width)
    real = column < lengths if reads(model) else column >= width - lengths
    ids = torch.full(real.shape, pad).masked_scatter(real, torch.tensor([t for p in prompts for t in p]))
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        decoder_start_token_id=module.config.decoder_start_token_id if reads(model) else None,
    )
    # What is new comes behind the prompts, or behind the token that opens answers.
    start = 1 if reads(model) else width
    draws = [] if sampling is None else [Draw(sampling, numbers, device)]
    checks = [StopsSaid(tokenizer, stops, start)] if stops else []
    whole: Tensor = module.generate(
        input_ids=ids.to(device),
        attention_mask=real.long().to(device),
        generation_config=settings,
        logits_processor=LogitsProcessorList(draws),
        stopping_criteria=StoppingCriteriaList(checks),
    )
    new: list[list[int]] = whole[:, start:].tolist()
    if checks:  # what follows a stop string is padding, until the last text of the batch has ended
        new = [row[:length] for row, length in zip(new, checks[0].lengths, strict=True)]
    return [_until(row, ends) for row in new]


def reads(model: nn.Module) -> bool:
    """Whether an encoder of its own reads the prompts, so that the answers alone are generated."""
    settings: Any = model.config
    return bool(settings.is_encoder_decoder)


def said(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """What `new` tokens add to the text of those `before` them.

    By themselves they may read otherwise: decoders of SentencePiece's sort drop the first space of a text, wherever in
    the text the tokens stood, and some set right the space before a full stop.
    """
    head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in ([*before], [*before, *new]))
    parts = (place for place, (one, other) in enumerate(zip(head, whole, strict=False)) if one != other)
    return whole[next(parts, len(head)) :]


def end_tokens(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: the model's own, and the tokenizer's."""
    module: Any = model
    own = module.generation_config.eos_token_id
    return frozenset({*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None})


def _until(row: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


class Draw:
    """A logits processor after which the largest score is a draw from the distribution that was asked for.

    `argmax(score_i - log e_i)` with independent `e_i ~ Exp(1)` is distributed as `softmax(score)` (Gumbel-max).
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[int], device: torch.device) -> None:
        self.sampling = sampling
        self.sources = [generator(sampling.seed, "sample", client=n, device=device) for n in numbers]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Scores `(k, vocabulary)` of the next tokens, with noise, and what is not to be drawn at minus infinity."""
        scores = scores / self.sampling.temperature
        if self.sampling.top_k is not None and self.sampling.top_k < scores.shape[1]:
            least = scores.topk(self.sampling.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.sampling.top_p < 1:
            ordered, order = scores.softmax(1).sort(descending=True)
            # The first token past the sum is the last one kept.
            beyond = ordered.cumsum(1) - ordered >= self.sampling.top_p
            scores = scores.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
        noise = torch.empty_like(scores)
        for row, source in zip(noise, self.sources, strict=True):
            row.exponential_(generator=source)
        return scores - noise.log()


class StopsSaid:
    """A stopping criterion: texts that hold one of the stop strings after their prompts are finished."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        self.tokenizer, self.stops, self.start = tokenizer, tuple(stops), start
        # A token stands for a byte at least, but for pieces of a character; the margin makes up for cut ones.
        self.tail = CHECK_EVERY + max(len(stop.encode()) for stop in stops) + 4
        self.lengths: list[int | None] = []
        """Of each text when it was found finished, in new tokens."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ARG002
        """`(k,)` which texts are finished."""
        self.lengths = self.lengths or [None] * len(input_ids)
        new = input_ids.shape[1] - self.start
        if new % CHECK_EVERY == 0:
            first = input_ids.shape[1] - min(new, self.tail)
            texts = [
                said(self.tokenizer, row[max(0, first - ANCHOR) : first], row[first:])
                for row in input_ids.tolist()
            ]
            for number, text in enumerate(texts):
                if self.lengths[number] is None and any(stop in text for stop in self.stops):
                    self.lengths[number] = new
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)
