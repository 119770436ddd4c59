"""What a language model says to a few held-out prompts before the run and after it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.rng import generator
from fedrot.engines.setup import Federation
from fedrot.model.generation import generate_batch
from fedrot.server import ServerState
from fedrot.tasks.dialogues import messages_of
from fedrot.tasks.exchanges import EncodedExchanges
from fedrot.tasks.templates import Message
from fedrot.tasks.tokens import EncodedTokens

SAMPLES = "samples.json"


def samples(federation: Federation, state: ServerState) -> dict[str, Any]:
    """Greedy completions of `output.samples` test prompts by the initial adapter and by the last broadcast.

    The prompts are those that the test split was encoded with, cut to `task.max_length`; which ones the seed decides.

    Returns:
        `decoding`, `max_new_tokens`, and under `texts`, of each, the last user message as far as the model saw it, the
        whole prompt, the expected answer and both completions.
    """
    config, data = federation.config, federation.test.data
    assert isinstance(data, EncodedTokens | EncodedExchanges)
    order = torch.randperm(len(data), generator=generator(config.seed, "samples"))
    picked = order[: config.output.samples].sort().values.tolist()
    parts = [data.last_answer(row) for row in picked]
    tokenizer = federation.base.tokenizer
    asked = messages_of(federation.task.test.select(picked))
    before = _completed(federation, federation.initial, [prompt for prompt, _ in parts])
    after = _completed(federation, state.adapter, [prompt for prompt, _ in parts])
    prompts = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt, _ in parts]
    texts = [
        {
            "asked": _seen(messages, seen),
            "prompt": seen,
            "expected": tokenizer.decode(answer, skip_special_tokens=True).strip(),
            "before": first,
            "after": last,
        }
        for messages, seen, (_, answer), first, last in zip(asked, prompts, parts, before, after, strict=True)
    ]
    return {"decoding": "greedy", "max_new_tokens": config.output.sample_tokens, "texts": texts}


def _seen(messages: Sequence[Message], prompt: str) -> str:
    """The last user message, or the start or end of it that was not cut away to fit `task.max_length`."""
    text = next(said["content"] for said in reversed(messages) if said["role"] == "user").strip()
    sizes = range(1, len(text) + 1)
    start = bisect_left(sizes, True, key=lambda size: text[:size] not in prompt)
    end = bisect_left(sizes, True, key=lambda size: text[-size:] not in prompt)
    if max(start, end) == len(text):
        return text
    return f"{text[:start].rstrip()} […]" if start >= end else f"[…] {text[-end:].lstrip()}"


def _completed(federation: Federation, adapter: Adapter, prompts: list[list[int]]) -> list[str]:
    model, tokenizer = federation.model, federation.base.tokenizer
    bare = replace(adapter, residual={}).map(Tensor.detach)
    model.load(bare.expand(1), residual=adapter.residual)
    found = generate_batch(
        model.module, tokenizer, prompts, max_new_tokens=federation.config.output.sample_tokens
    )
    model.unload()
    return [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]
