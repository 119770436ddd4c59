"""Whole adapters aligned at once: every site's rotation from one batched solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedrot.core import linalg
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alike import alike, batched
from fedrot.core.grouped import correlate, turn_all
from fedrot.core.polar import Group, full_precision, identity_like, widen
from fedrot.core.procrustes import Anchor, Rotation, check_fit, check_options, correlation, solve, turn
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
    pairs = {site: (f, reference.sites[site]) for site, f in trained.sites.items()}
    found: dict[str, Tensor] = {}
    for names in alike({site: (f.a, f.b, ref.a, ref.b) for site, (f, ref) in pairs.items()}):
        f, ref = pairs[names[0]]
        check_fit(f, _leading(ref, f.rank), f"alignment at site {names[0]!r}")
        with full_precision(f.a.device):
            if batched(f.a.device):
                found |= zip(names, correlate([pairs[name] for name in names], anchor).unbind(), strict=True)
            else:
                found |= {name: _correlation(*pairs[name], anchor) for name in names}
    return {site: found[site] for site in pairs}


def client_correlations(clients: Sequence[Adapter], reference: Adapter, anchor: Anchor) -> dict[str, Tensor]:
    """`correlations` of many clients without stacking their factors: `(N, r, r)` at every site.

    `r` is the reference's rank. Rotations of clients of smaller rank turn their own directions and leave the others.
    """
    each = [correlations(client, reference, anchor) for client in clients]
    ranks: dict[int, list[str]] = {}
    for site in each[0]:
        ranks.setdefault(reference.sites[site].rank, []).append(site)
    found: dict[str, Tensor] = {}
    for rank, names in ranks.items():
        whole = torch.stack([_batch([own[name] for name in names], rank) for own in each], 1)
        found |= zip(names, whole.unbind(), strict=True)
    return {site: found[site] for site in each[0]}


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
    matrices = dict(zip(adapter.sites, rotation.matrix.unbind(), strict=True))
    sites: dict[str, Factors] = {}
    for names in alike({site: (f.a, f.b) for site, f in adapter.sites.items()}):
        group = [adapter.sites[name] for name in names]
        with full_precision(group[0].a.device):
            if batched(group[0].a.device):
                sites |= zip(names, turn_all(group, [matrices[name] for name in names]), strict=True)
            else:
                sites |= {name: _turned(adapter.sites[name], matrices[name]) for name in names}
    return replace(adapter, sites={site: sites[site] for site in adapter.sites})


def _correlation(f: Factors, ref: Factors, anchor: Anchor) -> Tensor:
    ref = _leading(ref, f.rank)
    a, b, a_ref, b_ref = widen(f.a, f.b, ref.a, ref.b)
    return correlation(a, b, a_ref, b_ref, anchor)


def _turned(f: Factors, matrix: Tensor) -> Factors:
    a, b = turn(f.a, f.b, matrix[..., : f.rank, : f.rank])
    return Factors(a.to(f.a.dtype), b.to(f.b.dtype))


def _leading(factors: Factors, rank: int) -> Factors:
    """The first `rank` directions, or as many as there are."""
    return Factors(factors.a[..., :rank, :], factors.b[..., :rank])


def _batch(matrices: Sequence[Tensor], least: int = 0) -> Tensor:
    """A stack of square matrices, at least `least` wide, those of smaller rank bordered by a multiple of the identity.

    The multiple is the matrix's norm: the nearest rotation of the bordered matrix is then that of the matrix,
    bordered by the identity, and its rank deficiency unchanged.
    """
    rank = max(least, *(m.shape[-1] for m in matrices))
    wide = list(matrices)
    for own in {m.shape[-1] for m in matrices} - {rank}:
        places = [place for place, m in enumerate(matrices) if m.shape[-1] == own]
        bordered = _bordered(torch.stack([matrices[place] for place in places]), rank)
        for place, matrix in zip(places, bordered.unbind(), strict=True):
            wide[place] = matrix
    return torch.stack(wide)


def _bordered(matrix: Tensor, rank: int) -> Tensor:
    own = matrix.shape[-1]
    wide = pad(matrix, (0, rank - own, 0, rank - own))
    border = linalg.frobenius(matrix)[..., None, None] * identity_like(wide)
    return wide + border * (torch.arange(rank, device=matrix.device) >= own)
