"""Why alignment has little to do in ordinary rounds: gradient flow conserves what a rotation would need.

For any loss `f(b a)` with gradient `G` in `b a`, the flow is `da/dt = -b.T G`, `db/dt = -G a.T`, so that
`a' a.T = b.T b'`, and `a a.T - b.T b` is constant. Then `a a_ref.T + b.T b_ref` is symmetric to first order in the
drift, since the skew part of `a' a.T + b'.T b` is that of `a' a.T - b.T b' = 0`; and to second order too, since one
derivative more gives `a'' a.T - b.T b'' = b'.T b' - a' a'.T`, which is symmetric.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fedrot.core.adapter import Factors
from fedrot.core.procrustes import align, correlation
from fedrot.core.rng import generator

RANK, D_IN, D_OUT = 3, 10, 8


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "conservation"), dtype=torch.float64)


def start() -> Factors:
    return Factors(normal(RANK, D_IN, seed=1), normal(D_OUT, RANK, seed=2) / 2)


def descend(f: Factors, step: float, time: float, client: int = 3) -> Factors:
    """Gradient descent on `||(b a - target) x||^2 / (2 n)`, a client's own regression, from `f`."""
    x, target = normal(D_IN, 40, seed=client), normal(D_OUT, D_IN, seed=client + 100)
    moment, cross = x @ x.T / 40, target @ x @ x.T / 40
    a, b = f.a, f.b
    for _ in range(round(time / step)):
        gradient = b @ a @ moment - cross
        a, b = a - step * b.T @ gradient, b - step * gradient @ a.T
    return Factors(a, b)


def imbalance(f: Factors) -> Tensor:
    return f.a @ f.a.T - f.b.T @ f.b


def test_the_imbalance_of_the_factors_is_conserved_to_first_order_in_the_step() -> None:
    before = imbalance(start())
    broken = [float((imbalance(descend(start(), step, 0.2)) - before).norm()) for step in (1e-2, 1e-3, 1e-4)]
    moved = float((descend(start(), 1e-3, 0.2).a - start().a).norm())
    assert moved > 0.3, "the factors themselves go far"
    assert broken[0] / broken[1] == pytest.approx(10, rel=0.2)
    assert broken[1] / broken[2] == pytest.approx(10, rel=0.05)
    assert broken[2] < 2e-3 * moved


@pytest.mark.parametrize("anchor", ["a", "b"])
def test_one_factor_alone_turns_to_first_order(anchor: str) -> None:
    """The skew part of `a a_ref.T` is first order in the drift; that of `b.T b_ref` cancels it."""
    f, ref = descend(start(), 1e-4, 0.01), start()
    matrix = correlation(f.a, f.b, ref.a, ref.b, anchor)  # pyright: ignore[reportArgumentType]
    drift = float((f.a - ref.a).norm())
    assert float((matrix - matrix.T).norm()) > 0.1 * drift


TIMES = (0.01, 0.005, 0.0025)


def ratios(values: list[float]) -> list[float]:
    return [large / small for large, small in pairwise(values)]


def test_the_sum_of_both_correlations_is_symmetric_to_second_order_in_the_drift() -> None:
    """Halving the drift divides the skew part by eight."""
    ref, skews, drifts = start(), [], []
    for time in TIMES:
        f = descend(ref, 1e-6, time)
        both = f.a @ ref.a.T + f.b.T @ ref.b
        skews.append(float((both - both.T).norm()))
        drifts.append(float((f.a - ref.a).norm()))
    assert ratios(drifts) == pytest.approx([2, 2], rel=0.1)
    assert ratios(skews) == pytest.approx([8, 8], rel=0.2)


def turned(f: Factors, ref: Factors, anchor: str) -> float:
    _, _, rotation = align(f.a, f.b, ref.a, ref.b, anchor, 1.0)  # pyright: ignore[reportArgumentType]
    return float(rotation.size)


def test_the_joint_rotation_of_references_of_one_size_is_the_identity_to_second_order() -> None:
    """Halving the drift divides it by eight, and that of one factor alone by two."""
    ref = start()
    size = (ref.a.norm() / ref.b.norm()).sqrt()
    even = Factors(ref.a / size, ref.b * size)
    ends = [descend(even, 1e-6, time) for time in TIMES]
    assert ratios([turned(f, even, "a") for f in ends]) == pytest.approx([2, 2], rel=0.1)
    assert ratios([turned(f, even, "joint") for f in ends]) == pytest.approx([8, 8], rel=0.2)


def test_the_joint_rotation_of_references_of_unlike_sizes_is_first_order() -> None:
    """`joint` divides each correlation by the size of its reference: then the two no longer cancel."""
    ref = start()
    assert ref.a.norm() > 1.5 * ref.b.norm()
    ends = [descend(ref, 1e-6, time) for time in TIMES]
    assert ratios([turned(f, ref, "joint") for f in ends]) == pytest.approx([2, 2], rel=0.15)


def test_clients_gain_little_from_one_start_and_much_from_frames_that_differ() -> None:
    ref = start()
    turn = torch.linalg.qr(normal(RANK, RANK, seed=9))[0]
    turn[:, 0] *= torch.linalg.det(turn).sign()
    clients = [descend(ref, 1e-3, 0.02, client) for client in (3, 4)]

    def gain(pairs: list[Factors]) -> float:
        """Error of averaging after joint alignment over the error before."""

        def error(fs: list[Factors]) -> float:
            a, b = (sum(getattr(f, x) for f in fs) / len(fs) for x in "ab")
            return float((sum(f.b @ f.a for f in fs) / len(fs) - b @ a).norm())

        aligned = [Factors(*align(f.a, f.b, ref.a, ref.b, "joint", 1.0)[:2]) for f in pairs]
        return error(aligned) / error(pairs)

    assert 0.9 < gain(clients) < 1.1
    first, second = clients
    assert gain([first, Factors(turn.T @ second.a, second.b @ turn)]) < 0.1
