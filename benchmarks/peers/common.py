"""What all contenders are handed: the same tokens, draws, model and initial adapter; and an ordinary training loop.

Needs torch, transformers and peft only. Every contender writes, through `Clock`, when each round ended and the trained
tensors it ended with.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """A folder that `build.py` wrote."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`model`, `labels`, `clients`, `cohort`, `rounds`, `steps`, `batch`, `lr`, `clip`, `seed`."""
        return json.loads((self.folder / "job.json").read_text("utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Tokens of both splits, and `draws: (rounds, clients, steps, batch)` row numbers of training."""
        return load_file(self.folder / "job.safetensors")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.facts[name]

    @cached_property
    def sequences(self) -> dict[str, list[Tensor]]:
        """The token sequences of both splits, one tensor each."""
        return {
            split: list(self.tensors[f"{split}_ids"].split(self.tensors[f"{split}_lengths"].tolist()))
            for split in ("train", "test")
        }

    def batch(self, rows: Tensor, split: str = "train") -> Batch:
        """The rows of a split, padded to the longest of them."""
        chosen = [self.sequences[split][row] for row in rows.tolist()]
        return {
            "input_ids": pad_sequence(chosen, batch_first=True, padding_value=self.facts["pad"]),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True),
            "labels": self.tensors[f"{split}_labels"][rows],
        }

    def draws(self, round: int, client: int, dealt: bool = False) -> Tensor:
        """Row numbers `(steps, batch)` of a client in a round, counted from 1; `dealt` into batches of like length."""
        return self.tensors["dealt" if dealt else "draws"][round - 1, client]

    def chosen(self, round: int) -> list[int]:
        """The clients that fedrot's own seed chooses for a round, counted from 1."""
        return self.tensors["chosen"][round - 1].tolist()


def load_model(job: Job) -> nn.Module:
    """The base model with the initial adapter and head, ready to train; dropout off for everyone."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        job.model, num_labels=job.labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return PeftModel.from_pretrained(base, str(job.folder / "initial"), is_trainable=True)


def train_client(model: nn.Module, job: Job, rows: Tensor) -> None:
    """The loop that most people write: one client's local steps on `rows: (steps, batch)`."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.lr, weight_decay=0.0)
    for step in rows:
        optimizer.zero_grad()
        model(**job.batch(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.clip)
        optimizer.step()


class Clock:
    """Wall-clock times of a contender's rounds, from the start of its process."""

    def __init__(self) -> None:
        self.started = float(os.environ.get("PEERS_STARTED", time.time()))
        self.marks: list[float] = []

    def mark(self) -> None:
        """The first round begins, or a round is over."""
        self.marks.append(time.time() - self.started)

    def write(self, out: Path, tensors: dict[str, Tensor], **facts: Any) -> None:
        """`result.json` and `trained.safetensors`, the tensors by PEFT's names."""
        out.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: t.detach().float().contiguous() for name, t in tensors.items()},
            out / "trained.safetensors",
        )
        (out / "result.json").write_text(json.dumps({"marks": self.marks, **facts}), "utf-8")
