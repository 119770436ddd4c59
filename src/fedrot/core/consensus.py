"""Rotating many clients at once, where the server sees every upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, weighted_mean
from fedrot.core.alignment import SiteRotation, apply, client_correlations, solve_sites
from fedrot.core.measure import aggregation_error
from fedrot.core.polar import Group
from fedrot.core.softening import Path, soften


def rotated_mean(clients: Sequence[Adapter], weights: Sequence[float], rotation: SiteRotation) -> Adapter:
    """The weighted mean of the clients' rotated adapters, one of them in memory at a time."""
    return weighted_mean((apply(client, rotation.select(i)) for i, client in enumerate(clients)), weights)


@torch.no_grad()
def consensus(
    clients: Sequence[Adapter],
    weights: Sequence[float],
    start: Adapter,
    sweeps: int = 5,
    strength: float = 1.0,
    path: Path = "chordal",
    group: Group = "rotation",
) -> SiteRotation:
    """Generalised Procrustes analysis: rotations that bring the clients' factors nearest to their own mean.

    Each sweep rotates every client onto the mean of the rotated factors, with the joint objective of `align`
    (Gower 1975). The first one rotates onto `start`, which settles the frame that all of them share; where
    `start` carries no direction, as before the first round, the plain mean takes its place.

    Args:
        clients: adapters of one form; their ranks may be smaller than that of `start`.
        weights: of the mean, one each.
        start: the adapter the clients received.
        sweeps: at least 1.
        strength: the last rotations are softened by it, see `soften`.
        path: see `soften`.
        group: see `procrustes`.

    Returns:
        Rotations `(S, N, r, r)`.
    """
    rank = max(f.rank for f in start.sites.values())
    padded = [client.resized(rank) if _ranks(client) != _ranks(start) else client for client in clients]
    rotation = solve_sites(client_correlations(clients, start, "joint"), 1.0, path, group)
    for _ in range(sweeps - 1):
        centre = rotated_mean(padded, weights, rotation)
        rotation = solve_sites(client_correlations(clients, centre, "joint"), 1.0, path, group)
    return replace(rotation, matrix=soften(rotation.matrix, strength, path))


def _ranks(adapter: Adapter) -> list[int]:
    return [f.rank for f in adapter.sites.values()]


def lowers_error(clients: Sequence[Adapter], weights: Sequence[float], rotation: SiteRotation) -> Tensor:
    """At which sites rotating lowers the error of averaging factors: booleans `(S,)`."""
    plain, turned = relative_errors(clients, weights, rotation)
    return turned < plain


@torch.no_grad()
def relative_errors(
    clients: Sequence[Adapter], weights: Sequence[float], rotation: SiteRotation
) -> tuple[Tensor, Tensor]:
    """Relative errors of averaging factors at every site, `(S,)` in float64: as they are, and rotated."""
    plain: list[Tensor] = []
    turned: list[Tensor] = []
    for site, matrix in zip(rotation.sites, rotation.matrix.double().unbind(), strict=True):
        a, b = (torch.stack([getattr(c.sites[site], factor) for c in clients]).double() for factor in "ab")
        turn = matrix[..., : a.shape[-2], : a.shape[-2]]
        plain.append(aggregation_error(a, b, weights).relative)
        turned.append(aggregation_error(turn.mT @ a, b @ turn, weights).relative)
    return torch.stack(plain), torch.stack(turned)
