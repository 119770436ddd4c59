"""Errors of so many clients that their stacked rank is beyond the layer's width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrot.core import aggregation_error, summed
from fedrot.core.lowrank import concatenate, norm
from fedrot.core.summed import pays, summed_norms
from tests.core.strategies import normal

COUNT, RANK, D_IN, D_OUT = 60, 4, 24, 20


def clients(drift: float) -> tuple[Tensor, Tensor]:
    a, b = normal(1, RANK, D_IN), normal(2, D_OUT, RANK)
    return a + drift * normal(3, COUNT, RANK, D_IN), b + drift * normal(4, COUNT, D_OUT, RANK)


def by_definition(a: Tensor, b: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """From every client's product, in float64."""
    ideal = torch.einsum("n,nor,nri->oi", shares, b, a)
    a_mean, b_mean = (torch.einsum("n,n...->...", shares, t) for t in (a, b))
    error = torch.einsum("n,nor,nri->oi", shares, b - b_mean, a - a_mean)
    return error.norm(), ideal.norm()


@pytest.mark.parametrize("drift", [1e-6, 0.3, 100.0])
@pytest.mark.parametrize("columns", [7, 4096])
def test_many_clients_have_the_error_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, drift: float, columns: int
) -> None:
    assert pays(COUNT * RANK, D_IN, D_OUT)
    monkeypatch.setattr(summed, "COLUMNS", columns)
    a, b = clients(drift)
    weights = torch.arange(1, COUNT + 1, dtype=torch.float64)
    expected = by_definition(a, b, weights / weights.sum())
    found = summed_norms(a, b, weights / weights.sum())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    measured = aggregation_error(a.float(), b.float(), weights)
    exact = by_definition(a.float().double(), b.float().double(), weights / weights.sum())
    torch.testing.assert_close(measured.absolute.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(measured.ideal.double(), exact[1], rtol=1e-6, atol=0)


def test_sites_in_a_stack_are_measured_each_by_itself() -> None:
    a, b = clients(0.3)
    shares = torch.full((COUNT,), 1 / COUNT, dtype=torch.float64)
    both = summed_norms(torch.stack([a, a.flip(0)], 1), torch.stack([b, 2 * b], 1), shares)
    alone = [summed_norms(a, b, shares), summed_norms(a.flip(0), 2 * b, shares)]
    for found, expected in zip(both, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


def test_the_norm_of_a_product_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = clients(0.3)
    rows, columns = concatenate(a, b, torch.full((COUNT,), 1 / COUNT))
    formed = norm(rows, columns)
    monkeypatch.setattr("fedrot.core.lowrank.pays", lambda *_: False)
    torch.testing.assert_close(formed, norm(rows, columns), rtol=1e-12, atol=0)
