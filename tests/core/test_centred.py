"""Aggregation errors of many float32 clients: as precise as in float64, or computed in float64."""

from __future__ import annotations

import pytest
import torch

from fedrot.core import Adapter, Factors, adapter_aggregation_error, aggregation_error
from fedrot.core.centred import centred_norms
from tests.core.strategies import normal

SHARES = torch.full((40,), 1 / 40, dtype=torch.float64)


def clients(drift: float, count: int = 40, rank: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = normal(1, rank, 96), normal(2, 80, rank)
    return (a + drift * normal(3, count, rank, 96)).float(), (b + drift * normal(4, count, 80, rank)).float()


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 1.0, 100.0])
def test_many_clients_are_measured_as_precisely_as_in_float64(drift: float) -> None:
    a, b = clients(drift)
    assert centred_norms(a, b, SHARES) is not None
    fast, exact = aggregation_error(a, b, [1.0] * 40), aggregation_error(a.double(), b.double(), [1.0] * 40)
    for mine, theirs in zip(fast, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=0)
    wanted = [3.0, *[1.0] * 38, 7.0]
    fast, exact = aggregation_error(a, b, wanted), aggregation_error(a.double(), b.double(), wanted)
    torch.testing.assert_close(fast.absolute.double(), exact.absolute, rtol=1e-6, atol=0)


def test_errors_that_cancel_are_left_to_float64() -> None:
    """Every client has a twin whose `a` deviates the other way, so that the covariance nearly vanishes."""
    a, b = clients(0.3)
    apart = a - a.mean(0)
    twins = torch.cat([a[:20], a[:20] - 2 * apart[:20]]), torch.cat([b[:20], b[:20]])
    assert centred_norms(*twins, SHARES) is None
    fast = aggregation_error(*twins, [1.0] * 40)
    exact = aggregation_error(*(t.double() for t in twins), [1.0] * 40)
    torch.testing.assert_close(fast.absolute.double(), exact.absolute, rtol=1e-6, atol=0)


def test_an_ideal_update_that_cancels_is_left_to_float64() -> None:
    a, b = clients(0.0)
    b = torch.cat([b[:20], -b[20:]])
    assert centred_norms(a, b * (1 + 1e-4 * normal(5, 40, 1, 1).float()), SHARES) is None


def test_few_clients_float64_and_equal_clients_go_the_exact_way() -> None:
    a, b = clients(0.1)
    assert centred_norms(a[:31], b[:31], SHARES[:31]) is None
    assert centred_norms(a.double(), b.double(), SHARES) is None
    same = a[:1].expand(40, -1, -1), b[:1].expand(40, -1, -1)
    assert aggregation_error(*same, [1.0] * 40).relative < 1e-7


def test_stacks_of_sites_and_whole_adapters_go_the_fast_way_too() -> None:
    a, b = clients(0.2)
    both = torch.stack([a, 2 * a.flip(0)], 1), torch.stack([b, b], 1)
    found = aggregation_error(*both, [1.0] * 40)
    for index in (0, 1):
        alone = aggregation_error(both[0][:, index], both[1][:, index], [1.0] * 40)
        torch.testing.assert_close(found.absolute[index], alone.absolute, rtol=1e-6, atol=0)
    stacked = Adapter({"q": Factors(a, b)}, scale=2.0)
    whole = adapter_aggregation_error(stacked, [1.0] * 40)
    torch.testing.assert_close(
        whole.absolute, 2 * aggregation_error(a.double(), b.double(), [1.0] * 40).absolute, rtol=1e-6, atol=0
    )
    assert whole.absolute.dtype == torch.float64


def test_inputs_are_not_modified() -> None:
    a, b = clients(0.2)
    copies = a.clone(), b.clone()
    aggregation_error(a, b, [1.0] * 40)
    assert torch.equal(a, copies[0])
    assert torch.equal(b, copies[1])


def test_factors_that_are_being_trained_are_measured_without_a_graph() -> None:
    a, b = clients(0.2)
    trained = [Adapter({"q": Factors(a[i].requires_grad_(), b[i].requires_grad_())}) for i in range(40)]
    found = adapter_aggregation_error(trained, [1.0] * 40).absolute
    torch.testing.assert_close(found, aggregation_error(a.double(), b.double(), [1.0] * 40).absolute)
    fast = centred_norms([c.sites["q"].a for c in trained], [c.sites["q"].b for c in trained], SHARES)
    assert fast is not None
    assert not any(t.requires_grad for t in (found, *fast))
