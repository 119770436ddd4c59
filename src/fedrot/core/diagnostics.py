"""Drift, frames and the paper's theory (FedRot-LoRA, section 4): whether and how far alignment can help."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Adapter
from fedrot.core.polar import full_precision, identity_like, widen


def relative_drift(factor: Tensor, reference: Tensor) -> Tensor:
    """`||factor - reference||_F / ||reference||_F`, `(...)`; NaN where the reference is zero."""
    wide, ref = widen(factor, reference)
    size = linalg.frobenius(ref)
    return torch.where(size > 0, linalg.frobenius(wide - ref) / size, torch.nan)


def drift(trained: Adapter, reference: Adapter) -> Tensor:
    """Mean over sites of the relative drift of `a`; a scalar, or `(N,)` for a stack."""
    return torch.stack([relative_drift(f.a, reference.sites[s].a) for s, f in trained.sites.items()]).nanmean(
        0
    )


def kappa(rotations: Tensor, a: Tensor, a_ref: Tensor) -> Tensor:
    """`max_i ||R_i - I||_F / ||a_i - a_ref||_F`: how fast hard rotations grow with drift.

    Args:
        rotations: `(N, ..., r, r)`, Procrustes rotations before softening.
        a: `(N, ..., r, d_in)`.
        a_ref: `(..., r, d_in)`.
    """
    turn = linalg.frobenius(rotations - identity_like(rotations))
    away = linalg.frobenius(a - a_ref)
    return torch.where(away > 0, turn / away, 0).amax(0)


def alignment_gain(a: Tensor, a_ref: Tensor, rotation: Tensor) -> Tensor:
    """`||a - a_ref||_F^2 - ||R.T a - a_ref||_F^2`, `(...)`: how much nearer a rotation brings a factor.

    Computed as `2 trace((R - I).T a a_ref.T)`, which does not cancel.
    """
    a, a_ref, rotation = widen(a, a_ref, rotation)
    with full_precision(a.device):
        return 2 * ((rotation - identity_like(rotation)) * (a @ a_ref.mT)).sum((-2, -1))


def subspace_overlap(a: Tensor, other: Tensor) -> Tensor:
    """Mean squared cosine of the principal angles of two row spaces, `(...)`: 1 if equal, `~r / d` if random.

    Args:
        a: `(..., r, d)` of full row rank.
        other: `(..., r, d)` of full row rank.
    """
    a, other = widen(a, other)
    with full_precision(a.device):
        mine, theirs = linalg.qr(a.mT)[0], linalg.qr(other.mT)[0]
        return (mine.mT @ theirs).square().sum((-2, -1)) / a.shape[-2]


class Tightness(NamedTuple):
    """The paper's bound on what alignment gains, as a function of the strength."""

    slope: float
    """`c0 - 4 sqrt(tau) kappa eta G_B / delta_A`."""
    curvature: float
    """`4 kappa^2 tau`."""

    def gain(self, strength: float) -> float:
        """`Gamma(l) = slope l - curvature l^2`: positive where alignment tightens the bound.

        >>> round(Tightness(slope=0.4, curvature=1.0).gain(0.2), 6)
        0.04
        """
        return self.slope * strength - self.curvature * strength**2

    @property
    def admissible(self) -> tuple[float, float] | None:
        """The open interval of strengths in [0, 1] with a positive gain; None if there is none.

        >>> Tightness(slope=0.4, curvature=1.0).admissible, Tightness(slope=-0.1, curvature=1.0).admissible
        ((0.0, 0.4), None)
        """
        if self.slope <= 0:
            return None
        return 0.0, min(1.0, self.slope / self.curvature) if self.curvature > 0 else 1.0

    @property
    def best(self) -> float:
        """The strength in [0, 1] with the largest gain."""
        if self.slope <= 0:
            return 0.0
        return min(1.0, self.slope / (2 * self.curvature)) if self.curvature > 0 else 1.0


def tightness(
    *, c0: float, kappa: float, local_steps: int, lr: float, gradient_bound: float, distance: float
) -> Tightness:
    """`Gamma(l) = (c0 - 4 sqrt(tau) kappa eta G_B / delta_A) l - 4 kappa^2 l^2 tau`.

    Args:
        c0: how much of the misalignment a full rotation removes.
        kappa: see `kappa`.
        local_steps: `tau`.
        lr: `eta`.
        gradient_bound: `G_B`, a bound on the norm of the gradients of `b`.
        distance: `delta_A`, the smallest `||a_i - a_ref||_F`; positive.
    """
    steepness = 4 * math.sqrt(local_steps) * kappa * lr * gradient_bound / distance
    return Tightness(slope=c0 - steepness, curvature=4 * kappa**2 * local_steps)
