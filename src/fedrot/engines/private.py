"""Privacy in a round, the same for every engine: what clients do last, what the server does first, what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation
from fedrot.methods import Method, Update, Upload
from fedrot.privacy import covers, make_noise, private_mean, protect
from fedrot.server import ServerState, bare


def protected(
    config: RunConfig,
    method: Method,
    upload: Upload,
    received: Adapter,
    round: int,
    clients: Sequence[int],
) -> Upload:
    """What the clients of a stack send instead of `upload`: clipped and, with mechanism `local`, with noise."""
    settings = config.privacy
    if settings.mechanism == "none":
        return upload
    noises = [make_noise(settings.noise_source, config.seed, round, client) for client in clients]
    made = protect(method, upload.adapter, bare(received), round, settings, noises)
    return replace(upload, adapter=made.adapter)


def to_aggregate(
    federation: Federation, state: ServerState, round: Round
) -> tuple[Sequence[Update], dict[str, Any]]:
    """The updates that the server's step sees, and what is recorded of them.

    With mechanism `central` that is one update, the private mean of all; otherwise those that came in.
    """
    settings, number = federation.config.privacy, round.number
    if settings.mechanism != "central":
        return round.updates, {}
    noise = make_noise(settings.noise_source, federation.config.seed, number)
    chosen = len(round.participation.chosen)
    mean = private_mean(
        federation.method, round.updates, bare(state.adapter), number, settings, chosen, noise
    )
    if not mean.norms:
        return [mean.update], {}
    clipped = sum(norm >= settings.clip * (1 - 1e-5) for norm in mean.norms) / len(mean.norms)
    return [mean.update], {"update_norm": median(mean.norms), "clipped": clipped}


def spent(federation: Federation, round: int) -> dict[str, float | None]:
    """Epsilon after a round, as it is recorded; nothing without a mechanism."""
    if federation.config.privacy.mechanism == "none":
        return {}
    return {"epsilon": federation.accountant.epsilon(round)}


def privacy_facts(federation: Federation, round: int) -> dict[str, Any] | None:
    """What the summary says of a run's privacy; None without a mechanism."""
    settings = federation.config.privacy
    if settings.mechanism == "none":
        return None
    return {
        **settings.model_dump(),
        **spent(federation, round),
        "rounds_of_a_client": federation.accountant.taken(round),
        **covers(settings),
    }
