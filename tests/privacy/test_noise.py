"""Noise is standard normal from either source, and only the seeded one can be drawn again."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fedrot.privacy import Noise, make_noise, seeded_noise, system_noise


@pytest.mark.parametrize("draw", [system_noise, seeded_noise(3, 1, 2)], ids=["system", "seed"])
def test_noise_is_standard_normal(draw: Noise) -> None:
    drawn = draw([50_001])
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-6, "one false alarm in a million runs"
    halves = drawn[:25_000], drawn[25_000:50_000]
    assert abs(float(torch.corrcoef(torch.stack(halves))[0, 1])) < 6 / math.sqrt(25_000)


def test_system_noise_is_new_at_every_call_and_of_the_shape_asked_for() -> None:
    first, second = system_noise([3, 5]), system_noise([3, 5])
    assert first.shape == (3, 5)
    assert not torch.equal(first, second)
    assert system_noise([0, 4]).shape == (0, 4)


def test_system_noise_ignores_the_seed() -> None:
    torch.manual_seed(0)
    first = make_noise("system", 1, 2, 3)([8])
    torch.manual_seed(0)
    assert not torch.equal(first, make_noise("system", 1, 2, 3)([8]))


def test_seeded_noise_depends_on_seed_round_and_client_and_the_server_has_its_own() -> None:
    base = make_noise("seed", 1, 2, 0)([6])
    assert torch.equal(base, make_noise("seed", 1, 2, 0)([6]))
    for other in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (1, 2, None)):
        assert not torch.equal(base, make_noise("seed", *other)([6])), other
