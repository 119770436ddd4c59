"""Who takes part in a round, how: the clients chosen, those that drop out, stale ones, and everyone's rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from fedrot.config import FederationConfig, LoraSettings
from fedrot.core.rng import generator
from fedrot.errors import ConfigError
from fedrot.server import choose_clients


@dataclass(frozen=True)
class Participation:
    """The clients of one round. Every draw depends on the seed, the round and the client alone."""

    chosen: tuple[int, ...]
    """In ascending order."""
    dropped: tuple[int, ...] = ()
    """Those of them that do not report."""
    lags: Mapping[int, int] = field(default_factory=dict[int, int])
    """How many rounds back the broadcast lies that a stale client trained from; others are not listed."""

    @cached_property
    def reporting(self) -> tuple[int, ...]:
        """The chosen clients that send an update."""
        dropped = set(self.dropped)
        return tuple(client for client in self.chosen if client not in dropped)


@dataclass(frozen=True)
class Cohort:
    """Clients of one rank and one lag, which can train in one stack."""

    clients: tuple[int, ...]
    rank: int | None
    lag: int


def participate(
    federation: FederationConfig, seed: int, round: int, clients: int, earlier: int
) -> Participation:
    """Draw who takes part in `round`.

    Args:
        federation: fraction, dropout and staleness.
        seed: of the run.
        round: counted from 1.
        clients: in the federation.
        earlier: broadcasts before the current one that are still there; no lag is larger.
    """
    chosen = choose_clients(seed, round, clients, federation.fraction)
    dropped = tuple(c for c in chosen if _uniform(seed, "absence", round, c) < federation.dropout)
    lags: dict[int, int] = {}
    for client in Participation(chosen, dropped).reporting:
        if _uniform(seed, "stale", round, client) < federation.stale:
            draws = generator(seed, "lag", round, client)
            lag = 1 + int(torch.randint(federation.stale_rounds, (), generator=draws))
            if earlier:
                lags[client] = min(lag, earlier)
    return Participation(chosen, dropped, lags)


def _uniform(seed: int, purpose: str, round: int, client: int) -> float:
    draws = generator(seed, purpose, round, client)
    return float(torch.rand((), generator=draws, dtype=torch.float64))


def cohorts(participation: Participation, ranks: Sequence[int | None]) -> list[Cohort]:
    """The reporting clients by rank and lag, the order among equals kept."""
    kinds: dict[tuple[int | None, int], list[int]] = {}
    for client in participation.reporting:
        kinds.setdefault((ranks[client], participation.lags.get(client, 0)), []).append(client)
    return [Cohort(tuple(members), rank, lag) for (rank, lag), members in sorted(kinds.items(), key=_by_rank)]


def _by_rank(kind: tuple[tuple[int | None, int], list[int]]) -> tuple[int, int]:
    (rank, lag), _ = kind
    return rank or 0, lag


def deal_ranks(lora: LoraSettings, clients: int, seed: int) -> tuple[int | None, ...]:
    """Every client's rank; None where ranks are not mixed, and all follow what they receive.

    Shares become whole numbers of clients by largest remainder, and a seeded shuffle says which clients they are.

    Raises:
        ConfigError: a list of another length than there are clients.
    """
    if lora.ranks is None:
        return (None,) * clients
    if isinstance(lora.ranks, list):
        if len(lora.ranks) != clients:
            raise ConfigError(
                f"lora.ranks lists {len(lora.ranks)} ranks for {clients} clients: expected one each, or a table of "
                "shares such as { 2 = 0.5, 8 = 0.5 }"
            )
        return tuple(lora.ranks)
    exact = {int(rank): share * clients for rank, share in lora.ranks.items()}
    counts = {rank: int(number + 1e-9) for rank, number in exact.items()}
    by_remainder = sorted(exact, key=lambda rank: (counts[rank] - exact[rank], rank))
    for rank in by_remainder[: clients - sum(counts.values())]:
        counts[rank] += 1
    dealt = [rank for rank in sorted(counts) for _ in range(counts[rank])]
    order = torch.randperm(clients, generator=generator(seed, "ranks"))
    return tuple(dealt[i] for i in order.tolist())
