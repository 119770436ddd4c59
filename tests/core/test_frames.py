"""Other factors of one product."""

from __future__ import annotations

import pytest
import torch

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.frames import haar, reframe, svd_frame
from fedrot.core.rng import generator


def drawn(
    *batch: int, rank: int = 3, d_in: int = 7, d_out: int = 9, dtype: torch.dtype = torch.float64
) -> Factors:
    noise = generator(1, "frames")
    a = torch.randn(*batch, rank, d_in, generator=noise, dtype=dtype)
    return Factors(a, torch.randn(*batch, d_out, rank, generator=noise, dtype=dtype))


def test_the_svd_frame_keeps_the_product_and_is_balanced() -> None:
    f = drawn(2, 5)
    a, b = svd_frame(f.a, f.b)
    torch.testing.assert_close(b @ a, f.b @ f.a)
    values = torch.linalg.svdvals(f.b @ f.a)[..., :3]
    torch.testing.assert_close(a @ a.mT, torch.diag_embed(values))
    torch.testing.assert_close(b.mT @ b, torch.diag_embed(values))


def test_the_svd_frame_of_a_stack_is_that_of_each() -> None:
    f = drawn(4)
    a, b = svd_frame(f.a, f.b)
    for index in range(4):
        one_a, one_b = svd_frame(f.a[index], f.b[index])
        torch.testing.assert_close(a[index], one_a)
        torch.testing.assert_close(b[index], one_b)


def test_the_svd_frame_forgets_the_frame_up_to_signs() -> None:
    f, mix = drawn(), torch.randn(3, 3, generator=generator(2, "mix"), dtype=torch.float64)
    a, b = svd_frame(f.a, f.b)
    other_a, other_b = svd_frame(mix.inverse() @ f.a, f.b @ mix)
    torch.testing.assert_close(other_a.abs(), a.abs())
    torch.testing.assert_close(other_b.abs(), b.abs())


def test_an_update_of_zero_and_a_rank_beyond_the_layer_have_an_svd_frame() -> None:
    a, b = svd_frame(torch.randn(3, 7, generator=generator(1, "x")), torch.zeros(9, 3))
    assert (a.shape, b.shape) == ((3, 7), (9, 3))
    assert not a.any()
    assert not b.any()
    wide = drawn(rank=5, d_in=4, d_out=3)
    a, b = svd_frame(wide.a, wide.b)
    assert (a.shape, b.shape) == ((5, 4), (3, 5))
    torch.testing.assert_close(b @ a, wide.b @ wide.a)


def test_one_client_that_is_not_finite_leaves_the_others_alone() -> None:
    f = drawn(3)
    f.a[1, 0, 0] = torch.nan
    a, b = svd_frame(f.a, f.b)
    assert a[1].isnan().all()
    assert b[1].isnan().all()
    torch.testing.assert_close(b[[0, 2]] @ a[[0, 2]], f.b[[0, 2]] @ f.a[[0, 2]])


def test_haar_draws_rotations_evenly() -> None:
    turns = torch.stack([haar(4, generator(seed, "haar")) for seed in range(2000)])
    torch.testing.assert_close(turns @ turns.mT, torch.eye(4, dtype=torch.float64).expand(2000, 4, 4))
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(2000, dtype=torch.float64))
    assert turns.mean(0).abs().max() < 0.05, "no direction is preferred"
    assert (turns.square().mean(0) - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("frame", ["svd", "random"])
def test_reframing_keeps_every_clients_product_head_and_residual(frame: str) -> None:
    f = drawn(3, dtype=torch.float32)
    head, extra = {"h": torch.ones(3, 2)}, {"x": drawn(3, rank=1, dtype=torch.float32)}
    adapter = Adapter({"x": f}, head, 2.0, extra)
    turned = reframe(adapter, frame, seed=5, round=2, clients=(4, 7, 9))  # pyright: ignore[reportArgumentType]
    g = turned.sites["x"]
    exact = f.b.double() @ f.a.double()
    assert ((g.b.double() @ g.a.double() - exact).norm() / exact.norm()) < 1e-6
    assert (g.a - f.a).norm() > 0.5
    assert turned.residual["x"] is extra["x"]
    assert torch.equal(turned.head["h"], head["h"])
    assert turned.scale == 2.0
    for index, client in enumerate((4, 7, 9)):
        alone = reframe(adapter.select(index), frame, seed=5, round=2, clients=(client,))  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(alone.sites["x"].a, g.a[index])


def test_own_frames_are_left_alone() -> None:
    adapter = Adapter({"x": drawn()})
    assert reframe(adapter, "own", 1, 1) is adapter
