"""Writes a job's folder: tokens, draws, initial adapter and recipe, from fedrot's own preparation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedrot.client import plan_group
from fedrot.config import parse_config
from fedrot.engines.setup import Federation, prepare
from fedrot.model import resolve_path, save_peft
from fedrot.server import choose_clients


def build(folder: Path, recipe: dict[str, Any]) -> None:
    """Prepare `recipe` once and write down everything that a contender may need.

    Args:
        folder: to write to.
        recipe: of tweets or another corpus, `train.local_steps` set, uniform weights.
    """
    config = parse_config(recipe)
    federation = prepare(config)
    base, rounds = federation.base, range(1, config.federation.rounds + 1)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(config.to_toml(), "utf-8")
    save_peft(folder / "initial", federation.initial, base, config.lora, {})
    chosen = [choose_clients(config.seed, r, federation.clients, config.federation.fraction) for r in rounds]
    tensors = {
        "draws": torch.stack([_draws(federation, r, None) for r in rounds]),
        "dealt": torch.stack([_draws(federation, r, federation.train.data.lengths) for r in rounds]),
        "chosen": torch.tensor(chosen),
    }
    for name in ("train", "test"):
        data = federation.splits[name].data
        tensors |= {
            f"{name}_ids": data.input_ids,
            f"{name}_lengths": data.lengths,
            f"{name}_labels": data.labels,
        }
    save_file(tensors, folder / "job.safetensors")
    facts = {
        "model": resolve_path(config.model.path),
        "labels": len(base.labels),
        "pad": base.tokenizer.pad_token_id,
        "clients": federation.clients,
        "cohort": len(chosen[0]),
        "rounds": config.federation.rounds,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "lr": config.train.lr,
        "clip": config.train.clip,
        "seed": config.seed,
        "trained_parameters": sum(t.numel() for t in federation.initial.tensors().values()),
    }
    (folder / "job.json").write_text(json.dumps(facts, indent=2), "utf-8")


def _draws(federation: Federation, round: int, lengths: torch.Tensor | None) -> torch.Tensor:
    """`(clients, steps, batch)` row numbers."""
    config, rows = federation.config, federation.partition.rows
    plan = plan_group(range(len(rows)), rows, config.train, seed=config.seed, round=round, lengths=lengths)
    return plan.rows.movedim(1, 0).contiguous()
