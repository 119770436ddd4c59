"""Everything that is measured of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrot.core.adapter import Adapter, Factors, weighted_mean
from fedrot.core.measure import AggregationError, adapter_aggregation_error, adapter_broadcast_error
from fedrot.engines.round import Round
from fedrot.engines.traffic import traffic
from fedrot.methods import Trainable
from fedrot.server import ServerState, Step


def measure(round: Round, before: ServerState, step: Step, *, full: bool) -> dict[str, Any]:
    """The record of a round, without its number, evaluation and time.

    Args:
        round: the updates that were aggregated.
        before: the state whose adapter the clients received.
        step: what the server made of them.
        full: every client took part in every round, so that what did not change need not be sent again.
    """
    if not round.updates:
        return nobody(round, before, full=full)
    weights = [update.weight for update in round.updates]
    sent = round.method.uploads(round.number)
    return {
        **_told(round),
        **_errors(round, before, sent, weights, step),
        **step.state.method.numbers,
        **_residual(step),
        **(round.traffic or traffic(round, before, full=full)),
        **_clients(round),
    }


def nobody(round: Round, before: ServerState, *, full: bool) -> dict[str, Any]:
    """The record of a round in which no chosen client reported: there was nothing to train, aggregate or measure."""
    return {**(round.traffic or traffic(round, before, full=full)), **_clients(round)}


def _told(round: Round) -> dict[str, Any]:
    """What clients measured and told; nothing where their privacy forbids it."""
    if round.mechanism == "local":
        return {}
    losses = [update.metrics["loss"] for update in round.updates]
    drifts = [float(drift) for drift in round.drifts]
    return {"loss": sum(losses) / len(losses), "drift": sum(drifts) / len(drifts), **_rotation(round)}


def _errors(
    round: Round, before: ServerState, sent: Trainable, weights: Sequence[float], step: Step
) -> dict[str, float]:
    """The errors of aggregation; of a mean of uploads that nobody saw, only what rounding may have added to it.

    Nothing where clients keep one factor on their nodes.
    """
    if round.summed:
        return {"secure_rounding": round.rounding}
    if round.apart is not None:  # half of every product was never seen
        return {}
    uploads = of_one_rank([update.adapter for update in round.updates], before.adapter, sent)
    error = _error(round, uploads, weights, step)
    return {
        "aggregation_error": float(error.absolute),
        "aggregation_error_relative": float(error.relative),
        **_unaligned(round, before, sent, weights),
    }


def _unaligned(
    round: Round, before: ServerState, sent: Trainable, weights: Sequence[float]
) -> dict[str, float]:
    """The error that the updates would have had as trained; nothing where only aligned ones were seen.

    Nothing with privacy either: what was trained was neither clipped nor noised, so the two would not compare.
    """
    if round.mechanism != "none" or (not round.trained and round.sizes):
        return {}
    trained = round.trained or [update.adapter for update in round.updates]
    plain = adapter_aggregation_error(of_one_rank(trained, before.adapter, sent), weights)
    return {
        "aggregation_error_unaligned": float(plain.absolute),
        "aggregation_error_relative_unaligned": float(plain.relative),
    }


def _error(
    round: Round, uploads: Sequence[Adapter], weights: Sequence[float], step: Step
) -> AggregationError:
    """The distance of what clients end up with, on average, from the mean of what they trained."""
    laws = round.method.laws
    averaged = round.mechanism != "central"  # else the server's noise is a part of the error
    if averaged and laws.factor_mean and round.method.secure_aggregation and not laws.residual:
        return adapter_aggregation_error(uploads, weights)
    broadcast = step.aggregated
    if laws.personal:  # what stays with the clients, on average
        mean = weighted_mean([replace(one, head={}).map(Tensor.double) for one in uploads], weights).sites
        sent = round.method.uploads(round.number)
        sites = {
            site: Factors(f.a if sent.a else mean[site].a, f.b if sent.b else mean[site].b)
            for site, f in broadcast.sites.items()
        }
        broadcast = replace(broadcast, sites=sites)
    return adapter_broadcast_error(uploads, weights, broadcast)


def of_one_rank(adapters: Sequence[Adapter], received: Adapter, sent: Trainable) -> list[Adapter]:
    """Adapters of unequal rank padded, site by site, to the largest among them; every product stays.

    What travels is padded with zeros, as the server does. A factor that does not travel is the server's own, so a
    smaller client's lacks directions that the server has: those are put back, against zeros in the other factor.
    """
    ranks = {site: max(adapter.sites[site].rank for adapter in adapters) for site in received.sites}
    found: list[Adapter] = []
    for adapter in adapters:
        sites = dict(adapter.sites)
        for site, f in adapter.sites.items():
            if f.rank < ranks[site]:
                own, full = f.rank, received.sites[site]
                extra = ranks[site] - own
                a, b = full.a[own : ranks[site]], full.b[:, own : ranks[site]]
                sites[site] = Factors(
                    pad(f.a, (0, 0, 0, extra)) if sent.a else torch.cat([f.a, a]),
                    pad(f.b, (0, extra)) if sent.b else torch.cat([f.b, b], 1),
                )
        found.append(replace(adapter, sites=sites))
    return found


def _residual(step: Step) -> dict[str, float]:
    held = step.state.adapter.residual
    if not held:
        return {}
    return {"residual_rank": max(f.rank for f in held.values()), "residual_lost": step.residual_lost}


def _clients(round: Round) -> dict[str, Any]:
    part = round.participation
    return {
        "clients": len(round.clients),
        "rejected": len(round.rejected),
        "dropped": len(part.dropped),
        "stale": len(part.lags),
        "client_ids": round.clients,
        "rejected_clients": {str(client): why for client, why in sorted(round.rejected.items())},
        "dropped_clients": list(part.dropped),
        **({"lost_clients": {str(c): why for c, why in sorted(round.lost.items())}} if round.lost else {}),
        "stale_clients": {str(client): lag for client, lag in sorted(part.lags.items())},
        **({} if round.mechanism == "local" else {"client_steps": round.steps}),
    }


def _rotation(round: Round) -> dict[str, Any]:
    if not round.sizes:
        return {"rotation": 0.0, "rotation_by_site": {}, "rotation_angle": 0.0, "degenerate": 0, "flips": 0}
    size, angle = torch.cat(round.sizes, 1), torch.cat(round.angles, 1)
    return {
        "rotation": float(size.mean()),
        "rotation_by_site": dict(zip(round.sites, size.mean(1).tolist(), strict=True)) if round.sites else {},
        "rotation_angle": float(angle.max()),
        "degenerate": round.degenerate,
        "flips": round.flips,
    }
