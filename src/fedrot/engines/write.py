"""PEFT adapters of a state: one for the federation and, where clients keep a part to themselves, their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.model import BaseModel, save_peft
from fedrot.server import ServerState, leveled, own_model, represented


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
    card = _card(config, state.round)
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
        own = own_model(state.adapter, state.personal, client, ranks[client])
        save_own(directory / f"client-{client:03d}", own, state.adapter, base, config, state.round, client)


def save_own(
    directory: Path,
    own: Adapter,
    like: Adapter,
    base: BaseModel,
    config: RunConfig,
    rounds: int,
    client: int,
) -> None:
    """Write a client's own adapter in PEFT's format, at the rank that each site has in `like`."""
    card = _card(config, rounds) | {"client": client}
    save_peft(directory, leveled(own, like), base, config.lora, card)


def _card(config: RunConfig, rounds: int) -> dict[str, Any]:
    return {"max_length": config.task.max_length, "method": config.method.name, "rounds": rounds}
