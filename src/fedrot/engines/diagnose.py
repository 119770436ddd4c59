"""The quantities of the paper's bound, measured on the uploads of one round, beside what each strength would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, normalise
from fedrot.core.alignment import apply, client_correlations, solve_sites
from fedrot.core.diagnostics import tightness
from fedrot.engines.round import Round
from fedrot.methods import Method
from fedrot.methods.fedrot import FedRot

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def diagnose_round(round: Round, reference: Adapter, lr: float) -> dict[str, Any]:
    """`diagnose` of the updates that a round accepted, with their mean number of local steps."""
    return diagnose(
        round.method,
        round.number,
        round.trained,
        [update.weight for update in round.updates],
        reference,
        lr=lr,
        local_steps=round.steps / max(1, round.count),
    )


@torch.no_grad()
def diagnose(
    method: Method,
    round: int,
    trained: Sequence[Adapter],
    weights: Sequence[float],
    reference: Adapter,
    *,
    lr: float,
    local_steps: float,
) -> dict[str, Any]:
    """What the theory says of a round of `fedrot`, and what alignment to `reference` would measure at five strengths.

    An adapter of several sites is one block-diagonal pair of factors, so norms are taken over all sites. With `x`
    the anchored factor (`b` in rounds that align `b`, else `a`) and `y` the other one:

    - `kappa`: `max_i ||R_i* - I|| / ||x_i - x_ref||` over clients;
    - `distance`: `delta`, the smallest `||x_i - x_ref||`;
    - `gradient`: the mean over clients of `||y_i - y_ref|| / (lr tau)`. A stand-in for the bound on gradients, which
      would need hooks in training: right for SGD whose steps all point one way, too small where they cancel, and a
      measure of the step rather than of the gradient for AdamW;
    - `c0`: the share of `sum p_i ||x_i - x_ref||^2` that the full rotations remove;
    - `slope`, `curvature`, `admissible`: `Gamma(l) = slope l - curvature l^2` and where in [0, 1] it is positive;
    - `error_by_strength`: relative aggregation error. Costs one Gram matrix of each factor a site, `N r x N r`, in
      float64; a strength more is `r x r` algebra.

    Returns:
        Nothing for other methods, in the first round, which has no reference, and with a consensus, which is none;
        else the above under `diagnostics`.
    """
    if not isinstance(method, FedRot) or round == 1 or method.reference == "consensus":
        return {}
    shares = torch.tensor(normalise(weights, len(trained)), dtype=torch.float64)
    clients = [Adapter(c.sites, scale=c.scale).map(Tensor.double) for c in trained]
    target = Adapter(reference.sites, scale=reference.scale).map(Tensor.double)
    anchor = method.anchor_in(round)
    found = client_correlations(clients, target, anchor)
    full = solve_sites(found, 1.0, method.path, method.group)
    x, y = ("b", "a") if anchor == "b" else ("a", "b")
    away = _distances(clients, target, x)
    turned = [apply(client, full.select(i)) for i, client in enumerate(clients)]
    after = _distances(turned, target, x)
    size = full.size.double().square().sum(0).sqrt().cpu()
    moved = away > 0
    if not bool(moved.all()):
        return {"diagnostics": {"anchor": anchor, "unmoved_clients": int((~moved).sum())}}
    kappa = float((size / away).max())
    gradient = float(_distances(clients, target, y).mean()) / (lr * local_steps)
    c0 = 1 - float((shares * after.square()).sum() / (shares * away.square()).sum())
    bound = tightness(
        c0=c0,
        kappa=kappa,
        local_steps=max(1, int(local_steps + 0.5)),
        lr=lr,
        gradient_bound=gradient,
        distance=float(away.min()),
    )
    errors = error_by_strength(clients, shares, found, method)
    return {
        "diagnostics": {
            "anchor": anchor,
            "kappa": kappa,
            "distance": float(away.min()),
            "gradient": gradient,
            "c0": c0,
            "slope": bound.slope,
            "curvature": bound.curvature,
            "admissible": bound.admissible,
            "error_by_strength": {f"{strength:g}": error for strength, error in errors.items()},
        }
    }


def _distances(clients: Sequence[Adapter], target: Adapter, factor: str) -> Tensor:
    """`||x_i - x_ref||` over all sites, `(N,)`; of a reference of higher rank only a client's directions count."""
    found: list[Tensor] = []
    for client in clients:
        total = torch.zeros((), dtype=torch.float64)
        for site, f in client.sites.items():
            ref = target.sites[site]
            gap = f.a - ref.a[: f.rank] if factor == "a" else f.b - ref.b[:, : f.rank]
            total += gap.square().sum().cpu()
        found.append(total.sqrt())
    return torch.stack(found)


def error_by_strength(
    clients: Sequence[Adapter], shares: Tensor, found: Mapping[str, Tensor], method: FedRot
) -> dict[float, float]:
    """Relative error of averaging the factors after softened rotations, strength by strength.

    With Gram blocks `A_ij = a_i a_j.T` and `B_ij = b_i.T b_j`, rotations turn them into `R_i.T A_ij R_j`, and
    `||sum p_i (b_i - mean)(a_i - mean)||^2 = sum_ij p_i p_j <A_ij, B_ij>` of the centred blocks.
    """
    rank = max(f.rank for c in clients for f in c.sites.values())
    grams: dict[str, tuple[Tensor, Tensor]] = {}
    for site in found:
        each = [client.resized(rank).sites[site] for client in clients]
        a, b = torch.stack([f.a for f in each]), torch.stack([f.b.mT for f in each])
        grams[site] = torch.einsum("ird,jsd->ijrs", a, a), torch.einsum("ird,jsd->ijrs", b, b)
    result: dict[float, float] = {}
    for strength in STRENGTHS:
        rotation = solve_sites(found, strength, method.path, method.group).matrix.double()
        lost = ideal = 0.0
        for turn, (a, b) in zip(rotation, grams.values(), strict=True):
            p = shares.to(a.device)
            turned = [torch.einsum("irs,ijrt,jtu->ijsu", turn, gram, turn) for gram in (a, b)]
            lost += float(_paired(p, *(_centred(p, gram) for gram in turned)))
            ideal += float(_paired(p, *turned))
        result[strength] = (max(lost, 0.0) / ideal) ** 0.5 if ideal > 0 else 0.0
    return result


def _centred(p: Tensor, gram: Tensor) -> Tensor:
    rows = gram - torch.einsum("i,ijrs->jrs", p, gram)
    return rows - torch.einsum("j,ijrs->irs", p, rows)[:, None]


def _paired(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("i,j,ijrs,ijrs->", p, p, a, b)
