"""The rotation that brings trained LoRA factors into the frame of a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Factors
from fedrot.core.polar import Group, full_precision, identity_like, nearest_orthogonal, widen
from fedrot.core.softening import Path, check_choice, check_strength, soften
from fedrot.errors import AdapterError, ConfigError

Anchor = Literal["a", "b", "joint"]


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """The rotation applied, `matrix: (..., r, r)`, and why it is what it is; flags are `(...)`.

    Attributes:
        matrix: orthogonal; the identity where `degenerate`.
        degenerate: the reference carried no direction (zero, not finite, or a numerically rank deficient
            correlation), so the factors were left as they are.
        flipped: the best orthogonal matrix was a reflection, and the best rotation was taken instead.
    """

    matrix: Tensor
    degenerate: Tensor
    flipped: Tensor

    @property
    def size(self) -> Tensor:
        """`||R - I||_F`, `(...)`."""
        return linalg.frobenius(self.matrix - identity_like(self.matrix))

    @property
    def angle(self) -> Tensor:
        """The largest angle by which `R` turns a direction, in radians from 0 to pi, `(...)`."""
        chord = linalg.spectral(self.matrix - identity_like(self.matrix))
        return 2 * (chord / 2).clamp(max=1).asin()


@torch.no_grad()
def procrustes(source: Tensor, target: Tensor, group: Group = "rotation") -> Tensor:
    """Rotation that best maps the columns of `source` onto those of `target`.

    Minimises `||source @ R - target||_F` over `R.T @ R = I` (and `det R = 1` for `group="rotation"`).
    With `source.T @ target = U diag(s) V.T` the minimiser is `U diag(1, ..., 1, det(U V.T)) V.T`
    (Schönemann 1966; Kabsch 1976). It is unique when `s[-2] + det(U V.T) * s[-1] > 0`.

    >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    >>> torch.allclose(procrustes(torch.eye(2), quarter), quarter)
    True

    Args:
        source: `(..., n, r)`.
        target: `(..., n, r)`, broadcast against `source`.
        group: `"rotation"`, or `"orthogonal"` to allow reflections.

    Returns:
        `(..., r, r)` in float32 or better; NaN where an input is not finite.
    """
    check_choice("group", group, Group)
    if source.ndim < 2 or source.shape[-2:] != target.shape[-2:]:
        shapes = f"source {tuple(source.shape)}, target {tuple(target.shape)}"
        raise AdapterError(f"procrustes of {shapes}: expected (..., n, r) with equal n and r")
    with full_precision(source.device):
        wide, onto = widen(source, target)
        correlation = wide.mT @ onto
        finite = correlation.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        return torch.where(finite, nearest_orthogonal(correlation, group).matrix, torch.nan)


def rotate(a: Tensor, b: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """`(R.T @ a, b @ R)`: another pair of factors of the same product, for orthogonal `R: (..., r, r)`.

    Args:
        a: `(..., r, d_in)`.
        b: `(..., d_out, r)`.
        rotation: `(..., r, r)`.

    Returns:
        Both in float64 if any argument is, else in float32.
    """
    with full_precision(a.device):
        return turn(a, b, rotation)


def turn(a: Tensor, b: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """`rotate`, for use within `full_precision`: switching takes longer than a small product."""
    a, b, rotation = widen(a, b, rotation)
    return rotation.mT @ a, b @ rotation


@torch.no_grad()
def align(
    a: Tensor,
    b: Tensor,
    a_ref: Tensor,
    b_ref: Tensor,
    anchor: Anchor = "a",
    strength: float = 0.5,
    path: Path = "chordal",
    group: Group = "rotation",
) -> tuple[Tensor, Tensor, Rotation]:
    """Rotate factors towards the frame of a reference; their product stays the same.

    With `R` the softened Procrustes rotation, returns `(R.T @ a, b @ R)`. `anchor` names the factor whose
    distance to the reference is minimised: `"a"`, `"b"`, or `"joint"`, both relative to the size of their
    references. A site whose reference is zero or not finite, or whose `r x r` correlation is numerically rank
    deficient, is left as it is and flagged. Not differentiated through.

    >>> a, b = torch.eye(2, 3), torch.ones(4, 2)
    >>> turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    >>> a2, b2, rotation = align(*rotate(a, b, turn), a, b, strength=1.0)
    >>> torch.allclose(a2, a, atol=1e-6), torch.allclose(b2, b, atol=1e-6), bool(rotation.degenerate)
    (True, True, False)

    Args:
        a: `(..., r, d_in)`, for instance of one client, of fifty stacked ones, or of a stack of sites.
        b: `(..., d_out, r)`.
        a_ref: `(..., r, d_in)`, broadcast against `a`.
        b_ref: `(..., d_out, r)`, broadcast against `b`.
        anchor: `"a"`, `"b"` or `"joint"`.
        strength: in [0, 1]; 0 leaves the factors alone, 1 is the full rotation.
        path: see `soften`.
        group: `"rotation"`, or `"orthogonal"` to allow reflections (chordal path only).

    Returns:
        The factors, in float64 if any input is and else in float32, and the rotation with its flags.

    Raises:
        AdapterError: factors that do not fit together.
        ConfigError: an option out of range.
    """
    check_options(anchor, strength, path, group)
    check_fit(Factors(a, b), Factors(a_ref, b_ref), "align")
    with full_precision(a.device):
        a, b, a_ref, b_ref = widen(a, b, a_ref, b_ref)
        rotation = solve(correlation(a, b, a_ref, b_ref, anchor), strength, path, group)
    return (*rotate(a, b, rotation.matrix), rotation)


def check_fit(trained: Factors, reference: Factors, where: str) -> None:
    """Refuse factors of another rank or width than their reference's."""
    sent, expected = ((f.rank, f.d_in, f.d_out) for f in (trained, reference))
    if sent != expected:
        raise AdapterError(f"{where}: (rank, d_in, d_out) = {sent}, expected the reference's {expected}")


def correlation(a: Tensor, b: Tensor, a_ref: Tensor, b_ref: Tensor, anchor: Anchor) -> Tensor:
    """The `(..., r, r)` matrix `M`; its rotation maximises `trace(R.T @ M)`. Zero if the reference is.

    For `"joint"` see there.
    """
    if anchor == "a":
        return a @ a_ref.mT
    if anchor == "b":
        return b.mT @ b_ref
    return joint(a @ a_ref.mT, b.mT @ b_ref, a_ref, b_ref)


def joint(by_a: Tensor, by_b: Tensor, a_ref: Tensor, b_ref: Tensor) -> Tensor:
    """`a a_ref.T / ||a_ref||^2 + b.T b_ref / ||b_ref||^2` from the two products, `(..., r, r)`.

    The rotation then minimises `||R.T a - a_ref||^2 / ||a_ref||^2 + ||b R - b_ref||^2 / ||b_ref||^2`.
    """
    a_size, b_size = (ref.square().sum((-2, -1), keepdim=True) for ref in (a_ref, b_ref))
    both = by_a / a_size + by_b / b_size
    return torch.where((a_size > 0) & (b_size > 0), both, 0)


def solve(correlations: Tensor, strength: float, path: Path, group: Group) -> Rotation:
    """Softened Procrustes rotations of correlations `(..., r, r)`; the identity where degenerate."""
    near, degenerate, flipped = nearest_orthogonal(correlations, group)
    near = torch.where(degenerate[..., None, None], identity_like(near), near)
    return Rotation(soften(near, strength, path), degenerate, flipped & ~degenerate)


def check_options(anchor: str, strength: float, path: str, group: str) -> None:
    """Refuse options of `align` that are unknown or out of range.

    Raises:
        ConfigError: naming the option, its value and what was expected.
    """
    check_choice("anchor", anchor, Anchor)
    check_choice("path", path, Path)
    check_choice("group", group, Group)
    check_strength(strength)
    if path == "geodesic" and group == "orthogonal":
        raise ConfigError(
            "path = 'geodesic' with group = 'orthogonal': a reflection has no geodesic; change one of them"
        )
