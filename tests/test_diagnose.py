"""The theory's quantities of a round, held to direct computation."""

from __future__ import annotations

import pytest
import torch

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alignment import align_adapter
from fedrot.core.measure import adapter_aggregation_error
from fedrot.core.rng import generator
from fedrot.engines.diagnose import STRENGTHS, diagnose
from fedrot.methods import build

WEIGHTS = [3.0, 1.0, 2.0]


def drawn(seed: int, near: Adapter | None = None, by: float = 0.3) -> Adapter:
    noise, sites = generator(seed, "diagnose"), {}
    for site, rank, d_in, d_out in (("x", 3, 8, 10), ("y", 2, 12, 6)):
        a, b = torch.randn(rank, d_in, generator=noise), torch.randn(d_out, rank, generator=noise)
        if near is not None:
            a, b = near.sites[site].a + by * a, near.sites[site].b + by * b
        sites[site] = Factors(a, b)
    return Adapter(sites, scale=2.0)


@pytest.mark.parametrize("anchor", ["a", "b", "joint"])
@pytest.mark.parametrize("by", [1e-4, 0.5])
def test_the_error_by_strength_is_that_of_aligning_and_averaging(anchor: str, by: float) -> None:
    reference = drawn(0)
    clients = [drawn(seed, reference, by) for seed in (1, 2, 3)]
    method = build("fedrot", {"anchor": anchor}, 0)
    found = diagnose(method, 2, clients, WEIGHTS, reference, lr=0.1, local_steps=5)["diagnostics"]
    for strength in STRENGTHS:
        wide = [client.map(torch.Tensor.double) for client in clients]
        target = reference.map(torch.Tensor.double)
        aligned = [align_adapter(c, target, anchor, strength)[0] for c in wide]  # pyright: ignore[reportArgumentType]
        expected = float(adapter_aggregation_error(aligned, WEIGHTS).relative)
        assert found["error_by_strength"][f"{strength:g}"] == pytest.approx(expected, rel=1e-5)


def test_the_bounds_quantities_are_those_of_block_diagonal_factors() -> None:
    reference = drawn(0)
    clients = [drawn(seed, reference) for seed in (1, 2, 3)]
    method = build("fedrot", {"anchor": "a"}, 0)
    found = diagnose(method, 3, clients, WEIGHTS, reference, lr=0.1, local_steps=4)["diagnostics"]

    def block(adapter: Adapter, factor: str) -> torch.Tensor:
        return torch.block_diag(*(getattr(f, factor).double() for f in adapter.sites.values()))

    target, turns, away, after = block(reference, "a"), [], [], []
    for client in clients:
        _, rotation = align_adapter(client, reference, "a", 1.0)
        turn = torch.block_diag(rotation.matrix[0], rotation.matrix[1][:2, :2]).double()
        turns.append((turn - torch.eye(5)).norm())
        away.append((block(client, "a") - target).norm())
        after.append((turn.T @ block(client, "a") - target).norm())
    distance = torch.stack(away)
    kappa = float((torch.stack(turns) / distance).max())
    shares = torch.tensor(WEIGHTS) / 6
    c0 = 1 - float((shares * torch.stack(after) ** 2).sum() / (shares * distance**2).sum())
    gradient = sum(float((block(c, "b") - block(reference, "b")).norm()) for c in clients) / 3 / (0.1 * 4)
    assert found["kappa"] == pytest.approx(kappa, rel=1e-5)
    assert found["distance"] == pytest.approx(float(distance.min()), rel=1e-6)
    assert found["c0"] == pytest.approx(c0, rel=1e-4)
    assert found["gradient"] == pytest.approx(gradient, rel=1e-6)
    assert found["curvature"] == pytest.approx(4 * kappa**2 * 4, rel=1e-5)
    steepness = 4 * 2 * kappa * 0.1 * gradient / float(distance.min())
    assert found["slope"] == pytest.approx(c0 - steepness, rel=1e-4)


def test_where_there_is_nothing_to_say_nothing_is_said() -> None:
    reference = drawn(0)
    clients = [drawn(1, reference), reference]
    assert diagnose(build("fedit", {}, 0), 2, clients, [1, 1], reference, lr=0.1, local_steps=1) == {}
    assert diagnose(build("fedrot", {}, 0), 1, clients, [1, 1], reference, lr=0.1, local_steps=1) == {}
    still = diagnose(build("fedrot", {}, 0), 2, clients, [1, 1], reference, lr=0.1, local_steps=1)
    assert still == {"diagnostics": {"anchor": "b", "unmoved_clients": 1}}
