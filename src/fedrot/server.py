"""The server's part of a round: who takes part, one aggregation step, and what it measured. No input or output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.rng import generator
from fedrot.methods.base import Method, MethodState, Update


@dataclass(frozen=True)
class ServerState:
    """Everything that a run carries from one round to the next."""

    round: int
    """The last finished round; 0 before the first."""
    adapter: Adapter
    """What the next round's clients receive."""
    history: tuple[Adapter, ...] = ()
    """Earlier broadcasts, oldest first: as many as the method's `reference_lag`."""
    method: MethodState = field(default_factory=MethodState)

    def to(self, device: torch.device) -> ServerState:
        """The same state with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        tensors = {name: move(tensor) for name, tensor in self.method.tensors.items()}
        method = MethodState(tensors, self.method.numbers)
        return ServerState(
            self.round, self.adapter.map(move), tuple(a.map(move) for a in self.history), method
        )

    @property
    def reference(self) -> Adapter:
        """What the method aligns to in the next round: `reference_lag` broadcasts before `adapter`."""
        return self.history[0] if self.history else self.adapter


def choose_clients(seed: int, round: int, clients: int, fraction: float) -> tuple[int, ...]:
    """The clients of a round, in ascending order: `ceil(fraction * clients)` of them, drawn without replacement."""
    count = max(1, math.ceil(fraction * clients - 1e-9))
    order = torch.randperm(clients, generator=generator(seed, "participation", round))
    return tuple(sorted(order[:count].tolist()))


def aggregate(method: Method, state: ServerState, updates: Sequence[Update]) -> ServerState:
    """One server step: aggregate the round's updates and move on to the next round."""
    adapter, method_state = method.aggregate(updates, state.adapter, state.method, state.round + 1)
    history = (*state.history, state.adapter)[-method.reference_lag :] if method.reference_lag else ()
    return replace(state, round=state.round + 1, adapter=adapter, history=history, method=method_state)
