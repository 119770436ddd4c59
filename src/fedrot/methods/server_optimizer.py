"""Optimisers on the server, around any method: its step of a round is a direction, not the last word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation, apply, correlations, solve_sites
from fedrot.core.linalg import frobenius
from fedrot.core.polar import identity_like
from fedrot.errors import ConfigError, nearest
from fedrot.methods.base import Method, MethodState

Name = Literal["avgm", "adam", "yogi", "adagrad"]
NUDGE = 1e-3
"""Of a correlation's norm: far above rounding, far below what the correlation decides."""


@final
@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """Takes the method's aggregate minus the adapter received as a gradient, number by number.

    With `d = aggregated - received` and `g = momentum`

        avgm       m <- g m + d;            x = received + lr m                    (Hsu et al., 2019)
        adam       v <- beta2 v + (1 - beta2) d^2
        yogi       v <- v - (1 - beta2) d^2 sign(v - d^2)                          (Reddi et al., ICLR 2021)
        adagrad    v <- v + d^2

    where the last three have `m <- g m + (1 - g) d` and `x = received + lr m / (sqrt(v) + tau)`, `v` starts at
    `tau^2` and there is no bias correction. Factors and head are treated alike; a residual passes through.

    Attributes:
        name: which of the four.
        lr: 1 takes the method's own step with `avgm` and `momentum = 0`; the others move a number by about `lr`
            a round, so they want small ones.
        momentum: in [0, 1).
        beta2: in [0, 1); of adam and yogi.
        tau: positive; how far the adaptive ones adapt.

    Raises:
        ConfigError: a value out of range; keys read `server.<option>`.
    """

    name: Name
    lr: float
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ConfigError(f"server.optimizer = {self.name!r}: {nearest(self.name, get_args(Name))}")
        for key, low in (("lr", True), ("tau", True), ("momentum", False), ("beta2", False)):
            value = getattr(self, key)
            fits = math.isfinite(value) and (value > 0 if low else 0 <= value < 1)
            if not fits:
                expected = "a number > 0" if low else "a number in [0, 1)"
                raise ConfigError(f"server.{key} = {value!r}: expected {expected}")

    @torch.no_grad()
    def step(
        self, method: Method, received: Adapter, aggregated: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The adapter to broadcast instead of `aggregated`, and the moments for the next round.

        Moments belong to a frame. Factors that the method leaves alone in `round` stay to the bit, and so do
        their moments. If the method turns the frame, the aggregate is first turned onto the factors received
        (joint Procrustes, reflections allowed; the product stays). Where no frame continues (a method that
        starts afresh, a site whose rank changed, or one whose received factors give no direction, as before
        the first round), the factors are taken as aggregated, and their moments start anew.

        Args:
            method: what made `aggregated`.
            received: what the round started from.
            aggregated: of the method's `aggregate`.
            state: what the previous step returned; `MethodState()` in the first.
            round: counted from 1.
        """
        target, restarted = _in_frame(method, received, aggregated)
        changes, before = method.changes(round), received.tensors()
        taken: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for key, value in target.tensors().items():
            kind, _, rest = key.partition("/")
            site, _, factor = rest.rpartition("/")
            moves = method.shares_head if kind == "head" else getattr(changes, factor)
            own = {f"{name}/{key}": state.tensors.get(f"{name}/{key}") for name in "mv"}
            if kind == "residual" or (kind == "sites" and site in restarted):
                taken[key] = value
            elif not moves:
                taken[key] = before[key]
                moments |= {name: tensor for name, tensor in own.items() if tensor is not None}
            else:
                m, v = own.values()
                taken[key], m, v = self._move(before[key], value, m, v)
                moments[f"m/{key}"] = m
                if v is not None:
                    moments[f"v/{key}"] = v
        return Adapter.from_tensors(taken, aggregated.scale), MethodState(moments)

    def _move(
        self, start: Tensor, target: Tensor, m: Tensor | None, v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The new value and moments of one tensor, computed in float64."""
        at = start.double()
        d = target.double() - at
        m = torch.zeros_like(d) if m is None else m.double()
        if self.name == "avgm":
            m = self.momentum * m + d
            return (at + self.lr * m).to(start.dtype), m.to(start.dtype), None
        m = self.momentum * m + (1 - self.momentum) * d
        v = torch.full_like(d, self.tau**2) if v is None else v.double()
        square = d.square()
        if self.name == "adam":
            v = self.beta2 * v + (1 - self.beta2) * square
        elif self.name == "yogi":
            v = v - (1 - self.beta2) * square * (v - square).sign()
        else:
            v = v + square
        moved = at + self.lr * m / (v.sqrt() + self.tau)
        return moved.to(start.dtype), m.to(start.dtype), v.to(start.dtype)


def _in_frame(method: Method, received: Adapter, aggregated: Adapter) -> tuple[Adapter, set[str]]:
    """The aggregate in the frame of the factors received, and the sites where there is none to continue."""
    if method.laws.frame == "fresh":
        return aggregated, set(aggregated.sites)
    fitting = {
        site: f
        for site, f in aggregated.sites.items()
        if (f.a.shape, f.b.shape) == (received.sites[site].a.shape, received.sites[site].b.shape)
    }
    restarted = set(aggregated.sites) - set(fitting)
    if method.laws.frame == "kept" or not fitting:
        return aggregated, restarted
    reference = Adapter({site: received.sites[site] for site in fitting})
    found = correlations(Adapter(fitting), reference, "joint")
    rotation = _settled(found, solve_sites(found, 1.0, "chordal", "orthogonal"))
    turned = apply(Adapter(fitting), rotation)
    lost = [bool(degenerate) for degenerate in rotation.degenerate.unbind()]
    restarted |= {site for site, degenerate in zip(rotation.sites, lost, strict=True) if degenerate}
    return replace(aggregated, sites={**aggregated.sites, **turned.sites}), restarted


def _settled(found: Mapping[str, Tensor], rotation: SiteRotation) -> SiteRotation:
    """Where a correlation lacks rank, as when a round's clients had few directions: what it leaves open is not turned.

    A small multiple of the identity is added, which decides just that; a correlation of zero stays without a frame.
    """
    if not bool(rotation.degenerate.any()):
        return rotation
    nudged = {site: m + NUDGE * frobenius(m) * identity_like(m) for site, m in found.items()}
    again, open_ = solve_sites(nudged, 1.0, "chordal", "orthogonal"), rotation.degenerate
    matrix = torch.where(open_[:, None, None], again.matrix, rotation.matrix)
    return replace(rotation, matrix=matrix, degenerate=open_ & again.degenerate)
