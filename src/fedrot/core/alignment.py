"""Whole adapters aligned at once: every site's rotation from one batched solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.polar import Group, full_precision, identity_like, widen
from fedrot.core.procrustes import Anchor, Rotation, check_fit, check_options, correlation, rotate, solve
from fedrot.core.softening import Path
from fedrot.errors import AdapterError


@dataclass(frozen=True, slots=True, eq=False)
class SiteRotation(Rotation):
    """What alignment did at each of `S` sites: `matrix: (S, ..., r, r)`, flags `(S, ...)`.

    The dots are the clients of a stack; `size` and `angle` are those of the rotations applied.

    Attributes:
        sites: their names, in the order of the first dimension. A site of smaller rank than others has its
            rotation bordered by an identity.
        kept: the rotation was applied (False where it was degenerate, or undone by a guard).
    """

    sites: tuple[str, ...]
    kept: Tensor

    def only(self, keep: Tensor) -> SiteRotation:
        """The same with the rotations outside `keep`, `(S, ...)`, undone."""
        matrix = torch.where(keep[..., None, None], self.matrix, identity_like(self.matrix))
        return replace(self, matrix=matrix, kept=self.kept & keep)

    def summary(self) -> dict[str, float]:
        """Metrics of a round: mean size, largest angle, how many were degenerate, flipped and kept."""
        return {
            "rotation": self.size.mean().item(),
            "rotation_angle": self.angle.max().item(),
            "degenerate": float(self.degenerate.sum()),
            "flips": float(self.flipped.sum()),
            "kept": float(self.kept.sum()),
        }

    def select(self, client: int) -> SiteRotation:
        """One client of a stack."""
        parts = {name: getattr(self, name)[:, client] for name in ("matrix", "degenerate", "flipped", "kept")}
        return replace(self, **parts)


@torch.no_grad()
def align_adapter(
    trained: Adapter,
    reference: Adapter,
    anchor: Anchor = "a",
    strength: float = 0.5,
    path: Path = "chordal",
    group: Group = "rotation",
) -> tuple[Adapter, SiteRotation]:
    """`align` at every site of an adapter, or of a stack of clients', with one solve for all rotations.

    The correlations are `r x r` whatever the widths of their layers, so those of all sites and clients go
    into one batch. Head and residual pass through.

    Args:
        trained: one adapter, or a stack `(N, ...)`.
        reference: the adapter whose frame to adopt; never stacked.
        anchor: see `align`.
        strength: see `align`.
        path: see `align`.
        group: see `align`.

    Raises:
        AdapterError: adapters that do not fit together.
        ConfigError: an option out of range.
    """
    check_options(anchor, strength, path, group)
    rotation = solve_sites(correlations(trained, reference, anchor), strength, path, group)
    return apply(trained, rotation), rotation


@torch.no_grad()
def correlations(trained: Adapter, reference: Adapter, anchor: Anchor) -> dict[str, Tensor]:
    """Every site's `(..., r, r)` correlation with the reference, in float32 or better.

    Of a reference of higher rank only the directions that the trained adapter has count.

    Raises:
        AdapterError: sites that do not fit together, or none.
    """
    if not trained.sites or trained.sites.keys() != reference.sites.keys():
        unlike = sorted(trained.sites.keys() ^ reference.sites.keys())
        raise AdapterError(f"alignment: expected the same sites in both adapters; only one has {unlike[:3]}")
    found: dict[str, Tensor] = {}
    for site, f in trained.sites.items():
        ref = reference.sites[site]
        ref = Factors(ref.a[..., : f.rank, :], ref.b[..., : f.rank])
        check_fit(f, ref, f"alignment at site {site!r}")
        with full_precision(f.a.device):
            a, b, a_ref, b_ref = widen(f.a, f.b, ref.a, ref.b)
            found[site] = correlation(a, b, a_ref, b_ref, anchor)
    return found


def client_correlations(clients: Sequence[Adapter], reference: Adapter, anchor: Anchor) -> dict[str, Tensor]:
    """`correlations` of many clients without stacking their factors: `(N, r, r)` at every site.

    `r` is the reference's rank. Rotations of clients of smaller rank turn their own directions and leave the others.
    """
    each = [correlations(client, reference, anchor) for client in clients]
    return {site: _batch([found[site] for found in each], reference.sites[site].rank) for site in each[0]}


def solve_sites(found: Mapping[str, Tensor], strength: float, path: Path, group: Group) -> SiteRotation:
    """The rotations of all sites from their correlations, in one batch."""
    with full_precision(next(iter(found.values())).device):
        solved = solve(_batch(list(found.values())), strength, path, group)
    return SiteRotation(
        matrix=solved.matrix,
        degenerate=solved.degenerate,
        flipped=solved.flipped,
        sites=tuple(found),
        kept=~solved.degenerate,
    )


@torch.no_grad()
def apply(adapter: Adapter, rotation: SiteRotation) -> Adapter:
    """The adapter in its rotated frame; the products stay the same."""
    sites: dict[str, Factors] = {}
    for (site, f), matrix in zip(adapter.sites.items(), rotation.matrix.unbind(), strict=True):
        a, b = rotate(f.a, f.b, matrix[..., : f.rank, : f.rank])
        sites[site] = Factors(a.to(f.a.dtype), b.to(f.b.dtype))
    return replace(adapter, sites=sites)


def _batch(matrices: Sequence[Tensor], least: int = 0) -> Tensor:
    """A stack of square matrices, at least `least` wide, those of smaller rank bordered by a multiple of the identity.

    The multiple is the matrix's norm: the nearest rotation of the bordered matrix is then that of the matrix,
    bordered by the identity, and its rank deficiency unchanged.
    """
    rank = max(least, *(m.shape[-1] for m in matrices))
    return torch.stack([m if m.shape[-1] == rank else _bordered(m, rank) for m in matrices])


def _bordered(matrix: Tensor, rank: int) -> Tensor:
    own = matrix.shape[-1]
    wide = pad(matrix, (0, rank - own, 0, rank - own))
    border = linalg.frobenius(matrix)[..., None, None] * identity_like(wide)
    return wide + border * (torch.arange(rank, device=matrix.device) >= own)
