"""Completions of many prompts by one model, in batches of like length, with what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fedrot.errors import ConfigError, DataError
from fedrot.model.generation import Sampling, generate_batch, reads, said


@dataclass(frozen=True)
class Decoding:
    """How completions are made. Greedy unless `sampling` is given."""

    max_new_tokens: int = 256
    batch_size: int = 16
    samples: int = 1
    """Completions of each prompt; more than one needs sampling."""
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.samples > 1 and self.sampling is None:
            raise ConfigError(
                f"samples = {self.samples}: greedy decoding gives the same completion every time; set --temperature"
            )

    def record(self) -> dict[str, Any]:
        """For the result: everything that the completions depend on."""
        drawn = (
            {"decoding": "greedy"}
            if self.sampling is None
            else {"decoding": "sampling", **asdict(self.sampling)}
        )
        return {
            "max_new_tokens": self.max_new_tokens,
            "samples": self.samples,
            **drawn,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Completions:
    """Texts of every prompt, in order, and what they took."""

    texts: tuple[tuple[str, ...], ...]
    """`samples` of each prompt, cut before the first stop string."""
    tokens: int
    """Generated, end tokens not counted."""
    seconds: float
    longest_prompt: int
    """In tokens."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, prompts read included in the time."""
        return self.tokens / max(self.seconds, 1e-9)


def complete(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    stops: Sequence[str] = (),
    special: bool = True,
    what: str = "prompt",
    progress: Callable[[int, int], None] | None = None,
) -> Completions:
    """Complete every prompt.

    Args:
        model: a language model; `model.config.max_position_embeddings` is its context.
        tokenizer: its tokenizer.
        prompts: their texts, none empty.
        decoding: how.
        stops: strings before which a completion is cut.
        special: whether the tokenizer adds its own first token; False where the prompts hold it already.
        what: what a prompt is called in messages.
        progress: told after each batch how many of how many completions there are.

    Raises:
        DataError: a prompt without tokens, or one that leaves no room for `max_new_tokens` in the context; nothing
            was generated.
    """
    apart = reads(model)
    encoded = [tokens_of(tokenizer, prompt, special, closed=apart) for prompt in prompts]
    check_room(encoded, decoding.max_new_tokens, context_of(model), what, apart=apart)
    # Longest first: a batch that is too large for the memory fails at once.
    jobs = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(decoding.samples)]
    jobs.sort(key=lambda job: -len(encoded[job[0]]))
    texts: dict[tuple[int, int], str] = {}
    tokens, start = 0, time.perf_counter()
    for first in range(0, len(jobs), decoding.batch_size):
        batch = jobs[first : first + decoding.batch_size]
        found = generate_batch(
            model,
            tokenizer,
            [encoded[prompt] for prompt, _ in batch],
            max_new_tokens=decoding.max_new_tokens,
            stops=stops,
            sampling=decoding.sampling,
            numbers=[prompt * decoding.samples + sample for prompt, sample in batch],
        )
        tokens += sum(map(len, found))
        for job, new in zip(batch, found, strict=True):
            before = [] if apart else encoded[job[0]]  # a decoder with an encoder begins a text of its own
            texts[job] = cut(said(tokenizer, before, new), stops)
        if progress is not None:
            progress(len(texts), len(jobs))
    grouped = tuple(
        tuple(texts[prompt, sample] for sample in range(decoding.samples)) for prompt in range(len(prompts))
    )
    longest = max(map(len, encoded), default=0)
    return Completions(grouped, tokens, time.perf_counter() - start, longest)


def tokens_of(tokenizer: Any, prompt: str, special: bool, *, closed: bool = False) -> list[int]:
    """A prompt's token numbers; unless `closed`, without the end token that some tokenizers put behind every text."""
    ids = list(tokenizer(prompt, add_special_tokens=special)["input_ids"])
    ended = special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ended and not closed and not prompt.endswith(tokenizer.eos_token) else ids


def context_of(model: nn.Module) -> int | None:
    """Tokens that the model has positions for, or None if it does not say."""
    settings: Any = model.config
    return getattr(settings, "max_position_embeddings", None)


def check_room(
    encoded: Sequence[Sequence[int]], new: int, context: int | None, what: str, *, apart: bool = False
) -> None:
    """Refuse prompts that leave no room for `new` tokens in `context`; `apart`, each has the whole of it.

    Raises:
        DataError: naming the first such prompt, its length and the context.
    """
    for number, ids in enumerate(encoded, start=1):
        if not ids:
            raise DataError(f"{what} {number} has no tokens; remove it")
        taken = max(len(ids), new + 1) if apart else len(ids) + new
        if context is not None and taken > context:
            raise DataError(
                f"{what} {number} has {len(ids)} tokens, and with max_new_tokens = {new} it exceeds the model's "
                f"context of {context}; lower --k-shot or --max-new-tokens"
            )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before whichever stop string comes first.

    >>> cut("  return 1\\ndef g():\\n  return 2", ["\\nclass", "\\ndef"])
    '  return 1'
    """
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
