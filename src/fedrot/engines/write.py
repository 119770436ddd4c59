"""PEFT adapters of a state: one for the federation and, where clients keep a part to themselves, their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedrot.config import RunConfig
from fedrot.model import BaseModel, save_peft
from fedrot.server import ServerState, leveled, represented, starts


def save_adapter(
    directory: Path,
    state: ServerState,
    base: BaseModel,
    config: RunConfig,
    weights: Sequence[float],
    ranks: Sequence[int | None],
) -> None:
    """Write the federation's adapter.

    Where clients keep a part to themselves, it holds the weighted mean of those parts around the shared one, and its
    card says so: it is no client's own model. Where those parts lie on nodes it holds the shared one alone.

    Args:
        directory: to write to.
        state: whose adapter.
        base: the base model, with its original weights.
        config: the recipe.
        weights: aggregation weights of all clients.
        ranks: of all clients.
    """
    card = _card(config, state)
    if state.personal:
        card["note"] = (
            f"Method {config.method.name!r} leaves a part of the model with each client. This adapter holds the "
            f"weighted mean of the parts of {len(state.personal)} clients around what they share: no client's own."
        )
    if state.apart is not None:
        card["note"] = (
            f"Method {config.method.name!r} leaves a part of the model with each client, on its node. This adapter "
            "holds what they share, and the start of the rest: it is no trained model."
        )
    save_peft(directory, represented(state, weights, ranks), base, config.lora, card)


def save_personal(
    directory: Path, state: ServerState, base: BaseModel, config: RunConfig, ranks: Sequence[int | None]
) -> None:
    """Write `client-000/` and so on: the own adapter of every client that has parts of its own, in PEFT's format."""
    for client in sorted(state.personal):
        own = leveled(starts(state.adapter, state.personal, [client], ranks[client]).select(0), state.adapter)
        own = replace(own, residual=state.adapter.residual)
        card = _card(config, state) | {"client": client}
        save_peft(directory / f"client-{client:03d}", own, base, config.lora, card)


def _card(config: RunConfig, state: ServerState) -> dict[str, Any]:
    return {"max_length": config.task.max_length, "method": config.method.name, "rounds": state.round}
