"""The accumulated residual: a sum that stays of bounded rank, and says what that cost."""

from __future__ import annotations

import pytest
import torch

from fedrot.core import Factors
from fedrot.core.residual import accumulate


def factors(seed: int, rank: int, d_in: int = 7, d_out: int = 9) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, d_in, generator=draw, dtype=torch.float64)
    return Factors(a, torch.randn(d_out, rank, generator=draw, dtype=torch.float64))


def dense(f: Factors) -> torch.Tensor:
    return f.b @ f.a


def test_rounds_add_up_without_loss_and_rank_stops_at_the_layers_own() -> None:
    total: dict[str, Factors] = {}
    expected = torch.zeros(9, 7, dtype=torch.float64)
    for round in range(5):
        step = {"q": factors(round, 3)}
        grown = accumulate(total, step)
        expected += dense(step["q"])
        torch.testing.assert_close(dense(grown.total["q"]), expected)
        torch.testing.assert_close(dense(grown.change["q"]), dense(step["q"]))
        assert grown.lost == 0.0
        assert grown.total["q"].rank == min(3 * (round + 1), 7)
        total = grown.total


def test_a_bound_keeps_the_best_approximation_and_counts_what_it_lost() -> None:
    old, new = {"q": factors(1, 3), "v": factors(2, 1)}, {"q": factors(3, 3), "v": factors(4, 1)}
    grown = accumulate(old, new, 4)
    whole = {site: dense(old[site]) + dense(new[site]) for site in old}
    u, s, vh = torch.linalg.svd(whole["q"], full_matrices=False)
    torch.testing.assert_close(dense(grown.total["q"]), u[:, :4] * s[:4] @ vh[:4])
    torch.testing.assert_close(dense(grown.total["v"]), whole["v"])
    norm = sum(w.square().sum() for w in whole.values()).sqrt()
    assert grown.lost == pytest.approx(float(s[4:].norm() / norm), rel=1e-9)
    for site in old:  # receivers that hold the total before end at the total after
        torch.testing.assert_close(dense(grown.change[site]), dense(grown.total[site]) - dense(old[site]))


def test_sites_without_an_increment_keep_their_total_and_new_ones_join() -> None:
    old, new = {"q": factors(1, 2)}, {"v": factors(2, 2)}
    grown = accumulate(old, new)
    assert grown.total["q"] is old["q"]
    assert list(grown.total) == ["q", "v"]
    assert list(grown.change) == ["v"]
    first = accumulate({}, {"q": factors(1, 20)}, 3)
    assert first.total["q"].rank == 3
    assert first.lost > 0
    torch.testing.assert_close(dense(first.change["q"]), dense(first.total["q"]))
