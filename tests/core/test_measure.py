from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from fedrot.core import (
    Adapter,
    Factors,
    adapter_aggregation_error,
    adapter_broadcast_error,
    aggregation_error,
    broadcast_error,
    rotate,
    stack,
    weighted_mean,
)
from fedrot.core.diagnostics import (
    Tightness,
    alignment_gain,
    drift,
    kappa,
    relative_drift,
    subspace_overlap,
    tightness,
)
from fedrot.core.lowrank import concatenate, distance, norm, truncate
from fedrot.errors import AdapterError
from tests.core.strategies import normal, property_test, ranks, rotations, seeds

clients = st.integers(1, 6)


def dense(a: torch.Tensor, b: torch.Tensor, weights: list[float]) -> np.ndarray:
    shares = np.asarray(weights) / np.sum(weights)
    return np.einsum("n,n...or,n...ri->...oi", shares, b.double().numpy(), a.double().numpy())


@property_test(seeds, clients, ranks)
def test_aggregation_error_equals_the_dense_one(seed: int, count: int, rank: int) -> None:
    a, b = normal(seed, count, 2, rank, 9), normal(seed + 1, count, 2, 7, rank)
    weights = (normal(seed + 2, count).abs() + 0.1).tolist()
    ideal = dense(a, b, weights)
    shares = np.asarray(weights) / np.sum(weights)
    means = [np.einsum("n,n...->...", shares, t.numpy()) for t in (b, a)]
    expected = np.linalg.norm(ideal - means[0] @ means[1], axis=(-2, -1))
    error = aggregation_error(a, b, weights)
    np.testing.assert_allclose(error.absolute, expected, atol=1e-7)
    np.testing.assert_allclose(error.ideal, np.linalg.norm(ideal, axis=(-2, -1)), rtol=1e-9)
    np.testing.assert_allclose(error.relative, expected / np.linalg.norm(ideal, axis=(-2, -1)), atol=1e-7)
    broadcast = broadcast_error(a, b, weights, *(torch.from_numpy(m) for m in reversed(means)))
    np.testing.assert_allclose(broadcast.absolute, expected, atol=1e-12)


def test_tiny_errors_are_accurate_where_the_uncentred_form_is_not() -> None:
    """Clients `1e-9` apart: the error, of order 1e-18, is known to 1e-12 relative."""
    generator = np.random.default_rng(0)
    a = torch.from_numpy(generator.integers(-8, 8, (2, 4, 9)) / 8.0)
    b = torch.from_numpy(generator.integers(-8, 8, (2, 7, 4)) / 8.0)
    apart = 2.0**-30  # powers of two, so that the clients' factors are exact
    a, b = a[0] + apart * a * torch.tensor([1.0, -1.0])[:, None, None], b[0] + apart * b
    deviations = [(t[0] - t[1]).numpy() / 2 for t in (b, a)]
    expected = np.linalg.norm(deviations[0] @ deviations[1])
    error = aggregation_error(a, b, [1, 1]).absolute
    assert abs(float(error) - expected) < 1e-12 * expected
    uncentred = np.linalg.norm(dense(a, b, [1, 1]) - (b.mean(0) @ a.mean(0)).numpy())
    assert abs(uncentred - expected) > 0.1 * expected


def test_float32_clients_are_measured_in_float64() -> None:
    a, b = normal(0, 5, 4, 60).float(), normal(1, 5, 50, 4).float()
    error, reference = aggregation_error(a, b, [1] * 5), aggregation_error(a.double(), b.double(), [1] * 5)
    assert error.absolute.dtype == torch.float32
    torch.testing.assert_close(error.absolute, reference.absolute.float(), rtol=1e-7, atol=0)


@property_test(seeds, clients)
def test_a_common_rotation_changes_no_error_and_identical_clients_have_none(seed: int, count: int) -> None:
    a, b = normal(seed, count, 4, 9), normal(seed + 1, count, 7, 4)
    turned = rotate(a, b, rotations(seed + 2, 4, 4))
    weights = [1.0] * count
    before, after = aggregation_error(a, b, weights), aggregation_error(*turned, weights)
    torch.testing.assert_close(before.absolute, after.absolute, atol=1e-9, rtol=0)
    same = aggregation_error(a[:1].expand(3, -1, -1), b[:1].expand(3, -1, -1), [1, 2, 3])
    assert same.relative < 1e-15
    zero = aggregation_error(0 * a, 0 * b, weights)
    assert (zero.absolute, zero.relative) == (0, 0)


def adapter(seed: int, scale: float = 2.0) -> Adapter:
    shapes = {"q": (9, 7), "v": (5, 11)}
    sites = {
        s: Factors(normal(seed, 3, i).float(), normal(seed + 9, o, 3).float()) for s, (i, o) in shapes.items()
    }
    return Adapter(sites, {"head": normal(seed, 4).float()}, scale)


def test_adapter_errors_combine_sites_and_scale() -> None:
    sent, weights = [adapter(seed) for seed in (1, 2, 3)], [1.0, 2.0, 3.0]
    parts = {
        site: aggregation_error(
            *(torch.stack([getattr(c.sites[site], f) for c in sent]).double() for f in "ab"), weights
        )
        for site in ("q", "v")
    }
    total = 2 * torch.stack([p.absolute**2 for p in parts.values()]).sum().sqrt()
    ideal = 2 * torch.stack([p.ideal**2 for p in parts.values()]).sum().sqrt()
    for clients in (sent, stack(sent)):
        error = adapter_aggregation_error(clients, weights)
        torch.testing.assert_close(error.absolute, total)
        torch.testing.assert_close(error.relative, total / ideal)


def test_a_residual_counts_in_a_broadcast() -> None:
    sent, weights = [adapter(seed) for seed in (1, 2, 3)], [0.2, 0.3, 0.5]
    shares = torch.tensor(weights, dtype=torch.float64)
    mean, whole, residual = weighted_mean(sent, weights), stack(sent), {}
    for s, m in mean.sites.items():
        residual[s] = Factors(*concatenate(whole.sites[s].a - m.a, whole.sites[s].b - m.b, shares))
    plain = adapter_broadcast_error(sent, weights, mean)
    torch.testing.assert_close(
        plain.absolute, adapter_aggregation_error(sent, weights).absolute, rtol=1e-5, atol=0
    )
    assert adapter_broadcast_error(sent, weights, Adapter(mean.sites, {}, 2.0, residual)).relative < 1e-6


@property_test(seeds, ranks, st.integers(1, 12))
def test_truncation_is_the_best_approximation_and_balanced(seed: int, inner: int, rank: int) -> None:
    a, b = normal(seed, 2, inner, 9), normal(seed + 1, 2, 7, inner)
    near_a, near_b, values = truncate(a, b, rank)
    assert (near_a.shape, near_b.shape) == ((2, rank, 9), (2, 7, rank))
    full = torch.linalg.svdvals(b @ a)
    torch.testing.assert_close(values, full[:, : values.shape[-1]], atol=1e-9, rtol=0)
    tail = full[:, rank:].square().sum(-1).sqrt()
    torch.testing.assert_close(torch.linalg.matrix_norm(near_b @ near_a - b @ a), tail, atol=1e-7, rtol=0)
    torch.testing.assert_close(distance(a, b, near_a, near_b), tail, atol=1e-9, rtol=0)
    torch.testing.assert_close(near_a @ near_a.mT, near_b.mT @ near_b, atol=1e-9, rtol=0)
    torch.testing.assert_close(norm(a, b), torch.linalg.matrix_norm(b @ a), atol=1e-9, rtol=0)


def test_diagnostics() -> None:
    a, b = normal(1, 4, 12), normal(2, 10, 4)
    turn = rotations(3, 2, 4, 4)
    turned, _ = rotate(a.expand(2, 4, 12), b.expand(2, 10, 4), turn)
    gain = alignment_gain(turned, a, turn.mT)
    torch.testing.assert_close(gain, (turned - a).square().sum((-2, -1)))
    torch.testing.assert_close(subspace_overlap(turned, a), torch.ones(2, dtype=torch.float64))
    assert 0.1 < subspace_overlap(normal(5, 8, 400), normal(6, 8, 400)) * 400 / 8 < 3
    torch.testing.assert_close(relative_drift(1.1 * a, a), torch.tensor(0.1, dtype=torch.float64))
    assert relative_drift(a, 0 * a).isnan()
    sizes = torch.linalg.matrix_norm(turn - torch.eye(4))
    away = torch.linalg.matrix_norm(turned - a)
    torch.testing.assert_close(kappa(turn, turned, a), (sizes / away).max())
    reference = Adapter({"q": Factors(a, b), "v": Factors(0 * a, b)})
    stacked = Adapter({s: Factors(torch.stack([1.1 * a, 1.3 * a]), torch.stack([b, b])) for s in "qv"})
    torch.testing.assert_close(drift(stacked, reference), torch.tensor([0.1, 0.3], dtype=torch.float64))


def test_the_admissible_strengths_are_where_the_gain_is_positive() -> None:
    bound = tightness(c0=1.0, kappa=0.1, local_steps=25, lr=0.01, gradient_bound=2.0, distance=0.5)
    assert bound.slope == pytest.approx(1 - 4 * 5 * 0.1 * 0.01 * 2 / 0.5)
    assert bound.curvature == pytest.approx(4 * 0.01 * 25)
    low, high = bound.admissible or (1.0, 0.0)
    assert low == 0
    assert bound.gain(0.5 * high) > 0
    assert bound.gain(high) == pytest.approx(0) if high < 1 else bound.gain(1) > 0
    assert bound.gain(bound.best) >= max(bound.gain(0.01 * i) for i in range(101)) - 1e-9
    assert Tightness(slope=-1.0, curvature=1.0).admissible is None
    assert Tightness(slope=-1.0, curvature=1.0).best == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "1 weights for 2"),
        ([1.0, -1.0], r"weights\[1\]"),
        ([0.0, 0.0], "zero"),
        ([float("nan"), 1], "finite"),
    ],
)
def test_unusable_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        aggregation_error(normal(1, 2, 4, 12), normal(2, 2, 10, 4), weights)


def test_unstacked_factors_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"expected \(N"):
        aggregation_error(normal(1, 4, 12), normal(2, 10, 4), [1.0])
