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
from fedrot.privacy import Releases, covers, make_noise, private_mean, protect
from fedrot.rundir import RunDirectory
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
    federation: Federation, state: ServerState, round: Round, releases: Releases
) -> tuple[Sequence[Update], dict[str, Any]]:
    """The updates that the server's step sees, and what is recorded of them.

    With mechanism `central` that is one update, the private mean of all, which counts as released before its noise is
    drawn; otherwise those that came in.
    """
    settings, number = federation.config.privacy, round.number
    if settings.mechanism != "central":
        return round.updates, {}
    releases.begin(number)
    noise = make_noise(settings.noise_source, federation.config.seed, number)
    chosen = len(round.participation.chosen)
    mean = private_mean(
        federation.method, round.updates, bare(state.adapter), number, settings, chosen, noise
    )
    if not mean.norms:
        return [mean.update], {}
    clipped = sum(norm >= settings.clip * (1 - 1e-5) for norm in mean.norms) / len(mean.norms)
    return [mean.update], {"update_norm": median(mean.norms), "clipped": clipped}


def begun(federation: Federation, run: RunDirectory) -> Releases:
    """The releases of a run so far. Of one begun before they were listed, the rounds on record are put on the list."""
    if federation.config.privacy.mechanism == "none":
        return Releases()
    releases = Releases(run.releases)
    if not run.releases.exists():
        releases.begin(*(int(record["round"]) for record in run.records()))
    return releases


def of_repetition(releases: Releases, round: int) -> list[str]:
    """What whoever resumes a run after `round` should know of releases beyond it."""
    again = sorted({number for number in releases.rounds if number > round})
    if not again:
        return []
    which = f"round {again[0]}" if len(again) == 1 else f"rounds {', '.join(map(str, again))}"
    return [
        f"the private result of {which} may have left before the run ended; done again it is released again, and "
        "epsilon counts both"
    ]


def spent(federation: Federation, round: int, releases: Releases) -> dict[str, float | None]:
    """Epsilon after a round, as it is recorded; nothing without a mechanism."""
    if federation.config.privacy.mechanism == "none":
        return {}
    return {"epsilon": federation.accountant.epsilon(round, releases.rounds)}


def privacy_facts(federation: Federation, round: int, releases: Releases) -> dict[str, Any] | None:
    """What the summary says of a run's privacy; None without a mechanism."""
    settings = federation.config.privacy
    if settings.mechanism == "none":
        return None
    return {
        **settings.model_dump(),
        **spent(federation, round, releases),
        "rounds_of_a_client": federation.accountant.taken(round, releases.rounds),
        "released_again": releases.repeated,
        **covers(settings),
    }
