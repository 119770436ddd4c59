"""The server's part of a round: who is chosen, one aggregation step, and the state it carries. No input or output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors, weighted_mean
from fedrot.core.initial import kept_trainable
from fedrot.core.residual import accumulate
from fedrot.core.rng import generator
from fedrot.methods.base import Method, MethodState, Update
from fedrot.methods.server_optimizer import ServerOptimizer

Personal = Mapping[int, Mapping[str, Tensor]]
"""By client, the tensors it keeps to itself, named as in `Adapter.tensors()`."""


@dataclass(frozen=True)
class Apart:
    """Where clients keep their parts elsewhere, on the nodes of a federation: what the server knows of them."""

    run: str
    """The name under which nodes keep them; no two runs have the same."""
    rounds: Mapping[int, int] = field(default_factory=dict[int, int])
    """By client, the last round in which its update was accepted: it goes on from the parts of that round."""


@dataclass(frozen=True)
class ServerState:
    """Everything that a run carries from one round to the next."""

    round: int
    """The last finished round; 0 before the first."""
    adapter: Adapter
    """What the next round's clients receive. Its residual is everything accumulated so far, relative to the original
    base weights."""
    history: tuple[Adapter, ...] = ()
    """Earlier broadcasts, oldest first: as many as the method's `reference_lag` or stale clients need."""
    method: MethodState = field(default_factory=MethodState)
    change: Mapping[str, Factors] = field(default_factory=dict[str, Factors])
    """By how much the residual differs from the one broadcast before: all that clients which hold that one need."""
    personal: Personal = field(default_factory=dict[int, dict[str, Tensor]])
    """In a simulation the server's state holds what, in a federation, stays with the clients."""
    optimizer: MethodState = field(default_factory=MethodState)
    """Moments of the server's optimiser."""
    apart: Apart | None = None
    """Instead of `personal`, in a federation."""

    def to(self, device: torch.device) -> ServerState:
        """The same state with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return ServerState(
            self.round,
            self.adapter.map(move),
            tuple(adapter.map(move) for adapter in self.history),
            _moved(self.method, move),
            {site: Factors(move(f.a), move(f.b)) for site, f in self.change.items()},
            {client: {key: move(t) for key, t in kept.items()} for client, kept in self.personal.items()},
            _moved(self.optimizer, move),
            self.apart,
        )

    def broadcast(self, lag: int = 0) -> Adapter:
        """What was broadcast `lag` rounds before the coming one, or the earliest that is still there."""
        return self.adapter if not (lag and self.history) else self.history[-min(lag, len(self.history))]


def _moved(state: MethodState, move: Callable[[Tensor], Tensor]) -> MethodState:
    return MethodState({name: move(tensor) for name, tensor in state.tensors.items()}, state.numbers)


@dataclass(frozen=True)
class Step:
    """One aggregation: the state after it, and what is only measured."""

    state: ServerState
    aggregated: Adapter
    """What the method made of the updates, before the server's optimiser; its residual is the change of this round."""
    residual_lost: float = 0.0
    """Share of the residual's norm that was cut off to keep its rank bounded."""


def cohort_size(clients: int, fraction: float) -> int:
    """Clients of a round, `ceil(fraction * clients)`."""
    return max(1, math.ceil(fraction * clients - 1e-9))


def choose_clients(seed: int, round: int, clients: int, fraction: float) -> tuple[int, ...]:
    """The `cohort_size` clients of a round, in ascending order, drawn without replacement."""
    order = torch.randperm(clients, generator=generator(seed, "participation", round))
    return tuple(sorted(order[: cohort_size(clients, fraction)].tolist()))


def aggregate(
    method: Method,
    state: ServerState,
    updates: Sequence[Update],
    *,
    history: int = 0,
    residual_rank: int | None = None,
    optimizer: ServerOptimizer | None = None,
    apart: Apart | None = None,
) -> Step:
    """One server step: aggregate the round's updates and move on to the next round.

    Args:
        method: sees adapters without residual, which every client holds in its base weights.
        state: before the round.
        updates: of the clients that reported.
        history: earlier broadcasts to keep, if more than the method's own `reference_lag`.
        residual_rank: bound of the accumulated residual's rank; None keeps all of it.
        optimizer: takes the aggregate for a direction; None broadcasts it as it is.
        apart: before the round, where clients keep their parts elsewhere: the updates then lack them.
    """
    number = state.round + 1
    received = bare(state.adapter)
    fresh, method_state = method.aggregate(updates, received, state.method, number)
    fresh = kept_trainable(fresh, received)
    moved, moments = fresh, state.optimizer
    if optimizer is not None:
        moved, moments = optimizer.step(method, received, fresh, state.optimizer, number)
    adapter, change, lost = moved, fresh.residual, 0.0
    if fresh.residual or state.adapter.residual:
        grown = accumulate(state.adapter.residual, fresh.residual, residual_rank)
        adapter, change, lost = replace(moved, residual=grown.total), grown.change, grown.lost
    keep = max(history, method.reference_lag)
    accepted = {update.client: number for update in updates}
    after = ServerState(
        number,
        adapter,
        (*state.history, state.adapter)[-keep:] if keep else (),
        method_state,
        change,
        state.personal if apart else {**state.personal, **_kept(method, updates, number)},
        moments,
        replace(apart, rounds={**apart.rounds, **accepted}) if apart else None,
    )
    return Step(after, replace(fresh, residual=change), lost)


def skip_round(state: ServerState) -> ServerState:
    """The state after a round in which no client reported: the same, one round on."""
    return replace(state, round=state.round + 1)


def bare(adapter: Adapter) -> Adapter:
    """The adapter without its residual."""
    return replace(adapter, residual={}) if adapter.residual else adapter


def truncated(adapter: Adapter, rank: int | None) -> Adapter:
    """The adapter with the first `rank` directions of every site that has more (views); None leaves it as it is."""
    if rank is None or all(f.rank <= rank for f in adapter.sites.values()):
        return adapter
    return replace(adapter, sites={site: f.resized(min(rank, f.rank)) for site, f in adapter.sites.items()})


def starts(broadcast: Adapter, personal: Personal, clients: Sequence[int], rank: int | None) -> Adapter:
    """What clients of one rank begin a round with: the broadcast cut to their rank, and their own parts put in place.

    Args:
        broadcast: what they received.
        personal: of all clients.
        clients: those meant.
        rank: theirs; None for whatever ranks the broadcast has.

    Returns:
        One adapter for all, or a stack where somebody has parts of its own. Without residual: that is in the base.
    """
    shared = truncated(bare(broadcast), rank)
    own = [personal.get(client, {}) for client in clients]
    if not any(own):
        return shared
    stacked = {
        key: torch.stack([kept.get(key, tensor) for kept in own])
        if any(key in kept for kept in own)
        else tensor.expand(len(own), *tensor.shape)
        for key, tensor in shared.tensors().items()
    }
    return Adapter.from_tensors(stacked, shared.scale)


def own_model(received: Adapter, personal: Personal, client: int, rank: int | None) -> Adapter:
    """A client's own model: what it received, at its rank, with what it keeps to itself in place."""
    own = starts(received, personal, [client], rank)
    return replace(own.select(0) if own.batch else own, residual=received.residual)


def represented(state: ServerState, weights: Sequence[float], ranks: Sequence[int | None]) -> Adapter:
    """One adapter for the whole federation: the broadcast, with the clients' own parts averaged where there are any.

    Args:
        state: after a round.
        weights: of all clients; only those that have parts of their own count.
        ranks: of all clients; smaller ones are padded with zeros.
    """
    holders = sorted(state.personal)
    if not holders:
        return state.adapter
    each = [starts(state.adapter, state.personal, [client], ranks[client]).select(0) for client in holders]
    shared, mean = state.adapter.tensors(), _mean_at(each, [weights[c] for c in holders], state.adapter)
    own = {key for kept in state.personal.values() for key in kept}
    return Adapter.from_tensors(
        {k: mean[k] if k in own else t for k, t in shared.items()}, state.adapter.scale
    )


def _mean_at(adapters: Sequence[Adapter], weights: Sequence[float], like: Adapter) -> dict[str, Tensor]:
    return weighted_mean([leveled(adapter, like) for adapter in adapters], weights).tensors()


def leveled(adapter: Adapter, like: Adapter) -> Adapter:
    """The adapter zero-padded to the rank that each site has in `like`; sites of that rank or more stay."""
    ranks = {site: max(f.rank, like.sites[site].rank) for site, f in adapter.sites.items()}
    return replace(adapter, sites={site: f.resized(ranks[site]) for site, f in adapter.sites.items()})


def own_parts(method: Method, trained: Adapter, round: int) -> dict[str, Tensor]:
    """Copies of what a client of a personal method keeps for itself of what it trained: all that it does not upload."""
    sent = method.uploads(round)

    def stays(key: str) -> bool:
        if key.startswith("head/"):
            return not method.shares_head
        return not (sent.a if key.endswith("/a") else sent.b)

    return {key: tensor.clone() for key, tensor in trained.tensors().items() if stays(key)}


def _kept(method: Method, updates: Sequence[Update], round: int) -> dict[int, dict[str, Tensor]]:
    if not method.laws.personal:
        return {}
    return {update.client: own_parts(method, update.adapter, round) for update in updates}
